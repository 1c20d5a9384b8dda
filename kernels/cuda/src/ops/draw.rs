//! Weights that a rule makes, where they lie (`cu/draw.cu`): nothing of them comes from the host.

use super::weights::{Extent, Weights};
use super::{Ops, Stored, launch};
use crate::error::CudaError;
use crate::memory::DeviceSlice;

/// Elements of a row that a warp makes.
const OF_AN_ITEM: usize = 1024;

/// Scales that a warp makes.
const SCALES_OF_AN_ITEM: usize = 32;

/// Bytes that rows begin at multiples of, as matrices of the host do.
const ROW_ALIGN_BYTES: usize = 64;

/// What one matrix is drawn from: each of its numbers from where it stands in the whole matrix alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// Of its values.
    pub stream: u64,
    /// Of its scales, for fp8.
    pub scale_stream: u64,
    /// What a number of [-1, 1) is multiplied with before it is stored.
    pub bound: f32,
    /// What scales lie around, by a quarter at most; for fp8.
    pub scale: f32,
    /// The format.
    pub stored: Stored,
}

/// A part of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrawnPart {
    /// Columns of the whole matrix.
    pub whole_cols: usize,
    /// First row, a multiple of 128 for fp8.
    pub first_row: usize,
    /// First column, a multiple of 128 for fp8.
    pub first_col: usize,
    /// Rows of the part.
    pub rows: usize,
    /// Columns of the part.
    pub cols: usize,
}

#[repr(C)]
struct Arguments {
    values: u64,
    scales: u64,
    stream: u64,
    scale_stream: u64,
    whole: i32,
    first_row: i32,
    first_col: i32,
    rows: i32,
    cols: i32,
    stride: i32,
    stored: i32,
    bound: f32,
    scale: f32,
}

impl Ops {
    /// The same part of as many matrices as there are rules, laid out as [`Weights::of`] lays out the host's.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for rules of several formats, or sides of more than 31 bits; no memory; the driver's own.
    pub fn draw(&self, rules: &[Drawn], part: DrawnPart) -> Result<Weights, CudaError> {
        let refused = |problem: String| Err(CudaError::Shape { operation: "draw", problem });
        let DrawnPart { whole_cols, first_row, first_col, rows, cols } = part;
        let stored = rules.first().map_or(Stored::F32, |rule| rule.stored);
        if let Some(other) = rules.iter().find(|rule| rule.stored != stored) {
            return refused(format!("{:?} among matrices of {stored:?}", other.stored));
        }
        let sides = [whole_cols, first_row + rows, first_col + cols];
        if sides.iter().any(|side| i32::try_from(*side).is_err()) {
            return refused(format!("sides of {sides:?}, which a kernel counts in 31 bits"));
        }
        let stride = cols.next_multiple_of(ROW_ALIGN_BYTES / stored.bytes());
        let extent = Extent { rows, cols, stride, stored };
        let weights = Weights::room(&**self.machine(), rules.len(), extent)?;
        let (values, scales) = (extent.value_bytes(), extent.scales());
        let mut table = Vec::with_capacity(rules.len() * 3);
        for (index, rule) in rules.iter().enumerate() {
            let values: DeviceSlice<u8> = weights.values().part(index * values, values);
            let of_scales = weights.scales().part(index * scales, scales);
            table.extend(extent.entry(&values, &of_scales));
            let arguments = || Arguments {
                values: values.address(),
                scales: of_scales.address(),
                stream: rule.stream,
                scale_stream: rule.scale_stream,
                whole: whole_cols as i32,
                first_row: first_row as i32,
                first_col: first_col as i32,
                rows: rows as i32,
                cols: cols as i32,
                stride: stride as i32,
                stored: stored as i32,
                bound: rule.bound,
                scale: rule.scale,
            };
            // SAFETY: the slices were made for a matrix of this extent.
            unsafe {
                launch(&*self.draw, rows * stride.div_ceil(OF_AN_ITEM), arguments())?;
                launch(&*self.draw_scales, scales.div_ceil(SCALES_OF_AN_ITEM), arguments())?;
            }
        }
        weights.told(&**self.machine(), &table)
    }
}
