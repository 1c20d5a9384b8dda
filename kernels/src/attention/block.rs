//! The inner loops of attention: one row's block of heads over its context, tile by tile.

use super::product::Product;
use super::{AttentionRow, TILE, Workspace};
use crate::activation::exp;
use crate::kv::KvPool;
use crate::memory::SharedMut;
use crate::simd::{Kernel, LANES, Simd, TRANSPOSED};

/// Some heads of one row.
pub(super) struct HeadBlock<'a> {
    /// `[heads, head_dim]`.
    pub q: &'a [f32],
    pub heads: usize,
    pub pool: &'a KvPool,
    pub row: AttentionRow<'a>,
    /// The whole output; this block writes `[heads, value_width]` at `out_start`.
    pub out: SharedMut,
    pub out_start: usize,
    pub workspace: &'a mut Workspace,
}

impl Kernel for HeadBlock<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let head_dim = self.pool.key_width();
        let value_stride = self.pool.value_width().next_multiple_of(LANES);
        self.workspace.prepare(self.heads, head_dim, value_stride);
        self.start(head_dim, value_stride);
        for start in (0..self.row.context).step_by(TILE) {
            let len = TILE.min(self.row.context - start);
            // SAFETY: the machine has the set; `prepare` sized every buffer for these strides.
            unsafe {
                self.load_tile::<S>(start, len, head_dim, value_stride);
                self.score_tile::<S>(head_dim);
            }
            self.softmax_tile(len);
            // SAFETY: as above.
            unsafe { self.weigh_tile::<S>(len, value_stride) };
        }
        self.finish(value_stride);
    }
}

impl HeadBlock<'_> {
    #[inline(always)]
    fn start(&mut self, head_dim: usize, value_stride: usize) {
        let scale = (head_dim as f32).sqrt().recip();
        let workspace = &mut *self.workspace;
        workspace.queries.iter_mut().zip(self.q).for_each(|(to, &from)| *to = from * scale);
        workspace.sums[..self.heads * value_stride].fill(0.0);
        workspace.totals[..self.heads * LANES].fill(0.0);
        workspace.maxima[..self.heads].fill(f32::NEG_INFINITY);
    }

    /// Widens the tile's keys, transposed, and values. Columns and rows past `len` keep older numbers (or zeros), whose
    /// scores are masked and which no weight meets.
    ///
    /// # Safety
    ///
    /// The machine has the set of `S`; the workspace is prepared for `head_dim` and `value_stride`.
    #[inline(always)]
    unsafe fn load_tile<S: Simd>(&mut self, start: usize, len: usize, head_dim: usize, value_stride: usize) {
        let (pool, workspace) = (self.pool, &mut *self.workspace);
        let padded = head_dim.next_multiple_of(TRANSPOSED);
        for group in (0..len).step_by(TRANSPOSED) {
            for offset in group..len.min(group + TRANSPOSED) {
                let position = start + offset;
                let page = self.row.pages[position / pool.page_tokens()];
                let row = pool.row(page, position % pool.page_tokens());
                let key = &mut workspace.rows[(offset - group) * padded..];
                pool.keys().read(row, &mut key[..head_dim]);
                let values = &mut workspace.values[offset * value_stride..];
                pool.values().read(row, &mut values[..pool.value_width()]);
            }
            // SAFETY: `rows` holds TRANSPOSED rows of `padded`, `keys` `padded` rows of TILE.
            unsafe {
                for j in (0..padded).step_by(TRANSPOSED) {
                    let from = workspace.rows.as_ptr().add(j);
                    S::transpose_8(from, padded, workspace.keys.as_mut_ptr().add(j * TILE + group), TILE);
                }
            }
        }
    }

    /// `scores = queries · keys`.
    ///
    /// # Safety
    ///
    /// The machine has the set of `S`; the workspace is prepared for `head_dim`.
    #[inline(always)]
    unsafe fn score_tile<S: Simd>(&mut self, head_dim: usize) {
        let workspace = &mut *self.workspace;
        let product = Product {
            weights: workspace.queries.as_ptr(),
            weight_stride: head_dim,
            rows: workspace.keys.as_ptr(),
            row_stride: TILE,
            len: head_dim,
            factors: std::ptr::null(),
            sums: workspace.scores.as_mut_ptr(),
            sum_stride: TILE,
        };
        // SAFETY: `queries` is [heads, head_dim], `keys` [head_dim, TILE], `scores` [heads, TILE].
        unsafe { product.run::<S, false>(self.heads, TILE) };
    }

    /// Turns scores into exponentials relative to the running maximum, and updates maxima, factors and totals.
    #[inline(always)]
    fn softmax_tile(&mut self, len: usize) {
        let workspace = &mut *self.workspace;
        for head in 0..self.heads {
            let scores: &mut [f32; TILE] = (&mut workspace.scores[head * TILE..(head + 1) * TILE])
                .try_into()
                .expect("a head's scores are one tile");
            // Positions past the context weigh e^-inf = 0.
            scores[len..].fill(f32::NEG_INFINITY);
            let before = workspace.maxima[head];
            let maximum = larger(before, largest(scores));
            workspace.maxima[head] = maximum;
            let factor = exp(before - maximum);
            workspace.factors[head] = factor;
            let totals = &mut workspace.totals[head * LANES..(head + 1) * LANES];
            for score in scores.iter_mut() {
                *score = exp(*score - maximum);
            }
            totals.iter_mut().for_each(|total| *total *= factor);
            for vector in scores.as_chunks::<LANES>().0 {
                totals.iter_mut().zip(vector).for_each(|(total, weight)| *total += weight);
            }
        }
    }

    /// `sums = sums · factor + weights · values`.
    ///
    /// # Safety
    ///
    /// The machine has the set of `S`; the workspace is prepared for `value_stride`.
    #[inline(always)]
    unsafe fn weigh_tile<S: Simd>(&mut self, len: usize, value_stride: usize) {
        let workspace = &mut *self.workspace;
        let product = Product {
            weights: workspace.scores.as_ptr(),
            weight_stride: TILE,
            rows: workspace.values.as_ptr(),
            row_stride: value_stride,
            len,
            factors: workspace.factors.as_ptr(),
            sums: workspace.sums.as_mut_ptr(),
            sum_stride: value_stride,
        };
        // SAFETY: `scores` is [heads, TILE], `values` [TILE, value_stride], `sums` [heads, value_stride].
        unsafe { product.run::<S, true>(self.heads, value_stride) };
    }

    /// Divides by the softmax's denominators and writes the output.
    #[inline(always)]
    fn finish(&mut self, value_stride: usize) {
        let width = self.pool.value_width();
        for head in 0..self.heads {
            let mut lanes: [f32; LANES] = self.workspace.totals[head * LANES..(head + 1) * LANES]
                .try_into()
                .expect("a head's total is one vector");
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    lanes[lane] += lanes[lane + half];
                }
            }
            let sums = &self.workspace.sums[head * value_stride..head * value_stride + width];
            for (index, sum) in sums.iter().enumerate() {
                // SAFETY: within the output; blocks of other threads write other heads or rows.
                unsafe { *self.out.pointer().add(self.out_start + head * width + index) = sum / lanes[0] };
            }
        }
    }
}

/// The larger number; a NaN on the right loses (the exponentials carry it on).
#[inline(always)]
fn larger(left: f32, right: f32) -> f32 {
    if right > left { right } else { left }
}

#[inline(always)]
fn largest(scores: &[f32; TILE]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for vector in scores.as_chunks::<LANES>().0 {
        for (lane, &score) in lanes.iter_mut().zip(vector) {
            *lane = larger(*lane, score);
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}
