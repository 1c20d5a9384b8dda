//! Weights as the copy engine reads them, and the products (`cu/tensor_up.cu`, `cu/tensor_down.cu`, `cu/tensor_project.cu`).

use super::rows::{Narrowed, SCALE_GROUP};
use super::{Slots, TILE_TOKENS, TensorOps, of, refused};
use crate::device::Device;
use crate::error::CudaError;
use crate::machine::Machine;
use crate::memory::DeviceSlice;
use crate::ops::{Stored, Weights};
use crate::tensor_map::{Blocked, TensorMap};

/// Rows of weights that the copy engine brings at once.
pub(super) const BOX_ROWS: usize = 128;
/// Threads of the kernels: two warpgroups that multiply, and one that loads.
const THREADS: u32 = 384;
/// Tiles of tokens of one launch that may have its inputs in parts.
const TILES_AT_ONCE: usize = 2;
/// `sizeof(Memory)`: stages of so many boxes of weights and scales of tokens, results being turned, and three items ahead with the
/// places of so many rows.
const fn shared(stages: u32, boxes: u32, staged: u32, rows: u32, scales: u32) -> u32 {
    // `Memory` begins at a multiple of 1 KiB, and dynamic shared memory may not.
    let stage = boxes * 16384 + 160 * 128 + scales * 4 + 16;
    1024 + stages * stage + 2 * staged + 3 * (48 + 2 * 128 * 4 + 160 * 4 + rows * 4 + 16) + 16
}
/// Of `tensor_up.cu`.
pub(super) const UP_SHARED: u32 = shared(4, 2, 16 * 272, 160, 4);
/// Of `tensor_down.cu`.
pub(super) const DOWN_SHARED: u32 = shared(4, 2, 16 * 272, 4, 160);

/// CTAs that the parts of inputs make at most, of products that are cut by the matrix alone: one on each of 132 multiprocessors. A constant, so
/// that shares of a card, which have fewer, give the same bits.
pub(super) const CTAS: usize = 132;

/// Items whose parts may be on their way at once.
pub(super) fn items_at_most(ctas: usize) -> usize {
    (ctas * TILES_AT_ONCE).max(CTAS)
}

/// f32 sums of as many parts.
pub(super) fn partials_for(ctas: usize) -> usize {
    items_at_most(ctas) * BOX_ROWS * TILE_TOKENS
}

/// Matrices of one shape that the tensor cores take.
#[derive(Debug)]
pub struct TensorMatrix {
    map: TensorMap,
    /// The same in boxes of half as many rows as a tile of [`TensorOps::project`] has.
    half: TensorMap,
    scales: DeviceSlice<f32>,
    /// What the maps name.
    values: DeviceSlice<u8>,
    rows: usize,
    cols: usize,
    count: usize,
    stored: Stored,
}

impl TensorMatrix {
    /// Of weights on the device; none if the tensor cores cannot take their shape or format. Several matrices need whole blocks of
    /// 128 rows each.
    ///
    /// # Errors
    /// The driver's own.
    pub fn of(device: &Device, weights: &Weights) -> Result<Option<TensorMatrix>, CudaError> {
        TensorMatrix::described(Some(device), weights)
    }

    /// The same of weights on a machine, which may only count.
    ///
    /// # Errors
    /// The driver's own.
    pub fn on(machine: &dyn Machine, weights: &Weights) -> Result<Option<TensorMatrix>, CudaError> {
        TensorMatrix::described(machine.card().map(|(device, _)| &**device), weights)
    }

    fn described(device: Option<&Device>, weights: &Weights) -> Result<Option<TensorMatrix>, CudaError> {
        let (rows, cols, count, stored) = (weights.rows(), weights.cols(), weights.count(), weights.stored());
        let fits = stored != Stored::F32
            && cols.is_multiple_of(SCALE_GROUP)
            && weights.stride() == cols
            && count > 0
            && (count == 1 || rows.is_multiple_of(BOX_ROWS));
        if !fits {
            return Ok(None);
        }
        let map = Blocked {
            address: weights.values().address(),
            element: stored.bytes() as u32,
            rows: (count * rows) as u64,
            columns: cols as u64,
            block: 128 / stored.bytes() as u32,
            box_rows: BOX_ROWS as u32,
            box_blocks: 1,
        };
        Ok(Some(TensorMatrix {
            map: map.encode_on(device)?,
            half: Blocked { box_rows: BOX_ROWS as u32 / 2, ..map }.encode_narrowly_on(device)?,
            scales: weights.scales().clone(),
            values: weights.values().clone(),
            rows,
            cols,
            count,
            stored,
        }))
    }

    /// The format, which rows must be narrowed to.
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn half(&self) -> TensorMap {
        self.half
    }

    pub(super) fn values(&self) -> &DeviceSlice<u8> {
        &self.values
    }

    pub(super) fn scales(&self) -> &DeviceSlice<f32> {
        &self.scales
    }

    pub(super) fn blocks(&self) -> usize {
        self.cols * self.stored.bytes() / 128
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    w: TensorMap,
    up: TensorMap,
    x: TensorMap,
    w_scales: u64,
    up_scales: u64,
    x_scales: u64,
    tiles: u64,
    tile_count: u64,
    costs: u64,
    row_of: u64,
    x_rows: u64,
    slot_weights: u64,
    out: u64,
    out_scales: u64,
    partials: u64,
    counters: u64,
    rows: i32,
    first: i32,
    step: i32,
    tiles_here: i32,
    slots: i32,
    outputs: i32,
    blocks: i32,
    row_blocks: i32,
    splits: i32,
    adds: i32,
    pitch: i32,
}

impl TensorOps {
    /// `h = silu(x · Gᵀ) ⊙ (x · Uᵀ)` of every slot with its expert's matrices: x `[rows, cols]`, h `[slots, gate rows]`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for shapes or formats that do not agree; the driver's own.
    pub fn up(
        &self,
        x: &Narrowed,
        slots: &Slots,
        gate: &TensorMatrix,
        up: &TensorMatrix,
        h: &Narrowed,
    ) -> Result<(), CudaError> {
        let alike = (gate.rows, gate.cols, gate.count, gate.stored) == (up.rows, up.cols, up.count, up.stored);
        let room = x.slots >= slots.most_rows && h.slots >= slots.capacity_for(slots.most_rows);
        if !alike || !room || h.width != gate.rows || h.stored != gate.stored || h.grouped {
            return Err(refused("tensor_up", format!("gates of {}x{} to rows of {}", gate.rows, gate.cols, h.width)));
        }
        let arguments = Arguments {
            up: up.map,
            up_scales: up.scales.address(),
            out: h.codes.address(),
            out_scales: h.scales.address(),
            row_blocks: (gate.rows / BOX_ROWS) as i32,
            slots: h.slots as i32,
            ..self.grouped("tensor_up", x, slots, gate)?
        };
        self.multiply(of(&self.up, gate.stored), arguments)
    }

    /// `answers = weight · (h · Dᵀ)` of every slot: h `[slots, cols]`, answers `[slots, rows]` bf16. rows a multiple of 256.
    ///
    /// # Errors
    /// As [`TensorOps::up`].
    pub fn down(
        &self,
        h: &Narrowed,
        slots: &Slots,
        down: &TensorMatrix,
        answers: &DeviceSlice<u16>,
    ) -> Result<(), CudaError> {
        if !down.rows.is_multiple_of(2 * BOX_ROWS) || answers.len() < h.slots * down.rows {
            let problem = format!("answers of {} elements for {} slots of {}", answers.len(), h.slots, down.rows);
            return Err(refused("tensor_down", problem));
        }
        let arguments = Arguments {
            out: answers.address(),
            row_blocks: (down.rows / (2 * BOX_ROWS)) as i32,
            ..self.grouped("tensor_down", h, slots, down)?
        };
        self.multiply(of(&self.down, down.stored), arguments)
    }

    fn grouped(
        &self,
        operation: &'static str,
        x: &Narrowed,
        slots: &Slots,
        w: &TensorMatrix,
    ) -> Result<Arguments, CudaError> {
        if w.count != slots.matrices() {
            return Err(refused(operation, format!("{} matrices for {} experts", w.count, slots.matrices())));
        }
        Ok(Arguments {
            tiles: slots.tiles.address(),
            tile_count: slots.head.address(),
            costs: slots.costs.address(),
            row_of: slots.row_of.address(),
            partials: self.partials.address(),
            counters: self.counters.address(),
            slot_weights: slots.slot_weights.address(),
            ..self.common(operation, x, w)?
        })
    }

    fn common(&self, operation: &'static str, x: &Narrowed, w: &TensorMatrix) -> Result<Arguments, CudaError> {
        if x.width != w.cols || x.stored != w.stored || x.grouped {
            let problem = format!("rows of {} {:?} and weights of {} {:?}", x.width, x.stored, w.cols, w.stored);
            return Err(refused(operation, problem));
        }
        Ok(Arguments {
            w: w.map,
            up: w.map,
            x: x.map,
            w_scales: w.scales.address(),
            up_scales: 0,
            x_scales: x.scales.address(),
            tiles: 0,
            tile_count: 0,
            costs: 0,
            row_of: 0,
            x_rows: x.codes.address(),
            slot_weights: 0,
            out: 0,
            out_scales: 0,
            partials: 0,
            counters: 0,
            rows: 0,
            first: 0,
            step: 0,
            tiles_here: 0,
            slots: x.slots as i32,
            outputs: w.rows as i32,
            blocks: w.blocks() as i32,
            row_blocks: 0,
            splits: 1,
            adds: 0,
            pitch: (w.cols * w.stored.bytes()) as i32,
        })
    }

    fn multiply(&self, kernel: &crate::module::Kernel, arguments: Arguments) -> Result<(), CudaError> {
        // SAFETY: shapes agree and were checked; tiles lie within their slots; a CTA takes items as long as there are any.
        unsafe { self.launch(kernel, self.stream.multiprocessors() as usize, THREADS, arguments) }
    }
}
