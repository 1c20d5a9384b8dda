//! Strategies: layouts as tests draw them.

use super::{Layout, Places};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rally::graph::placement::ExpertPlacement;
use rally::graph::shard::part;
use rally::graph::spec::HeldExperts;

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
            Places { a: f, f: vec![], expert, dense, dense_apart, ..Places::default() }
        } else {
            Places { a, f, expert, dense, dense_apart, ..Places::default() }
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
            Places { a: f, f: vec![], expert, dense, rail: true, ..Places::default() }
        } else {
            Places { a: vec![size; a_groups], f, expert, dense, rail: true, ..Places::default() }
        }
    }
}

/// What a placement is drawn from: a holder of each expert, and more of them.
#[derive(Clone, Debug)]
struct Placing {
    holders: Vec<u32>,
    copies: Vec<(u32, u32)>,
    plain: bool,
}

impl Placing {
    /// Over so many shards; every shard is the home of one expert at least.
    fn lists(&self, shards: usize) -> Vec<Vec<u32>> {
        let mut lists: Vec<Vec<u32>> = vec![Vec::new(); shards];
        let mut put = |shard: usize, expert: u32| {
            if !lists[shard].contains(&expert) {
                lists[shard].push(expert);
            }
        };
        let experts = self.holders.len();
        for (expert, holder) in self.holders.iter().enumerate() {
            let plain = (0..shards).find(|shard| part(experts, shards, *shard).contains(&expert)).unwrap_or(0);
            let drawn = if self.plain { plain } else { *holder as usize % shards };
            put(drawn, expert as u32);
        }
        for shard in (0..shards).filter(|_| !self.plain) {
            put(shard, part(experts, shards, shard).start as u32);
        }
        self.copies.iter().for_each(|(expert, shard)| put(*shard as usize % shards, expert % experts as u32));
        lists
    }
}

fn placings(experts: usize) -> impl Strategy<Value = Option<Placing>> {
    let holders = prop::collection::vec(any::<u32>(), experts);
    let copies = prop::collection::vec((any::<u32>(), any::<u32>()), 0..2 * experts);
    let placing =
        (holders, copies, any::<bool>()).prop_map(|(holders, copies, plain)| Placing { holders, copies, plain });
    prop::option::weighted(0.6, placing)
}

impl Places {
    /// The same sharding and the same sums with one attention device (or one group that splits its output projection), which
    /// broadcasts, and every expert at home only.
    pub fn plainest(&self) -> Self {
        let f = if self.f.is_empty() { self.a.clone() } else { self.f.clone() };
        let placement = self.placement.as_ref().map(|lists| at_home(lists));
        Self { a: vec![self.o_proj.max(1)], f, rail: false, placement, ..self.clone() }
    }
}

/// A placement without its copies.
fn at_home(lists: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let experts = lists.iter().flatten().max().map_or(0, |last| *last as usize + 1);
    let held: Vec<HeldExperts> = lists.iter().cloned().map(HeldExperts).collect();
    let placed = ExpertPlacement::listed(experts, &held);
    let of = |(shard, list): (usize, &Vec<u32>)| {
        list.iter().copied().filter(|e| placed.home(*e as usize) == shard).collect()
    };
    lists.iter().enumerate().map(of).collect()
}

prop_compose! {
    /// Any layout of a model with so many experts, with at least `kv_tokens` for each attention device, in whole pages.
    pub fn layouts(experts: usize, kv_tokens: std::ops::Range<usize>)(
        places in prop_oneof![broadcasts(), rails()], placing in placings(experts), o_proj in 0usize..3, router_on_ffn: bool,
        policy in policies(), reversed: bool, micro_batches in 1usize..7, prefill_chunk in 1usize..33, rows in 16usize..65,
        page_tokens in 1usize..17, sequences in 4usize..17, kv_tokens in kv_tokens,
    ) -> Layout {
        let splits = |slices: &usize| *slices > 0 && places.a.iter().all(|size| size.is_multiple_of(*slices));
        let o_proj = Some(o_proj).filter(splits).unwrap_or(0);
        let placement = placing.map(|placing| placing.lists(places.expert[0]));
        let kv_tokens = kv_tokens.next_multiple_of(page_tokens) * places.a.iter().sum::<usize>();
        let places = Some(Places { placement, o_proj, ..places });
        let prefill_chunk = prefill_chunk.min(rows);
        Layout {
            places, router_on_ffn, policy, reversed, micro_batches, prefill_chunk, rows, page_tokens, sequences, kv_tokens,
            ..Layout::default()
        }
    }
}
