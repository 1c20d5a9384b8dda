//! Prefix reuse under random traffic on toy devices whose KV cache remembers what was stored where. A cell holds the tokens up to its
//! position, as a number, from the end of the step that stored it: so a page that is shared too early, written while others hold it,
//! or taken for another beginning shows as a row that sees a past other than its own.

mod cases;

use cases::cases;
use proptest::prelude::*;
use rally_schedule::batch::{DeviceBatch, GroupInput, RowGroup, SamplingParams, SequenceRequest, TokenDetail};
use rally_schedule::planner::{PlannerConfig, PlannerEvent, StepPlanner};
use rally_schedule::prefix::{KnownTokens, PagePool};
use std::collections::{BTreeMap, HashMap};

/// A sequence that begins as others of its family do.
#[derive(Clone, Debug)]
struct Asked {
    at: usize,
    family: u32,
    /// The first position whose token is its own, in the prompt or behind it.
    own_from: usize,
    prompt: usize,
    most: usize,
    cancel: Option<usize>,
    preempt: Option<usize>,
}

impl Asked {
    fn token(&self, id: u64, position: usize) -> u32 {
        let (of, salt) = if position < self.own_from { (self.family, 0) } else { (id as u32, 1) };
        (of * 7919 + position as u32 * 13) * 2 + salt
    }
}

/// A sequence as seen from outside.
#[derive(Default)]
struct Seen {
    /// The cells of its positions, as far as it has any.
    past: Vec<u64>,
    next_position: usize,
    tokens: usize,
    device: Option<usize>,
    cached_tokens: usize,
    /// It may have had to leave again before it had rows, and find something else elsewhere.
    lost: bool,
    finished: bool,
    /// Its place in the order of submission.
    order: usize,
    /// Plan calls since it had rows.
    idle: usize,
}

struct World<'a> {
    planner: StepPlanner,
    config: PlannerConfig,
    asked: &'a [Asked],
    seen: BTreeMap<u64, Seen>,
    /// In flight, by micro-batch and device.
    batches: Vec<Vec<DeviceBatch>>,
    /// What steps in flight store, by micro-batch: device, cell, value.
    stores: Vec<Vec<(usize, usize, u64)>>,
    /// By device and cell; 0: nothing yet.
    memory: Vec<Vec<u64>>,
    /// A number for each beginning: that of one token less, and the last token.
    beginnings: HashMap<(u64, u32), u64>,
    /// Rows of prompts that were read.
    read: usize,
    /// The oldest that lives, and the plan calls that it has stood still since it is the oldest.
    oldest: Option<(usize, usize)>,
}

impl<'a> World<'a> {
    fn new(config: PlannerConfig, asked: &'a [Asked], reuse: bool) -> Self {
        let mut planner = StepPlanner::new(config);
        if reuse {
            planner.reuse_prefixes();
        }
        let cells = config.pages_per_device as usize * config.page_tokens;
        Self {
            planner,
            config,
            asked,
            seen: BTreeMap::new(),
            batches: vec![vec![DeviceBatch::default(); config.devices]; config.micro_batches],
            stores: vec![Vec::new(); config.micro_batches],
            memory: vec![vec![0; cells]; config.devices],
            beginnings: HashMap::new(),
            read: 0,
            oldest: None,
        }
    }

    fn submit(&mut self, id: u64) {
        let asked = &self.asked[id as usize];
        let request = SequenceRequest {
            id,
            prompt: (0..asked.prompt).map(|position| asked.token(id, position)).collect(),
            generated: [].into(),
            max_new_tokens: asked.most,
            stop_token_ids: [].into(),
            sampling: SamplingParams::default(),
            detail: TokenDetail::default(),
        };
        if self.planner.submit(request).is_ok() {
            let order = self.seen.len();
            self.seen.insert(id, Seen { order, ..Seen::default() });
        }
    }

    fn step(&mut self, micro_batch: usize) {
        for (device, cell, beginning) in self.stores[micro_batch].drain(..) {
            self.memory[device][cell] = beginning;
        }
        let mut events = Vec::new();
        let mut batches = std::mem::take(&mut self.batches[micro_batch]);
        for group in batches.iter().flat_map(|batch| &batch.groups) {
            if let Some(sample) = &group.sample {
                let asked = &self.asked[group.sequence as usize];
                let token = asked.token(group.sequence, asked.prompt + sample.token_index as usize);
                self.planner.observe(group.sequence, token, &mut events);
            }
        }
        self.planner.plan(micro_batch, &mut batches, &mut events);
        self.take(events);
        self.seen.values_mut().for_each(|seen| seen.idle += 1);
        for (device, batch) in batches.iter().enumerate() {
            batch.groups.iter().for_each(|group| self.check_group(micro_batch, device, batch, group));
        }
        self.batches[micro_batch] = batches;
        self.check_sharing();
        self.check_oldest();
    }

    /// A device loses all that was in it; the others forget what they sampled last, and do the steps in flight again.
    fn lose(&mut self, device: usize) {
        self.planner.lost_device(device, false);
        self.planner.forget_last_tokens();
        self.memory[device].fill(0);
        self.seen.values_mut().for_each(|seen| seen.lost = true);
        self.stores.iter_mut().for_each(|stores| stores.retain(|(on, ..)| *on != device));
        self.batches.iter_mut().for_each(|batches| batches[device].clear());
        self.batches.iter_mut().flatten().for_each(DeviceBatch::give_tokens);
    }

    /// Whoever was submitted first of all that live goes on, once it has run.
    fn check_oldest(&mut self) {
        let oldest = self.seen.values().filter(|seen| !seen.finished).min_by_key(|seen| seen.order);
        let Some(seen) = oldest.filter(|seen| seen.device.is_some()) else { return };
        let before = self.oldest.filter(|(oldest, _)| *oldest == seen.order).map_or(0, |(_, idle)| idle);
        let idle = if seen.idle == 0 { 0 } else { before + 1 };
        assert!(idle <= self.config.micro_batches * (self.config.sequences + 3), "the oldest stands still");
        self.oldest = Some((seen.order, idle));
    }

    fn take(&mut self, events: Vec<PlannerEvent>) {
        for event in events {
            match event {
                PlannerEvent::Admitted { sequence, cached_tokens } => {
                    let seen = self.seen.get_mut(&sequence).expect("it was submitted");
                    seen.cached_tokens = cached_tokens;
                }
                PlannerEvent::Token { sequence, index, .. } => {
                    let seen = self.seen.get_mut(&sequence).expect("it was submitted");
                    assert_eq!(index as usize, seen.tokens, "told once, in order");
                    seen.tokens += 1;
                }
                PlannerEvent::Finished(sequence, _) => {
                    self.seen.get_mut(&sequence).expect("it was submitted").finished = true;
                }
            }
        }
    }

    /// The tokens at its positions, its own past in its pages, the last known token always read.
    fn check_group(&mut self, micro_batch: usize, device: usize, batch: &DeviceBatch, group: &RowGroup) {
        let (id, page_tokens) = (group.sequence, self.config.page_tokens);
        let asked = &self.asked[id as usize];
        let seen = self.seen.get_mut(&id).expect("it was submitted");
        let end = group.first_position + group.rows;
        if group.first_position != seen.next_position {
            // Let in, for the first time or again: it begins behind whole pages that are there.
            assert!(group.first_position.is_multiple_of(page_tokens) && group.input == GroupInput::Given);
            assert!(group.first_position < asked.prompt + seen.tokens, "the last known token is read");
            // Nobody has been sent away between being let in and its first row.
            if seen.device.is_none() && !seen.lost && self.planner.preemptions() == 0 {
                assert_eq!(group.first_position.min(asked.prompt), seen.cached_tokens);
            }
        }
        for position in seen.past.len()..end {
            let before = seen.past.last().copied().unwrap_or(0);
            let next = self.beginnings.len() as u64 + 1;
            seen.past.push(*self.beginnings.entry((before, asked.token(id, position))).or_insert(next));
        }
        let pages = &batch.pages[group.pages.clone()];
        let cell = |position: usize| pages[position / page_tokens] as usize * page_tokens + position % page_tokens;
        for position in 0..group.first_position {
            assert_eq!(self.memory[device][cell(position)], seen.past[position], "sequence {id}, position {position}");
        }
        for (row, position) in group.row_range().zip(group.first_position..) {
            if group.input == GroupInput::Given {
                assert_eq!(batch.token_ids[row], asked.token(id, position));
                self.read += 1;
            }
            self.stores[micro_batch].push((device, cell(position), seen.past[position]));
        }
        (seen.next_position, seen.device, seen.idle) = (end, Some(device), 0);
    }

    /// A page that two have in flight is full for both, so neither writes there.
    fn check_sharing(&self) {
        for device in 0..self.config.devices {
            let mut holders: HashMap<u32, (usize, bool)> = HashMap::new();
            for group in self.batches.iter().flat_map(|batches| &batches[device].groups) {
                for (index, page) in self.pages_of(device, group).iter().enumerate() {
                    let full = (index + 1) * self.config.page_tokens <= group.first_position;
                    let (count, all_full) = holders.entry(*page).or_insert((0, true));
                    (*count, *all_full) = (*count + 1, *all_full && full);
                    assert!(*count == 1 || *all_full, "page {page} is written while another holds it");
                }
            }
        }
    }

    fn pages_of(&self, device: usize, group: &RowGroup) -> &[u32] {
        let has = |batches: &&Vec<DeviceBatch>| batches[device].groups.iter().any(|other| std::ptr::eq(other, group));
        let batches = self.batches.iter().find(has).expect("it is one of them");
        &batches[device].pages[group.pages.clone()]
    }
}

/// Runs to the end; returns rows read and tokens reused.
fn traffic(config: PlannerConfig, asked: &[Asked], reuse: bool) -> (usize, u64) {
    traffic_with_losses(config, asked, reuse, &[])
}

/// The same; at a step of `losses` a device loses what it has.
fn traffic_with_losses(config: PlannerConfig, asked: &[Asked], reuse: bool, losses: &[(usize, usize)]) -> (usize, u64) {
    let mut world = World::new(config, asked, reuse);
    let all = world.planner.pages();
    let last = asked.iter().map(|one| one.at).max().unwrap_or(0);
    let mut step = 0;
    // 40 steps after the last has come, nobody is cancelled or preempted any more.
    while step <= last + 40 || !world.planner.is_idle() {
        assert!(step < 100_000, "someone is never answered");
        for (id, one) in asked.iter().enumerate() {
            let (id, is_now) = (id as u64, |after: Option<usize>| after.is_some_and(|after| one.at + after == step));
            if one.at == step {
                world.submit(id);
            }
            if is_now(one.preempt) {
                let leaves = world.planner.preempt(id);
                world.seen.entry(id).and_modify(|seen| seen.lost |= leaves);
            }
            if is_now(one.cancel) {
                let mut events = Vec::new();
                world.planner.cancel(id, &mut events);
                world.take(events);
            }
        }
        losses.iter().filter(|(at, _)| *at == step).for_each(|(_, device)| world.lose(device % config.devices));
        world.step(step % config.micro_batches);
        step += 1;
    }
    assert!(world.seen.values().all(|seen| seen.finished));
    // Nobody holds any: each is free, and some of those remember what they hold.
    assert_eq!((world.planner.free_pages(), world.planner.used_pages()), (all, 0));
    assert!(world.planner.cached_pages() <= all && (reuse || world.planner.cached_pages() == 0));
    // None of them stands in the way: what fills a device has its place at once.
    let longest = (config.device_kv_tokens().min(config.max_positions)) - 1;
    let whole = [Asked { at: 0, family: 9, own_from: 0, prompt: longest, most: 1, cancel: None, preempt: None }];
    let World { mut planner, mut batches, .. } = world;
    for device in 0..config.devices as u64 {
        let prompt = (0..longest).map(|position| whole[0].token(device, position)).collect();
        let request = SequenceRequest {
            id: device,
            prompt,
            generated: [].into(),
            max_new_tokens: 1,
            stop_token_ids: [].into(),
            sampling: SamplingParams::default(),
            detail: TokenDetail::default(),
        };
        planner.submit(request).expect("it fits a device");
    }
    planner.plan(0, &mut batches[0], &mut Vec::new());
    let places = config.devices.min(config.sequences).min(config.rows_per_micro_batch * config.micro_batches);
    assert_eq!(planner.running(), places, "cached pages are in nobody's way");
    (world.read, planner.prefix_hits())
}

prop_compose! {
    fn configs()(
        micro_batches in 1usize..7, devices in 1usize..4, sequences in 1usize..12, rows in 1usize..24,
        prefill_chunk in 1usize..9, page_tokens in 1usize..9, spare in 0u32..30,
    ) -> PlannerConfig {
        PlannerConfig {
            micro_batches, devices, sequences, sequences_per_device: sequences.div_ceil(devices),
            rows_per_device: rows.div_ceil(devices), rows_per_micro_batch: rows,
            // The longest sequence keeps 48 tokens.
            prefill_chunk, pages_per_device: 48u32.div_ceil(page_tokens as u32) + spare, page_tokens, max_positions: 64,
        }
    }
}

fn traffics() -> impl Strategy<Value = Vec<Asked>> {
    let event = || prop::option::weighted(0.25, 0usize..40);
    let asked = (0usize..60, 0u32..3, 0usize..50, 1usize..30, 1usize..20, event(), event());
    let asked = asked.prop_map(|(at, family, own_from, prompt, most, cancel, preempt)| Asked {
        at,
        family,
        own_from,
        prompt,
        most,
        cancel,
        preempt,
    });
    prop::collection::vec(asked, 1..40)
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn nobody_sees_another_past_and_every_page_comes_back(config in configs(), asked in traffics()) {
        traffic(config, &asked, true);
    }

    #[test]
    fn nothing_that_a_device_has_lost_is_taken_for_there(
        config in configs(), asked in traffics(), losses in prop::collection::vec((0usize..90, 0usize..4), 1..6),
    ) {
        traffic_with_losses(config, &asked, true, &losses);
    }
}

fn config(devices: usize, pages_per_device: u32) -> PlannerConfig {
    PlannerConfig {
        micro_batches: 2,
        devices,
        sequences: 8 * devices,
        sequences_per_device: 8,
        rows_per_device: 8,
        rows_per_micro_batch: 8 * devices,
        prefill_chunk: 8,
        pages_per_device,
        page_tokens: 4,
        max_positions: 64,
    }
}

/// A sequence of the first family, all alike but for the last token of the prompt.
fn one(at: usize, prompt: usize) -> Asked {
    Asked { at, family: 0, own_from: prompt - 1, prompt, most: 8, cancel: None, preempt: None }
}

/// Twelve prompts of 40 tokens, of which 36 are the same: read once on the one device, and whole without reuse.
#[test]
fn what_is_there_is_not_read() {
    let asked: Vec<Asked> = (0..12).map(|n| one(n * 20, 40)).collect();
    assert_eq!(traffic(config(1, 100), &asked, false), (12 * 40, 0));
    assert_eq!(traffic(config(1, 100), &asked, true), (40 + 11 * 4, 11 * 36));
}

/// Those that come together read together, for nothing was cached when they were let in. Once they have read, they share all the same.
#[test]
fn equal_pages_become_one() {
    let asked: Vec<Asked> = (0..6).map(|_| Asked { most: 20, ..one(0, 40) }).collect();
    let mut world = World::new(config(1, 100), &asked, true);
    (0..6).for_each(|id| world.submit(id));
    let mut step = 0;
    while world.seen.values().any(|seen| seen.tokens < 2) {
        world.step(step % 2);
        step += 1;
    }
    assert_eq!((world.planner.running(), world.read), (6, 6 * 40));
    // Nine of ten pages are the same, and nobody has decoded more than two further ones. Each its own, it would be 60 and more.
    assert!((9 + 6..=9 + 6 * 3).contains(&world.planner.used_pages()), "{}", world.planner.used_pages());
}

/// One beginning that everyone has does not pile them all up on one device.
#[test]
fn a_beginning_that_all_share_spreads_over_devices() {
    let asked: Vec<Asked> = (0..16).map(|_| Asked { most: 24, ..one(0, 17) }).collect();
    let mut world = World::new(config(2, 200), &asked, true);
    world.submit(0);
    (0..8).for_each(|step| world.step(step % 2));
    (1..16).for_each(|id| world.submit(id));
    (0..8).for_each(|step| world.step(step % 2));
    let on = |device: usize| world.seen.values().filter(|seen| seen.device == Some(device)).count();
    assert_eq!(on(0) + on(1), 16);
    assert!(on(0) >= 4 && on(1) >= 4, "{} and {}", on(0), on(1));
}

/// What follows goes before what it follows, and what was used last stays longest.
#[test]
fn the_least_recently_used_goes_first() {
    let mut pool = PagePool::new(6);
    pool.share(2);
    let prompts: [Vec<u32>; 3] = [vec![1, 2, 3, 4, 5, 6], vec![1, 2, 9, 9], vec![7, 7, 7, 7]];
    let known = |prompt: usize| KnownTokens { prompt: &prompts[prompt], generated: &[] };
    let mut found = Vec::new();
    let mut begin = |pool: &mut PagePool, prompt: usize| {
        let pages = prompts[prompt].len() / 2;
        pool.find(known(prompt), pages, &mut found);
        pool.hold(&found);
        let (mut own, mut shared) = (found.clone(), found.len());
        assert!(pool.take(pages - shared, &mut own));
        pool.enter(known(prompt), &mut own, &mut shared, pages);
        (own, found.len())
    };
    let (mut first, hits) = begin(&mut pool, 0);
    assert_eq!((hits, pool.free(), pool.idle()), (0, 3, 0));
    let (mut second, hits) = begin(&mut pool, 1);
    assert_eq!((hits, first[0] == second[0], pool.free()), (1, true, 2));
    let all = |pages: &Vec<u32>| (pages.clone(), pages.len());
    let (a, b) = (all(&first), all(&second));
    assert_eq!(pool.freed_by([(&a.0[..], a.1)].into_iter()), 2, "the first page is another's too");
    assert_eq!(pool.freed_by([(&a.0[..], a.1), (&b.0[..], b.1)].into_iter()), 4, "once");
    pool.give_back(&mut first, 3);
    assert_eq!((pool.free(), pool.idle()), (4, 2));
    pool.give_back(&mut second, 2);
    assert_eq!((pool.free(), pool.idle()), (6, 4));
    // Two pages are nobody's and two must go: those that only the first had, its last one first.
    let (mut third, _) = begin(&mut pool, 2);
    let mut more = Vec::new();
    assert!(pool.take(1, &mut more));
    pool.find(known(0), 3, &mut found);
    assert_eq!(found, a.0[..2], "the third page has gone");
    assert!(pool.take(1, &mut more));
    pool.find(known(0), 3, &mut found);
    assert_eq!(found, a.0[..1], "the page that another has too was used last");
    pool.find(known(1), 2, &mut found);
    assert_eq!(found, b.0, "all of the second is there");
    assert!(!pool.take(3, &mut more), "two are left");
    pool.give_back(&mut third, 2);
    pool.give_back(&mut more, 0);
    assert_eq!(pool.free(), 6);
}
