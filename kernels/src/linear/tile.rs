//! The inner loops of `linear`: one thread's columns, cut into tiles of rows × columns whose accumulators stay in
//! registers.

use std::ops::Range;

use crate::matrix::{Matrix, SCALE_TILE, Storage};
use crate::memory::SharedMut;
use crate::simd::{Kernel, LANES, Simd};

/// Inputs per block of a sum; part of the result's definition. A block of a row is 4 KiB, so a tile's rows fit the
/// first-level cache.
const BLOCK: usize = 1024;

/// One thread's share of a product: all rows times `columns` of the output.
pub(super) struct Product<'a> {
    /// `[rows, x_stride]`, the width padded with zeros to whole vectors.
    pub x: &'a [f32],
    pub x_stride: usize,
    pub rows: usize,
    pub w: &'a Matrix,
    /// `[rows, w.rows()]`; only `columns` are touched.
    pub y: SharedMut,
    pub columns: Range<usize>,
}

/// Weights of one format, as vectors of 16.
///
/// # Safety
///
/// `load` requires the instruction set of `S` and 16 elements behind the pointer.
trait Format {
    type Element: Copy;
    /// Whether each 128 inputs have a scale.
    const SCALED: bool;
    unsafe fn load<S: Simd>(from: *const Self::Element) -> S::Vector;
}

struct F32Format;
struct Bf16Format;
struct Fp8Format;

impl Format for F32Format {
    type Element = f32;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::Vector {
        // SAFETY: the trait's contract.
        unsafe { S::load(from) }
    }
}

impl Format for Bf16Format {
    type Element = u16;
    const SCALED: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u16) -> S::Vector {
        // SAFETY: the trait's contract.
        unsafe { S::load_bf16(from) }
    }
}

impl Format for Fp8Format {
    type Element = u8;
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::Vector {
        // SAFETY: the trait's contract.
        unsafe { S::load_e4m3(from) }
    }
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the machine has the set (the caller's promise); weights come from `w`'s own storage.
        unsafe {
            match self.w.storage() {
                Storage::F32(values) => self.columns::<S, F32Format>(values, &[]),
                Storage::Bf16(values) => self.columns::<S, Bf16Format>(values, &[]),
                Storage::Fp8 { codes, scales } => self.columns::<S, Fp8Format>(codes, scales),
            }
        }
    }
}

impl Product<'_> {
    /// # Safety
    ///
    /// The machine has the set of `S`; `weights` and `scales` are `self.w`'s storage.
    #[inline(always)]
    unsafe fn columns<S: Simd, F: Format>(&self, weights: &[F::Element], scales: &[f32]) {
        let mut column = self.columns.start;
        // SAFETY: columns stay within the range, which lies within the matrix.
        unsafe {
            while column + 4 <= self.columns.end {
                self.rows_of_columns::<S, F, 4>(column, weights, scales);
                column += 4;
            }
            while column < self.columns.end {
                self.rows_of_columns::<S, F, 1>(column, weights, scales);
                column += 1;
            }
        }
    }

    /// # Safety
    ///
    /// As `columns`; `column..column + C` lies within the matrix.
    #[inline(always)]
    unsafe fn rows_of_columns<S: Simd, F: Format, const C: usize>(
        &self,
        column: usize,
        weights: &[F::Element],
        scales: &[f32],
    ) {
        let width = self.w.cols().next_multiple_of(LANES);
        let stride = self.w.stride();
        let scale_stride = self.w.cols().div_ceil(SCALE_TILE);
        for start in (0..width).step_by(BLOCK) {
            let len = BLOCK.min(width - start);
            let rows: [*const F::Element; C] =
                std::array::from_fn(|c| weights[(column + c) * stride + start..].as_ptr());
            let row_scales: [*const f32; C] = std::array::from_fn(|c| match F::SCALED {
                true => scales[(column + c) / SCALE_TILE * scale_stride + start / SCALE_TILE..].as_ptr(),
                false => scales.as_ptr(),
            });
            let mut row = 0;
            // SAFETY: each tile reads `len` inputs of rows below `self.rows` and of the C weight rows, all within
            // their buffers, whose rows are padded to whole vectors.
            unsafe {
                while row + 4 <= self.rows {
                    let sums = tile::<S, F, 4, C>(self.x_at(row, start), self.x_stride, rows, row_scales, len);
                    self.add(row, column, start, sums);
                    row += 4;
                }
                while row < self.rows {
                    let sums = tile::<S, F, 1, C>(self.x_at(row, start), self.x_stride, rows, row_scales, len);
                    self.add(row, column, start, sums);
                    row += 1;
                }
            }
        }
    }

    #[inline(always)]
    fn x_at(&self, row: usize, start: usize) -> *const f32 {
        self.x[row * self.x_stride + start..].as_ptr()
    }

    /// Adds a block's sums to the outputs; the first block sets them.
    ///
    /// # Safety
    ///
    /// `row + R` and `column + C` lie within `y`, and the columns within `self.columns`.
    #[inline(always)]
    unsafe fn add<const R: usize, const C: usize>(&self, row: usize, column: usize, start: usize, sums: [[f32; C]; R]) {
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                // SAFETY: within `y`; no other thread has these columns.
                unsafe {
                    let y = self.y.pointer().add((row + r) * self.w.rows() + column + c);
                    *y = if start == 0 { sum } else { *y + sum };
                }
            }
        }
    }
}

/// One block of the sums of R rows of activations with C rows of weights.
///
/// # Safety
///
/// `x` is valid for R rows of `len` at `x_stride`, each of `weights` for `len` (a multiple of 16), and each of
/// `scales` for one scale per 128 of them if the format has scales. The machine has the set of `S`.
#[inline(always)]
unsafe fn tile<S: Simd, F: Format, const R: usize, const C: usize>(
    x: *const f32,
    x_stride: usize,
    weights: [*const F::Element; C],
    scales: [*const f32; C],
    len: usize,
) -> [[f32; C]; R] {
    let span = if F::SCALED { SCALE_TILE } else { BLOCK };
    // SAFETY: the caller's promise covers every index below `len`.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        for (group, start) in (0..len).step_by(span).enumerate() {
            let scale: [S::Vector; C] =
                std::array::from_fn(|c| S::splat(if F::SCALED { *scales[c].add(group) } else { 1.0 }));
            for k in (start..len.min(start + span)).step_by(LANES) {
                let w: [S::Vector; C] = std::array::from_fn(|c| {
                    let value = F::load::<S>(weights[c].add(k));
                    if F::SCALED { S::mul(value, scale[c]) } else { value }
                });
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = S::load(x.add(r * x_stride + k));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = S::fma(x, w, *sum);
                    }
                }
            }
        }
        sums.map(|sums| sums.map(|sum| S::reduce(sum)))
    }
}
