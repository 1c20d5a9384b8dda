//! Strategies: layouts as tests draw them.

use super::{Layout, Places};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// So many cases from this seed, the same every time; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` replace either.
pub fn config(cases: u32, seed: u64) -> ProptestConfig {
    // Reads both variables.
    let asked = ProptestConfig::default();
    let is_set = |name: &str| std::env::var_os(name).is_some();
    ProptestConfig {
        cases: if is_set("PROPTEST_CASES") { asked.cases } else { cases },
        rng_seed: if is_set("PROPTEST_RNG_SEED") { asked.rng_seed } else { RngSeed::Fixed(seed) },
        failure_persistence: None,
        ..asked
    }
}

/// Every policy; `custom` with the pattern that [`Layout`] writes for it.
pub fn policies() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["sequential", "ping_pong", "greedy", "custom"])
}

/// Expert, tensor and replica counts for up to four devices.
const SHARDS: [[usize; 3]; 12] = [
    [1, 1, 1],
    [2, 1, 1],
    [1, 2, 1],
    [1, 1, 2],
    [3, 1, 1],
    [1, 3, 1],
    [1, 1, 3],
    [4, 1, 1],
    [1, 4, 1],
    [2, 2, 1],
    [2, 1, 2],
    [1, 2, 2],
];

prop_compose! {
    /// Broadcast between any groups, attention and FFN apart or on the same devices.
    pub fn broadcasts()(
        a in prop::collection::vec(1usize..3, 1..3), expert in prop::sample::select(SHARDS.to_vec()), same: bool,
        grouped: bool, dense_choice in 0usize..3, dense_apart: bool,
    ) -> Places {
        let devices: usize = expert.iter().product();
        let f = match (grouped, devices) {
            (true, 4) => vec![2, 2],
            (true, n) => vec![n],
            (false, n) => vec![1; n],
        };
        let tensors: Vec<usize> = (1..=devices).filter(|tensor| devices.is_multiple_of(*tensor)).collect();
        let tensor = tensors[dense_choice % tensors.len()];
        let dense = if dense_apart { [1, 1] } else { [tensor, devices / tensor] };
        if same {
            Places { a: f, f: vec![], expert, dense, dense_apart, rail: false }
        } else {
            Places { a, f, expert, dense, dense_apart, rail: false }
        }
    }
}

prop_compose! {
    /// Rails between groups of one size, replicas in whole groups.
    pub fn rails()(
        size in 1usize..4, a_groups in 1usize..3, same: bool, which in 0usize..7, dense_whole: bool,
    ) -> Places {
        let (groups, expert) = match which {
            0 => (1, [size, 1, 1]),
            1 => (1, [1, size, 1]),
            2 => (2, [2, size, 1]),
            3 => (2, [1, size, 2]),
            4 => (2, [size, 1, 2]),
            5 => (2, [1, 2 * size, 1]),
            _ => (1, [1, size, 1]),
        };
        let dense = if dense_whole { [size * groups, 1] } else { [size, groups] };
        let f = vec![size; groups];
        if same {
            Places { a: f, f: vec![], expert, dense, dense_apart: false, rail: true }
        } else {
            Places { a: vec![size; a_groups], f, expert, dense, dense_apart: false, rail: true }
        }
    }
}

prop_compose! {
    /// Any layout, with `kv_tokens` for each attention device.
    pub fn layouts(kv_tokens: std::ops::Range<usize>)(
        places in prop_oneof![broadcasts(), rails()], router_on_ffn: bool, policy in policies(), reversed: bool,
        micro_batches in 1usize..7, prefill_chunk in 1usize..33, rows in 16usize..65, page_tokens in 1usize..17,
        sequences in 4usize..17, kv_tokens in kv_tokens,
    ) -> Layout {
        let kv_tokens = kv_tokens * places.a.iter().sum::<usize>();
        let (places, prefill_chunk) = (Some(places), prefill_chunk.min(rows));
        Layout {
            places, router_on_ffn, policy, reversed, micro_batches, prefill_chunk, rows, page_tokens, sequences, kv_tokens,
            ..Layout::default()
        }
    }
}
