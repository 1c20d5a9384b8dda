//! The step planner under random traffic: limits kept, pages never shared, every position planned once and in order, everyone
//! answered, every page back.

use proptest::prelude::*;
use rally_schedule::batch::{DeviceBatch, GroupInput, SamplingParams, SequenceRequest, TokenDetail};
use rally_schedule::planner::{FinishReason, PlannerConfig, PlannerEvent, StepPlanner, SubmitError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const STOP: u32 = 7;

fn request(id: u64, prompt: usize, most: usize) -> SequenceRequest {
    SequenceRequest {
        id,
        prompt: Arc::from(vec![1; prompt]),
        max_new_tokens: most,
        stop_token_ids: Arc::from([STOP]),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}

/// What is known from outside about a sequence.
#[derive(Debug, Default)]
struct Seen {
    prompt: usize,
    most: usize,
    next_position: usize,
    tokens: usize,
    finished: Option<FinishReason>,
}

struct World {
    planner: StepPlanner,
    config: PlannerConfig,
    /// In flight, by micro-batch.
    batches: Vec<Vec<DeviceBatch>>,
    seen: BTreeMap<u64, Seen>,
}

impl World {
    fn new(config: PlannerConfig) -> Self {
        let batches = vec![vec![DeviceBatch::default(); config.devices]; config.micro_batches];
        Self { planner: StepPlanner::new(config), config, batches, seen: BTreeMap::new() }
    }

    fn submit(&mut self, id: u64, prompt: usize, most: usize) {
        if self.planner.submit(request(id, prompt, most)).is_ok() {
            let most = most.min(self.config.max_positions - prompt);
            self.seen.insert(id, Seen { prompt, most, ..Seen::default() });
        }
    }

    fn take(&mut self, events: Vec<PlannerEvent>) {
        for event in events {
            match event {
                PlannerEvent::Admitted(_) => {}
                PlannerEvent::Token { sequence, index, .. } => {
                    let seen = self.seen.get_mut(&sequence).expect("only submitted sequences speak");
                    assert!(seen.finished.is_none(), "a token after the end of {sequence}");
                    assert_eq!(index as usize, seen.tokens);
                    seen.tokens += 1;
                }
                PlannerEvent::Finished(sequence, reason) => {
                    let seen = self.seen.get_mut(&sequence).expect("only submitted sequences end");
                    assert!(seen.finished.replace(reason).is_none(), "{sequence} ended twice");
                    assert!(reason != FinishReason::Length || seen.tokens == seen.most);
                }
            }
        }
    }

    /// One step of a micro-batch: what was sampled, then the next descriptor. `stop_at` makes a token a stop token.
    fn step(&mut self, micro_batch: usize, stop_at: u64) {
        let mut events = Vec::new();
        for batch in self.batches[micro_batch].clone() {
            for group in batch.groups.iter().filter(|group| group.sample.is_some()) {
                let stops = (group.sequence + group.first_position as u64).is_multiple_of(stop_at);
                self.planner.observe(group.sequence, if stops { STOP } else { 3 }, &mut events);
            }
        }
        let mut batches = std::mem::take(&mut self.batches[micro_batch]);
        self.planner.plan(micro_batch, &mut batches, &mut events);
        self.batches[micro_batch] = batches;
        self.take(events);
        self.check_batches(micro_batch);
    }

    fn check_batches(&mut self, micro_batch: usize) {
        assert!(self.planner.running() <= self.config.sequences);
        for batch in &self.batches[micro_batch] {
            assert!(batch.rows <= self.config.rows_per_device, "rows limit");
            assert_eq!(batch.rows, batch.groups.iter().map(|group| group.rows).sum::<usize>());
            assert_eq!(batch.token_ids.len(), batch.rows);
            for group in &batch.groups {
                let seen = self.seen.get_mut(&group.sequence).expect("only submitted sequences run");
                assert_eq!(group.first_position, seen.next_position, "each position once, in order");
                seen.next_position += group.rows;
                assert!(group.rows <= self.config.prefill_chunk || group.rows == 1);
                assert!(group.slot < self.config.sequences_per_device);
                let pages = &batch.pages[group.pages.clone()];
                assert!(pages.len() * self.config.page_tokens >= seen.next_position, "every row has a page");
                assert_eq!(group.sample.is_some(), seen.next_position >= seen.prompt);
                assert_eq!(group.input == GroupInput::Given, group.first_position < seen.prompt);
            }
        }
        self.check_ownership();
    }

    /// No page and no slot has two owners among all rows in flight.
    fn check_ownership(&self) {
        for device in 0..self.config.devices {
            let (mut pages, mut slots) = (BTreeSet::new(), BTreeSet::new());
            for batch in self.batches.iter().map(|batches| &batches[device]) {
                for group in &batch.groups {
                    // Cancelled ones too: their rows are in flight until their micro-batch is planned next.
                    assert!(slots.insert(group.slot), "slot {} has two owners", group.slot);
                    let own = &batch.pages[group.pages.clone()];
                    assert!(own.iter().all(|page| pages.insert(*page)), "a page has two owners");
                }
            }
        }
    }
}

prop_compose! {
    fn configs()(
        micro_batches in 1usize..7, devices in 1usize..4, sequences in 1usize..12, rows_per_device in 1usize..12,
        prefill_chunk in 1usize..9, pages_per_device in 4u32..40, page_tokens in 1usize..9,
    ) -> PlannerConfig {
        PlannerConfig {
            micro_batches, devices, sequences, sequences_per_device: sequences.div_ceil(devices), rows_per_device,
            prefill_chunk, pages_per_device, page_tokens, max_positions: 64,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everyone_is_answered_and_every_page_comes_back(
        config in configs(), stop_at in 2u64..40,
        arrivals in prop::collection::vec((0usize..60, 1usize..30, 1usize..30, any::<bool>()), 1..40),
    ) {
        let mut world = World::new(config);
        let all_pages = world.planner.free_pages();
        let mut step = 0;
        while step < 60 || !world.planner.only_retired() {
            prop_assert!(step < 100_000, "someone is never answered: {:?}", world.seen);
            for (id, (at, prompt, most, cancels)) in arrivals.iter().enumerate() {
                if *at == step {
                    world.submit(id as u64, *prompt, *most);
                }
                if *cancels && at + 5 == step {
                    let mut events = Vec::new();
                    world.planner.cancel(id as u64, &mut events);
                    world.take(events);
                }
            }
            world.step(step % config.micro_batches, stop_at);
            step += 1;
        }
        (0..config.micro_batches).for_each(|m| world.step(m, stop_at));
        prop_assert!(world.planner.is_idle());
        prop_assert_eq!(world.planner.free_pages(), all_pages);
        prop_assert!(world.seen.values().all(|seen| seen.finished.is_some()));
    }
}

fn small() -> PlannerConfig {
    PlannerConfig {
        micro_batches: 3,
        devices: 1,
        sequences: 8,
        sequences_per_device: 8,
        rows_per_device: 8,
        prefill_chunk: 4,
        pages_per_device: 8,
        page_tokens: 4,
        max_positions: 100,
    }
}

#[test]
fn three_prompts_take_three_micro_batches() {
    let mut world = World::new(small());
    (0..3).for_each(|id| world.submit(id, 3, 5));
    (0..3).for_each(|m| world.step(m, 1000));
    let members = |m: usize| world.batches[m][0].groups.iter().map(|group| group.sequence).collect::<Vec<_>>();
    assert_eq!([members(0), members(1), members(2)], [[0], [1], [2]]);
}

#[test]
fn what_can_never_run_is_refused_with_the_numbers() {
    let planner = StepPlanner::new(small());
    let refusal = |prompt, most| planner.accepts(&request(0, prompt, most)).expect_err("it cannot run");
    assert_eq!(refusal(0, 1), SubmitError::EmptyPrompt);
    assert_eq!(refusal(1, 0), SubmitError::NoTokens);
    assert_eq!(refusal(100, 1), SubmitError::TooLong { prompt: 100, max_positions: 100 });
    // 20 + 14 tokens, the last of which is never fed back, on 8 pages of 4.
    assert_eq!(refusal(20, 14), SubmitError::NeverFits { tokens: 33, capacity: 32 });
    assert_eq!(planner.accepts(&request(0, 20, 13)), Ok(()));
    // A sum that would not fit a number is no panic.
    assert!(matches!(refusal(20, usize::MAX), SubmitError::NeverFits { .. }));
}

#[test]
fn an_id_is_taken_until_its_sequence_is_gone() {
    let mut planner = StepPlanner::new(PlannerConfig { micro_batches: 1, sequences: 1, ..small() });
    let (mut batches, mut events) = (vec![DeviceBatch::default()], Vec::new());
    let submit = |planner: &mut StepPlanner, id| planner.submit(request(id, 3, 5));
    assert_eq!((submit(&mut planner, 1), submit(&mut planner, 2)), (Ok(()), Ok(())));
    assert_eq!(submit(&mut planner, 2), Err(SubmitError::DuplicateId(2)), "queued");
    planner.cancel(2, &mut events);
    assert_eq!(submit(&mut planner, 2), Ok(()), "cancelled in the queue");
    planner.plan(0, &mut batches, &mut events);
    planner.cancel(1, &mut events);
    assert_eq!(submit(&mut planner, 1), Err(SubmitError::DuplicateId(1)), "its rows are in flight");
    planner.plan(0, &mut batches, &mut events);
    assert_eq!(submit(&mut planner, 1), Ok(()), "gone");
}
