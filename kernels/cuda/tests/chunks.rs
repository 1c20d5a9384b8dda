//! The plan of chunks, read as the kernel reads it: every token sees exactly the positions up to its own, and its parts lie where
//! they are looked for.

use proptest::prelude::*;
use rally_cuda::chunks::{Chunk, ChunkSplit};
use rally_cuda::split::{ITEM_WORDS, PAGE_TOKENS, WorkSplit};
use std::collections::BTreeMap;

/// (positions before, tokens) of each chunk, rows and pages one after the other.
fn chunks(sizes: &[(u32, u32)]) -> Vec<Chunk> {
    let (mut row, mut first) = (0, 0);
    let place = |(before, tokens): &(u32, u32)| {
        let chunk = Chunk { row, tokens: *tokens, first, context: before + 1 };
        row += tokens;
        first += (before + tokens).div_ceil(PAGE_TOKENS);
        chunk
    };
    sizes.iter().map(place).collect()
}

/// A run of positions that a token sees, and the partial that it leaves, if the token is in parts.
type Seen = (u32, u32, Option<i32>);

/// What the kernel makes of the words: by row, runs of positions from the beginning of the page list; and the cut rows' partials.
fn walk(words: &[i32], ctas: usize) -> (BTreeMap<i32, Vec<Seen>>, BTreeMap<i32, Vec<i32>>) {
    let cuts_at = 8 + (2 * (ctas + 1)).next_multiple_of(8);
    let items_at = cuts_at + 4 * ctas;
    let mut seen: BTreeMap<i32, Vec<Seen>> = BTreeMap::new();
    for cta in 0..ctas {
        let mut at = cta as i32;
        while at >= 0 {
            let word = &words[items_at + at as usize * ITEM_WORDS..][..ITEM_WORDS];
            let [row, first, pages, tokens, part, parts, slot, next] = word[..8] else { unreachable!() };
            if pages == 0 {
                break;
            }
            let second = row & 1;
            for group in 0..=second {
                let hidden = if part + 1 == parts { second - group } else { 0 };
                let begin = first as u32 * PAGE_TOKENS;
                let end = begin + (pages as u32 - 1) * PAGE_TOKENS + (tokens - hidden) as u32;
                let partial = (parts > 1).then_some(slot + group * parts);
                seen.entry((row >> 1) + group).or_default().push((begin, end, partial));
            }
            at = next;
        }
    }
    let mut cuts: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for at in 0..words[0] as usize {
        let [row, slot, parts, more] = words[cuts_at + 4 * at..][..4] else { unreachable!() };
        for i in 0..=more {
            cuts.insert(row + i, (slot + i * parts..slot + (i + 1) * parts).collect());
        }
    }
    (seen, cuts)
}

fn check(sizes: &[(u32, u32)], ctas: usize) {
    let chunks = chunks(sizes);
    let list: u32 = sizes.iter().map(|(before, tokens)| (before + tokens).div_ceil(PAGE_TOKENS)).sum();
    let words = ChunkSplit::new(&chunks, ctas).words(&vec![0; list as usize]);
    let tokens: u32 = sizes.iter().map(|(_, tokens)| tokens).sum();
    assert!(words.len() <= ChunkSplit::words_at_most(tokens as usize, ctas));
    assert!(words.len() >= WorkSplit::words_at_least(ctas));
    let (mut seen, cuts) = walk(&words, ctas);
    let mut slots = Vec::new();
    for chunk in &chunks {
        for token in 0..chunk.tokens {
            let row = (chunk.row + token) as i32;
            let mut runs = seen.remove(&row).unwrap_or_default();
            runs.sort_unstable();
            let mut next = chunk.first * PAGE_TOKENS;
            for (begin, end, _) in &runs {
                assert_eq!(*begin, next.next_multiple_of(PAGE_TOKENS), "row {row}: pages in order, none twice");
                next = *end;
            }
            assert_eq!(next - chunk.first * PAGE_TOKENS, chunk.context + token, "row {row} sees up to itself");
            let partials: Vec<i32> = runs.iter().filter_map(|run| run.2).collect();
            assert_eq!(cuts.get(&row).cloned().unwrap_or_default(), partials, "row {row}");
            slots.extend(partials);
        }
    }
    assert!(seen.is_empty(), "rows that nobody asked for: {seen:?}");
    slots.sort_unstable();
    assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "partials are nobody else's");
    assert!(slots.last().is_none_or(|slot| (*slot as usize) < ChunkSplit::slots_at_most(ctas)));
}

proptest! {
    #[test]
    fn every_token_sees_up_to_itself(
        sizes in prop::collection::vec((0u32..5000, 1u32..100), 1..30),
        ctas in 1usize..140,
    ) {
        check(&sizes, ctas);
    }

    #[test]
    fn few_tokens_of_long_contexts_are_cut(
        sizes in prop::collection::vec((0u32..100_000, 1u32..5), 1..6),
        ctas in 1usize..140,
    ) {
        check(&sizes, ctas);
    }
}

#[test]
fn one_long_prompt_fills_every_cta() {
    for (before, tokens) in [(0, 2048), (30_720, 2048), (32_768, 512), (32_768, 64), (32_768, 2), (129_024, 512)] {
        let plan = ChunkSplit::new(&chunks(&[(before, tokens)]), 132);
        let load = |items: &Vec<rally_cuda::split::Item>| items.iter().map(|item| item.pages).sum::<u32>();
        let most = plan.work.ctas.iter().map(load).max().expect("132 CTAs");
        let pairs = (1..=tokens / 2).map(|pair| (before + 2 * pair).div_ceil(PAGE_TOKENS));
        let average = f64::from(pairs.sum::<u32>()) / 132.0;
        assert!(f64::from(most) <= average * 1.05 + 8.0, "{tokens} at {before}: {most} pages of {average:.1}");
    }
}
