//! The plan of a decode step's work: nothing lost, nothing read twice, even, and readable by the kernels.

use proptest::prelude::*;
use rally_cuda::split::{Costs, ITEM_WORDS, PAGE_TOKENS, RowPages, WorkSplit, split};

fn rows(contexts: &[u32]) -> Vec<RowPages> {
    let mut first = 0;
    let place = |context: &u32| {
        let row = RowPages { first, context: *context };
        first += context.div_ceil(PAGE_TOKENS);
        row
    };
    contexts.iter().map(place).collect()
}

/// Every page of every row is in exactly one item, parts are in order and numbered, slots are nobody else's.
fn check_whole(rows: &[RowPages], plan: &WorkSplit) {
    let mut items: Vec<_> = plan.ctas.iter().flatten().collect();
    items.sort_by_key(|item| (item.row, item.part));
    let mut slots: Vec<u32> = items.iter().filter(|item| item.parts > 1).map(|item| item.slot).collect();
    for (index, row) in rows.iter().enumerate() {
        let parts: Vec<_> = items.iter().filter(|item| item.row == index as u32).collect();
        let mut next = row.first;
        for (part, item) in parts.iter().enumerate() {
            assert_eq!((item.first, item.part, item.parts), (next, part as u32, parts.len() as u32));
            assert!(item.pages > 0);
            next += item.pages;
            let last = part + 1 == parts.len();
            assert_eq!(item.tokens, if last { (row.context - 1) % PAGE_TOKENS + 1 } else { PAGE_TOKENS });
        }
        assert_eq!(next - row.first, row.context.div_ceil(PAGE_TOKENS), "all pages of row {index}");
        let cut: Vec<_> = plan.cuts.iter().filter(|cut| cut.row == index as u32).collect();
        assert_eq!(cut.len(), usize::from(parts.len() > 1));
        for cut in cut {
            assert_eq!((cut.slot, cut.parts), (parts[0].slot, parts.len() as u32));
            assert!(parts.iter().zip(cut.slot..).all(|(item, slot)| item.slot == slot));
        }
    }
    slots.sort_unstable();
    assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "slots are nobody else's");
    assert!(slots.last().is_none_or(|slot| (*slot as usize) < WorkSplit::slots_at_most(plan.ctas.len())));
}

/// The kernel's own walk over the words finds the plan's items, and its shares cover every cut once.
fn check_words(plan: &WorkSplit, rows: &[RowPages]) {
    let list = rows.iter().map(|row| row.first + row.context.div_ceil(PAGE_TOKENS)).max().unwrap_or(0);
    let pages: Vec<i32> = (0..list as i32).map(|page| page * 3 + 1).collect();
    let words = plan.words(&pages);
    assert!(words.len() <= WorkSplit::words_at_most(rows.len(), plan.ctas.len()));
    assert!(words.len() >= WorkSplit::words_at_least(plan.ctas.len()));
    let ctas = plan.ctas.len();
    let cuts_at = 8 + (2 * (ctas + 1)).next_multiple_of(8);
    let items_at = cuts_at + 4 * ctas;
    assert_eq!(words[0], plan.cuts.len() as i32);
    for (cta, items) in plan.ctas.iter().enumerate() {
        let mut at = cta as i32;
        for item in items {
            let word = &words[items_at + at as usize * ITEM_WORDS..][..ITEM_WORDS];
            let fields = [item.row, item.first, item.pages, item.tokens, item.part, item.parts, item.slot];
            assert_eq!(word[..7], fields.map(|field| field as i32));
            at = word[7];
            let head = (item.pages as usize).min(8);
            assert_eq!(word[8..8 + head], pages[item.first as usize..][..head], "the first page numbers");
        }
        assert!(at == -1 || items.is_empty(), "a list ends with its last item");
    }
    let share = |cta: usize| (words[8 + 2 * cta], words[9 + 2 * cta]);
    assert_eq!((share(0), share(ctas)), ((0, 0), (plan.cuts.len() as i32, 0)));
    assert!((0..ctas).all(|cta| share(cta) <= share(cta + 1)));
    for (at, cut) in plan.cuts.iter().enumerate() {
        let fields = [cut.row, cut.slot, cut.parts, cut.more].map(|field| field as i32);
        assert_eq!(words[cuts_at + 4 * at..][..4], fields);
    }
}

proptest! {
    #[test]
    fn any_lengths_are_covered(contexts in prop::collection::vec(1u32..30_000, 1..200), ctas in 1usize..140) {
        let rows = rows(&contexts);
        let plan = split(&rows, ctas, Costs::BF16);
        check_whole(&rows, &plan);
        check_words(&plan, &rows);
    }
}

#[test]
fn even_lengths_fill_every_cta() {
    for (count, context) in [(64, 1024), (16, 4096), (16, 8192), (128, 4096), (256, 4096), (1, 131_072)] {
        let rows = rows(&vec![context; count]);
        let plan = split(&rows, 132, Costs::BF16);
        let load = |items: &Vec<rally_cuda::split::Item>| items.iter().map(|item| item.pages).sum::<u32>();
        let most = plan.ctas.iter().map(load).max().expect("132 CTAs");
        let average = (count as u32 * context / PAGE_TOKENS) as f64 / 132.0;
        // Two pages for cutting, four more that leaving rows whole may cost.
        assert!(f64::from(most) <= average + 6.0, "{count} x {context}: {most} pages of {average:.1} on average");
    }
}

#[test]
fn no_rows_make_an_empty_plan() {
    let plan = split(&[], 4, Costs::FP8);
    assert!(plan.ctas.iter().all(Vec::is_empty) && plan.cuts.is_empty());
    check_words(&plan, &[]);
}

#[test]
fn kv_leaves_l2_first_where_partials_or_a_short_step_need_it() {
    let evicts_first = |count: usize, context: u32| {
        let rows = rows(&vec![context; count]);
        let pages = vec![0; count * context.div_ceil(PAGE_TOKENS) as usize];
        split(&rows, 132, Costs::BF16).words(&pages)[1]
    };
    assert_eq!(evicts_first(64, 8192), 1, "rows are cut");
    assert_eq!(evicts_first(128, 1024), 1, "a short step");
    assert_eq!(evicts_first(256, 4096), 0, "a long step of whole rows");
}
