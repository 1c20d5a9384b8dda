//! Rows in e4m3 with a scale each 128 elements, as fp8 checkpoints define them, and their products, summed in f32
//! (`cu/group_rows.cu`, `cu/group_product.cu`).

use super::product::{CTAS, TensorMatrix};
use super::rows::{Arguments, Narrowed, SCALE_GROUP, narrowing};
use super::{TensorOps, refused};
use crate::device::Device;
use crate::error::CudaError;
use crate::memory::DeviceSlice;
use crate::module::Kernel;
use crate::ops::Stored;
use crate::source;
use std::sync::Arc;

/// Outputs of a CTA.
const OUTPUTS: usize = 128;
/// Tokens of a CTA: the kernels there are.
const TOKENS: [usize; 4] = [16, 32, 64, 128];
/// Threads of all kernels here.
const THREADS: u32 = 256;
/// Five times `sizeof(Stage)`.
const SHARED: u32 = 5 * (128 * 128 + 128 * 128 + 128 * 4);
/// Elements of a row that a CTA narrows at a time.
const AT_A_TIME: usize = 1024;
/// Tiles of tokens of one launch that may have its inputs in parts.
const TILES_AT_ONCE: usize = 2;

/// The kernels.
#[derive(Debug)]
pub(super) struct Groups {
    narrow: Kernel,
    /// By [`TOKENS`].
    products: [Kernel; 4],
}

impl Groups {
    pub(super) fn load(device: &Arc<Device>) -> Result<Groups, CudaError> {
        let module = device.load(&source::GROUP_PRODUCT)?;
        let product = |name| module.kernel(name, SHARED);
        Ok(Groups {
            narrow: device.load(&source::GROUP_ROWS)?.kernel("narrow_groups", 0)?,
            products: [
                product("group_product_16")?,
                product("group_product_32")?,
                product("group_product_64")?,
                product("group_product_128")?,
            ],
        })
    }
}

#[repr(C)]
struct Narrow {
    x: u64,
    up: u64,
    weight: u64,
    normed: u64,
    codes: u64,
    scales: u64,
    rows: i32,
    width: i32,
    slots: i32,
    eps: f32,
    is_narrow: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Product {
    w: u64,
    x: u64,
    w_scales: u64,
    x_scales: u64,
    y: u64,
    partials: u64,
    counters: u64,
    rows: i32,
    inputs: i32,
    outputs: i32,
    slots: i32,
    splits: i32,
    adds: i32,
}

impl TensorOps {
    /// What was checked: f32 rows, of a gate if there is an `up`, or bf16 ones.
    pub(super) fn narrow_groups(
        &self,
        of: Arguments,
        up: Option<&DeviceSlice<f32>>,
        is_bf16: bool,
        to: &Narrowed,
    ) -> Result<(), CudaError> {
        let Arguments { x, weight, normed, codes, scales, rows, width, eps } = of;
        // A norm is of the whole row.
        let parts = if weight == 0 { to.width.div_ceil(AT_A_TIME) } else { 1 };
        let (up, slots, is_narrow) = (up.map_or(0, DeviceSlice::address), to.slots as i32, i32::from(is_bf16));
        let arguments = Narrow { x, up, weight, normed, codes, scales, rows, width, slots, eps, is_narrow };
        // SAFETY: lengths were checked by the caller.
        unsafe { self.launch_over(&self.groups.narrow, (rows as usize, parts), THREADS, arguments) }
    }

    /// `silu(gate) ⊙ up` of rows `[rows, width]`, to rows with a scale each 128 elements.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short, or rows of the other kind; the driver's own.
    pub fn narrow_gated(
        &self,
        gate: &DeviceSlice<f32>,
        up: &DeviceSlice<f32>,
        rows: usize,
        to: &Narrowed,
    ) -> Result<(), CudaError> {
        if up.len() < rows * to.width || !to.grouped {
            return Err(refused("narrow_gated", format!("{} elements for {rows} rows of {}", up.len(), to.width)));
        }
        self.narrow_groups(narrowing(gate, rows, None, to.slots, to)?, Some(up), false, to)
    }

    /// `y = x · Wᵀ`, or `y +=`, of what [`TensorOps::project`] has checked.
    pub(super) fn project_groups(
        &self,
        x: &Narrowed,
        rows: usize,
        w: &TensorMatrix,
        y: &DeviceSlice<f32>,
        adds: bool,
    ) -> Result<(), CudaError> {
        if x.width != w.cols() || w.stored() != Stored::Fp8 {
            let problem = format!("rows of {} and weights of {} {:?}", x.width, w.cols(), w.stored());
            return Err(refused("group_product", problem));
        }
        let (row_blocks, blocks) = (w.rows().div_ceil(OUTPUTS), w.cols() / SCALE_GROUP);
        // By the matrix alone, so that a row has the same bits in any company.
        let splits = (CTAS / row_blocks).clamp(1, blocks);
        let tiles_in = |tokens: usize| match splits {
            1 => usize::MAX,
            _ => (self.partials.len() / (row_blocks * splits * OUTPUTS * tokens)).min(self.counters.len() / row_blocks),
        };
        let wanted = TOKENS.iter().position(|tokens| rows <= *tokens).unwrap_or(TOKENS.len() - 1);
        // A share of a card has less room for parts.
        let Some(which) = (0..=wanted).rev().find(|which| tiles_in(TOKENS[*which]) > 0) else {
            return Err(refused("group_product", format!("{splits} parts of {row_blocks} blocks of outputs")));
        };
        let tiles = tiles_in(TOKENS[which]).min(if splits == 1 { usize::MAX } else { TILES_AT_ONCE });
        let at_once = tiles.saturating_mul(TOKENS[which]);
        for first in (0..rows).step_by(at_once) {
            let here = (rows - first).min(at_once);
            let arguments = Product {
                w: w.values().address(),
                x: x.codes.address() + (first * x.width) as u64,
                w_scales: w.scales().address(),
                x_scales: x.scales.address() + (first * size_of::<f32>()) as u64,
                y: y.address() + (first * w.rows() * size_of::<f32>()) as u64,
                partials: self.partials.address(),
                counters: self.counters.address(),
                rows: here as i32,
                inputs: w.cols() as i32,
                outputs: w.rows() as i32,
                slots: x.slots as i32,
                splits: splits as i32,
                adds: i32::from(adds),
            };
            let grid = (row_blocks * splits, here.div_ceil(TOKENS[which]));
            // SAFETY: shapes agree and were checked; parts and counters are as many as there are items.
            unsafe { self.launch_over(&self.groups.products[which], grid, THREADS, arguments)? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::product::{items_at_most, partials_for};

    /// The parts follow from the matrix alone: whatever it is, there is room for them on the smallest share of a card.
    #[test]
    fn parts_of_every_matrix_fit_the_smallest_share() {
        for row_blocks in 1..=CTAS / 2 {
            let splits = CTAS / row_blocks;
            assert!(row_blocks <= items_at_most(8), "{row_blocks} blocks of outputs have a counter each");
            assert!(row_blocks * splits * OUTPUTS * TOKENS[0] <= partials_for(8), "{splits} parts of {row_blocks}");
        }
    }
}
