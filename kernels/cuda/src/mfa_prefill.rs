//! MFA attention of chunks of sequences, whose tokens read each page two at a time (`cu/mfa_prefill.cu`).

use crate::chunks::ChunkSplit;
use crate::device::Device;
use crate::error::CudaError;
use crate::mfa::{Arguments, HEAD_DIM, HEADS, KvPages, MfaCall, MfaStep, PrefillArguments, check, refused};
use crate::module::Kernel;
use crate::source;
use crate::split::PAGE_TOKENS;
use crate::tensor_map::{Blocked, TensorMap};
use std::sync::Arc;

const THREADS: u32 = 384;
/// All that a block can have: one is resident at a time. The kernel asserts that what it lays out there fits.
const SHARED: u32 = 227 * 1024;

/// The kernel for one kind of KV.
#[derive(Debug)]
pub struct MfaPrefill {
    kernel: Kernel,
    kv: KvPages,
}

impl MfaPrefill {
    /// Loads the kernel for these pools.
    ///
    /// # Errors
    /// [`CudaError::Shape`] off Hopper or with pools of unequal size; what compiling and loading say.
    pub fn new(device: &Arc<Device>, kv: KvPages) -> Result<MfaPrefill, CudaError> {
        if !device.card().is_hopper() {
            return Err(refused(format!("needs compute capability 9.0, {} has not", device.card().name)));
        }
        check(&kv)?;
        let name = match &kv {
            KvPages::Bf16 { .. } => "mfa_prefill_bf16",
            KvPages::Fp8 { .. } => "mfa_prefill_fp8",
        };
        Ok(MfaPrefill { kernel: device.load(&source::MFA_PREFILL)?.kernel(name, SHARED)?, kv })
    }

    /// The same kernel for other pools of the same kind.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for another kind, or pools of unequal size.
    pub fn for_pages(&self, kv: KvPages) -> Result<MfaPrefill, CudaError> {
        if std::mem::discriminant(&kv) != std::mem::discriminant(&self.kv) {
            return Err(refused("pools of another kind than the kernel's".to_owned()));
        }
        check(&kv)?;
        Ok(MfaPrefill { kernel: self.kernel.clone(), kv })
    }

    /// Makes a step ready to be enqueued any number of times. Its `work` is [`ChunkSplit::words`], and it has
    /// [`ChunkSplit::slots_at_most`] partials.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for more CTAs than multiprocessors or slices that are too short.
    pub fn prepare(&self, step: MfaStep) -> Result<MfaCall, CudaError> {
        let device = self.kernel.device();
        step.check(device, ChunkSplit::slots_at_most(step.ctas as usize))?;
        let matrix = |address: u64, rows: usize| {
            let (rows, columns) = (rows as u64, HEAD_DIM as u64);
            Blocked { address, element: 2, rows, columns, block: 64, box_rows: PAGE_TOKENS, box_blocks: 4 }
                .encode(device)
        };
        let (k, v, keys, values, scales): (TensorMap, TensorMap, u64, u64, u64) = match &self.kv {
            KvPages::Bf16 { k, v } => {
                let positions = k.len() / HEAD_DIM;
                (matrix(k.address(), positions)?, matrix(v.address(), positions)?, 0, 0, 0)
            }
            KvPages::Fp8 { k, v, scales } => {
                (TensorMap::nothing(), TensorMap::nothing(), k.address(), v.address(), scales.address())
            }
        };
        let arguments = PrefillArguments {
            q: matrix(step.q.address(), step.rows() * HEADS)?,
            k,
            v,
            keys,
            values,
            scales,
            work: step.work.address(),
            pages: step.pages.address(),
            out: step.out.address(),
            partials: step.partials.address(),
            arrivals: step.arrivals.address(),
            scale_log2: step.scale * std::f32::consts::LOG2_E,
        };
        let arguments = Arguments::Prefill(Box::new(arguments));
        Ok(MfaCall { kernel: self.kernel.clone(), threads: THREADS, _kv: self.kv.clone(), arguments, step })
    }
}
