//! The inner loops of attention: some heads of some rows of a sequence over their context, tile by tile.

use std::ops::Range;

use super::product::{AS_THEY_ARE, NONE, Product, SCALED};
use super::{GROUP, TILE, Workspace, key_stride};
use crate::kv::KvPool;
use crate::memory::SharedMut;
use crate::simd::{Kernel, LANES, Simd, TRANSPOSED};

/// Elements of keys that all queries pass by at once: with a tile's positions 32 KiB, which a first-level cache keeps.
const KEY_BLOCK: usize = 128;

/// Some heads of some consecutive rows of one sequence.
pub(super) struct Block<'a> {
    /// Of all rows and heads, `[rows, all_heads, head_dim]`.
    pub q: &'a [f32],
    pub all_heads: usize,
    /// Which rows.
    pub rows: Range<usize>,
    /// Which heads of them.
    pub heads: Range<usize>,
    pub pool: &'a KvPool,
    /// Pages of the sequence.
    pub pages: &'a [u32],
    /// Positions that row 0 sees; row r sees r more.
    pub context: usize,
    /// The whole output, `[rows, all_heads, value_width]`.
    pub out: SharedMut,
    pub workspace: &'a mut Workspace,
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let head_dim = self.pool.key_width();
        let value_stride = self.pool.value_width().next_multiple_of(LANES);
        self.workspace.prepare(self.rows.len() * self.heads.len(), head_dim, value_stride);
        self.start(head_dim, value_stride);
        let context = self.context + self.rows.end - 1;
        for start in (0..context).step_by(TILE) {
            let len = TILE.min(context - start);
            // SAFETY: the machine has the set; `prepare` sized every buffer for these strides.
            unsafe {
                self.load_tile::<S>(start, len, head_dim, value_stride);
                self.attend_tile::<S>(start, head_dim, value_stride);
            }
        }
        self.finish(value_stride);
    }
}

impl Block<'_> {
    #[inline(always)]
    fn start(&mut self, head_dim: usize, value_stride: usize) {
        let scale = (head_dim as f32).sqrt().recip();
        let (heads, queries) = (self.heads.len(), self.rows.len() * self.heads.len());
        let workspace = &mut *self.workspace;
        for (index, row) in self.rows.clone().enumerate() {
            let to = &mut workspace.queries[index * heads * head_dim..(index + 1) * heads * head_dim];
            let from = &self.q[(row * self.all_heads + self.heads.start) * head_dim..];
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = from * scale);
        }
        workspace.sums[..queries * value_stride].fill(0.0);
        workspace.totals[..queries * LANES].fill(0.0);
        workspace.maxima[..queries].fill(f32::NEG_INFINITY);
    }

    /// The tile's part in the queries of every row that sees any of it. Rows that see the same number of its positions, so all
    /// but those at the end of their context, are done together.
    ///
    /// # Safety
    ///
    /// The machine has the set of `S`; the workspace is prepared for `head_dim` and `value_stride` and holds the tile.
    #[inline(always)]
    unsafe fn attend_tile<S: Simd>(&mut self, start: usize, head_dim: usize, value_stride: usize) {
        let (rows, heads) = (self.rows.clone(), self.heads.len());
        let mut row = rows.start;
        while row < rows.end {
            let len = TILE.min((self.context + row).saturating_sub(start));
            // Later rows see more, or the whole tile as well.
            let end = if len == TILE { rows.end } else { row + 1 };
            if len > 0 {
                let queries = (row - rows.start) * heads..(end - rows.start) * heads;
                // SAFETY: the caller's promise; the queries are some of the workspace's.
                unsafe {
                    self.score_tile::<S>(queries.clone(), head_dim);
                    self.softmax_tile::<S>(queries.clone(), len);
                    self.weigh_tile::<S>(queries, len, value_stride);
                }
            }
            row = end;
        }
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
        let (padded, stride) = (head_dim.next_multiple_of(TRANSPOSED), key_stride(head_dim));
        for group in (0..len).step_by(GROUP) {
            for offset in group..len.min(group + GROUP) {
                let position = start + offset;
                let page = self.pages[position / pool.page_tokens()];
                let row = pool.row(page, position % pool.page_tokens());
                let key = &mut workspace.rows[(offset - group) * stride..];
                pool.keys().read(row, &mut key[..head_dim]);
                let values = &mut workspace.values[offset * value_stride..];
                pool.values().read(row, &mut values[..pool.value_width()]);
            }
            // SAFETY: `rows` holds GROUP rows of `padded`, `keys` `padded` rows of TILE.
            unsafe {
                for j in (0..padded).step_by(TRANSPOSED) {
                    for half in (0..GROUP).step_by(TRANSPOSED) {
                        let from = workspace.rows.as_ptr().add(half * stride + j);
                        S::transpose_8(from, stride, workspace.keys.as_mut_ptr().add(j * TILE + group + half), TILE);
                    }
                }
            }
        }
    }

    /// `scores = queries · keys`.
    ///
    /// # Safety
    ///
    /// The machine has the set of `S`; the workspace is prepared for `head_dim` and at least `queries.end` queries.
    #[inline(always)]
    unsafe fn score_tile<S: Simd>(&mut self, queries: Range<usize>, head_dim: usize) {
        let workspace = &mut *self.workspace;
        for start in (0..head_dim).step_by(KEY_BLOCK) {
            let product = Product {
                weights: workspace.queries[queries.start * head_dim + start..].as_ptr(),
                weight_stride: head_dim,
                rows: workspace.keys[start * TILE..].as_ptr(),
                row_stride: TILE,
                len: KEY_BLOCK.min(head_dim - start),
                factors: std::ptr::null(),
                sums: workspace.scores[queries.start * TILE..].as_mut_ptr(),
                sum_stride: TILE,
            };
            // SAFETY: `queries` is [queries, head_dim], `keys` [head_dim, TILE], `scores` [queries, TILE].
            unsafe {
                match start {
                    0 => product.run::<S, NONE>(queries.len(), TILE),
                    _ => product.run::<S, AS_THEY_ARE>(queries.len(), TILE),
                }
            }
        }
    }

    /// Turns scores into exponentials relative to the running maximum, and updates maxima, factors and totals.
    ///
    /// # Safety
    ///
    /// The machine has the set of `S`; the workspace is prepared for at least `queries.end` queries, and `len` is at most a tile.
    #[inline(always)]
    unsafe fn softmax_tile<S: Simd>(&mut self, queries: Range<usize>, len: usize) {
        let workspace = &mut *self.workspace;
        for query in queries.clone() {
            let scores = &mut workspace.scores[query * TILE..(query + 1) * TILE];
            // Positions past the context weigh e^-inf = 0.
            scores[len..].fill(f32::NEG_INFINITY);
            // SAFETY: a tile is whole vectors.
            let largest = unsafe {
                let mut lanes = S::splat(f32::NEG_INFINITY);
                for start in (0..TILE).step_by(LANES) {
                    // A NaN loses here; the exponentials carry it on.
                    lanes = S::larger(S::load(scores.as_ptr().add(start)), lanes);
                }
                S::largest(lanes)
            };
            let before = workspace.maxima[query];
            let maximum = if largest > before { largest } else { before };
            workspace.maxima[query] = maximum;
            workspace.factors[query] = before - maximum;
        }
        // SAFETY: `factors` has room for a vector from any query; what is beyond `queries` is set anew before it is read.
        unsafe {
            for query in queries.clone().step_by(LANES) {
                let factors = workspace.factors.as_mut_ptr().add(query);
                S::store(factors, S::exp(S::load(factors)));
            }
        }
        for query in queries {
            // SAFETY: a query has a tile of scores and a vector of totals.
            unsafe {
                let (maximum, factor) = (S::splat(workspace.maxima[query]), S::splat(workspace.factors[query]));
                let scores = workspace.scores.as_mut_ptr().add(query * TILE);
                let totals = workspace.totals.as_mut_ptr().add(query * LANES);
                let mut total = S::mul(S::load(totals), factor);
                for start in (0..TILE).step_by(LANES) {
                    let weights = S::exp(S::sub(S::load(scores.add(start)), maximum));
                    S::store(scores.add(start), weights);
                    total = S::add(total, weights);
                }
                S::store(totals, total);
            }
        }
    }

    /// `sums = sums · factor + weights · values`.
    ///
    /// # Safety
    ///
    /// The machine has the set of `S`; the workspace is prepared for `value_stride` and at least `queries.end` queries.
    #[inline(always)]
    unsafe fn weigh_tile<S: Simd>(&mut self, queries: Range<usize>, len: usize, value_stride: usize) {
        let workspace = &mut *self.workspace;
        let product = Product {
            weights: workspace.scores[queries.start * TILE..].as_ptr(),
            weight_stride: TILE,
            rows: workspace.values.as_ptr(),
            row_stride: value_stride,
            len,
            factors: workspace.factors[queries.start..].as_ptr(),
            sums: workspace.sums[queries.start * value_stride..].as_mut_ptr(),
            sum_stride: value_stride,
        };
        // SAFETY: `scores` is [queries, TILE], `values` [TILE, value_stride], `sums` [queries, value_stride].
        unsafe { product.run::<S, SCALED>(queries.len(), value_stride) };
    }

    /// Divides by the softmax's denominators and writes the output.
    #[inline(always)]
    fn finish(&mut self, value_stride: usize) {
        let width = self.pool.value_width();
        let heads = self.heads.len();
        for query in 0..self.rows.len() * heads {
            let mut lanes: [f32; LANES] = self.workspace.totals[query * LANES..(query + 1) * LANES]
                .try_into()
                .expect("a query's total is one vector");
            for half in [8, 4, 2, 1] {
                for lane in 0..half {
                    lanes[lane] += lanes[lane + half];
                }
            }
            let (row, head) = (self.rows.start + query / heads, self.heads.start + query % heads);
            let out = (row * self.all_heads + head) * width;
            let sums = &self.workspace.sums[query * value_stride..query * value_stride + width];
            for (index, sum) in sums.iter().enumerate() {
                // SAFETY: within the output; blocks of other threads write other heads or rows.
                unsafe { *self.out.pointer().add(out + index) = sum / lanes[0] };
            }
        }
    }
}
