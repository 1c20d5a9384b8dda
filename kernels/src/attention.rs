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
use block::Block;

/// Positions of a tile; part of the result's definition.
const TILE: usize = 64;

/// Positions whose keys are transposed together: whole cache lines are written.
const GROUP: usize = 16;

/// Numbers from one key to the next on their way: a line more than they are, so that they do not share cache sets.
fn key_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(TRANSPOSED) + LANES
}

/// Heads that a thread's part of a row is a multiple of: what a register tile computes together.
const HEAD_GRANULE: usize = 6;

/// Queries (rows times heads) that are worked on together: with 256 elements each, they, their sums and their scores take half a
/// megabyte, which a second-level cache holds beside a tile.
const BLOCK_QUERIES: usize = 256;

/// Buffers of [`mfa_attention`] and [`mfa_attention_chunk`], grown at first use and reused after.
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

/// What one thread needs for one block; a query is one head of one row.
#[derive(Debug, Default)]
struct Workspace {
    /// `[queries, head_dim]`, multiplied by the softmax scale.
    queries: AlignedBuffer<f32>,
    /// `[GROUP, padded head_dim]`: keys on their way to be transposed.
    rows: AlignedBuffer<f32>,
    /// `[padded head_dim, TILE]`: a tile's keys, transposed so that lanes are positions.
    keys: AlignedBuffer<f32>,
    /// `[TILE, padded value width]`.
    values: AlignedBuffer<f32>,
    /// `[queries, TILE]`: scores, then their exponentials.
    scores: AlignedBuffer<f32>,
    /// `[queries, padded value width]`: weighted values so far.
    sums: AlignedBuffer<f32>,
    /// `[queries, LANES]`: denominators so far.
    totals: AlignedBuffer<f32>,
    /// `[queries]`: largest score so far, and the factor that moves sums to a new one; of factors there is room for a vector more.
    maxima: AlignedBuffer<f32>,
    factors: AlignedBuffer<f32>,
}

impl Workspace {
    fn prepare(&mut self, queries: usize, head_dim: usize, value_stride: usize) {
        self.queries.grow(queries * head_dim);
        let padded = head_dim.next_multiple_of(TRANSPOSED);
        self.rows.grow(GROUP * key_stride(head_dim));
        self.keys.grow(padded * TILE);
        self.values.grow(TILE * value_stride);
        self.scores.grow(queries * TILE);
        self.sums.grow(queries * value_stride);
        self.totals.grow(queries * LANES);
        self.maxima.grow(queries);
        self.factors.grow(queries + LANES);
    }
}

/// Attention of one row: `out = softmax(q · Kᵀ / sqrt(head_dim)) · V` for each head.
///
/// `q` is `[heads, head_dim]`, already rotated; `out` is `[heads, pool.value_width()]`; `pool.key_width()` is
/// `head_dim`. Softmax in f32. `context` counts visible positions, the row's own (already written) included; position p is at
/// offset `p % page_tokens` of page `pages[p / page_tokens]`.
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
    mfa_attention_chunk(team, q, 1, heads, head_dim, pool, pages, context, out, scratch);
}

/// [`mfa_attention`] of `rows` consecutive rows of one sequence: the first sees `context` positions, each row one more than the
/// one before it. Rows of a block share every tile of KV once it is widened.
///
/// `q` is `[rows, heads, head_dim]`, `out` is `[rows, heads, pool.value_width()]`.
#[expect(clippy::too_many_arguments, reason = "the operation's own shape; every argument differs in type or meaning")]
pub fn mfa_attention_chunk(
    team: &Team,
    q: &[f32],
    rows: usize,
    heads: usize,
    head_dim: usize,
    pool: &KvPool,
    pages: &[u32],
    context: usize,
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    assert_eq!(pool.key_width(), head_dim, "the pool's keys are as wide as a head");
    assert_eq!(q.len(), rows * heads * head_dim, "q is [rows, heads, head_dim]");
    assert_eq!(out.len(), rows * heads * pool.value_width(), "out is [rows, heads, value_width]");
    if rows == 0 || heads == 0 {
        return;
    }
    assert!(context > 0, "a row sees at least its own position");
    assert!(context + rows - 1 <= pages.len() * pool.page_tokens(), "the pages hold the last row's context");
    scratch.prepare(team.parts());
    let out = SharedMut::new(out);
    let block_rows = (BLOCK_QUERIES / heads).clamp(1, rows.div_ceil(team.threads()));
    let blocks = rows.div_ceil(block_rows);
    // With fewer blocks than parts a block's heads are shared out, at the price of widening its KV once a part.
    let granule = if blocks >= team.parts() { heads } else { HEAD_GRANULE };
    let granules = heads.div_ceil(granule);
    let positions = rows * context + rows * (rows - 1) / 2;
    team.split(blocks * granules, 1, positions * heads * (head_dim + pool.value_width()), |part, range| {
        // A panic in an earlier operation leaves nothing in a workspace that a later one reads before writing.
        let mut workspace = scratch.workspaces[part].lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = range.start;
        while next < range.end {
            // The part's share of one block of rows.
            let index = next / granules;
            let end = range.end.min((index + 1) * granules);
            let first_row = index * block_rows;
            let block = Block {
                q,
                all_heads: heads,
                rows: first_row..rows.min(first_row + block_rows),
                heads: next % granules * granule..heads.min((end - index * granules) * granule),
                pool,
                pages,
                context,
                out,
                workspace: &mut workspace,
            };
            simd::run(team.isa(), block);
            next = end;
        }
    });
}
