//! Rows cut into slices of their columns, and parts of rows added (`cu/rows.cu`): what devices hand each other that divide a product.

use super::rows::COLUMNS;
use super::{Ops, holds, launch};
use crate::error::CudaError;
use crate::memory::DeviceSlice;

#[repr(C)]
struct Slices {
    x: u64,
    out: u64,
    width: i32,
    slices: i32,
    most: i32,
}

/// Slices of a matrix's columns, and the rows that there is room for in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliced {
    /// Columns of the whole.
    pub width: usize,
    /// How many slices, as equal as can be: the first ones have one column more.
    pub slices: usize,
    /// Rows.
    pub most: usize,
}

impl Ops {
    /// Rows of x `[rows, width]` by slice: each begins at `most ·` the columns before it, and has its rows without a gap.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    pub fn slice_columns(
        &self,
        x: &DeviceSlice<f32>,
        rows: usize,
        of: Sliced,
        out: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        holds("slice_columns", "x [rows, width]", x, rows * of.width)?;
        holds("slice_columns", "out [most, width]", out, of.most.max(rows) * of.width)?;
        // SAFETY: lengths were checked.
        unsafe { launch(&*self.slice_columns, rows * of.width.div_ceil(COLUMNS), of.arguments(x, out)) }
    }

    /// `out += x_0 + x_1 + …`, out `[rows, width]`; the parts x are `[slices, most, width]`, of which the first rows count. A row's parts
    /// are added to each other first, in their order.
    ///
    /// # Errors
    /// As [`Ops::slice_columns`].
    pub fn add_slices(
        &self,
        x: &DeviceSlice<f32>,
        rows: usize,
        of: Sliced,
        out: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        holds("add_slices", "x [slices, most, width]", x, of.slices * of.most.max(rows) * of.width)?;
        holds("add_slices", "out [rows, width]", out, rows * of.width)?;
        // SAFETY: lengths were checked.
        unsafe { launch(&*self.add_slices, rows * of.width.div_ceil(COLUMNS), of.arguments(x, out)) }
    }
}

impl Sliced {
    fn arguments(self, x: &DeviceSlice<f32>, out: &DeviceSlice<f32>) -> Slices {
        let (width, slices, most) = (self.width as i32, self.slices as i32, self.most as i32);
        Slices { x: x.address(), out: out.address(), width, slices, most }
    }
}
