//! Who reads which KV pages in one decode step: every row's pages, cut so that all CTAs end at about the same time.
//!
//! Pure. CTAs take pages in the rows' order, each up to one budget; the smallest budget that suffices is searched for. So
//! the plan has no tuned batch sizes: lengths go in, and what a cut costs. A row's result depends on where it was cut.

/// Positions of a page.
pub const PAGE_TOKENS: u32 = 64;

/// Words of an item as the kernels read it.
pub const ITEM_WORDS: usize = 8;

/// One row's KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPages {
    /// Where its pages begin in the list of page numbers.
    pub first: u32,
    /// Visible positions, at least 1.
    pub context: u32,
}

/// What work costs, in sixteenths of the time that one page's bytes take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// Beginning and ending a row: its q in, its result out.
    pub row: u32,
    /// The same for a part of a row: q in, the partial out and in again.
    pub part: u32,
}

impl Costs {
    /// For bf16 KV (a page is 64 KiB; q and the result are half as much together; a partial is 64 KiB, mostly in L2).
    pub const BF16: Costs = Costs { row: 12, part: 24 };
    /// For fp8 KV, whose pages are half as large.
    pub const FP8: Costs = Costs { row: 24, part: 48 };
}

/// A run of one row's pages, read by one CTA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// The row.
    pub row: u32,
    /// Its first page's place in the list of page numbers.
    pub first: u32,
    /// Pages.
    pub pages: u32,
    /// Visible positions of the last of them.
    pub tokens: u32,
    /// Which part of the row this is.
    pub part: u32,
    /// Parts of the row; 1 if it is whole.
    pub parts: u32,
    /// The partial's number, if it is not.
    pub slot: u32,
}

/// A step's work, by CTA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkSplit {
    /// Each CTA's items, in the order it reads them.
    pub ctas: Vec<Vec<Item>>,
    /// Partials that are written.
    pub slots: u32,
}

/// Sixteenths in a page.
const PAGE_COST: u64 = 16;

/// Pages that are worth a cut of their own.
const LEAST_CUT: u64 = 2;

/// Cuts rows over `ctas` CTAs.
///
/// # Panics
/// Without CTAs, or if a row has no position.
pub fn split(rows: &[RowPages], ctas: usize, costs: Costs) -> WorkSplit {
    assert!(ctas > 0, "a device has multiprocessors");
    let pages: u64 = rows.iter().map(|row| row_pages(*row)).sum();
    let average = (pages * PAGE_COST).div_ceil(ctas as u64);
    // With this budget every row fits where it begins or in two CTAs more, and no cut is refused.
    let ample = average + rows.len() as u64 * u64::from(costs.row) + 8 * u64::from(costs.part) + 8 * PAGE_COST;
    let (mut low, mut high) = (average, ample.max(2 * average + u64::from(costs.part)));
    while cut(rows, ctas, costs, high).is_none() {
        high *= 2;
    }
    while low < high {
        let middle = low.midpoint(high);
        match cut(rows, ctas, costs, middle) {
            Some(_) => high = middle,
            None => low = middle + 1,
        }
    }
    cut(rows, ctas, costs, high).expect("the search ends at a budget that suffices")
}

fn row_pages(row: RowPages) -> u64 {
    assert!(row.context > 0, "a row sees at least its own position");
    u64::from(row.context.div_ceil(PAGE_TOKENS))
}

/// The plan under a budget, if `ctas` are enough.
fn cut(rows: &[RowPages], ctas: usize, costs: Costs, budget: u64) -> Option<WorkSplit> {
    let mut plan = WorkSplit { ctas: vec![Vec::new(); ctas], slots: 0 };
    let (mut cta, mut left) = (0, budget);
    for (index, row) in rows.iter().enumerate() {
        let total = row_pages(*row);
        let mut pieces: Vec<(usize, u64)> = Vec::new();
        let mut remaining = total;
        while remaining > 0 {
            let cost = u64::from(if pieces.is_empty() { costs.row } else { costs.part });
            let taken = if remaining * PAGE_COST + cost <= left {
                left -= remaining * PAGE_COST + cost;
                remaining
            } else {
                piece(remaining, left, costs)
            };
            if taken > 0 {
                pieces.push((cta, taken));
                remaining -= taken;
            }
            if remaining > 0 {
                cta += 1;
                if cta == ctas || (taken == 0 && left == budget) {
                    return None;
                }
                left = budget;
            }
        }
        place(&mut plan, index as u32, *row, &pieces);
    }
    Some(plan)
}

/// Pages to cut off `remaining` for what is `left` of a CTA; 0 if none are worth it.
fn piece(remaining: u64, left: u64, costs: Costs) -> u64 {
    let room = left.saturating_sub(u64::from(costs.part)) / PAGE_COST;
    // Nor is a sliver left for the next.
    let most = remaining.saturating_sub(LEAST_CUT);
    if room.min(most) < LEAST_CUT { 0 } else { room.min(most) }
}

fn place(plan: &mut WorkSplit, row: u32, pages: RowPages, pieces: &[(usize, u64)]) {
    let parts = pieces.len() as u32;
    let mut first = pages.first;
    for (part, (cta, count)) in pieces.iter().enumerate() {
        let last = part + 1 == pieces.len();
        let tokens = if last { (pages.context - 1) % PAGE_TOKENS + 1 } else { PAGE_TOKENS };
        let slot = if parts > 1 { plan.slots + part as u32 } else { 0 };
        plan.ctas[*cta].push(Item { row, first, pages: *count as u32, tokens, part: part as u32, parts, slot });
        first += *count as u32;
    }
    if parts > 1 {
        plan.slots += parts;
    }
}

impl WorkSplit {
    /// Items that [`WorkSplit::words`] can need for `rows` rows on `ctas` CTAs.
    pub fn items_at_most(rows: usize, ctas: usize) -> usize {
        rows + 2 * ctas
    }

    /// Partials that are written at most.
    pub fn slots_at_most(ctas: usize) -> usize {
        2 * ctas
    }

    /// The plan as the kernels read it: item c begins CTA c's list (with no pages if it has none), the others follow, and
    /// each names the next of its list, or -1.
    pub fn words(&self) -> Vec<i32> {
        let mut words = vec![0; self.ctas.len() * ITEM_WORDS];
        for (cta, items) in self.ctas.iter().enumerate() {
            words[cta * ITEM_WORDS + ITEM_WORDS - 1] = -1;
            let mut at = cta;
            for (index, item) in items.iter().enumerate() {
                let next = if index + 1 < items.len() { (words.len() / ITEM_WORDS) as i32 } else { -1 };
                let fields = [item.row, item.first, item.pages, item.tokens, item.part, item.parts, item.slot];
                for (word, field) in words[at * ITEM_WORDS..].iter_mut().zip(fields) {
                    *word = field as i32;
                }
                words[at * ITEM_WORDS + ITEM_WORDS - 1] = next;
                if next >= 0 {
                    at = next as usize;
                    words.resize(words.len() + ITEM_WORDS, 0);
                }
            }
        }
        words
    }
}
