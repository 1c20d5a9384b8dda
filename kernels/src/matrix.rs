//! Weight matrices as a checkpoint stores them: bf16, f32, or e4m3 with a scale per 128×128 tile.
//!
//! Owns the memory. Multiplying is `linear`'s.

use half::bf16;
use std::sync::Arc;

use crate::dtype::{bf16_to_f32, e4m3_to_f32};
use crate::memory::AlignedBuffer;

/// Rows and columns that share one scale of an fp8 matrix (block-fp8 checkpoints: `weight_scale_inv`).
pub const SCALE_TILE: usize = 128;

/// Every stored row starts on a cache line and is padded with zeros to whole lines.
const ROW_ALIGN_BYTES: usize = 64;

/// A weight matrix `[rows = out, cols = in]`, row-major, numbers as stored. A clone shares the numbers, which never change.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    /// Elements from one row to the next.
    stride: usize,
    storage: Arc<Storage>,
}

#[derive(Debug)]
pub(crate) enum Storage {
    F32(AlignedBuffer<f32>),
    Bf16(AlignedBuffer<u16>),
    Fp8 { codes: AlignedBuffer<u8>, scales: Vec<f32> },
}

/// A matrix's numbers, `[rows, stride]`, zero from a row's columns to its stride.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// Singles.
    F32(&'a [f32]),
    /// bf16 bit patterns.
    Bf16(&'a [u16]),
    /// e4m3 codes, and scales `[ceil(rows/128), ceil(cols/128)]`.
    Fp8 {
        /// The codes.
        codes: &'a [u8],
        /// The scales.
        scales: &'a [f32],
    },
}

impl Matrix {
    /// A matrix of singles; `values` is `[rows, cols]`.
    pub fn from_f32(rows: usize, cols: usize, values: Vec<f32>) -> Matrix {
        let (stride, buffer) = padded(rows, cols, &values, |&value| value);
        Matrix { rows, cols, stride, storage: Arc::new(Storage::F32(buffer)) }
    }

    /// A matrix of bf16 numbers; `values` is `[rows, cols]`.
    pub fn from_bf16(rows: usize, cols: usize, values: Vec<bf16>) -> Matrix {
        let (stride, buffer) = padded(rows, cols, &values, |value| value.to_bits());
        Matrix { rows, cols, stride, storage: Arc::new(Storage::Bf16(buffer)) }
    }

    /// A matrix of e4m3 codes `[rows, cols]` with `scales` `[ceil(rows/128), ceil(cols/128)]`.
    ///
    /// Element (r, c) is `f32(code) * scales[r / 128, c / 128]`, rounded to f32.
    pub fn from_fp8_block(rows: usize, cols: usize, codes: Vec<u8>, scales: Vec<f32>) -> Matrix {
        let tiles = rows.div_ceil(SCALE_TILE) * cols.div_ceil(SCALE_TILE);
        assert_eq!(scales.len(), tiles, "an fp8 matrix of {rows}x{cols} has one scale per 128x128 tile");
        let (stride, buffer) = padded(rows, cols, &codes, |&code| code);
        Matrix { rows, cols, stride, storage: Arc::new(Storage::Fp8 { codes: buffer, scales }) }
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the stored numbers and their scales; the padding of rows to cache lines is not counted.
    pub fn bytes(&self) -> usize {
        let numbers = self.rows * self.cols;
        match &*self.storage {
            Storage::F32(_) => numbers * 4,
            Storage::Bf16(_) => numbers * 2,
            Storage::Fp8 { scales, .. } => numbers + scales.len() * 4,
        }
    }

    /// Writes row `row`, dequantised, to `out` (`[cols]`): an embedding lookup.
    pub fn row_into(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} is one of the matrix's {}", self.rows);
        assert_eq!(out.len(), self.cols, "the output is one row of the matrix");
        let range = row * self.stride..row * self.stride + self.cols;
        match &*self.storage {
            Storage::F32(values) => out.copy_from_slice(&values[range]),
            Storage::Bf16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, &bits)| *out = bf16_to_f32(bits));
            }
            Storage::Fp8 { codes, scales } => {
                let scales = &scales[row / SCALE_TILE * self.cols.div_ceil(SCALE_TILE)..];
                let groups = out.chunks_mut(SCALE_TILE).zip(codes[range].chunks(SCALE_TILE)).zip(scales);
                for ((out, codes), scale) in groups {
                    out.iter_mut().zip(codes).for_each(|(out, &code)| *out = e4m3_to_f32(code) * scale);
                }
            }
        }
    }

    /// The numbers as they lie in memory, to be copied elsewhere.
    pub fn stored(&self) -> Stored<'_> {
        match &*self.storage {
            Storage::F32(values) => Stored::F32(values),
            Storage::Bf16(values) => Stored::Bf16(values),
            Storage::Fp8 { codes, scales } => Stored::Fp8 { codes, scales },
        }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Elements from one row to the next: `cols` rounded up to whole cache lines of 64 bytes.
    pub fn stride(&self) -> usize {
        self.stride
    }
}

/// Copies `[rows, cols]` into aligned rows padded with zeros, and returns the stride in elements.
fn padded<S, T: crate::memory::Element>(
    rows: usize,
    cols: usize,
    values: &[S],
    convert: impl Fn(&S) -> T,
) -> (usize, AlignedBuffer<T>) {
    assert!(rows > 0 && cols > 0, "a matrix has rows and columns, not {rows}x{cols}");
    assert_eq!(values.len(), rows * cols, "a matrix of {rows}x{cols} holds that many numbers");
    let stride = cols.next_multiple_of(ROW_ALIGN_BYTES / size_of::<T>());
    let mut buffer = AlignedBuffer::zeroed(rows * stride);
    for (to, from) in buffer.chunks_exact_mut(stride).zip(values.chunks_exact(cols)) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = convert(from));
    }
    (stride, buffer)
}
