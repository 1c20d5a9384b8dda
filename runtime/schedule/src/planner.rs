//! The step planner: a pure state machine that is called for a micro-batch between two of its steps.
//!
//! It owns the sequences from submission to retirement: admission, the micro-batch and device of each, KV pages, prefill
//! chunks, preemption, length and token-id stops. It has no device, thread or clock; whoever drives it (real lanes, virtual
//! lanes) calls [`StepPlanner::observe`] with all that a step sampled and then [`StepPlanner::plan`] for the next one.
//!
//! A sequence is pinned to a device at admission, and its KV stays there. It gets pages as it grows; when a device has none
//! left, its youngest sequence is preempted: it queues again, in front, and later reads its prompt and what it has generated
//! as one prompt, on whatever device and micro-batch has room then. Tokens that were told are not told again.

mod balance;
mod count;
mod memory;
mod pace;
mod reuse;
mod rows;
mod sequence;
mod types;

pub use self::types::{FinishReason, PlannerConfig, PlannerEvent, SubmitError};

use self::balance::{ByDevice, Loads};
use self::memory::{Rooms, Way};
use self::pace::Pace;
use self::reuse::Reuse;
use self::rows::PrefillBudget;
use self::sequence::{Leaving, Running, Sequence};
use crate::batch::{DeviceBatch, SequenceId, SequenceRequest};
use crate::cost::{CostLearner, CostModel};
use crate::prefix::PagePool;
use crate::span::CounterSample;
use std::collections::{HashMap, VecDeque};

/// How far behind the sequence found last the next one is looked for before its id is.
const NEAR: usize = 8;

#[derive(Debug)]
struct DeviceState {
    pages: PagePool,
    free_slots: Vec<usize>,
    /// It is not there: nobody is admitted.
    away: bool,
}

impl DeviceState {
    /// Nobody has anything.
    fn new(config: &PlannerConfig) -> Self {
        let free_slots = (0..config.sequences_per_device).rev().collect();
        Self { pages: PagePool::new(config.pages_per_device), free_slots, away: false }
    }
}

/// The state machine. See the module.
#[derive(Debug)]
pub struct StepPlanner {
    config: PlannerConfig,
    /// Oldest first; so preempted ones are in front.
    waiting: VecDeque<Sequence>,
    /// Oldest first.
    running: Vec<Running>,
    /// Ids of all of them with their `arrival`: a file of a million requests must not be compared each with each.
    ids: HashMap<SequenceId, u64>,
    devices: Vec<DeviceState>,
    cost: CostModel,
    learner: CostLearner,
    submitted: u64,
    preemptions: u64,
    prefill_turns: u64,
    /// What the oldest of all is waiting for, if it waits in the queue.
    way: Option<Way>,
    /// Present if a time per token is to be kept.
    pace: Option<Pace>,
    /// Present if prefixes are reused.
    reuse: Option<Reuse>,
    /// Tokens of a prompt, from the first on, that count as read though nobody reads them.
    pretended: usize,
    /// Whether any running sequence may have a claim.
    claimed: bool,
    /// Whether any may have ended, have to leave or have a claim, or has read what is to be cached: else nobody's pages come back.
    stirred: bool,
    /// Plan calls for which homes stay as they are: micro-batches are level, and nobody has come, gone or read since.
    level_for: usize,
    /// Whether any may have another home than the micro-batch it is in.
    moving: bool,
    /// Whether any may have its home in a micro-batch that is not in use, or homes are to be given out anew.
    scattered: bool,
    /// Behind the sequence that was found last since a plan call: samples come in the order of a batch, which is that of `running`.
    near: usize,
    // Reused between steps.
    rooms: Rooms,
    loads: Loads,
    by_device: ByDevice,
    order: Vec<usize>,
    budgets: Vec<PrefillBudget>,
    pages: Vec<usize>,
}

impl StepPlanner {
    /// No sequences yet.
    pub fn new(config: PlannerConfig) -> Self {
        Self {
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            ids: HashMap::new(),
            devices: (0..config.devices).map(|_| DeviceState::new(&config)).collect(),
            cost: CostModel::default(),
            learner: CostLearner::new(CostModel::default()),
            submitted: 0,
            preemptions: 0,
            prefill_turns: 0,
            way: None,
            pace: None,
            reuse: None,
            pretended: 0,
            claimed: false,
            stirred: false,
            level_for: 0,
            moving: false,
            scattered: false,
            near: 0,
            rooms: Rooms::default(),
            loads: Loads::new(config.micro_batches, config.devices),
            by_device: ByDevice::default(),
            order: Vec::new(),
            budgets: vec![PrefillBudget::default(); config.devices],
            pages: vec![0; config.devices],
        }
    }

    /// The sizes it keeps to.
    pub fn config(&self) -> &PlannerConfig {
        &self.config
    }

    /// Sequences that hold pages.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences in the queue, preempted ones too.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How often a sequence had to give its pages back and queue again.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Whether nothing is queued, running, or waiting for its pages to be taken back: no step is worth planning.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// KV pages that are free, over all devices; cached ones that nobody holds as well.
    pub fn free_pages(&self) -> usize {
        self.devices.iter().map(|device| device.pages.free()).sum()
    }

    /// What it has learned that a step costs, in seconds; `None` before the first timed step.
    pub fn learned_costs(&self) -> Option<CostModel> {
        self.learner.has_learned().then(|| self.learner.model())
    }

    /// KV pages there are, over all devices.
    pub fn pages(&self) -> usize {
        self.config.pages_per_device as usize * self.config.devices
    }

    /// KV pages in use, over all devices.
    pub fn used_pages(&self) -> usize {
        self.pages() - self.free_pages()
    }

    /// What it takes a step to cost.
    pub fn cost_model(&self) -> CostModel {
        self.cost
    }

    /// Sets what a step costs, also as what [`StepPlanner::learn`] starts from.
    pub fn set_cost_model(&mut self, model: CostModel) {
        self.cost = model;
        self.learner = CostLearner::new(model);
        self.level_for = 0;
    }

    /// Takes note of how long a micro-batch's step took: `seconds` of work, not of waiting, for so many rows that attended to
    /// `context` positions in all ([`DeviceBatch::context`]). It counts from the next plan call on. Batches are a
    /// function of what the planner is told: a run that feeds in measured times cannot be replayed without them.
    pub fn learn(&mut self, rows: usize, context: usize, seconds: f64) {
        self.learner.observe(rows, context, seconds);
        self.cost = self.learner.model();
    }

    /// Whether `request` could ever run here.
    pub fn accepts(&self, request: &SequenceRequest) -> Result<(), SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.max_new_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        let (prompt, max_positions) = (request.prompt.len(), self.config.max_positions);
        if prompt >= max_positions {
            return Err(SubmitError::TooLong { prompt, max_positions });
        }
        let (generated, most) = (request.generated.len(), request.max_new_tokens.min(max_positions - prompt));
        if generated >= most {
            return Err(SubmitError::NothingLeft { generated, most });
        }
        let tokens = self.kv_tokens(request);
        let capacity = self.config.device_kv_tokens();
        if tokens > capacity {
            return Err(SubmitError::NeverFits { tokens, capacity });
        }
        Ok(())
    }

    /// Queues a sequence.
    pub fn submit(&mut self, request: SequenceRequest) -> Result<(), SubmitError> {
        self.accepts(&request)?;
        if self.is_idle() {
            self.forget_times();
        }
        if self.ids.contains_key(&request.id) {
            return Err(SubmitError::DuplicateId(request.id));
        }
        self.submitted += 1;
        self.ids.insert(request.id, self.submitted);
        self.waiting.push_back(Sequence {
            arrival: self.submitted,
            generated: request.generated.to_vec(),
            most: request.max_new_tokens.min(self.config.max_positions - request.prompt.len()),
            final_pages: self.kv_tokens(&request).div_ceil(self.config.page_tokens),
            announced: false,
            preempted_at: None,
            request,
        });
        Ok(())
    }

    /// Ends a sequence early. Its pages come back when its micro-batch is planned next: until then rows may be in flight.
    pub fn cancel(&mut self, id: SequenceId, events: &mut Vec<PlannerEvent>) {
        if let Some(index) = self.waiting.iter().position(|waiting| waiting.request.id == id) {
            self.waiting.remove(index);
            self.ids.remove(&id);
            // Nobody need leave for it any more.
            self.way = None;
            events.push(PlannerEvent::Finished(id, FinishReason::Cancelled));
        }
        if let Some(running) = self.find(id) {
            running.ended = true;
            self.stir();
            events.push(PlannerEvent::Finished(id, FinishReason::Cancelled));
        }
    }

    /// Makes a running sequence give its pages back when its micro-batch is planned next, and queue again. Its answer is the
    /// same, only later. Returns whether it will: not if it is not running, and not if it has generated no token since
    /// it was preempted last, so that whoever asks again and again costs time and starves nobody.
    pub fn preempt(&mut self, id: SequenceId) -> bool {
        let Some(running) = self.find(id).filter(|running| running.sequence.has_progressed()) else { return false };
        running.leaving = Leaving::Surely;
        self.stir();
        true
    }

    /// Takes note that a device has lost the KV it had: its sequences queue again, and read what they have anew. To be called only
    /// while no row of its is in flight. `away`: it is gone itself, and nobody is sent there before [`StepPlanner::has_device`].
    pub fn lost_device(&mut self, device: usize, away: bool) {
        // Nothing in its pages is worth anything any more, for whomever it was kept.
        self.devices[device] = DeviceState { away, ..DeviceState::new(&self.config) };
        let (lost, left) = std::mem::take(&mut self.running).into_iter().partition(|running| running.device == device);
        self.running = left;
        if let Some(reuse) = &mut self.reuse {
            self.devices[device].pages.share(self.config.page_tokens);
            reuse.forget(device, &lost);
        }
        for running in lost {
            if running.ended {
                self.ids.remove(&running.sequence.request.id);
            } else {
                self.queue_again(running.sequence);
            }
        }
        (self.way, self.near) = (None, 0);
        self.stir();
    }

    /// Takes note that a device is there, whether it was away or not.
    pub fn has_device(&mut self, device: usize) {
        self.devices[device].away = false;
    }

    /// Takes note that devices have kept KV and nothing else: the next row of every sequence is given its token.
    pub fn forget_last_tokens(&mut self) {
        self.running.iter_mut().for_each(|running| running.told = false);
    }

    /// Takes note of a sampled token. A token of a sequence that has ended meanwhile is surplus and is dropped.
    pub fn observe(&mut self, id: SequenceId, token: u32, events: &mut Vec<PlannerEvent>) {
        let Some(running) = self.find(id) else { return };
        let sequence = &mut running.sequence;
        events.push(PlannerEvent::Token { sequence: id, index: sequence.generated.len() as u64, token });
        sequence.generated.push(token);
        let reason = if sequence.request.stop_token_ids.contains(&token) {
            FinishReason::Stop
        } else if sequence.generated.len() >= sequence.most {
            FinishReason::Length
        } else {
            return;
        };
        running.ended = true;
        self.stir();
        events.push(PlannerEvent::Finished(id, reason));
    }

    /// Plans the next step of `micro_batch`: one descriptor a device into `batches`. To be called only while no row of the
    /// micro-batch is in flight.
    pub fn plan(&mut self, micro_batch: usize, batches: &mut [DeviceBatch], events: &mut Vec<PlannerEvent>) {
        self.near = 0;
        if self.stirred {
            self.release(micro_batch);
        }
        if !self.waiting.is_empty() || self.way.is_some() {
            self.admit(micro_batch, events);
        }
        if self.scattered {
            self.regroup();
        }
        match self.level_for {
            0 => self.balance(),
            _ => self.level_for -= 1,
        }
        if self.moving {
            self.send_home(micro_batch);
        }
        batches.iter_mut().for_each(DeviceBatch::clear);
        self.reserve_pages(micro_batch, batches);
        self.decode_rows(micro_batch, batches);
        if self.running.iter().any(|running| running.micro_batch == micro_batch && running.prefilling()) {
            self.prefill_rows(micro_batch, batches);
        }
        self.note_in_flight(micro_batch, batches);
    }

    /// How full the run is now that `step` of `micro_batch` has been planned into `batches`.
    pub fn sample(&self, at_ns: u64, step: u64, micro_batch: usize, batches: &[DeviceBatch]) -> CounterSample {
        CounterSample {
            at_ns,
            step,
            micro_batch: micro_batch as u32,
            rows: batches.iter().map(|batch| batch.rows as u32).sum(),
            prompt_rows: batches.iter().map(|batch| batch.prompt_rows() as u32).sum(),
            running: self.running() as u32,
            waiting: self.waiting() as u32,
            used_pages: self.used_pages() as u32,
        }
    }

    /// Somebody has ended or must leave.
    fn stir(&mut self) {
        self.stirred = true;
        self.level_for = 0;
    }

    /// A running sequence that has not ended.
    fn find(&mut self, id: SequenceId) -> Option<&mut Running> {
        let near = self.running.iter().skip(self.near).take(NEAR).position(|running| running.sequence.request.id == id);
        let index = match near {
            Some(distance) => self.near + distance,
            None => self.look_up(id)?,
        };
        self.near = index + 1;
        self.running.get_mut(index).filter(|running| !running.ended)
    }

    fn look_up(&self, id: SequenceId) -> Option<usize> {
        let arrival = *self.ids.get(&id)?;
        let oldest = self.running.first()?.sequence.arrival;
        // Mostly nobody between the oldest and this one has left.
        let guess = usize::try_from(arrival.checked_sub(oldest)?).unwrap_or(usize::MAX);
        match self.running.get(guess) {
            Some(running) if running.sequence.arrival == arrival => Some(guess),
            _ => self.running.binary_search_by_key(&arrival, |running| running.sequence.arrival).ok(),
        }
    }

    fn kv_tokens(&self, request: &SequenceRequest) -> usize {
        // The last token is never fed back, so its keys and values are never stored.
        request.prompt.len().saturating_add(request.max_new_tokens).min(self.config.max_positions) - 1
    }
}
