//! The inner loops of attention: one row's block of heads over its context, tile by tile.

use super::{AttentionRow, TILE, Workspace};
use crate::activation::exp;
use crate::kv::KvPool;
use crate::memory::SharedMut;
use crate::simd::{Kernel, LANES, Simd};

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
            self.load_tile(start, len, value_stride);
            // SAFETY: the machine has the set; `prepare` sized every buffer for these strides.
            unsafe { self.score_tile::<S>(head_dim) };
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

    /// Widens the tile's keys, transposed, and values. Rows past `len` keep older numbers that nothing reads.
    #[inline(always)]
    fn load_tile(&mut self, start: usize, len: usize, value_stride: usize) {
        let (pool, workspace) = (self.pool, &mut *self.workspace);
        let mut key = vec![0.0; pool.key_width()];
        for offset in 0..len {
            let position = start + offset;
            let page = self.row.pages[position / pool.page_tokens()];
            let row = pool.row(page, position % pool.page_tokens());
            pool.keys().read(row, &mut key);
            for (j, &value) in key.iter().enumerate() {
                workspace.keys[j * TILE + offset] = value;
            }
            let values = &mut workspace.values[offset * value_stride..];
            pool.values().read(row, &mut values[..pool.value_width()]);
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
        for head in 0..self.heads {
            for vector in (0..TILE).step_by(LANES) {
                // SAFETY: `queries` has `head_dim` numbers at the head, `keys` `head_dim` rows of TILE.
                unsafe {
                    let mut sum = S::splat(0.0);
                    for j in 0..head_dim {
                        let q = S::splat(*workspace.queries.as_ptr().add(head * head_dim + j));
                        sum = S::fma(q, S::load(workspace.keys.as_ptr().add(j * TILE + vector)), sum);
                    }
                    S::store(workspace.scores.as_mut_ptr().add(head * TILE + vector), sum);
                }
            }
        }
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
        for head in 0..self.heads {
            for vector in (0..value_stride).step_by(LANES) {
                // SAFETY: `scores` has TILE numbers at the head, `values` `len` rows of `value_stride`.
                unsafe {
                    let at = workspace.sums.as_mut_ptr().add(head * value_stride + vector);
                    let mut sum = S::mul(S::load(at), S::splat(workspace.factors[head]));
                    for offset in 0..len {
                        let weight = S::splat(*workspace.scores.as_ptr().add(head * TILE + offset));
                        let value = S::load(workspace.values.as_ptr().add(offset * value_stride + vector));
                        sum = S::fma(weight, value, sum);
                    }
                    S::store(at, sum);
                }
            }
        }
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
