//! The operations of every stage on a machine: any shape, batch-invariant, enqueued and not waited for. Owns the kernels; the
//! memory they work on is the caller's, as slices whose lengths are checked here.
//!
//! What stands in device memory is not checked: ids, positions and page numbers must lie within what they index.

mod attention;
mod experts;
mod rows;
mod weights;
mod wire;

pub use attention::{KvPages, Paged};
pub use experts::{Routing, Sorted};
pub use weights::{HostMatrix, Weights};
pub use wire::record_bytes;

use crate::error::CudaError;
use crate::machine::{Launch, Machine};
use crate::memory::{DeviceSlice, Plain};
use crate::source;
use std::ffi::c_void;
use std::sync::Arc;

/// Widest head of the attention kernels: what a warp's lanes hold 16 elements each of.
pub const HEAD_DIM_AT_MOST: usize = 512;

/// Rows that share a look at the weights.
const TILE_ROWS: usize = 8;

/// How numbers are stored: weights, KV, wires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Stored {
    /// f32.
    F32 = 0,
    /// bf16.
    Bf16 = 1,
    /// e4m3 with scales.
    Fp8 = 2,
}

impl Stored {
    /// Bytes of a number, scales not counted.
    pub const fn bytes(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::Bf16 => 2,
            Stored::Fp8 => 1,
        }
    }
}

/// All kernels of a machine.
#[derive(Debug)]
pub struct Ops {
    machine: Arc<dyn Machine>,
    matmul: Box<dyn Launch>,
    gated: Box<dyn Launch>,
    embed: Box<dyn Launch>,
    rms_norm: Box<dyn Launch>,
    add: Box<dyn Launch>,
    rope_append: Box<dyn Launch>,
    /// By [`Stored`].
    attention: [Box<dyn Launch>; 3],
    route: Box<dyn Launch>,
    count_experts: Box<dyn Launch>,
    place_experts: Box<dyn Launch>,
    sum_experts: Box<dyn Launch>,
    encode: Box<dyn Launch>,
    decode: Box<dyn Launch>,
}

impl Ops {
    /// Compiles and loads the kernels.
    ///
    /// # Errors
    /// What compiling and loading say.
    pub fn new(machine: Arc<dyn Machine>) -> Result<Ops, CudaError> {
        let kernel = |source, name| machine.kernel(&source, name);
        Ok(Ops {
            matmul: kernel(source::MATMUL, "matmul")?,
            gated: kernel(source::MATMUL, "gated")?,
            embed: kernel(source::ROWS, "embed")?,
            rms_norm: kernel(source::ROWS, "rms_norm")?,
            add: kernel(source::ROWS, "add")?,
            rope_append: kernel(source::ROPE_APPEND, "rope_append")?,
            attention: [
                kernel(source::ATTENTION, "attention_f32")?,
                kernel(source::ATTENTION, "attention_bf16")?,
                kernel(source::ATTENTION, "attention_fp8")?,
            ],
            route: kernel(source::ROUTER, "route")?,
            count_experts: kernel(source::EXPERTS, "count_experts")?,
            place_experts: kernel(source::EXPERTS, "place_experts")?,
            sum_experts: kernel(source::EXPERTS, "sum_experts")?,
            encode: kernel(source::WIRE, "encode_wire")?,
            decode: kernel(source::WIRE, "decode_wire")?,
            machine,
        })
    }

    /// Where they run.
    pub fn machine(&self) -> &Arc<dyn Machine> {
        &self.machine
    }
}

/// Enqueues, if there is anything to do.
///
/// # Safety
/// `A` is the kernel's parameter structure, and `arguments` name memory large enough for `items`.
unsafe fn launch<A>(kernel: &dyn Launch, items: usize, mut arguments: A) -> Result<(), CudaError> {
    if items == 0 {
        return Ok(());
    }
    let items = u32::try_from(items).ok().filter(|items| *items <= i32::MAX as u32);
    let items = items.ok_or_else(|| too_small("launch", "fewer than 2^31 items", usize::MAX, 0))?;
    // SAFETY: passed on; the launch copies the arguments.
    unsafe { kernel.launch(items, (&raw mut arguments).cast::<c_void>()) }
}

/// A slice of at least `wanted` elements.
fn holds<T: Plain>(
    operation: &'static str,
    what: &str,
    slice: &DeviceSlice<T>,
    wanted: usize,
) -> Result<(), CudaError> {
    if slice.len() < wanted { Err(too_small(operation, what, wanted, slice.len())) } else { Ok(()) }
}

fn too_small(operation: &'static str, what: &str, wanted: usize, got: usize) -> CudaError {
    CudaError::Shape { operation, problem: format!("{what}: {wanted} elements are needed, {got} are there") }
}
