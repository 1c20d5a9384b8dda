//! MFA decode attention of any shape on any card (`cu/mfa_decode_plain.cu`): right, batch-invariant, and not fast.

use crate::device::Device;
use crate::error::CudaError;
use crate::memory::DeviceSlice;
use crate::module::{Kernel, Order, Shape};
use crate::source;
use crate::stream::Stream;
use std::ffi::c_void;
use std::sync::Arc;

/// Widest head: what a warp's lanes hold 16 elements each of.
pub const HEAD_DIM_AT_MOST: usize = 512;

/// What K and V are stored as, each row of a position as it is; q and the result are f32 beside f32 and bf16 otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainStorage {
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// e4m3 with scales `[pages, 2, page_tokens]`.
    Fp8,
}

/// Shapes of the operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlainShape {
    /// Sequences.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Elements of a head, at most [`HEAD_DIM_AT_MOST`].
    pub head_dim: usize,
    /// Positions of a page.
    pub page_tokens: usize,
    /// Softmax scale.
    pub scale: f32,
}

/// A step's buffers, as bytes: their types follow from the storage.
#[derive(Debug, Clone)]
pub struct PlainStep {
    /// `[rows, heads, head_dim]`.
    pub q: DeviceSlice<u8>,
    /// `[pages, page_tokens, head_dim]`.
    pub k: DeviceSlice<u8>,
    /// `[pages, page_tokens, head_dim]`.
    pub v: DeviceSlice<u8>,
    /// `[pages, 2, page_tokens]`, for fp8.
    pub scales: Option<DeviceSlice<f32>>,
    /// `[rows, heads, head_dim]`.
    pub out: DeviceSlice<u8>,
    /// Visible positions of each row.
    pub contexts: DeviceSlice<i32>,
    /// Where each row's page numbers begin.
    pub first: DeviceSlice<i32>,
    /// Page numbers.
    pub pages: DeviceSlice<i32>,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arguments {
    q: u64,
    k: u64,
    v: u64,
    scales: u64,
    out: u64,
    contexts: u64,
    first: u64,
    pages: u64,
    heads: i32,
    head_dim: i32,
    page_tokens: i32,
    scale_log2: f32,
}

/// The plain kernel for one storage.
#[derive(Debug)]
pub struct PlainDecode {
    kernel: Kernel,
    storage: PlainStorage,
}

impl PlainDecode {
    /// Loads the kernel.
    ///
    /// # Errors
    /// What compiling and loading say.
    pub fn new(device: &Arc<Device>, storage: PlainStorage) -> Result<PlainDecode, CudaError> {
        let name = match storage {
            PlainStorage::F32 => "mfa_plain_f32",
            PlainStorage::Bf16 => "mfa_plain_bf16",
            PlainStorage::Fp8 => "mfa_plain_fp8",
        };
        Ok(PlainDecode { kernel: device.load(&source::MFA_DECODE_PLAIN)?.kernel(name, 0)?, storage })
    }

    /// Enqueues one step, whose slices must outlive it.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for heads too wide, buffers too short or missing scales; the driver's own.
    pub fn enqueue(&self, stream: &Stream, shape: PlainShape, step: &PlainStep) -> Result<(), CudaError> {
        self.check(shape, step)?;
        let mut arguments = Arguments {
            q: step.q.address(),
            k: step.k.address(),
            v: step.v.address(),
            scales: step.scales.as_ref().map_or(0, DeviceSlice::address),
            out: step.out.address(),
            contexts: step.contexts.address(),
            first: step.first.address(),
            pages: step.pages.address(),
            heads: shape.heads as i32,
            head_dim: shape.head_dim as i32,
            page_tokens: shape.page_tokens as i32,
            scale_log2: shape.scale * std::f32::consts::LOG2_E,
        };
        let mut argument: *mut c_void = (&raw mut arguments).cast();
        let launch = Shape { grid: (shape.heads as u32, shape.rows as u32), block: 128, order: Order::After };
        // SAFETY: one parameter of the kernel's type, copied by the launch; sizes were checked.
        unsafe { self.kernel.launch(stream, launch, std::slice::from_mut(&mut argument)) }
    }

    fn check(&self, shape: PlainShape, step: &PlainStep) -> Result<(), CudaError> {
        let refused = |problem: String| Err(CudaError::Shape { operation: "mfa_plain", problem });
        if shape.head_dim == 0 || shape.head_dim > HEAD_DIM_AT_MOST {
            return refused(format!("heads of {} elements; 1 to {HEAD_DIM_AT_MOST} are possible", shape.head_dim));
        }
        let element = if self.storage == PlainStorage::F32 { 4 } else { 2 };
        let bytes = shape.rows * shape.heads * shape.head_dim * element;
        if step.q.len() < bytes || step.out.len() < bytes {
            return refused(format!("q has {} bytes and out {}; {bytes} are needed", step.q.len(), step.out.len()));
        }
        if step.contexts.len() < shape.rows || step.first.len() < shape.rows {
            return refused(format!("{} rows need a context and a first page each", shape.rows));
        }
        if (self.storage == PlainStorage::Fp8) != step.scales.is_some() {
            return refused("fp8 KV needs scales, other KV has none".to_owned());
        }
        Ok(())
    }
}
