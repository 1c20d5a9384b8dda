//! The inner loops of `linear`: one thread's columns, cut into tiles of rows × columns whose accumulators stay in
//! registers.

use std::cell::RefCell;
use std::ops::Range;

use super::weights::{Bf16Format, F32Format, Format, Fp8Format, Weights};
use crate::matrix::{Matrix, SCALE_TILE, Storage};
use crate::memory::{AlignedBuffer, SharedMut};
use crate::simd::{Kernel, LANES, Simd};

/// Inputs per block of a sum; part of the result's definition. A block of a row is 4 KiB, so a tile's rows fit the
/// first-level cache.
const BLOCK: usize = 1024;

/// Columns of a panel, over whose blocks of 1,024 inputs the rows pass: as stored at most 192 KiB, which a second-level cache keeps
/// beside some rows of activations. A multiple of every tile's columns.
const PANEL_COLUMNS: usize = 48;

/// Columns that are widened at a time: a block of them is 24 KiB, which a first-level cache keeps beside the rows that pass by.
const WIDENED_COLUMNS: usize = 6;

/// Numbers from one row of widened weights to the next: a line more than a block, so that rows do not share cache sets.
const WIDENED_STRIDE: usize = BLOCK + LANES;

thread_local! {
    static WIDENED: RefCell<AlignedBuffer<f32>> = RefCell::default();
}

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
        let weights = Weights::<F> {
            values: weights,
            stride: self.w.stride(),
            scales,
            scale_stride: self.w.cols().div_ceil(SCALE_TILE),
        };
        // SAFETY: passed on. The shapes fill the registers: 24 accumulators of 32 with AVX-512, 6 pairs of 16 with
        // AVX2. Few rows widen each weight once, straight from memory.
        unsafe {
            if S::ACCUMULATORS < 24 {
                return match self.rows {
                    1 => self.narrow::<S, F, 1, 4>(&weights),
                    2 => self.narrow::<S, F, 2, 3>(&weights),
                    3 => self.narrow::<S, F, 3, 2>(&weights),
                    _ if F::SCALED => self.widened::<S, F, 3, 2>(&weights),
                    _ => self.as_stored::<S, F, 3, 2>(&weights),
                };
            }
            // An fp8 tile also holds four vectors of each column's weights.
            match (self.rows, F::SCALED) {
                (1, false) => self.narrow::<S, F, 1, 8>(&weights),
                (2, false) => self.narrow::<S, F, 2, 6>(&weights),
                (3, false) => self.narrow::<S, F, 3, 6>(&weights),
                (4, false) => self.narrow::<S, F, 4, 6>(&weights),
                (5, false) => self.narrow::<S, F, 5, 4>(&weights),
                (6, false) => self.narrow::<S, F, 6, 4>(&weights),
                (7, false) => self.narrow::<S, F, 7, 3>(&weights),
                (8, false) => self.narrow::<S, F, 8, 3>(&weights),
                (1, true) => self.narrow::<S, F, 1, 4>(&weights),
                (2, true) => self.narrow::<S, F, 2, 4>(&weights),
                (3, true) => self.narrow::<S, F, 3, 3>(&weights),
                (4, true) => self.narrow::<S, F, 4, 3>(&weights),
                (5, true) => self.narrow::<S, F, 5, 2>(&weights),
                (6, true) => self.narrow::<S, F, 6, 2>(&weights),
                (7, true) => self.narrow::<S, F, 7, 2>(&weights),
                (8, true) => self.widened::<S, F, 4, 6>(&weights),
                // Used often enough to pay for widening once.
                _ => self.widened::<S, F, 4, 6>(&weights),
            }
        }
    }

    /// All rows at once, R of them: weights are widened in registers as they are read. The rows' block of inputs stays in the
    /// first-level cache while a panel's columns pass by; one or two rows do so as a whole, and columns are read end to end.
    ///
    /// # Safety
    ///
    /// As `columns`; R is `self.rows`.
    #[inline(always)]
    unsafe fn narrow<S: Simd, F: Format, const R: usize, const C: usize>(&self, weights: &Weights<'_, F>) {
        debug_assert_eq!(self.rows, R);
        let width = self.width::<F>();
        let panel = if R < 3 || F::SCALED { C } else { PANEL_COLUMNS };
        for first in self.columns.clone().step_by(panel) {
            let columns = first..self.columns.end.min(first + panel);
            for start in (0..width).step_by(BLOCK) {
                let len = BLOCK.min(width - start);
                let mut column = columns.start;
                // SAFETY: columns stay within the range, which lies within the matrix.
                unsafe {
                    while column + C <= columns.end {
                        // What comes next: the same inputs of later columns, the panel's next inputs, the next panel.
                        let soon = if panel == C {
                            weights.at(column, start).wrapping_add(C * weights.stride)
                        } else {
                            // Memory takes about as long to answer as one tile takes.
                            let later = column + 2 * C;
                            let over = later.saturating_sub(columns.end) * weights.stride;
                            match (later + C <= columns.end, start + BLOCK < width) {
                                (true, _) => weights.at(later, start),
                                (false, true) => weights.at(columns.start, start + BLOCK).wrapping_add(over),
                                (false, false) => {
                                    weights.at(columns.start, 0).wrapping_add(panel * weights.stride + over)
                                }
                            }
                        };
                        self.strip::<S, F, R, C>(column, start, len, soon, weights);
                        column += C;
                    }
                    while column < columns.end {
                        self.strip::<S, F, R, 1>(column, start, len, weights.at(column, start), weights);
                        column += 1;
                    }
                }
            }
        }
    }

    /// R rows times C columns over a block of inputs, while as many columns of weights from `soon` on are asked for.
    ///
    /// # Safety
    ///
    /// As `narrow`; `column..column + C` lies within the matrix, and `len` inputs from `start` within its width.
    #[inline(always)]
    unsafe fn strip<S: Simd, F: Format, const R: usize, const C: usize>(
        &self,
        column: usize,
        start: usize,
        len: usize,
        soon: *const F::Element,
        weights: &Weights<'_, F>,
    ) {
        // SAFETY: the tile reads `len` inputs of R rows of `x` and of C weight rows, all within their buffers, whose rows
        // are padded to whole vectors.
        unsafe {
            let rows = std::array::from_fn(|c| weights.at(column + c, start));
            let scales = std::array::from_fn(|c| weights.scales_at(column + c, start));
            let soon: [_; C] = std::array::from_fn(|c| soon.wrapping_add(c * weights.stride));
            let sums = tile::<S, F, R, C, C, F>(self.x_at(0, start), self.x_stride, rows, scales, len, soon);
            self.add(0, column, start, sums);
        }
    }

    /// Many rows, weights that are cheap to widen: a panel of them as stored, which the second-level cache holds, is
    /// used by tiles of R rows and C columns that widen it each time.
    ///
    /// # Safety
    ///
    /// As `columns`; R is at most 4.
    #[inline(always)]
    unsafe fn as_stored<S: Simd, F: Format, const R: usize, const C: usize>(&self, weights: &Weights<'_, F>) {
        let width = self.width::<F>();
        for first in self.columns.clone().step_by(PANEL_COLUMNS) {
            let columns = first..self.columns.end.min(first + PANEL_COLUMNS);
            for start in (0..width).step_by(BLOCK) {
                let len = BLOCK.min(width - start);
                // The same columns' next block, or the first one of the next panel.
                let next = start + BLOCK;
                let ahead = if next < width { BLOCK } else { PANEL_COLUMNS * weights.stride - start };
                let panel = Panel { weights, first, first_input: start, columns: columns.clone(), start, len, ahead };
                // SAFETY: columns and inputs lie within the matrix.
                unsafe { self.panel_rows::<S, F, R, C>(&panel) };
            }
        }
    }

    /// Many rows: a block of some columns is widened once to a buffer that stays in the first-level cache, while the rows of a panel's
    /// block, which the second-level cache holds, pass by in tiles of R rows and C columns.
    ///
    /// # Safety
    ///
    /// As `columns`; R is at most 4, and [`WIDENED_COLUMNS`] a multiple of C.
    #[inline(always)]
    unsafe fn widened<S: Simd, F: Format, const R: usize, const C: usize>(&self, weights: &Weights<'_, F>) {
        // Taken out rather than borrowed in a closure: a closure would not be compiled for the instruction set.
        let mut buffer = WIDENED.take();
        buffer.grow(WIDENED_COLUMNS * WIDENED_STRIDE);
        let width = self.width::<F>();
        for first in self.columns.clone().step_by(PANEL_COLUMNS) {
            let end = self.columns.end.min(first + PANEL_COLUMNS);
            for start in (0..width).step_by(BLOCK) {
                let len = BLOCK.min(width - start);
                for column in (first..end).step_by(WIDENED_COLUMNS) {
                    let columns = column..end.min(column + WIDENED_COLUMNS);
                    // SAFETY: the buffer holds so many rows of BLOCK numbers; columns lie within the matrix.
                    unsafe {
                        for (to, column) in buffer.chunks_exact_mut(WIDENED_STRIDE).zip(columns.clone()) {
                            weights.widen::<S>(column, start, &mut to[..len]);
                        }
                        self.widened_rows::<S, F, R, C>(&Widened { weights, buffer: &buffer, columns, start, len });
                    }
                }
            }
        }
        WIDENED.set(buffer);
    }

    /// All rows times the columns of a block. Meanwhile the same inputs of the columns that come next are asked for, a few by each
    /// tile, so that memory and arithmetic work at once.
    ///
    /// # Safety
    ///
    /// As `widened`; the columns lie within the matrix.
    #[inline(always)]
    unsafe fn widened_rows<S: Simd, F: Format, const R: usize, const C: usize>(&self, block: &Widened<'_, F>) {
        let (columns, mut row, mut asked) = (block.columns.len(), 0, 0);
        let tiles = self.rows / R * (columns / C);
        let each = if tiles == 0 { 0 } else { WIDENED_COLUMNS.div_ceil(tiles) };
        // SAFETY: rows stay below `self.rows`, columns within the block; the rest is passed on.
        unsafe {
            while row + R <= self.rows {
                let mut index = 0;
                while index + C <= columns {
                    match if asked < WIDENED_COLUMNS { each } else { 0 } {
                        1 => self.widened_tile::<S, F, R, C, 1>(block, row, index, asked),
                        2 => self.widened_tile::<S, F, R, C, 2>(block, row, index, asked),
                        3 => self.widened_tile::<S, F, R, C, 3>(block, row, index, asked),
                        _ => self.widened_tile::<S, F, R, C, 0>(block, row, index, asked),
                    }
                    asked += each;
                    index += C;
                }
                while index < columns {
                    self.widened_tile::<S, F, R, 1, 0>(block, row, index, 0);
                    index += 1;
                }
                row += R;
            }
            match self.rows - row {
                0 => {}
                1 => self.widened_rest::<S, F, 1, C>(block, row),
                2 => self.widened_rest::<S, F, 2, C>(block, row),
                _ => self.widened_rest::<S, F, 3, C>(block, row),
            }
        }
    }

    /// The last R rows times the columns of a block.
    ///
    /// # Safety
    ///
    /// As `widened_rows`; `row + R` is `self.rows`.
    #[inline(always)]
    unsafe fn widened_rest<S: Simd, F: Format, const R: usize, const C: usize>(
        &self,
        block: &Widened<'_, F>,
        row: usize,
    ) {
        let mut index = 0;
        // SAFETY: columns stay within the block.
        unsafe {
            while index + C <= block.columns.len() {
                self.widened_tile::<S, F, R, C, 0>(block, row, index, 0);
                index += C;
            }
            while index < block.columns.len() {
                self.widened_tile::<S, F, R, 1, 0>(block, row, index, 0);
                index += 1;
            }
        }
    }

    /// R rows times C columns of a block from its column `index`; A of the columns behind the block are asked for, from `asked` on.
    ///
    /// # Safety
    ///
    /// As `widened_rows`; `row + R` is at most `self.rows`, `index + C` at most the block's columns.
    #[inline(always)]
    unsafe fn widened_tile<S: Simd, F: Format, const R: usize, const C: usize, const A: usize>(
        &self,
        block: &Widened<'_, F>,
        row: usize,
        index: usize,
        asked: usize,
    ) {
        let columns = std::array::from_fn(|c| block.buffer[(index + c) * WIDENED_STRIDE..].as_ptr());
        let (here, stride) = (block.weights.at(block.columns.start, block.start), block.weights.stride);
        let soon = std::array::from_fn(|a| here.wrapping_add((WIDENED_COLUMNS + asked + a) * stride));
        let x = self.x_at(row, block.start);
        // SAFETY: the caller's promise; a format without scales reads none.
        unsafe {
            let scales = [std::ptr::null(); C];
            let sums = tile::<S, F32Format, R, C, A, F>(x, self.x_stride, columns, scales, block.len, soon);
            self.add(row, block.columns.start + index, block.start, sums);
        }
    }

    /// All rows times the columns of a panel, over one block of inputs.
    ///
    /// # Safety
    ///
    /// As `columns`; the panel's weights are there; R is at most 4.
    #[inline(always)]
    unsafe fn panel_rows<S: Simd, F: Format, const R: usize, const C: usize>(&self, panel: &Panel<'_, F>) {
        let mut row = 0;
        // SAFETY: rows stay below `self.rows`; the rest is passed on.
        unsafe {
            while row + R <= self.rows {
                self.panel_strip::<S, F, R, C>(panel, row);
                row += R;
            }
            match self.rows - row {
                0 => {}
                1 => self.panel_strip::<S, F, 1, C>(panel, row),
                2 => self.panel_strip::<S, F, 2, C>(panel, row),
                _ => self.panel_strip::<S, F, 3, C>(panel, row),
            }
        }
    }

    /// R rows times the columns of a panel.
    ///
    /// # Safety
    ///
    /// As `panel_rows`; `row + R` is at most `self.rows`.
    #[inline(always)]
    unsafe fn panel_strip<S: Simd, F: Format, const R: usize, const C: usize>(&self, panel: &Panel<'_, F>, row: usize) {
        let columns = panel.columns.len();
        let mut index = 0;
        // SAFETY: `x` has R rows from here, the panel a row for each column.
        unsafe {
            while index + C <= columns {
                self.panel_tile::<S, F, R, C>(panel, row, index);
                index += C;
            }
            while index < columns {
                self.panel_tile::<S, F, R, 1>(panel, row, index);
                index += 1;
            }
        }
    }

    /// R rows times C columns of a panel from its column `index`.
    ///
    /// # Safety
    ///
    /// As `panel_strip`; `index + C` is at most the panel's columns.
    #[inline(always)]
    unsafe fn panel_tile<S: Simd, F: Format, const R: usize, const C: usize>(
        &self,
        panel: &Panel<'_, F>,
        row: usize,
        index: usize,
    ) {
        let rows = std::array::from_fn(|c| panel.weights.at(panel.first + index + c, panel.first_input));
        let scales = std::array::from_fn(|c| panel.weights.scales_at(panel.first + index + c, panel.first_input));
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.x_at(row, panel.start);
            // Asked for once, by the first rows.
            let sums = if row == 0 && panel.ahead > 0 {
                let soon = rows.map(|row| row.wrapping_add(panel.ahead));
                tile::<S, F, R, C, C, F>(x, self.x_stride, rows, scales, panel.len, soon)
            } else {
                tile::<S, F, R, C, 0, F>(x, self.x_stride, rows, scales, panel.len, [])
            };
            self.add(row, panel.columns.start + index, panel.start, sums);
        }
    }

    /// The input width with its padding.
    #[inline(always)]
    fn width<F: Format>(&self) -> usize {
        self.w.cols().next_multiple_of(F::STEP)
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

/// One block of inputs of some columns, widened.
struct Widened<'a, F: Format> {
    weights: &'a Weights<'a, F>,
    /// A row for each column, [`WIDENED_STRIDE`] apart.
    buffer: &'a [f32],
    /// At most [`WIDENED_COLUMNS`].
    columns: Range<usize>,
    /// Inputs from `start`, `len` of them.
    start: usize,
    len: usize,
}

/// One block of inputs of some columns, and where its weights are.
struct Panel<'a, F: Format> {
    weights: &'a Weights<'a, F>,
    /// Row and input of `weights` that hold the first column and the first input.
    first: usize,
    first_input: usize,
    /// Columns of the output.
    columns: Range<usize>,
    /// Inputs from `start`, `len` of them.
    start: usize,
    len: usize,
    /// From these weights to those that come next.
    ahead: usize,
}

/// One block of the sums of R rows of activations with C rows of weights, of which A rows of weights as stored (`len` from each of
/// `soon`) are asked for meanwhile: they are needed soon. Weights that come from memory need that, with one row as well: a tenth
/// faster there. Asking for what is near by already would cost a fifth.
///
/// # Safety
///
/// `x` is valid for R rows of `len` at `x_stride`, each of `weights` for `len` (a multiple of 16), and each of
/// `scales` for one scale per 128 of them if the format has scales. The machine has the set of `S`.
#[inline(always)]
unsafe fn tile<S: Simd, F: Format, const R: usize, const C: usize, const A: usize, N: Format>(
    x: *const f32,
    x_stride: usize,
    weights: [*const F::Element; C],
    scales: [*const f32; C],
    len: usize,
    soon: [*const N::Element; A],
) -> [[f32; C]; R] {
    // SAFETY: the caller's promise covers every index below `len`.
    unsafe {
        let mut sums = [[S::splat(0.0); C]; R];
        if !F::SCALED {
            for k in (0..len).step_by(LANES) {
                let mut w = [S::splat(0.0); C];
                for (w, weights) in w.iter_mut().zip(weights) {
                    *w = F::load::<S>(weights.add(k));
                }
                for soon in soon {
                    S::prefetch(soon.wrapping_add(k));
                }
                step::<S, R, C>(x.add(k), x_stride, w, &mut sums);
            }
            return S::reduce_tile(sums);
        }
        for (group, start) in (0..len).step_by(SCALE_TILE).enumerate() {
            let mut scale = [S::splat(0.0); C];
            for (scale, scales) in scale.iter_mut().zip(scales) {
                *scale = S::splat(*scales.add(group));
            }
            let end = len.min(start + SCALE_TILE);
            if S::WIDENS_64_CODES {
                for k in (start..end).step_by(F::STEP) {
                    let mut codes = [[S::splat(0.0); 4]; C];
                    for (codes, weights) in codes.iter_mut().zip(weights) {
                        *codes = F::load_64::<S>(weights.add(k));
                    }
                    for soon in soon {
                        S::prefetch(soon.wrapping_add(k));
                    }
                    for vector in 0..4 {
                        let mut w = scale;
                        for (w, codes) in w.iter_mut().zip(&codes) {
                            *w = S::mul(codes[vector], *w);
                        }
                        step::<S, R, C>(x.add(k + vector * LANES), x_stride, w, &mut sums);
                    }
                }
            } else {
                for k in (start..end).step_by(LANES) {
                    let mut w = scale;
                    for (w, weights) in w.iter_mut().zip(weights) {
                        *w = S::mul(F::load::<S>(weights.add(k)), *w);
                    }
                    step::<S, R, C>(x.add(k), x_stride, w, &mut sums);
                }
            }
        }
        S::reduce_tile(sums)
    }
}

/// Adds the products of 16 inputs of R rows with 16 weights of C columns.
///
/// # Safety
///
/// `x` is valid for R rows of 16 at `x_stride`. The machine has the set of `S`.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const C: usize>(
    x: *const f32,
    x_stride: usize,
    w: [S::Vector; C],
    sums: &mut [[S::Vector; C]; R],
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let x = S::load(x.add(r * x_stride));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = S::fma(x, w, *sum);
            }
        }
    }
}
