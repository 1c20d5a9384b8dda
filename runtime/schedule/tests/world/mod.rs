//! Toy devices around a step planner. Their KV cache remembers which sequence wrote which position where, so a page that is shared,
//! lost or taken too early shows as a row that sees somebody else's past. Tokens are a function of sequence and index.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use rally_schedule::batch::{DeviceBatch, GroupInput, RowGroup, SamplingParams, SequenceRequest, TokenDetail};
use rally_schedule::planner::{FinishReason, PlannerConfig, PlannerEvent, StepPlanner};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const STOP: u32 = 7;

/// Token at a position of a prompt.
fn prompt_token(id: u64, position: usize) -> u32 {
    (id as u32 * 101 + position as u32 * 13) % 1000 + 10
}

pub fn request(id: u64, prompt: usize, most: usize) -> SequenceRequest {
    SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: (0..prompt).map(|position| prompt_token(id, position)).collect(),
        max_new_tokens: most,
        stop_token_ids: Arc::from([STOP]),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}

/// What is known from outside about a sequence.
#[derive(Debug, Default)]
pub struct Seen {
    pub prompt: usize,
    pub most: usize,
    /// Rows planned since it started last.
    pub next_position: usize,
    /// Tokens told.
    pub tokens: usize,
    /// How often it began anew.
    pub restarts: usize,
    pub device: usize,
    pub finished: Option<FinishReason>,
    /// Its place in the order of submission.
    order: usize,
    admitted: bool,
    /// Plan calls since it had rows.
    idle: usize,
}

pub struct World {
    pub planner: StepPlanner,
    pub config: PlannerConfig,
    /// In flight, by micro-batch and device.
    pub batches: Vec<Vec<DeviceBatch>>,
    pub seen: BTreeMap<u64, Seen>,
    /// Most plan calls between two rows of a sequence that decodes.
    pub longest_silence: usize,
    /// The time that the planner is told, in seconds, and what it grows by at each step of a micro-batch: something where there are rows,
    /// and something for each.
    pub clock_s: f64,
    pub step_s: (f64, f64),
    stop_at: u64,
    submitted: usize,
    calls: usize,
    /// The oldest sequence that lives, and the plan calls that it has stood still since it is the oldest.
    oldest: Option<(u64, usize)>,
    /// By device, page and offset: who wrote it, as which position.
    memory: Vec<Vec<Option<(u64, usize)>>>,
    /// By device and slot.
    last_tokens: Vec<Vec<u32>>,
}

impl World {
    /// `stop_at`: every so-many-th token, counted over sequences and indices, is a stop token.
    pub fn new(config: PlannerConfig, stop_at: u64) -> Self {
        Self {
            planner: StepPlanner::new(config),
            config,
            batches: vec![vec![DeviceBatch::default(); config.devices]; config.micro_batches],
            seen: BTreeMap::new(),
            stop_at,
            clock_s: 0.0,
            step_s: (0.0, 0.0),
            longest_silence: 0,
            submitted: 0,
            calls: 0,
            oldest: None,
            memory: vec![vec![None; config.pages_per_device as usize * config.page_tokens]; config.devices],
            last_tokens: vec![vec![0; config.sequences_per_device]; config.devices],
        }
    }

    pub fn submit(&mut self, id: u64, prompt: usize, most: usize) {
        if self.planner.submit(request(id, prompt, most)).is_ok() {
            let most = most.min(self.config.max_positions - prompt);
            self.seen.insert(id, Seen { prompt, most, order: self.submitted, ..Seen::default() });
            self.submitted += 1;
        }
    }

    pub fn cancel(&mut self, id: u64) {
        let mut events = Vec::new();
        self.planner.cancel(id, &mut events);
        self.take(events);
    }

    pub fn preempt(&mut self, id: u64) -> bool {
        self.planner.preempt(id)
    }

    /// A device loses all that was in it, rows in flight included; `away`: it is gone itself.
    pub fn lose(&mut self, device: usize, away: bool) {
        self.planner.lost_device(device, away);
        self.batches.iter_mut().for_each(|batches| batches[device].clear());
        self.memory[device].fill(None);
        self.begin_epoch();
    }

    /// Devices keep KV and forget what they sampled last; the steps in flight begin anew.
    pub fn begin_epoch(&mut self) {
        self.planner.forget_last_tokens();
        self.last_tokens.iter_mut().for_each(|slots| slots.fill(u32::MAX));
        self.batches.iter_mut().flatten().for_each(DeviceBatch::give_tokens);
        for batch in self.batches.iter().flatten() {
            for group in batch.groups.iter().filter(|group| self.seen.contains_key(&group.sequence)) {
                for (row, position) in group.row_range().zip(group.first_position..) {
                    assert_eq!(batch.token_ids[row], self.expected(group.sequence, position), "what is done again");
                }
            }
        }
    }

    /// The token of a sequence at a position.
    fn expected(&self, id: u64, position: usize) -> u32 {
        match position.checked_sub(self.seen[&id].prompt) {
            Some(index) => self.token(id, index as u64),
            None => prompt_token(id, position),
        }
    }

    /// Steps of the micro-batches in turn.
    pub fn steps(&mut self, count: usize) {
        (0..count).for_each(|_| self.step(self.calls % self.config.micro_batches));
    }

    /// Steps until every micro-batch has had as many.
    pub fn steps_to_round(&self) -> usize {
        (self.config.micro_batches - self.calls % self.config.micro_batches) % self.config.micro_batches
    }

    /// One step of a micro-batch: what was sampled, then the next descriptor.
    pub fn step(&mut self, micro_batch: usize) {
        let mut events = Vec::new();
        for (device, batch) in self.batches[micro_batch].iter().enumerate() {
            for group in batch.groups.iter() {
                let Some(sample) = &group.sample else { continue };
                let token = self.token(group.sequence, sample.token_index);
                self.last_tokens[device][group.slot] = token;
                self.planner.observe(group.sequence, token, &mut events);
            }
        }
        let mut batches = std::mem::take(&mut self.batches[micro_batch]);
        let rows: usize = batches.iter().map(|batch| batch.rows).sum();
        self.clock_s += if rows > 0 { self.step_s.0 + self.step_s.1 * rows as f64 } else { 0.0 };
        self.planner.begin_plan(micro_batch, self.clock_s);
        self.planner.plan(micro_batch, &mut batches, &mut events);
        self.batches[micro_batch] = batches;
        self.calls += 1;
        self.take(events);
        self.check_batches(micro_batch);
        self.check_ownership();
        self.check_oldest();
    }

    /// Drops those that have ended, so that a long run does not look at them again and again.
    pub fn forget_finished(&mut self) {
        self.seen.retain(|_, seen| seen.finished.is_none());
    }

    /// The token a sequence generates at an index.
    fn token(&self, id: u64, index: u64) -> u32 {
        let stops = (id * 5 + index + 1).is_multiple_of(self.stop_at);
        if stops { STOP } else { (id * 37 + index * 11) as u32 % 1000 + 10 }
    }

    fn take(&mut self, events: Vec<PlannerEvent>) {
        for event in events {
            match event {
                PlannerEvent::Admitted { sequence, .. } => {
                    let seen = self.seen.get_mut(&sequence).expect("only submitted sequences start");
                    assert!(!std::mem::replace(&mut seen.admitted, true), "{sequence} was admitted twice");
                }
                PlannerEvent::Token { sequence, index, token } => {
                    let want = self.token(sequence, index);
                    let seen = self.seen.get_mut(&sequence).expect("only submitted sequences speak");
                    assert!(seen.finished.is_none(), "a token after the end of {sequence}");
                    assert_eq!((index as usize, token), (seen.tokens, want), "told once, in order");
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

    fn check_batches(&mut self, micro_batch: usize) {
        assert!(self.planner.running() <= self.config.sequences);
        let batches = std::mem::take(&mut self.batches[micro_batch]);
        let all_rows: usize = batches.iter().map(|batch| batch.rows).sum();
        assert!(all_rows <= self.config.rows_per_micro_batch, "rows of all devices");
        self.seen.values_mut().for_each(|seen| seen.idle += 1);
        for (device, batch) in batches.iter().enumerate() {
            assert!(batch.rows <= self.config.rows_per_device, "rows of a device");
            assert_eq!(batch.rows, batch.groups.iter().map(|group| group.rows).sum::<usize>());
            assert_eq!(batch.token_ids.len(), batch.rows);
            // A row that is sampled from and has all behind it is none of a prompt, even if it is given.
            let given = |group: &&RowGroup| {
                group.input == GroupInput::Given
                    && (group.rows > 1 || group.first_position < self.seen[&group.sequence].prompt)
            };
            let prefill: usize = batch.groups.iter().filter(given).map(|group| group.rows).sum();
            let decodes = batch.groups.iter().any(|group| group.input == GroupInput::LastSampled);
            assert!(!decodes || prefill <= self.config.prefill_chunk, "decoding keeps its pace");
            batch.groups.iter().for_each(|group| self.check_group(device, batch, group));
        }
        self.batches[micro_batch] = batches;
    }

    /// Right token ids, at the next position, with the sequence's own past in its pages.
    fn check_group(&mut self, device: usize, batch: &DeviceBatch, group: &RowGroup) {
        let id = group.sequence;
        self.begin_anew_if_preempted(device, group);
        let seen = &self.seen[&id];
        assert_eq!(group.first_position, seen.next_position, "each position once, in order");
        assert!(group.rows >= 1 && group.rows <= self.config.prefill_chunk);
        let next_position = group.first_position + group.rows;
        assert_eq!(group.sample.is_some(), next_position >= seen.prompt + seen.tokens);
        if let Some(sample) = &group.sample {
            assert_eq!(sample.token_index as usize, seen.tokens);
        }
        for (row, position) in group.row_range().zip(group.first_position..) {
            let token = match group.input {
                GroupInput::Given => batch.token_ids[row],
                GroupInput::LastSampled => self.last_tokens[device][group.slot],
            };
            assert_eq!(token, self.expected(id, position), "sequence {id}, position {position}");
        }
        let pages = &batch.pages[group.pages.clone()];
        let cell = |p: usize| {
            pages[p / self.config.page_tokens] as usize * self.config.page_tokens + p % self.config.page_tokens
        };
        for position in 0..group.first_position {
            assert_eq!(self.memory[device][cell(position)], Some((id, position)), "its own past");
        }
        for position in group.first_position..next_position {
            self.memory[device][cell(position)] = Some((id, position));
        }
        let seen = self.seen.get_mut(&id).expect("it was there");
        if group.input == GroupInput::LastSampled {
            self.longest_silence = self.longest_silence.max(seen.idle);
        }
        (seen.next_position, seen.device, seen.idle) = (next_position, device, 0);
    }

    fn begin_anew_if_preempted(&mut self, device: usize, group: &RowGroup) {
        let seen = self.seen.get_mut(&group.sequence).expect("only submitted sequences run");
        if group.first_position == 0 && seen.next_position > 0 {
            seen.restarts += 1;
            seen.next_position = 0;
        }
        assert!(seen.finished.is_none());
        assert!(seen.next_position == 0 || seen.device == device, "KV stays on its device");
        let restarts: usize = self.seen.values().map(|seen| seen.restarts).sum();
        assert!(restarts as u64 <= self.planner.preemptions());
    }

    /// No page and no slot has two owners among all rows in flight.
    fn check_ownership(&self) {
        for device in 0..self.config.devices {
            let (mut pages, mut slots) = (BTreeSet::new(), BTreeSet::new());
            for batch in self.batches.iter().map(|batches| &batches[device]) {
                for group in &batch.groups {
                    assert!(group.slot < self.config.sequences_per_device);
                    // Cancelled ones too: their rows are in flight until their micro-batch is planned next.
                    assert!(slots.insert(group.slot), "slot {} has two owners", group.slot);
                    let own = &batch.pages[group.pages.clone()];
                    assert!(own.iter().all(|page| pages.insert(*page)), "a page has two owners");
                }
            }
        }
    }

    /// Whoever was submitted first of all that live never waits for long, once it has run: not for pages, not in the
    /// queue, not for others' prompts, and not for someone who preempts it again and again.
    fn check_oldest(&mut self) {
        let living = self.seen.iter().filter(|(_, seen)| seen.finished.is_none());
        let oldest = living.min_by_key(|(_, seen)| seen.order).filter(|(_, seen)| seen.admitted);
        let Some((id, seen)) = oldest else { return };
        let before = self.oldest.filter(|(oldest, _)| oldest == id).map_or(0, |(_, idle)| idle);
        let idle = if seen.idle == 0 { 0 } else { before + 1 };
        let patience = self.config.micro_batches * (self.config.sequences + 3);
        assert!(idle <= patience, "the oldest, {id}, stands still: {seen:?}");
        self.oldest = Some((*id, idle));
    }
}
