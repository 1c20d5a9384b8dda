//! The operations of every stage on a machine: any shape, batch-invariant, enqueued and not waited for. Owns the kernels; the
//! memory they work on is the caller's, as slices whose lengths are checked here.
//!
//! What stands in device memory is not checked: ids, positions and page numbers must lie within what they index.

mod attention;
mod copies;
mod draw;
mod experts;
mod rows;
mod sample;
mod slices;
mod weights;
mod wire;

pub use attention::{KvPages, Paged};
pub use copies::{Answered, Answers, Holders, SharedAnswers, Taken};
pub use draw::{Drawn, DrawnPart};
pub use experts::{Routing, Sorted};
pub use sample::{Choice, Chosen, REPORTED_AT_MOST};
pub use slices::Sliced;
pub use weights::{HostMatrix, Weights};
pub use wire::record_bytes;

use crate::error::CudaError;
use crate::machine::{Launch, Machine};
use crate::memory::{DeviceSlice, Plain};
use crate::source::{self, Source};
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
    slice_columns: Box<dyn Launch>,
    add_slices: Box<dyn Launch>,
    rope_append: Box<dyn Launch>,
    /// By [`Stored`].
    attention: [Box<dyn Launch>; 3],
    route: Box<dyn Launch>,
    count_experts: Box<dyn Launch>,
    place_experts: Box<dyn Launch>,
    sum_experts: Box<dyn Launch>,
    share_copies: Box<dyn Launch>,
    sum_copies: Box<dyn Launch>,
    digest_logits: Box<dyn Launch>,
    choose_tokens: Box<dyn Launch>,
    report_odds: Box<dyn Launch>,
    encode: Box<dyn Launch>,
    decode: Box<dyn Launch>,
    take: Box<dyn Launch>,
    draw: Box<dyn Launch>,
    draw_scales: Box<dyn Launch>,
}

impl Ops {
    /// Compiles and loads the kernels.
    ///
    /// # Errors
    /// What compiling and loading say.
    pub fn new(machine: Arc<dyn Machine>) -> Result<Ops, CudaError> {
        let on = &*machine;
        on.prepare(&source::PLAIN.each_ref());
        let [matmul, gated] = kernels(on, &source::MATMUL, ["matmul", "gated"])?;
        let [embed, rms_norm, add, slice_columns, add_slices] =
            kernels(on, &source::ROWS, ["embed", "rms_norm", "add", "slice_columns", "add_slices"])?;
        let [rope_append] = kernels(on, &source::ROPE_APPEND, ["rope_append"])?;
        let attention = kernels(on, &source::ATTENTION, ["attention_f32", "attention_bf16", "attention_fp8"])?;
        let [route] = kernels(on, &source::ROUTER, ["route"])?;
        let [count_experts, place_experts, sum_experts] =
            kernels(on, &source::EXPERTS, ["count_experts", "place_experts", "sum_experts"])?;
        let [share_copies, sum_copies] = kernels(on, &source::COPIES, ["share_copies", "sum_copies"])?;
        let [digest_logits, choose_tokens, report_odds] =
            kernels(on, &source::SAMPLE, ["digest_logits", "choose_tokens", "report_odds"])?;
        let [encode, decode, take] = kernels(on, &source::WIRE, ["encode_wire", "decode_wire", "take_parts"])?;
        let [draw, draw_scales] = kernels(on, &source::DRAW, ["draw", "draw_scales"])?;
        Ok(Ops {
            matmul,
            gated,
            embed,
            rms_norm,
            add,
            slice_columns,
            add_slices,
            rope_append,
            attention,
            route,
            count_experts,
            place_experts,
            sum_experts,
            share_copies,
            sum_copies,
            digest_logits,
            choose_tokens,
            report_odds,
            encode,
            decode,
            take,
            draw,
            draw_scales,
            machine,
        })
    }

    /// Where they run.
    pub fn machine(&self) -> &Arc<dyn Machine> {
        &self.machine
    }
}

/// A file's kernels, which is loaded once for all of them.
fn kernels<const N: usize>(
    machine: &dyn Machine,
    source: &Source,
    names: [&'static str; N],
) -> Result<[Box<dyn Launch>; N], CudaError> {
    Ok(machine.kernels(source, &names)?.try_into().expect("a machine gives a kernel for every name"))
}

/// Enqueues, if there is anything to do.
///
/// # Safety
/// `A` is the kernel's parameter structure, and `arguments` name memory large enough for `items`.
unsafe fn launch<A>(kernel: &dyn Launch, items: usize, mut arguments: A) -> Result<(), CudaError> {
    if items == 0 {
        return Ok(());
    }
    let Ok(count) = i32::try_from(items) else {
        let problem = format!("{items} items at once; a kernel counts them in 31 bits: give it fewer rows");
        return Err(CudaError::Shape { operation: "launch", problem });
    };
    // SAFETY: passed on; the launch copies the arguments.
    unsafe { kernel.launch(count.unsigned_abs(), (&raw mut arguments).cast::<c_void>(), size_of::<A>()) }
}

/// A slice of at least `wanted` elements.
fn holds<T: Plain>(
    operation: &'static str,
    what: &str,
    slice: &DeviceSlice<T>,
    wanted: usize,
) -> Result<(), CudaError> {
    if slice.len() >= wanted {
        return Ok(());
    }
    let problem = format!("{what}: {wanted} elements are needed, {} are there", slice.len());
    Err(CudaError::Shape { operation, problem })
}
