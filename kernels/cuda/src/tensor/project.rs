//! Products with one matrix (`cu/tensor_project.cu`).

use super::product::{BOX_ROWS, CTAS, TensorMatrix};
use super::rows::Narrowed;
use super::{TensorOps, refused};
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::DeviceSlice;
use crate::mfa::HEAD_DIM;
use crate::module::{Kernel, Order, Shape};
use crate::ops::Stored;
use crate::source;
use crate::tensor_map::TensorMap;
use std::ffi::c_void;
use std::sync::Arc;

/// Most tokens of a tile, by kernel.
const TOKENS: [usize; 5] = [16, 32, 64, 128, 256];
/// Threads by kernel: two warpgroups that multiply, a warp for weights and one for rows, and two that only give registers away.
const THREADS: [u32; 5] = [320, 320, 320, 320, 384];
/// `sizeof(Memory)` by kernel: stages of weights, of rows, of how many tokens.
const SHARED: [u32; 5] =
    [shared(10, 10, 32), shared(10, 10, 32), shared(9, 8, 64), shared(7, 6, 128), shared(5, 4, 256)];
/// Blocks of the inputs that a part has at least.
const BLOCKS_AT_LEAST: usize = 7;
/// Tiles of weights that share rows, where they do: with four, members wait for each other longer than they save.
const SHARING: usize = 2;
/// Matrices of a launch at most.
const MATRICES: usize = 3;
/// CTAs of a cluster at most.
const CLUSTER: usize = 8;

const fn shared(weights: u32, rows: u32, tokens: u32) -> u32 {
    // `Memory` begins at a multiple of 1 KiB, and dynamic shared memory may not.
    1024 + weights * 16384 + rows * tokens * 128 + (2 * 128 + 256) * 4 + 2 * (weights + rows) * 8
}

/// By format, then by how many tokens a tile has at most.
pub(super) fn kernels(device: &Arc<Device>) -> Result<[[Kernel; 5]; 2], CudaError> {
    let module = device.load(&source::TENSOR_PROJECT)?;
    let kernel = |name, at: usize| module.kernel(name, SHARED[at]);
    Ok([
        [
            kernel("tensor_project_fp8_16", 0)?,
            kernel("tensor_project_fp8_32", 1)?,
            kernel("tensor_project_fp8_64", 2)?,
            kernel("tensor_project_fp8_128", 3)?,
            kernel("tensor_project_fp8_256", 4)?,
        ],
        [
            kernel("tensor_project_bf16_16", 0)?,
            kernel("tensor_project_bf16_32", 1)?,
            kernel("tensor_project_bf16_64", 2)?,
            kernel("tensor_project_bf16_128", 3)?,
            kernel("tensor_project_bf16_256", 4)?,
        ],
    ])
}

/// Parts that the inputs are cut into: as many as fill the card, by the shape of the matrix alone.
fn splits(tiles: usize, blocks: usize) -> usize {
    let mut splits = 1;
    while splits < CLUSTER && tiles * splits * 2 <= CTAS && blocks / (splits * 2) >= BLOCKS_AT_LEAST {
        splits *= 2;
    }
    splits
}

/// Of one matrix.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct One {
    w: TensorMap,
    scales: u64,
    out: u64,
    outputs: i32,
    first: i32,
    is_even: i32,
}

#[repr(C)]
struct Arguments {
    of: [One; MATRICES],
    x: TensorMap,
    x_scales: u64,
    rows: i32,
    step: i32,
    tiles: i32,
    matrices: i32,
    blocks: i32,
    splits: i32,
    sharing: i32,
    adds: i32,
    table: u64,
    positions: u64,
    rotated: u64,
}

/// Where rows are, for [`TensorOps::project_rotated`].
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a> {
    /// `[positions, 256]`: the cosines of a position's pairs, then the sines.
    pub table: &'a DeviceSlice<f32>,
    /// `[rows]`, each within the table.
    pub positions: &'a DeviceSlice<i32>,
}

impl TensorOps {
    /// `y = x · Wᵀ`, or `y +=`: x's first `rows` slots, y `[rows, w rows]` f32.
    ///
    /// # Errors
    /// As [`TensorOps::up`].
    pub fn project(
        &self,
        x: &Narrowed,
        rows: usize,
        w: &TensorMatrix,
        y: &DeviceSlice<f32>,
        adds: bool,
    ) -> Result<(), CudaError> {
        self.project_all(x, rows, &[(w, y)], adds)
    }

    /// The same of one to three matrices of one width and format, each with its own y, in one launch.
    ///
    /// # Errors
    /// As [`TensorOps::up`].
    pub fn project_all(
        &self,
        x: &Narrowed,
        rows: usize,
        of: &[(&TensorMatrix, &DeviceSlice<f32>)],
        adds: bool,
    ) -> Result<(), CudaError> {
        if of.is_empty() || of.len() > MATRICES {
            return Err(refused("tensor_project", format!("{} matrices at once: one to {MATRICES}", of.len())));
        }
        for (w, y) in of {
            let is_like = x.width == w.cols() && x.stored == w.stored();
            if !is_like || rows > x.slots || y.len() < rows * w.rows() || w.count() != 1 {
                let problem = format!(
                    "{rows} of {} rows of {} {:?} by {}x{} {:?} to {} elements",
                    x.slots,
                    x.width,
                    x.stored,
                    w.rows(),
                    w.cols(),
                    w.stored(),
                    y.len()
                );
                return Err(refused("tensor_project", problem));
            }
        }
        if x.grouped {
            return of.iter().try_for_each(|(w, y)| self.project_groups(x, rows, w, y, adds));
        }
        let of: Vec<_> = of.iter().map(|(w, y)| (*w, y.address())).collect();
        self.enqueue_products(x, rows, &of, adds, None)
    }

    /// `y = x · Wᵀ` as heads of 256, rotated, in bf16: the bits of [`crate::mfa_append::MfaAppend`] behind [`TensorOps::project`].
    ///
    /// # Errors
    /// As [`TensorOps::up`].
    pub fn project_rotated(
        &self,
        x: &Narrowed,
        rows: usize,
        w: &TensorMatrix,
        angles: Angles<'_>,
        rotated: &DeviceSlice<u16>,
    ) -> Result<(), CudaError> {
        let is_like = x.width == w.cols()
            && x.stored == w.stored()
            && w.count() == 1
            && w.rows().is_multiple_of(HEAD_DIM)
            && !x.grouped;
        if !is_like || rows > x.slots || rotated.len() < rows * w.rows() || angles.positions.len() < rows {
            let problem = format!("{rows} rows of {} by {}x{} to heads of {HEAD_DIM}", x.width, w.rows(), w.cols());
            return Err(refused("tensor_project", problem));
        }
        self.enqueue_products(x, rows, &[(w, 0)], false, Some((angles, rotated.address())))
    }

    /// Of what was checked.
    fn enqueue_products(
        &self,
        x: &Narrowed,
        rows: usize,
        of: &[(&TensorMatrix, u64)],
        adds: bool,
        rotates: Option<(Angles<'_>, u64)>,
    ) -> Result<(), CudaError> {
        if rows == 0 {
            return Ok(());
        }
        let blocks = of[0].0.blocks();
        let mut of_weights = 0;
        let ones: [One; MATRICES] = std::array::from_fn(|index| {
            // What there is none of is not looked at.
            let (w, y) = of[index.min(of.len() - 1)];
            let first = of_weights;
            of_weights += if index < of.len() { w.rows().div_ceil(BOX_ROWS) } else { 0 };
            One {
                w: w.half(),
                scales: w.scales().address(),
                out: y,
                outputs: w.rows() as i32,
                first: first as i32,
                is_even: i32::from(w.rows().is_multiple_of(4) && y.is_multiple_of(16)),
            }
        });
        let tiles = rows.div_ceil(TOKENS[TOKENS.len() - 1]);
        let step = rows.div_ceil(tiles).next_multiple_of(8);
        let tiles = rows.div_ceil(step);
        let which = TOKENS.iter().position(|tokens| step <= *tokens).unwrap_or(TOKENS.len() - 1);
        let splits = splits(of_weights, blocks);
        // Whole tiles fill the card so nearly that pairs would not find places at once.
        let sharing = if step > 32 && splits > 1 { (CLUSTER / splits).min(SHARING) } else { 1 };
        let cluster = splits * sharing;
        let mut arguments = Arguments {
            of: ones,
            x: x.map,
            x_scales: x.scales.address(),
            rows: rows as i32,
            step: step as i32,
            tiles: tiles as i32,
            matrices: of.len() as i32,
            blocks: blocks as i32,
            splits: splits as i32,
            sharing: sharing as i32,
            adds: i32::from(adds),
            table: rotates.map_or(0, |(angles, _)| angles.table.address()),
            positions: rotates.map_or(0, |(angles, _)| angles.positions.address()),
            rotated: rotates.map_or(0, |(_, rotated)| rotated),
        };
        let kernel = &self.project[usize::from(x.stored != Stored::Fp8)][which];
        self.device.bind()?;
        let mut argument: *mut c_void = (&raw mut arguments).cast();
        let grid = of_weights.div_ceil(sharing) * tiles * cluster;
        let shape = Shape { grid: (grid as u32, 1), block: THREADS[which], order: Order::Overlapped };
        // SAFETY: shapes agree and were checked; the launch copies the parameter.
        unsafe { kernel.launch_clusters(&self.stream, shape, cluster as u32, std::slice::from_mut(&mut argument)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_a_card_and_fit_a_cluster_and_what_a_cta_keeps_of_scales() {
        // q, k and v; wq; o_proj and an eighth of it; the key's alone.
        let step3 = [(20, 56), (128, 16), (56, 128), (56, 16), (2, 56)];
        assert_eq!(step3.map(|(tiles, blocks)| splits(tiles, blocks)), [4, 1, 2, 2, 8]);
        for tiles in 1..300 {
            for blocks in 1..=128 {
                let parts = splits(tiles, blocks);
                assert!(parts <= CLUSTER && (parts == 1 || tiles * parts <= CTAS && blocks / parts >= BLOCKS_AT_LEAST));
            }
        }
    }

    #[test]
    fn rings_leave_a_multiprocessor_room_for_rows_being_narrowed() {
        // 227 KiB are a CTA's at most, of 228 of which each CTA has one more for itself.
        assert!(SHARED.iter().all(|bytes| bytes + 1024 + 2048 <= 228 * 1024));
    }
}
