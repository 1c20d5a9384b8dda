//! A sequence as the planner knows it, in the queue and running, and the rows it contributes to a step.

use crate::batch::{DeviceBatch, GroupInput, RowGroup, SampleSpec, SequenceRequest};

/// What is known of a sequence wherever it is. Survives a preemption.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: SequenceRequest,
    /// Its place in the order of submission: the greatest is the youngest.
    pub(super) arrival: u64,
    /// Tokens that were sampled and count. Remembered, since a preempted sequence reads them again.
    pub(super) generated: Vec<u32>,
    /// Most tokens it can generate, the model's longest sequence considered.
    pub(super) most: usize,
    /// Pages of the whole of it.
    pub(super) final_pages: usize,
    /// Whether its admission was told.
    pub(super) announced: bool,
    /// Tokens it had when it was preempted last.
    pub(super) preempted_at: Option<usize>,
}

impl Sequence {
    /// Tokens to read before the next can be sampled.
    pub(super) fn known_tokens(&self) -> usize {
        self.request.prompt.len() + self.generated.len()
    }

    /// Whether it has got further since it was preempted last.
    pub(super) fn has_progressed(&self) -> bool {
        self.preempted_at.is_none_or(|tokens| self.generated.len() > tokens)
    }
}

/// Whether a running sequence is to give its pages back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// If an older sequence still lacks pages by then.
    IfNeeded,
    /// Someone asked for it.
    Surely,
}

/// A sequence that holds pages.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) sequence: Sequence,
    pub(super) device: usize,
    pub(super) slot: usize,
    /// Whose plan call decides about it: rows of it may be in flight there.
    pub(super) micro_batch: usize,
    /// Where it goes at that call; the same, mostly.
    pub(super) home: usize,
    /// It has had no rows since it came to its micro-batch.
    pub(super) fresh: bool,
    pub(super) pages: Vec<u32>,
    /// How many of them, from the first on, are cached: others may hold them too, and nobody writes there.
    pub(super) shared: usize,
    /// Tokens to be read without sampling, but for the last: the prompt, and what was generated before a preemption.
    pub(super) prefill: usize,
    /// How many of them were planned.
    pub(super) prefilled: usize,
    /// Tokens whose sampling was planned.
    pub(super) planned: usize,
    /// Number of the turn that last gave it rows of prefill, over all sequences; 0 before the first.
    pub(super) prefill_turn: u64,
    /// Pages it lacked when it was planned last: nobody younger may have them.
    pub(super) claim: usize,
    pub(super) leaving: Leaving,
    /// Finished or cancelled: it only waits for its pages to be taken back.
    pub(super) ended: bool,
    /// Its device knows the token that was sampled last.
    pub(super) told: bool,
}

impl Running {
    pub(super) fn prefilling(&self) -> bool {
        self.prefilled < self.prefill
    }

    /// Whether a decode row of it may be planned. Length stops are known ahead: a sequence whose last token is being sampled
    /// gets no more rows.
    pub(super) fn decodes(&self) -> bool {
        !self.ended && !self.prefilling() && self.planned < self.sequence.most
    }

    /// Positions that its next decode row attends to.
    pub(super) fn context(&self) -> usize {
        self.prefill.max(self.sequence.request.prompt.len() + self.planned)
    }

    /// Pages its next decode row lacks.
    pub(super) fn lacks(&self, page_tokens: usize) -> usize {
        self.context().div_ceil(page_tokens).saturating_sub(self.pages.len())
    }

    /// Whether it is going to need more pages than it has.
    pub(super) fn grows(&self) -> bool {
        !self.ended && self.pages.len() < self.sequence.final_pages
    }

    /// Its pages, and how many of them are cached.
    pub(super) fn held(&self) -> (&[u32], usize) {
        (&self.pages, self.shared)
    }

    /// Appends its decode row.
    pub(super) fn push_decode(&mut self, batch: &mut DeviceBatch) {
        let first_position = self.context() - 1;
        batch.token_ids.push(self.sequence.generated.last().copied().unwrap_or(0));
        let input = if self.told { GroupInput::LastSampled } else { GroupInput::Given };
        self.push_group(batch, 1, first_position, input, true);
    }

    /// Appends the next `rows` rows of its prefill.
    pub(super) fn push_prefill(&mut self, rows: usize, batch: &mut DeviceBatch) {
        let first_position = self.prefilled;
        self.prefilled += rows;
        let prompt = &self.sequence.request.prompt;
        let (from, to) = (first_position.min(prompt.len()), self.prefilled.min(prompt.len()));
        batch.token_ids.extend_from_slice(&prompt[from..to]);
        let generated =
            first_position.max(prompt.len()) - prompt.len()..self.prefilled.max(prompt.len()) - prompt.len();
        batch.token_ids.extend_from_slice(&self.sequence.generated[generated]);
        let samples = !self.prefilling();
        self.push_group(batch, rows, first_position, GroupInput::Given, samples);
    }

    fn push_group(
        &mut self,
        batch: &mut DeviceBatch,
        rows: usize,
        first_position: usize,
        input: GroupInput,
        samples: bool,
    ) {
        self.fresh = false;
        let request = &self.sequence.request;
        let token_index = self.planned as u64;
        let sample = SampleSpec { token_index, params: request.sampling, detail: request.detail };
        self.planned += usize::from(samples);
        self.told |= samples;
        let first_page = batch.pages.len();
        batch.pages.extend_from_slice(&self.pages);
        batch.groups.push(RowGroup {
            sequence: request.id,
            slot: self.slot,
            first_row: batch.rows,
            rows,
            first_position,
            input,
            pages: first_page..batch.pages.len(),
            sample: samples.then_some(sample),
        });
        batch.rows += rows;
    }
}
