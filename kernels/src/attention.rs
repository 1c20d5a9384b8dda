//! Decode attention of many query heads over one shared key-value head (Step-3's MFA). Owns scratch, no KV.
//!
//! **Order of the sums**, by absolute position alone: tiles of 64 positions from position 0. A score adds the head's
//! elements one after another; a tile's weighted values are added to the output position after position; between
//! tiles the output is rescaled to the running maximum (online softmax); the softmax's denominator has 16 lanes, lane
//! i adding positions i, i + 16, …, and a fixed tree at the end. So results do not depend on the page size, on the
//! rows beside, on how a prompt was cut into chunks, or on threads.

mod block;
mod product;

use std::sync::{Mutex, PoisonError};

use crate::kv::KvPool;
use crate::memory::{AlignedBuffer, SharedMut};
use crate::simd::{self, LANES, TRANSPOSED};
use crate::team::Team;
use block::HeadBlock;

/// Positions of a tile; part of the result's definition.
const TILE: usize = 64;

/// Heads that a thread's part of a row is a multiple of: what a register tile computes together.
const HEAD_GRANULE: usize = 6;

/// Buffers of [`mfa_attention`] and [`mfa_attention_rows`], grown at first use and reused after.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// One per part of a split; a part holds its lock while it runs, so nobody ever waits.
    workspaces: Vec<Mutex<Workspace>>,
}

impl AttentionScratch {
    /// Empty buffers.
    pub fn new() -> AttentionScratch {
        AttentionScratch::default()
    }

    fn prepare(&mut self, parts: usize) {
        while self.workspaces.len() < parts {
            self.workspaces.push(Mutex::default());
        }
    }
}

/// What one thread needs for one block of heads.
#[derive(Debug, Default)]
struct Workspace {
    /// `[heads, head_dim]`, multiplied by the softmax scale.
    queries: AlignedBuffer<f32>,
    /// `[TRANSPOSED, padded head_dim]`: keys on their way to be transposed.
    rows: AlignedBuffer<f32>,
    /// `[padded head_dim, TILE]`: a tile's keys, transposed so that lanes are positions.
    keys: AlignedBuffer<f32>,
    /// `[TILE, padded value width]`.
    values: AlignedBuffer<f32>,
    /// `[heads, TILE]`: scores, then their exponentials.
    scores: AlignedBuffer<f32>,
    /// `[heads, padded value width]`: weighted values so far.
    sums: AlignedBuffer<f32>,
    /// `[heads, LANES]`: denominators so far.
    totals: AlignedBuffer<f32>,
    /// `[heads]`: largest score so far, and the factor that moves sums to a new one.
    maxima: AlignedBuffer<f32>,
    factors: AlignedBuffer<f32>,
}

impl Workspace {
    fn prepare(&mut self, heads: usize, head_dim: usize, value_stride: usize) {
        self.queries.grow(heads * head_dim);
        let padded = head_dim.next_multiple_of(TRANSPOSED);
        self.rows.grow(TRANSPOSED * padded);
        self.keys.grow(padded * TILE);
        self.values.grow(TILE * value_stride);
        self.scores.grow(heads * TILE);
        self.sums.grow(heads * value_stride);
        self.totals.grow(heads * LANES);
        self.maxima.grow(heads);
        self.factors.grow(heads);
    }
}

/// What one row of [`mfa_attention_rows`] may look at.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRow<'a> {
    /// The sequence's pages in order; position p is at offset `p % page_tokens` of page `p / page_tokens`.
    pub pages: &'a [u32],
    /// Positions visible, the row's own included: 0 to `context - 1`.
    pub context: usize,
}

/// Attention of one row: `out = softmax(q · Kᵀ / sqrt(head_dim)) · V` for each head.
///
/// `q` is `[heads, head_dim]`, already rotated; `out` is `[heads, pool.value_width()]`; `pool.key_width()` is
/// `head_dim`. Softmax in f32. `context` counts visible positions, the row's own (already written) included.
#[expect(clippy::too_many_arguments, reason = "the operation's own shape; every argument differs in type or meaning")]
pub fn mfa_attention(
    team: &Team,
    q: &[f32],
    heads: usize,
    head_dim: usize,
    pool: &KvPool,
    pages: &[u32],
    context: usize,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    mfa_attention_rows(team, q, heads, head_dim, pool, &[AttentionRow { pages, context }], out, scratch);
}

/// [`mfa_attention`] of many rows, each with its own pages and context (rows of one sequence share pages).
///
/// `q` is `[rows, heads, head_dim]`, `out` is `[rows, heads, pool.value_width()]`.
#[expect(clippy::too_many_arguments, reason = "the operation's own shape; every argument differs in type or meaning")]
pub fn mfa_attention_rows(
    team: &Team,
    q: &[f32],
    heads: usize,
    head_dim: usize,
    pool: &KvPool,
    rows: &[AttentionRow<'_>],
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    assert_eq!(pool.key_width(), head_dim, "the pool's keys are as wide as a head");
    assert_eq!(q.len(), rows.len() * heads * head_dim, "q is [rows, heads, head_dim]");
    assert_eq!(out.len(), rows.len() * heads * pool.value_width(), "out is [rows, heads, value_width]");
    for row in rows {
        assert!(row.context > 0, "a row sees at least its own position");
        assert!(row.context <= row.pages.len() * pool.page_tokens(), "a row's pages hold its context");
    }
    if rows.is_empty() || heads == 0 {
        return;
    }
    scratch.prepare(team.parts());
    let out = SharedMut::new(out);
    // With fewer rows than parts a row's heads are shared out, at the price of widening its KV once a part.
    let granule = if rows.len() >= team.parts() { heads } else { HEAD_GRANULE };
    let granules = heads.div_ceil(granule);
    let positions: usize = rows.iter().map(|row| row.context).sum();
    let multiply_adds = positions * heads * (head_dim + pool.value_width());
    team.split(rows.len() * granules, 1, multiply_adds, |part, range| {
        // A panic in an earlier operation leaves nothing in a workspace that a later one reads before writing.
        let mut workspace = scratch.workspaces[part].lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = range.start;
        while next < range.end {
            // The part's share of one row, as one block.
            let row = next / granules;
            let end = range.end.min((row + 1) * granules);
            let first_head = next % granules * granule;
            let last_head = heads.min((end - row * granules) * granule);
            let block = HeadBlock {
                q: &q[(row * heads + first_head) * head_dim..(row * heads + last_head) * head_dim],
                heads: last_head - first_head,
                pool,
                row: rows[row],
                out,
                out_start: (row * heads + first_head) * pool.value_width(),
                workspace: &mut workspace,
            };
            simd::run(team.isa(), block);
            next = end;
        }
    });
}
