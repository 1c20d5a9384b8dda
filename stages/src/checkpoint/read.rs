//! Copies slices out of mapped tensors, checking every value on the way.

use std::path::PathBuf;
use std::sync::Arc;

use half::{bf16, f16};
use rally_graph::model::FP8_TILE;
use rally_kernels::matrix::Matrix;
use safetensors::Dtype;

use super::files::Opened;
use super::header::Entry;
use super::{CheckpointError, Part};

/// Types that a matrix without scales, or a vector, may have.
const PLAIN: &str = "BF16, F16 or F32";

/// The part of a matrix `[rows, cols]`, which may be one of a stack.
pub(super) struct Slice {
    /// Number of the matrix in its stack, and size of the stack.
    pub(super) stack: Option<(usize, usize)>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) part: Part,
}

impl Slice {
    /// The same slice, counted in fp8 tiles.
    fn in_tiles(&self) -> Self {
        Self {
            stack: self.stack,
            rows: self.rows.div_ceil(FP8_TILE),
            cols: self.cols.div_ceil(FP8_TILE),
            part: self.part.in_tiles(),
        }
    }

    fn shape(&self) -> Vec<usize> {
        let stack = self.stack.map(|(_, size)| size);
        stack.into_iter().chain([self.rows, self.cols]).collect()
    }

    fn values(&self) -> usize {
        self.part.rows.len() * self.part.cols.len()
    }

    /// Index in the whole tensor of the value number `position` of the slice.
    fn index(&self, position: usize) -> Vec<usize> {
        let width = self.part.cols.len();
        let (row, col) = (self.part.rows.start + position / width, self.part.cols.start + position % width);
        let stack = self.stack.map(|(number, _)| number);
        stack.into_iter().chain([row, col]).collect()
    }
}

/// A tensor and the mapped file it is in.
pub(super) struct Located {
    pub(super) file: PathBuf,
    pub(super) name: String,
    pub(super) entry: Entry,
    pub(super) opened: Arc<Opened>,
}

impl Located {
    pub(super) fn is_fp8(&self) -> bool {
        self.entry.dtype == Dtype::F8_E4M3
    }

    pub(super) fn check_shape(&self, expected: &[usize]) -> Result<(), CheckpointError> {
        if self.entry.shape == expected {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            file: self.file.clone(),
            tensor: self.name.clone(),
            found: self.entry.shape.clone(),
            expected: expected.to_vec(),
        })
    }

    /// Refuses a cut through a tile, before anything is read.
    pub(super) fn check_tiles(&self, slice: &Slice) -> Result<(), CheckpointError> {
        if slice.part.is_on_tiles(slice.rows, slice.cols) {
            return Ok(());
        }
        Err(CheckpointError::TileCut {
            file: self.file.clone(),
            tensor: self.name.clone(),
            shape: self.entry.shape.clone(),
            found: slice.part.to_string(),
        })
    }

    /// A whole vector, and how many bytes were read.
    pub(super) fn read_vector(&self) -> Result<(Vec<f32>, u64), CheckpointError> {
        let len = self.entry.shape.iter().product();
        let slice = Slice { stack: None, rows: 1, cols: len, part: Part::all(1, len) };
        let (values, bytes) = match self.entry.dtype {
            Dtype::F32 => self.copy(&slice, f32::from_le_bytes),
            Dtype::BF16 => self.copy(&slice, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F16 => self.copy(&slice, |bytes| f16::from_le_bytes(bytes).to_f32()),
            _ => return Err(self.wrong_dtype(PLAIN)),
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(position) => Err(self.non_finite(vec![position], values[position])),
            None => Ok((values, bytes)),
        }
    }

    /// A slice of a matrix without scales, and how many bytes were read.
    pub(super) fn read_plain(&self, slice: &Slice) -> Result<(Matrix, u64), CheckpointError> {
        let (rows, cols) = (slice.part.rows.len(), slice.part.cols.len());
        match self.entry.dtype {
            Dtype::BF16 => {
                let (values, bytes) = self.copy(slice, bf16::from_le_bytes);
                self.check_finite(slice, &values, |value| value.to_f32())?;
                Ok((Matrix::from_bf16(rows, cols, values), bytes))
            }
            Dtype::F32 => {
                let (values, bytes) = self.copy(slice, f32::from_le_bytes);
                self.check_finite(slice, &values, |value| value)?;
                Ok((Matrix::from_f32(rows, cols, values), bytes))
            }
            Dtype::F16 => {
                let (values, bytes) = self.copy(slice, |bytes| f16::from_le_bytes(bytes).to_f32());
                self.check_finite(slice, &values, |value| value)?;
                Ok((Matrix::from_f32(rows, cols, values), bytes))
            }
            _ => Err(self.wrong_dtype("BF16, F16, F32, or F8_E4M3 with scales")),
        }
    }

    /// A slice of an fp8 matrix with its scales, and how many bytes were read.
    pub(super) fn read_fp8(&self, scales: &Self, slice: &Slice) -> Result<(Matrix, u64), CheckpointError> {
        let tiles = slice.in_tiles();
        scales.check_shape(&tiles.shape())?;
        if scales.entry.dtype != Dtype::F32 {
            return Err(scales.wrong_dtype("F32"));
        }
        let (scale_values, scale_bytes) = scales.copy(&tiles, f32::from_le_bytes);
        scales.check_finite(&tiles, &scale_values, |value| value)?;
        let (codes, code_bytes) = self.copy(slice, |[code]: [u8; 1]| code);
        self.check_finite(slice, &codes, |code| if code & 0x7f == 0x7f { f32::NAN } else { 0.0 })?;
        let (rows, cols) = (slice.part.rows.len(), slice.part.cols.len());
        Ok((Matrix::from_fp8_block(rows, cols, codes, scale_values), scale_bytes + code_bytes))
    }

    /// Copies the values of a slice, row by row. The shape was checked, and the header reader has compared it with the
    /// number of bytes, so every range is inside the tensor.
    fn copy<T, const N: usize>(&self, slice: &Slice, convert: impl Fn([u8; N]) -> T) -> (Vec<T>, u64) {
        let data = &self.opened.map[self.entry.start..self.entry.end];
        let first_row = slice.stack.map_or(0, |(number, _)| number * slice.rows);
        let mut values = Vec::with_capacity(slice.values());
        for row in slice.part.rows.clone() {
            let row_start = (first_row + row) * slice.cols;
            let from = (row_start + slice.part.cols.start) * N;
            let to = (row_start + slice.part.cols.end) * N;
            values.extend(data[from..to].as_chunks::<N>().0.iter().map(|bytes| convert(*bytes)));
        }
        let bytes = (values.len() * N) as u64;
        (values, bytes)
    }

    fn check_finite<T: Copy>(
        &self,
        slice: &Slice,
        values: &[T],
        widen: impl Fn(T) -> f32,
    ) -> Result<(), CheckpointError> {
        // Without an early exit the compiler checks many values at once; looking for the place is for the rare case.
        if values.iter().fold(true, |finite, value| finite & widen(*value).is_finite()) {
            return Ok(());
        }
        match values.iter().position(|value| !widen(*value).is_finite()) {
            Some(position) => Err(self.non_finite(slice.index(position), widen(values[position]))),
            None => Ok(()),
        }
    }

    fn non_finite(&self, at: Vec<usize>, found: f32) -> CheckpointError {
        CheckpointError::NonFinite {
            file: self.file.clone(),
            tensor: self.name.clone(),
            shape: self.entry.shape.clone(),
            at,
            found: found.to_string(),
        }
    }

    fn wrong_dtype(&self, expected: &'static str) -> CheckpointError {
        CheckpointError::Dtype {
            file: self.file.clone(),
            tensor: self.name.clone(),
            shape: self.entry.shape.clone(),
            found: self.entry.dtype.to_string(),
            expected,
        }
    }
}
