//! Rope for the fast attention, and keys and values into its pages (`cu/rope_fast.cu`).

use crate::device::Device;
use crate::error::CudaError;
use crate::memory::DeviceSlice;
use crate::mfa::{self, HEAD_DIM, HEADS, KvPages};
use crate::module::{Kernel, Order, Shape};
use crate::ops::Paged;
use crate::source;
use crate::stream::Stream;
use std::ffi::c_void;
use std::sync::Arc;

/// Warps of a block.
const WARPS: usize = 8;

/// `append.cuh`'s `Append`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arguments {
    q: u64,
    k: u64,
    v: u64,
    table: u64,
    positions: u64,
    first: u64,
    pages: u64,
    rotated: u64,
    keys: u64,
    values: u64,
    scales: u64,
    rows: i32,
    is_fp8: i32,
}

/// The rows of a step before rope, f32.
#[derive(Debug, Clone, Copy)]
pub struct Projected<'a> {
    /// `[rows, 64, 256]`.
    pub q: &'a DeviceSlice<f32>,
    /// `[rows, 256]`.
    pub k: &'a DeviceSlice<f32>,
    /// `[rows, 256]`.
    pub v: &'a DeviceSlice<f32>,
}

/// Keys and values alone, on their way to their pages.
#[derive(Debug, Clone, Copy)]
pub struct Appended<'a> {
    /// `[rows, 256]`.
    pub k: &'a DeviceSlice<f32>,
    /// `[rows, 256]`.
    pub v: &'a DeviceSlice<f32>,
    /// As [`MfaAppend::enqueue`] takes it.
    pub table: &'a DeviceSlice<f32>,
    /// Where the rows are.
    pub at: &'a Paged,
    /// Their pages.
    pub kv: &'a KvPages,
}

impl Appended<'_> {
    /// What the kernels take, without q.
    pub(crate) fn arguments(&self, rows: usize, operation: &'static str) -> Result<Arguments, CudaError> {
        let Appended { k, v, table, at, kv } = *self;
        let narrow = rows * HEAD_DIM;
        if k.len() < narrow || v.len() < narrow || at.positions.len() < rows || at.first.len() < rows {
            let problem = format!("{rows} rows of keys and values of 256 do not fit the slices");
            return Err(CudaError::Shape { operation, problem });
        }
        mfa::check(kv)?;
        let (keys, values, scales) = match kv {
            KvPages::Bf16 { k, v } => (k.address(), v.address(), 0),
            KvPages::Fp8 { k, v, scales } => (k.address(), v.address(), scales.address()),
        };
        Ok(Arguments {
            q: 0,
            k: k.address(),
            v: v.address(),
            table: table.address(),
            positions: at.positions.address(),
            first: at.first.address(),
            pages: at.pages.address(),
            rotated: 0,
            keys,
            values,
            scales,
            rows: rows as i32,
            is_fp8: i32::from(matches!(kv, KvPages::Fp8 { .. })),
        })
    }
}

/// The kernel.
#[derive(Debug)]
pub struct MfaAppend {
    kernel: Kernel,
}

impl MfaAppend {
    /// Loads it.
    ///
    /// # Errors
    /// [`CudaError::Shape`] off Hopper; what compiling and loading say.
    pub fn new(device: &Arc<Device>) -> Result<MfaAppend, CudaError> {
        if !device.card().is_hopper() {
            let problem = format!("needs compute capability 9.0, {} has not", device.card().name);
            return Err(CudaError::Shape { operation: "rope_append_fast", problem });
        }
        Ok(MfaAppend { kernel: device.load(&source::ROPE_FAST)?.kernel("rope_append_fast", 0)? })
    }

    /// q, rotated, to `rotated` `[rows, 64, 256]` bf16; k, rotated, and v to their pages. `table` is `[positions, 256]`: the cosines of
    /// a position's pairs, then the sines. Slices outlive the work.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    #[expect(
        clippy::too_many_arguments,
        reason = "the operation's own shape; every argument differs in type or meaning"
    )]
    pub fn enqueue(
        &self,
        stream: &Stream,
        rows: usize,
        from: Projected<'_>,
        table: &DeviceSlice<f32>,
        at: &Paged,
        kv: &KvPages,
        rotated: &DeviceSlice<u16>,
    ) -> Result<(), CudaError> {
        let wide = rows * HEADS * HEAD_DIM;
        if from.q.len() < wide || rotated.len() < wide {
            let problem = format!("{rows} rows of 64 heads of 256 do not fit the slices");
            return Err(CudaError::Shape { operation: "rope_append_fast", problem });
        }
        let keys = Appended { k: from.k, v: from.v, table, at, kv };
        let mut arguments =
            Arguments { q: from.q.address(), rotated: rotated.address(), ..keys.arguments(rows, "rope_append_fast")? };
        if rows == 0 {
            return Ok(());
        }
        self.kernel.device().bind()?;
        let grid = (rows * (HEADS + 2)).div_ceil(WARPS) as u32;
        let shape = Shape { grid: (grid, 1), block: WARPS as u32 * 32, order: Order::Overlapped };
        let mut argument: *mut c_void = (&raw mut arguments).cast();
        // SAFETY: one parameter of the kernel's type, copied by the launch; lengths were checked; positions and page numbers within
        // theirs are the caller's promise.
        unsafe { self.kernel.launch(stream, shape, std::slice::from_mut(&mut argument)) }
    }
}
