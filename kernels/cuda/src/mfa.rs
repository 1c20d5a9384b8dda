//! MFA decode attention on the device: checks shapes, describes KV to the copy engine, launches. The kernels' contracts
//! are at the top of `cu/mfa_decode_*.cu`.

use crate::device::Device;
use crate::error::CudaError;
use crate::memory::DeviceSlice;
use crate::module::{Kernel, Order, Shape};
use crate::source;
use crate::split::{PAGE_TOKENS, WorkSplit};
use crate::stream::Stream;
use crate::tensor_map::{Blocked, TensorMap};
use std::ffi::c_void;
use std::sync::Arc;

/// Query heads of the fast path: the 64 rows of a matrix instruction.
pub const HEADS: usize = 64;
/// Elements of a head on the fast path.
pub const HEAD_DIM: usize = 256;
/// Bytes of one partial: sums in f16; maxima and denominators of each half of the columns in f32.
pub const PARTIAL_BYTES: usize = HEADS * HEAD_DIM * 2 + 4 * HEADS * 4;

/// Positions of a box at a row's end.
const STRIP: u32 = 16;

/// KV pools of the fast path.
#[derive(Debug, Clone)]
pub enum KvPages {
    /// bf16 K and V, `[pages, 64, 256]` each.
    Bf16 {
        /// Keys.
        k: DeviceSlice<u16>,
        /// Values.
        v: DeviceSlice<u16>,
    },
    /// e4m3 K `[pages, 64, 256]`, V `[pages, 256, 64]` in the kernel's order, scales `[pages, 2, 64]`.
    Fp8 {
        /// Keys.
        k: DeviceSlice<u8>,
        /// Values, each page transposed.
        v: DeviceSlice<u8>,
        /// One a position for K, then one for V.
        scales: DeviceSlice<f32>,
    },
}

/// Where fp8 V keeps position `p` (0 to 63) of a page in its rows of 64: the order in which a thread's scores lie.
pub fn fp8_value_place(p: usize) -> usize {
    let (group, rest) = (p / 16, p % 16);
    group * 16 + 4 * (rest % 8 / 2) + 2 * (rest / 8) + rest % 2
}

/// What a step brings. Slices may be longer than the step needs.
#[derive(Debug, Clone)]
pub struct MfaStep {
    /// `[rows, 64, 256]` bf16, rotated.
    pub q: DeviceSlice<u16>,
    /// `[rows, 64, 256]` bf16.
    pub out: DeviceSlice<u16>,
    /// [`WorkSplit::words`] for `ctas`.
    pub work: DeviceSlice<i32>,
    /// Page numbers.
    pub pages: DeviceSlice<i32>,
    /// `[slots, PARTIAL_BYTES]`, scratch.
    pub partials: DeviceSlice<u8>,
    /// One word, zero before the first step with this number of CTAs, and then the kernel's own.
    pub arrivals: DeviceSlice<i32>,
    /// CTAs of the split; at most the multiprocessors of its stream, since all must be resident.
    pub ctas: u32,
    /// [`Order::Together`], or [`Order::Overlapped`] where nothing else on these multiprocessors waits for blocks of its own
    /// (two such kernels at once could each hold what the other waits for) and `work` and `pages` come from copies.
    pub order: Order,
    /// Softmax scale, `head_dim^-0.5` for Step-3.
    pub scale: f32,
}

impl MfaStep {
    pub(crate) fn rows(&self) -> usize {
        self.q.len() / (HEADS * HEAD_DIM)
    }

    /// `slots`: partials that its CTAs write at most.
    pub(crate) fn check(&self, device: &Device, slots: usize) -> Result<(), CudaError> {
        let refused = |problem: String| Err(refused(problem));
        let (ctas, rows) = (self.ctas, self.rows());
        if ctas == 0 || ctas > device.card().multiprocessors {
            return refused(format!("{ctas} CTAs: give at least one, and at most one a multiprocessor"));
        }
        if self.order == Order::After {
            return refused("CTAs wait for each other: launch them together, or overlapped".to_owned());
        }
        if self.out.len() < self.q.len()
            || self.arrivals.is_empty()
            || self.work.len() < WorkSplit::words_at_least(ctas as usize)
        {
            return refused(format!("{rows} rows of q need as many of out, a plan, and a counter"));
        }
        let partials = slots * PARTIAL_BYTES;
        if self.partials.len() < partials {
            return refused(format!("{ctas} CTAs need {partials} bytes of partials, {} given", self.partials.len()));
        }
        Ok(())
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bf16Arguments {
    q: TensorMap,
    k: TensorMap,
    v: TensorMap,
    k_strip: TensorMap,
    v_strip: TensorMap,
    work: u64,
    pages: u64,
    out: u64,
    partials: u64,
    arrivals: u64,
    scale_log2: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fp8Arguments {
    k: TensorMap,
    k_strip: TensorMap,
    v: TensorMap,
    q: u64,
    scales: u64,
    work: u64,
    pages: u64,
    out: u64,
    partials: u64,
    arrivals: u64,
    scale_log2: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct PrefillArguments {
    pub(crate) q: TensorMap,
    pub(crate) k: TensorMap,
    pub(crate) v: TensorMap,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) scales: u64,
    pub(crate) work: u64,
    pub(crate) pages: u64,
    pub(crate) out: u64,
    pub(crate) partials: u64,
    pub(crate) arrivals: u64,
    pub(crate) scale_log2: f32,
}

#[derive(Debug, Clone)]
pub(crate) enum Arguments {
    Bf16(Box<Bf16Arguments>),
    Fp8(Box<Fp8Arguments>),
    Prefill(Box<PrefillArguments>),
}

/// The fast path's kernel for one kind of KV.
#[derive(Debug)]
pub struct MfaDecode {
    kernel: Kernel,
    threads: u32,
    kv: KvPages,
}

impl MfaDecode {
    /// Loads the kernel for these pools.
    ///
    /// # Errors
    /// [`CudaError::Shape`] off Hopper or with pools of unequal size; what compiling and loading say.
    pub fn new(device: &Arc<Device>, kv: KvPages) -> Result<MfaDecode, CudaError> {
        if !device.card().is_hopper() {
            return Err(refused(format!(
                "needs compute capability 9.0, {} has not: use the plain path",
                device.card().name
            )));
        }
        check(&kv)?;
        let (source, name, threads, shared) = match &kv {
            // `Memory` begins at a multiple of 1 KiB, and dynamic shared memory may not.
            KvPages::Bf16 { .. } => (source::MFA_DECODE_BF16, "mfa_decode_bf16", 224, BF16_SHARED + 1024),
            KvPages::Fp8 { .. } => (source::MFA_DECODE_FP8, "mfa_decode_fp8", 384, FP8_SHARED + 1024),
        };
        // Who decodes has prompts too: [`crate::mfa_prefill`].
        device.prepare(&[&source, &source::MFA_PREFILL]);
        let kernel = device.load(&source)?.kernel(name, shared)?;
        Ok(MfaDecode { kernel, threads, kv })
    }

    /// The same kernel for other pools of the same kind.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for another kind, or pools of unequal size.
    pub fn for_pages(&self, kv: KvPages) -> Result<MfaDecode, CudaError> {
        if std::mem::discriminant(&kv) != std::mem::discriminant(&self.kv) {
            return Err(refused("pools of another kind than the kernel's".to_owned()));
        }
        check(&kv)?;
        Ok(MfaDecode { kernel: self.kernel.clone(), threads: self.threads, kv })
    }

    /// Makes a step ready to be enqueued any number of times.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for more CTAs than multiprocessors or slices that are too short.
    pub fn prepare(&self, step: MfaStep) -> Result<MfaCall, CudaError> {
        let device = self.kernel.device();
        let rows = step.rows();
        step.check(device, WorkSplit::slots_at_most(step.ctas as usize))?;
        let arguments = self.arguments(device, &step, rows)?;
        let (kernel, threads, kv) = (self.kernel.clone(), self.threads, self.kv.clone());
        Ok(MfaCall { kernel, threads, _kv: kv, arguments, step })
    }

    fn arguments(&self, device: &Device, step: &MfaStep, rows: usize) -> Result<Arguments, CudaError> {
        let scale_log2 = step.scale * std::f32::consts::LOG2_E;
        let matrix = |address: u64, element, rows, columns, block, box_rows, box_blocks| {
            Blocked { address, element, rows: rows as u64, columns, block, box_rows, box_blocks }.encode(device)
        };
        let width = HEAD_DIM as u64;
        Ok(match &self.kv {
            KvPages::Bf16 { k, v } => {
                let positions = k.len() / HEAD_DIM;
                Arguments::Bf16(Box::new(Bf16Arguments {
                    q: matrix(step.q.address(), 2, rows * HEADS, width, 64, HEADS as u32, 4)?,
                    k: matrix(k.address(), 2, positions, width, 64, PAGE_TOKENS, 4)?,
                    v: matrix(v.address(), 2, positions, width, 64, PAGE_TOKENS, 4)?,
                    k_strip: matrix(k.address(), 2, positions, width, 64, STRIP, 1)?,
                    v_strip: matrix(v.address(), 2, positions, width, 64, STRIP, 1)?,
                    work: step.work.address(),
                    pages: step.pages.address(),
                    out: step.out.address(),
                    partials: step.partials.address(),
                    arrivals: step.arrivals.address(),
                    scale_log2,
                }))
            }
            KvPages::Fp8 { k, v, scales } => {
                let positions = k.len() / HEAD_DIM;
                let value_rows = v.len() / PAGE_TOKENS as usize;
                Arguments::Fp8(Box::new(Fp8Arguments {
                    k: matrix(k.address(), 1, positions, width, 128, PAGE_TOKENS, 2)?,
                    k_strip: matrix(k.address(), 1, positions, width, 128, STRIP, 1)?,
                    v: matrix(v.address(), 1, value_rows, u64::from(PAGE_TOKENS), PAGE_TOKENS, HEAD_DIM as u32, 1)?,
                    q: step.q.address(),
                    scales: scales.address(),
                    work: step.work.address(),
                    pages: step.pages.address(),
                    out: step.out.address(),
                    partials: step.partials.address(),
                    arrivals: step.arrivals.address(),
                    scale_log2,
                }))
            }
        })
    }
}

pub(crate) fn refused(problem: String) -> CudaError {
    CudaError::Shape { operation: "mfa_decode", problem }
}

/// Pools of the same whole number of pages.
pub(crate) fn check(kv: &KvPages) -> Result<(), CudaError> {
    let (k, v, scales) = match kv {
        KvPages::Bf16 { k, v } => (k.len(), v.len(), None),
        KvPages::Fp8 { k, v, scales } => (k.len(), v.len(), Some(scales.len())),
    };
    if k != v || k % (PAGE_TOKENS as usize * HEAD_DIM) != 0 {
        return Err(refused(format!("K has {k} elements and V {v}: give both the same whole number of pages")));
    }
    let wanted = 2 * k / HEAD_DIM;
    if scales.is_some_and(|scales| scales < wanted) {
        return Err(refused(format!("{} scales of K and V; {wanted} are needed", scales.unwrap_or_default())));
    }
    Ok(())
}

/// Two items and their barriers.
const QUEUE_SHARED: u32 = 2 * (64 + 16);
/// `sizeof(Memory)` of the bf16 kernel: 3 stages, two q, the queue, barriers.
const BF16_SHARED: u32 = 5 * 32768 + QUEUE_SHARED + (2 * 3 + 4 + 1 + 1) * 8;
/// `sizeof(Memory)` of the fp8 kernel: 8 stages, q split and not, scales as they come and as used, statistics, the queue,
/// barriers.
const FP8_SHARED: u32 =
    8 * 16384 + 2 * 32768 + 4 * 512 + 6 * 768 + 256 + 1024 + QUEUE_SHARED + (2 * 8 + 12 + 3 + 1) * 8;

/// A step bound to its buffers, which it keeps alive.
#[derive(Debug)]
pub struct MfaCall {
    pub(crate) kernel: Kernel,
    pub(crate) threads: u32,
    pub(crate) _kv: KvPages,
    pub(crate) arguments: Arguments,
    pub(crate) step: MfaStep,
}

impl MfaCall {
    /// Enqueues the step.
    ///
    /// # Errors
    /// [`CudaError::Shape`] on a stream of fewer multiprocessors than CTAs; the driver's own.
    pub fn enqueue(&self, stream: &Stream) -> Result<(), CudaError> {
        let mut argument: *mut c_void = match &self.arguments {
            Arguments::Bf16(arguments) => (&raw const **arguments).cast_mut().cast(),
            Arguments::Fp8(arguments) => (&raw const **arguments).cast_mut().cast(),
            Arguments::Prefill(arguments) => (&raw const **arguments).cast_mut().cast(),
        };
        let (ctas, resident) = (self.step.ctas, stream.multiprocessors());
        if ctas > resident {
            // They would wait for each other for ever.
            return Err(refused(format!("{ctas} CTAs on a stream of {resident} multiprocessors: plan for as many")));
        }
        let shape = Shape { grid: (ctas, 1), block: self.threads, order: self.step.order };
        self.kernel.device().bind()?;
        // SAFETY: one parameter, of the type that this kernel takes; its slices live in `self`.
        unsafe { self.kernel.launch(stream, shape, std::slice::from_mut(&mut argument)) }
    }
}
