//! Who reads which KV pages in one decode step: every row's pages, divided so that all CTAs end at about the same time.
//!
//! Pure. Rows stay whole if that is as good; else CTAs take pages in the rows' order, each up to one budget, and the
//! smallest budget that suffices is searched for. So the plan has no tuned batch sizes: lengths go in, and what a cut
//! costs. A row's result depends on where it was cut, which follows from the batch.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Positions of a page.
pub const PAGE_TOKENS: u32 = 64;

/// Words of an item as the kernels read it: eight fields, then its first page numbers.
pub const ITEM_WORDS: usize = 8 + HEAD_PAGES;

/// Page numbers that come with an item.
const HEAD_PAGES: usize = 8;

/// The field that names the next item of a bin.
const NEXT: usize = 7;

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
    /// Once, if any row is in parts: CTAs wait for each other, and add.
    pub adding: u32,
}

impl Costs {
    /// For bf16 KV: a page is 64 KiB, q and the result are as much together; a partial is half, written and read in L2.
    pub const BF16: Costs = Costs { row: 14, part: 14, adding: 64 };
    /// For fp8 KV, whose pages are half as large.
    pub const FP8: Costs = Costs { row: 28, part: 28, adding: 96 };
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

/// A row in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The row.
    pub row: u32,
    /// Its first partial; the others follow.
    pub slot: u32,
    /// Parts.
    pub parts: u32,
    /// Rows behind it that are cut alike, their partials behind its own.
    pub more: u32,
}

/// A step's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkSplit {
    /// Each CTA's items, in the order it reads them.
    pub ctas: Vec<Vec<Item>>,
    /// Rows that are in parts.
    pub cuts: Vec<Cut>,
}

/// Sixteenths in a page.
const PAGE_COST: u64 = 16;

/// Pages a CTA from which a step's KV is many times L2 (2 MiB each on 132 multiprocessors against 50 MB).
const LONG_STEP: u64 = 32;

/// Pages that are worth a cut of their own.
const LEAST_CUT: u64 = 2;

/// Divides rows over `ctas` CTAs.
///
/// # Panics
/// Without CTAs, or if a row has no position.
pub fn split(rows: &[RowPages], ctas: usize, costs: Costs) -> WorkSplit {
    assert!(ctas > 0, "a device has multiprocessors");
    let (longest, whole) = whole_rows(rows, ctas, costs);
    let budget = least_budget(rows, ctas, costs);
    if longest <= budget + u64::from(costs.adding) {
        return whole;
    }
    cut_rows(rows, ctas, costs, budget).expect("the search ended at a budget that suffices")
}

/// Whole rows, the longest first, each to the CTA with least work; and the most work of a CTA.
fn whole_rows(rows: &[RowPages], ctas: usize, costs: Costs) -> (u64, WorkSplit) {
    let mut plan = WorkSplit { ctas: vec![Vec::new(); ctas], cuts: Vec::new() };
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|row| (Reverse(row_pages(rows[*row])), *row));
    let mut least: BinaryHeap<Reverse<(u64, usize)>> = (0..ctas).map(|cta| Reverse((0, cta))).collect();
    let mut longest = 0;
    for row in order {
        let Reverse((work, cta)) = least.pop().expect("a device has multiprocessors");
        let pages = row_pages(rows[row]);
        let work = work + pages * PAGE_COST + u64::from(costs.row);
        place(&mut plan, row as u32, rows[row], &[(cta, pages)], &mut 0);
        longest = longest.max(work);
        least.push(Reverse((work, cta)));
    }
    (longest, plan)
}

/// The smallest work of a CTA under which [`cut_rows`] has a plan.
fn least_budget(rows: &[RowPages], ctas: usize, costs: Costs) -> u64 {
    let pages: u64 = rows.iter().map(|row| row_pages(*row)).sum();
    // Of a trial only the end is kept: lists of items would be most of its time, and a step waits for it.
    let mut pieces = Vec::new();
    let mut suffices = |budget| cut_each(rows, ctas, (costs, budget), &mut pieces, |_, _, _| {});
    let mut low = (pages * PAGE_COST).div_ceil(ctas as u64);
    let mut high = 2 * low + 8 * u64::from(costs.part + costs.row);
    while !suffices(high) {
        high *= 2;
    }
    while low < high {
        let middle = low.midpoint(high);
        if suffices(middle) { high = middle } else { low = middle + 1 }
    }
    high
}

fn row_pages(row: RowPages) -> u64 {
    assert!(row.context > 0, "a row sees at least its own position");
    u64::from(row.context.div_ceil(PAGE_TOKENS))
}

/// Rows in order, cut where a CTA's budget ends; none if `ctas` are too few for it.
fn cut_rows(rows: &[RowPages], ctas: usize, costs: Costs, budget: u64) -> Option<WorkSplit> {
    let mut plan = WorkSplit { ctas: vec![Vec::new(); ctas], cuts: Vec::new() };
    let mut slots = 0;
    let placed = |index: usize, row: RowPages, pieces: &[(usize, u64)]| {
        place(&mut plan, index as u32, row, pieces, &mut slots);
    };
    cut_each(rows, ctas, (costs, budget), &mut Vec::new(), placed).then_some(plan)
}

/// Calls `placed` with every row and its pieces, pages by CTA, as long as there are CTAs; whether they were enough.
fn cut_each(
    rows: &[RowPages],
    ctas: usize,
    (costs, budget): (Costs, u64),
    pieces: &mut Vec<(usize, u64)>,
    mut placed: impl FnMut(usize, RowPages, &[(usize, u64)]),
) -> bool {
    let (mut cta, mut left) = (0, budget);
    for (index, row) in rows.iter().enumerate() {
        let mut remaining = row_pages(*row);
        pieces.clear();
        loop {
            let cost = u64::from(if pieces.is_empty() { costs.row } else { costs.part });
            let whole = remaining * PAGE_COST + cost <= left;
            let taken = if whole { remaining } else { piece(remaining, left, costs) };
            if taken > 0 {
                pieces.push((cta, taken));
                remaining -= taken;
            }
            if whole {
                left -= taken * PAGE_COST + cost;
                break;
            }
            cta += 1;
            if cta == ctas {
                return false;
            }
            left = budget;
        }
        placed(index, *row, pieces);
    }
    true
}

/// Pages to cut off `remaining` for what is `left` of a CTA; 0 if none are worth it.
fn piece(remaining: u64, left: u64, costs: Costs) -> u64 {
    let room = left.saturating_sub(u64::from(costs.part)) / PAGE_COST;
    // Nor is a sliver left for the next.
    let most = remaining.saturating_sub(LEAST_CUT);
    if room.min(most) < LEAST_CUT { 0 } else { room.min(most) }
}

fn place(plan: &mut WorkSplit, row: u32, pages: RowPages, pieces: &[(usize, u64)], slots: &mut u32) {
    let parts = pieces.len() as u32;
    if parts > 1 {
        plan.cuts.push(Cut { row, slot: *slots, parts, more: 0 });
    }
    let mut first = pages.first;
    for (part, (cta, count)) in pieces.iter().enumerate() {
        let last = part + 1 == pieces.len();
        let tokens = if last { (pages.context - 1) % PAGE_TOKENS + 1 } else { PAGE_TOKENS };
        let slot = if parts > 1 { *slots + part as u32 } else { 0 };
        plan.ctas[*cta].push(Item { row, first, pages: *count as u32, tokens, part: part as u32, parts, slot });
        first += *count as u32;
    }
    if parts > 1 {
        *slots += parts;
    }
}

/// Groups of columns that a cut row's parts are added in.
const COLUMN_GROUPS: u64 = 16;

impl WorkSplit {
    /// Words that [`WorkSplit::words`] has at most for `rows` rows on `ctas` CTAs.
    pub fn words_at_most(rows: usize, ctas: usize) -> usize {
        items_at(ctas) + (rows + 2 * ctas) * ITEM_WORDS
    }

    /// Words of any plan on `ctas` CTAs, each of which reads a first item.
    pub fn words_at_least(ctas: usize) -> usize {
        items_at(ctas) + ctas * ITEM_WORDS
    }

    /// Partials that are written at most: two a CTA, of the row that ends in it and the one that begins.
    pub fn slots_at_most(ctas: usize) -> usize {
        2 * ctas
    }

    /// The same work where row `i` of the plan is row `rows[i]` of q and the result.
    pub fn for_rows(mut self, rows: &[u32]) -> WorkSplit {
        self.ctas.iter_mut().flatten().for_each(|item| item.row = rows[item.row as usize]);
        self.cuts.iter_mut().for_each(|cut| cut.row = rows[cut.row as usize]);
        self
    }

    /// The plan as the kernels read it (`cu/mfa_work.cuh`), with `pages`, the list of page numbers it is for.
    pub fn words(&self, pages: &[i32]) -> Vec<i32> {
        let ctas = self.ctas.len();
        let mut words = vec![0; items_at(ctas)];
        words[0] = self.cuts.len() as i32;
        words[1] = i32::from(self.evicts_first());
        for (cta, (cut, group)) in self.shares().into_iter().enumerate() {
            words[SHARES_AT + 2 * cta..][..2].copy_from_slice(&[cut, group]);
        }
        for (at, cut) in self.cuts.iter().enumerate() {
            let fields = [cut.row, cut.slot, cut.parts, cut.more].map(|field| field as i32);
            words[cuts_at(ctas) + 4 * at..][..4].copy_from_slice(&fields);
        }
        self.append_items(&mut words, pages);
        words
    }

    /// Whether KV should leave L2 before all else: partials must stay there; and so should the rest of a short step's data.
    /// Measured on an H100: 128 x 1K 4 % faster so, 256 x 4K 1.5 % slower.
    fn evicts_first(&self) -> bool {
        let pages: u64 = self.ctas.iter().flatten().map(|item| u64::from(item.pages)).sum();
        !self.cuts.is_empty() || pages < LONG_STEP * self.ctas.len() as u64
    }

    /// Where each CTA's share of adding parts begins, and where the last one's ends: (cut, column group).
    fn shares(&self) -> Vec<(i32, i32)> {
        let total: u64 = self.cuts.iter().map(|cut| u64::from(cut.parts) * COLUMN_GROUPS).sum();
        let quota = total.div_ceil(self.ctas.len() as u64);
        let mut shares = vec![(0, 0)];
        let mut sum = 0;
        for (at, cut) in self.cuts.iter().enumerate() {
            for group in 0..COLUMN_GROUPS {
                if sum >= quota && shares.len() < self.ctas.len() {
                    shares.push((at as i32, group as i32));
                    sum = 0;
                }
                sum += u64::from(cut.parts);
            }
        }
        shares.resize(self.ctas.len() + 1, (self.cuts.len() as i32, 0));
        shares
    }

    fn append_items(&self, words: &mut Vec<i32>, pages: &[i32]) {
        let start = words.len();
        words.resize(start + self.ctas.len() * ITEM_WORDS, 0);
        for (cta, items) in self.ctas.iter().enumerate() {
            let mut at = start + cta * ITEM_WORDS;
            words[at + NEXT] = -1;
            for (index, item) in items.iter().enumerate() {
                let fields = [item.row, item.first, item.pages, item.tokens, item.part, item.parts, item.slot];
                words[at..at + NEXT].copy_from_slice(&fields.map(|field| field as i32));
                let head = &pages[item.first as usize..][..HEAD_PAGES.min(item.pages as usize)];
                words[at + NEXT + 1..][..head.len()].copy_from_slice(head);
                let end = words.len();
                let more = index + 1 < items.len();
                words[at + NEXT] = if more { ((end - start) / ITEM_WORDS) as i32 } else { -1 };
                if more {
                    at = end;
                    words.resize(end + ITEM_WORDS, 0);
                }
            }
        }
    }
}

/// Where shares begin.
const SHARES_AT: usize = 8;

fn cuts_at(ctas: usize) -> usize {
    SHARES_AT + (2 * (ctas + 1)).next_multiple_of(8)
}

fn items_at(ctas: usize) -> usize {
    cuts_at(ctas) + 4 * ctas
}
