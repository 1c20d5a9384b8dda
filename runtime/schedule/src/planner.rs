//! The step planner: a pure state machine that is called for a micro-batch between two of its steps.
//!
//! It owns the sequences from submission to retirement: admission, the micro-batch and device of each, KV pages, prefill
//! chunks, length and token-id stops. It has no device, thread or clock; whoever drives it (real lanes, virtual lanes) calls
//! [`StepPlanner::observe`] with what was sampled and then [`StepPlanner::plan`] for the next step.
//!
//! A sequence is pinned to a device at admission, and its KV stays there. Pages for the whole of it (prompt and longest
//! output) are reserved at admission, so a running sequence never waits for a page.

use crate::batch::{DeviceBatch, GroupInput, RowGroup, SampleSpec, SequenceId, SequenceRequest};
use crate::pages::PageAllocator;
use std::collections::{HashSet, VecDeque};

/// Sizes the planner keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannerConfig {
    /// Micro-batches that rotate.
    pub micro_batches: usize,
    /// Attention devices.
    pub devices: usize,
    /// Sequences the deployment decodes at once.
    pub sequences: usize,
    /// Sequences a device decodes at once.
    pub sequences_per_device: usize,
    /// Rows a device may have in one micro-batch of one step.
    pub rows_per_device: usize,
    /// Most prompt tokens of one sequence in one step.
    pub prefill_chunk: usize,
    /// KV pages of a device.
    pub pages_per_device: u32,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Longest sequence, prompt and output together.
    pub max_positions: usize,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, or a stop string seen by whoever reads the text.
    Stop,
    /// `max_tokens`, or the model's longest sequence.
    Length,
    /// Someone cancelled it.
    Cancelled,
}

/// What the planner tells the run loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlannerEvent {
    /// A sequence left the queue.
    Admitted(SequenceId),
    /// A token counts.
    Token {
        /// Of this sequence.
        sequence: SequenceId,
        /// Its index among the generated ones.
        index: u64,
        /// The token.
        token: u32,
    },
    /// A sequence ended; no token of it follows.
    Finished(SequenceId, FinishReason),
}

/// Why a sequence cannot be taken, ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Nothing to start from.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// Nothing to do.
    #[error("max_tokens is 0")]
    NoTokens,
    /// Longer than the model's longest sequence.
    #[error(
        "the prompt has {prompt} tokens, and this model's longest sequence is {max_positions} tokens with at least one generated"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Longest sequence.
        max_positions: usize,
    },
    /// More KV than a device has.
    #[error(
        "the sequence needs {tokens} tokens of KV cache (prompt and max_tokens), and an attention device has {capacity}: raise limits.kv_tokens or lower max_tokens"
    )]
    NeverFits {
        /// Tokens it needs.
        tokens: usize,
        /// Tokens a device has.
        capacity: usize,
    },
    /// The id is in use.
    #[error("sequence {0} is already in flight")]
    DuplicateId(SequenceId),
    /// Too late; whoever drives the planner says so.
    #[error("the run takes no more sequences: it was closed, or it has failed")]
    Closed,
}

#[derive(Debug)]
struct Sequence {
    request: SequenceRequest,
    device: usize,
    slot: usize,
    micro_batch: usize,
    pages: Vec<u32>,
    /// Prompt tokens whose rows were planned.
    prefilled: usize,
    /// Tokens whose sampling was planned.
    planned: u64,
    /// Tokens that were sampled and count.
    generated: u64,
    /// Most tokens it can generate, the model's longest sequence considered.
    most: u64,
    finished: bool,
    cancelled: bool,
}

impl Sequence {
    fn prefilling(&self) -> bool {
        self.prefilled < self.request.prompt.len()
    }
}

#[derive(Debug)]
struct DeviceState {
    pages: PageAllocator,
    free_slots: Vec<usize>,
}

/// The state machine. See the module.
#[derive(Debug)]
pub struct StepPlanner {
    config: PlannerConfig,
    waiting: VecDeque<SequenceRequest>,
    running: Vec<Sequence>,
    /// Ids of all of them: a file of a million requests must not be compared each with each.
    ids: HashSet<SequenceId>,
    devices: Vec<DeviceState>,
}

impl StepPlanner {
    /// No sequences yet.
    pub fn new(config: PlannerConfig) -> Self {
        let device = || DeviceState {
            pages: PageAllocator::new(config.pages_per_device),
            free_slots: (0..config.sequences_per_device).rev().collect(),
        };
        let devices = (0..config.devices).map(|_| device()).collect();
        Self { config, waiting: VecDeque::new(), running: Vec::new(), ids: HashSet::new(), devices }
    }

    /// The sizes it keeps to.
    pub fn config(&self) -> &PlannerConfig {
        &self.config
    }

    /// Sequences that hold pages.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing is queued, running, or waiting to be retired.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Whether nothing is queued and every sequence that still holds pages has ended: no step is worth planning.
    pub fn only_retired(&self) -> bool {
        self.waiting.is_empty() && self.running.iter().all(|s| s.finished || s.cancelled)
    }

    /// KV pages that are free, over all devices.
    pub fn free_pages(&self) -> usize {
        self.devices.iter().map(|device| device.pages.free()).sum()
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
        let tokens = self.kv_tokens(request);
        let capacity = self.config.pages_per_device as usize * self.config.page_tokens;
        if tokens > capacity {
            return Err(SubmitError::NeverFits { tokens, capacity });
        }
        Ok(())
    }

    /// Queues a sequence.
    pub fn submit(&mut self, request: SequenceRequest) -> Result<(), SubmitError> {
        self.accepts(&request)?;
        if !self.ids.insert(request.id) {
            return Err(SubmitError::DuplicateId(request.id));
        }
        self.waiting.push_back(request);
        Ok(())
    }

    /// Ends a sequence early. Its pages come back when its micro-batch is planned next: until then rows may be in flight.
    pub fn cancel(&mut self, id: SequenceId, events: &mut Vec<PlannerEvent>) {
        if let Some(index) = self.waiting.iter().position(|request| request.id == id) {
            self.waiting.remove(index);
            self.ids.remove(&id);
            events.push(PlannerEvent::Finished(id, FinishReason::Cancelled));
        }
        if let Some(sequence) = self.running.iter_mut().find(|s| s.request.id == id && !s.finished && !s.cancelled) {
            sequence.cancelled = true;
            events.push(PlannerEvent::Finished(id, FinishReason::Cancelled));
        }
    }

    /// Takes note of a sampled token. A token of a sequence that has ended meanwhile is surplus and is dropped.
    pub fn observe(&mut self, id: SequenceId, token: u32, events: &mut Vec<PlannerEvent>) {
        let Some(sequence) = self.running.iter_mut().find(|s| s.request.id == id) else { return };
        if sequence.finished || sequence.cancelled {
            return;
        }
        events.push(PlannerEvent::Token { sequence: id, index: sequence.generated, token });
        sequence.generated += 1;
        let reason = if sequence.request.stop_token_ids.contains(&token) {
            FinishReason::Stop
        } else if sequence.generated >= sequence.most {
            FinishReason::Length
        } else {
            return;
        };
        sequence.finished = true;
        events.push(PlannerEvent::Finished(id, reason));
    }

    /// Plans the next step of `micro_batch`: one descriptor a device into `batches`. To be called only while no row of the
    /// micro-batch is in flight.
    pub fn plan(&mut self, micro_batch: usize, batches: &mut [DeviceBatch], events: &mut Vec<PlannerEvent>) {
        self.retire(micro_batch);
        self.level(micro_batch);
        self.admit(micro_batch, events);
        batches.iter_mut().for_each(DeviceBatch::clear);
        // Decoding sequences first: those that already speak keep their pace; prompts take the rows that are left.
        for prefill in [false, true] {
            for sequence in &mut self.running {
                if sequence.micro_batch == micro_batch && sequence.prefilling() == prefill {
                    let batch = &mut batches[sequence.device];
                    let room = self.config.rows_per_device - batch.rows;
                    push_rows(sequence, room, self.config.prefill_chunk, batch);
                }
            }
        }
    }

    fn kv_tokens(&self, request: &SequenceRequest) -> usize {
        // The last token is never fed back, so its keys and values are never stored.
        request.prompt.len().saturating_add(request.max_new_tokens).min(self.config.max_positions) - 1
    }

    fn members(&self, micro_batch: usize) -> usize {
        self.running.iter().filter(|s| s.micro_batch == micro_batch).count()
    }

    fn retire(&mut self, micro_batch: usize) {
        let (devices, ids) = (&mut self.devices, &mut self.ids);
        self.running.retain_mut(|sequence| {
            let over = sequence.micro_batch == micro_batch && (sequence.finished || sequence.cancelled);
            if over {
                let device = &mut devices[sequence.device];
                device.pages.give_back(&mut sequence.pages);
                device.free_slots.push(sequence.slot);
                ids.remove(&sequence.request.id);
            }
            !over
        });
    }

    /// Most members a micro-batch should have for all to be alike.
    fn fair_share(&self) -> usize {
        (self.running.len() + self.waiting.len()).div_ceil(self.config.micro_batches)
    }

    /// Gives members above the fair share to the emptiest micro-batch; they join it when it is planned next.
    fn level(&mut self, micro_batch: usize) {
        let share = self.fair_share();
        while self.members(micro_batch) > share {
            let Some(target) = (0..self.config.micro_batches).min_by_key(|m| self.members(*m)) else { return };
            let room = |s: &Sequence| self.rows_room(target, s.device);
            let Some(index) = self.running.iter().rposition(|s| s.micro_batch == micro_batch && room(s)) else {
                return;
            };
            self.running[index].micro_batch = target;
        }
    }

    /// Whether `micro_batch` can have one more sequence on `device`: each needs a row a step.
    fn rows_room(&self, micro_batch: usize, device: usize) -> bool {
        let members = self.running.iter().filter(|s| s.micro_batch == micro_batch && s.device == device).count();
        members < self.config.rows_per_device
    }

    fn admit(&mut self, micro_batch: usize, events: &mut Vec<PlannerEvent>) {
        let share = self.fair_share();
        while let Some(request) = self.waiting.front() {
            if self.members(micro_batch) >= share || self.running.len() >= self.config.sequences {
                return;
            }
            let pages = self.kv_tokens(request).div_ceil(self.config.page_tokens);
            let fits = |device: &usize| {
                let state = &self.devices[*device];
                state.pages.free() >= pages && !state.free_slots.is_empty() && self.rows_room(micro_batch, *device)
            };
            // First come, first served: a sequence that does not fit yet is not overtaken, so it cannot starve.
            let candidates = (0..self.config.devices).filter(fits);
            let Some(device) = candidates.max_by_key(|d| (self.devices[*d].pages.free(), usize::MAX - *d)) else {
                return;
            };
            let Some(request) = self.waiting.pop_front() else { return };
            events.push(PlannerEvent::Admitted(request.id));
            let sequence = self.make_running(request, device, micro_batch, pages);
            self.running.push(sequence);
        }
    }

    fn make_running(&mut self, request: SequenceRequest, device: usize, micro_batch: usize, pages: usize) -> Sequence {
        let state = &mut self.devices[device];
        let slot = state.free_slots.pop().expect("admission checked that a slot is free");
        let mut owned = Vec::with_capacity(pages);
        let taken = state.pages.take(pages, &mut owned);
        assert!(taken, "admission checked that {pages} pages are free");
        let most = request.max_new_tokens.min(self.config.max_positions - request.prompt.len()) as u64;
        Sequence {
            request,
            device,
            slot,
            micro_batch,
            pages: owned,
            prefilled: 0,
            planned: 0,
            generated: 0,
            most,
            finished: false,
            cancelled: false,
        }
    }
}

/// Appends the sequence's rows of this step: a chunk of its prompt, or one decode row. Length stops are known ahead: a
/// sequence whose last token is being sampled gets no more rows.
fn push_rows(sequence: &mut Sequence, room: usize, prefill_chunk: usize, batch: &mut DeviceBatch) {
    let prompt = sequence.request.prompt.len();
    let prefilling = sequence.prefilling();
    let rows = if prefilling { (prompt - sequence.prefilled).min(prefill_chunk) } else { 1 }.min(room);
    if rows == 0 || (!prefilling && sequence.planned >= sequence.most) {
        return;
    }
    let first_position = if prefilling { sequence.prefilled } else { prompt + sequence.planned as usize - 1 };
    let first_row = batch.rows;
    if prefilling {
        batch.token_ids.extend_from_slice(&sequence.request.prompt[first_position..first_position + rows]);
        sequence.prefilled += rows;
    } else {
        batch.token_ids.push(0);
    }
    let samples = !sequence.prefilling();
    let sample = samples.then_some(SampleSpec {
        token_index: sequence.planned,
        params: sequence.request.sampling,
        detail: sequence.request.detail,
    });
    sequence.planned += u64::from(samples);
    let first_page = batch.pages.len();
    batch.pages.extend_from_slice(&sequence.pages);
    batch.groups.push(RowGroup {
        sequence: sequence.request.id,
        slot: sequence.slot,
        first_row,
        rows,
        first_position,
        input: if prefilling { GroupInput::Given } else { GroupInput::LastSampled },
        pages: first_page..batch.pages.len(),
        sample,
    });
    batch.rows += rows;
}
