//! Row by row: embedding, norms, sums (`cu/rows.cu`).

use super::{Ops, Weights, holds, launch};
use crate::error::CudaError;
use crate::memory::DeviceSlice;

/// Columns of an item whose columns do not depend on each other.
pub(super) const COLUMNS: usize = 512;

#[repr(C)]
struct Rows {
    x: u64,
    weight: u64,
    out: u64,
    ids: u64,
    table: u64,
    width: i32,
    eps: f32,
}

impl Ops {
    /// Rows `ids` of a matrix, dequantised: out `[rows, table.cols()]`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    pub fn embed(
        &self,
        table: &Weights,
        ids: &DeviceSlice<i32>,
        rows: usize,
        out: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        holds("embed", "ids [rows]", ids, rows)?;
        holds("embed", "out [rows, width]", out, rows * table.cols())?;
        let (ids, out, table_address) = (ids.address(), out.address(), table.table());
        let width = table.cols();
        // SAFETY: lengths were checked; ids below the table's rows are the caller's promise.
        unsafe {
            launch(
                &*self.embed,
                rows * width.div_ceil(COLUMNS),
                Rows { x: 0, weight: 0, out, ids, table: table_address, width: width as i32, eps: 0.0 },
            )
        }
    }

    /// `out = x / sqrt(mean(x²) + eps) · weight`. With `ids`, row i of `out`, which then is not `x`, comes from row `ids[i]` of x.
    ///
    /// # Errors
    /// As [`Ops::embed`].
    pub fn rms_norm(
        &self,
        x: &DeviceSlice<f32>,
        ids: Option<&DeviceSlice<i32>>,
        rows: usize,
        weight: &DeviceSlice<f32>,
        eps: f32,
        out: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        let width = weight.len();
        match ids {
            Some(ids) => holds("rms_norm", "ids [rows]", ids, rows)?,
            None => holds("rms_norm", "x [rows, width]", x, rows * width)?,
        }
        holds("rms_norm", "out [rows, width]", out, rows * width)?;
        let arguments = Rows {
            x: x.address(),
            weight: weight.address(),
            out: out.address(),
            ids: ids.map_or(0, DeviceSlice::address),
            table: 0,
            width: width as i32,
            eps,
        };
        // SAFETY: lengths were checked; ids below x's rows are the caller's promise.
        unsafe { launch(&*self.rms_norm, rows, arguments) }
    }

    /// `to += from`, both `[rows, width]`.
    ///
    /// # Errors
    /// As [`Ops::embed`].
    pub fn add(
        &self,
        to: &DeviceSlice<f32>,
        from: &DeviceSlice<f32>,
        rows: usize,
        width: usize,
    ) -> Result<(), CudaError> {
        holds("add", "to [rows, width]", to, rows * width)?;
        holds("add", "from [rows, width]", from, rows * width)?;
        let (x, out, items) = (from.address(), to.address(), rows * width.div_ceil(COLUMNS));
        let width = width as i32;
        // SAFETY: lengths were checked.
        unsafe { launch(&*self.add, items, Rows { x, weight: 0, out, ids: 0, table: 0, width, eps: 0.0 }) }
    }
}
