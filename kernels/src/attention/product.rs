//! The product both halves of attention are: small weights, one per head and step, times rows of a tile.
//!
//! Lanes are the tile's columns (positions for scores, value elements for outputs), so every output is one lane that
//! adds its steps one after another: nothing about the tiling can change a bit.

use crate::simd::{LANES, Simd};

/// What sums begin with: zero, what is there, or that times a factor.
pub(super) const NONE: u8 = 0;
pub(super) const AS_THEY_ARE: u8 = 1;
pub(super) const SCALED: u8 = 2;

/// `sums[h, c] = (0, sums[h, c] or sums[h, c] · factors[h]) + Σ_k weights[h, k] · rows[k, c]`, k in order.
#[derive(Clone, Copy)]
pub(super) struct Product {
    /// `[heads, len]`.
    pub weights: *const f32,
    pub weight_stride: usize,
    /// `[len, columns]`.
    pub rows: *const f32,
    pub row_stride: usize,
    pub len: usize,
    /// `[heads]`; read where sums are scaled.
    pub factors: *const f32,
    /// `[heads, columns]`.
    pub sums: *mut f32,
    pub sum_stride: usize,
}

impl Product {
    /// # Safety
    ///
    /// The machine has the set of `S`, the pointers are valid for the shapes above, and `columns` is whole vectors.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd, const FROM: u8>(self, heads: usize, columns: usize) {
        let mut column = 0;
        // SAFETY: passed on. Blocks fill the registers, and a block of rows stays in the first-level cache while all
        // heads use it.
        unsafe {
            if S::ACCUMULATORS >= 24 {
                while column + 4 * LANES <= columns {
                    self.heads::<S, FROM, 4>(heads, column);
                    column += 4 * LANES;
                }
            }
            while column < columns {
                self.heads::<S, FROM, 1>(heads, column);
                column += LANES;
            }
        }
    }

    /// # Safety
    ///
    /// As `run`, for C vectors from `column`.
    #[inline(always)]
    unsafe fn heads<S: Simd, const FROM: u8, const C: usize>(self, heads: usize, column: usize) {
        let mut head = 0;
        // SAFETY: heads stay below `heads`.
        unsafe {
            while head + 6 <= heads {
                self.block::<S, FROM, 6, C>(head, column);
                head += 6;
            }
            match heads - head {
                0 => {}
                1 => self.block::<S, FROM, 1, C>(head, column),
                2 => self.block::<S, FROM, 2, C>(head, column),
                3 => self.block::<S, FROM, 3, C>(head, column),
                4 => self.block::<S, FROM, 4, C>(head, column),
                _ => self.block::<S, FROM, 5, C>(head, column),
            }
        }
    }

    /// # Safety
    ///
    /// As `run`, for H heads from `head` and C vectors from `column`.
    #[inline(always)]
    unsafe fn block<S: Simd, const FROM: u8, const H: usize, const C: usize>(self, head: usize, column: usize) {
        // SAFETY: all indices lie within the shapes.
        unsafe {
            let mut accumulators = [[S::splat(0.0); C]; H];
            if FROM != NONE {
                for (h, accumulators) in accumulators.iter_mut().enumerate() {
                    for (c, accumulator) in accumulators.iter_mut().enumerate() {
                        *accumulator = S::load(self.at(head + h, column + c * LANES));
                        if FROM == SCALED {
                            *accumulator = S::mul(*accumulator, S::splat(*self.factors.add(head + h)));
                        }
                    }
                }
            }
            for k in 0..self.len {
                let mut row = [S::splat(0.0); C];
                for (c, row) in row.iter_mut().enumerate() {
                    *row = S::load(self.rows.add(k * self.row_stride + column + c * LANES));
                }
                for (h, accumulators) in accumulators.iter_mut().enumerate() {
                    let weight = S::splat(*self.weights.add((head + h) * self.weight_stride + k));
                    for (accumulator, row) in accumulators.iter_mut().zip(row) {
                        *accumulator = S::fma(weight, row, *accumulator);
                    }
                }
            }
            for (h, accumulators) in accumulators.into_iter().enumerate() {
                for (c, accumulator) in accumulators.into_iter().enumerate() {
                    S::store(self.at(head + h, column + c * LANES), accumulator);
                }
            }
        }
    }

    /// # Safety
    ///
    /// The head and column lie within `sums`.
    #[inline(always)]
    unsafe fn at(self, head: usize, column: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.sums.add(head * self.sum_stride + column) }
    }
}
