//! Who reads which KV pages where tokens of one sequence attend together: two neighbours are as one row of [`split`].
//!
//! Pure, as its neighbour is.

use crate::split::{self, Costs, RowPages, WorkSplit};

/// Consecutive tokens of one sequence, a row each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// The first token's row; the others follow.
    pub row: u32,
    /// Tokens, at least 1.
    pub tokens: u32,
    /// Where the sequence's pages begin in the list of page numbers.
    pub first: u32,
    /// Positions that the first token sees, at least 1; each of the others sees one more.
    pub context: u32,
}

/// For two tokens a page is products, not bytes: q and results are less beside it than in decoding.
pub const COSTS: Costs = Costs { row: 16, part: 24, adding: 80 };

/// Tokens of a chunk from which on attending together is faster than row by row, which finds the chunk's pages in L2 as well: as measured on an
/// H200 (64 x 2 tokens and 1 x 2, 16 x 128, 1 x 64; bf16 KV gains from a few on, fp8 KV first has to become f16).
pub fn least_tokens(is_fp8: bool) -> usize {
    if is_fp8 { 32 } else { 8 }
}

/// A step's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSplit {
    /// Items and cuts as `cu/mfa_prefill.cu` reads them: an item's row is twice the row, and 1 if the next row is in it as well.
    pub work: WorkSplit,
}

impl ChunkSplit {
    /// Divides chunks over `ctas` CTAs.
    ///
    /// # Panics
    /// Without CTAs, or if a token sees nothing.
    pub fn new(chunks: &[Chunk], ctas: usize) -> ChunkSplit {
        let (mut rows, mut pages) = (Vec::new(), Vec::new());
        for chunk in chunks {
            for at in (0..chunk.tokens).step_by(2) {
                let more = u32::from(at + 1 < chunk.tokens);
                rows.push((chunk.row + at, more));
                pages.push(RowPages { first: chunk.first, context: chunk.context + at + more });
            }
        }
        let mut work = split::split(&pages, ctas, COSTS);
        // A pair has twice the partials: all of its first token's, then its second's.
        for item in work.ctas.iter_mut().flatten() {
            let (row, more) = rows[item.row as usize];
            item.row = row << 1 | more;
            item.slot = 2 * item.slot - if item.parts > 1 { item.part } else { 0 };
        }
        for cut in &mut work.cuts {
            (cut.row, cut.more) = rows[cut.row as usize];
            cut.slot *= 2;
        }
        ChunkSplit { work }
    }

    /// The plan as the kernel reads it, with the list of page numbers it is for.
    pub fn words(&self, pages: &[i32]) -> Vec<i32> {
        self.work.words(pages)
    }

    /// Words that [`ChunkSplit::words`] has at most for `tokens` tokens on `ctas` CTAs.
    pub fn words_at_most(tokens: usize, ctas: usize) -> usize {
        WorkSplit::words_at_most(tokens, ctas)
    }

    /// Partials that are written at most.
    pub fn slots_at_most(ctas: usize) -> usize {
        2 * WorkSplit::slots_at_most(ctas)
    }
}
