//! The batch descriptor: which rows of which sequences a micro-batch has in a step, on one attention device.

use std::ops::Range;
use std::sync::Arc;

/// Identity of a sequence, given by whoever submits it.
pub type SequenceId = u64;

/// How a token is chosen from logits. The random number is a function of (`seed`, token index) alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0: the most likely token.
    pub temperature: f32,
    /// Keep the k most likely; 0: all.
    pub top_k: u32,
    /// Keep the most likely that together reach this probability; 1: all.
    pub top_p: f32,
    /// Keep those at least this likely relative to the most likely; 0: all.
    pub min_p: f32,
    /// Seed of this request.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// What a sequence wants to know about each token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenDetail {
    /// Log probabilities of this many most likely tokens, and of the chosen one; `None`: none at all.
    pub logprobs: Option<u32>,
    /// The whole row of logits.
    pub logits: bool,
}

/// A sequence as submitted.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceRequest {
    /// Identity; unique among the sequences in flight.
    pub id: SequenceId,
    /// Prompt, at least one token.
    pub prompt: Arc<[u32]>,
    /// Tokens that it generated in a run before this one, fewer than `max_new_tokens`: they are read with the prompt, and not told
    /// again.
    pub generated: Arc<[u32]>,
    /// Most tokens to generate, at least one, those of `generated` included.
    pub max_new_tokens: usize,
    /// Token ids that end the sequence.
    pub stop_token_ids: Arc<[u32]>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// What is reported of them.
    pub detail: TokenDetail,
}

/// Where the rows of a group get their token ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupInput {
    /// From the descriptor: prompt tokens, and tokens generated before a preemption.
    Given,
    /// From the device: the token last sampled for the sequence's slot.
    LastSampled,
}

/// Sampling that follows a group's last row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleSpec {
    /// Index of the token among the generated ones.
    pub token_index: u64,
    /// How it is chosen.
    pub params: SamplingParams,
    /// What is reported of it.
    pub detail: TokenDetail,
}

/// Consecutive rows of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct RowGroup {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its place in the device's per-sequence tables.
    pub slot: usize,
    /// First row in the micro-batch.
    pub first_row: usize,
    /// How many rows: 1 when decoding, a chunk of what is to be read in prefill.
    pub rows: usize,
    /// Position of the first row in the sequence.
    pub first_position: usize,
    /// Where token ids come from.
    pub input: GroupInput,
    /// The sequence's KV pages, as a range of [`DeviceBatch::pages`].
    pub pages: Range<usize>,
    /// Present if a token is sampled after the last row.
    pub sample: Option<SampleSpec>,
}

impl RowGroup {
    /// The rows as a range.
    pub fn row_range(&self) -> Range<usize> {
        self.first_row..self.first_row + self.rows
    }
}

/// Rows of one micro-batch, one step, one attention device. Buffers are reused from step to step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceBatch {
    /// Rows in all.
    pub rows: usize,
    /// The rows by sequence.
    pub groups: Vec<RowGroup>,
    /// One id a row; of [`GroupInput::LastSampled`] rows the token that was sampled last, which nobody need look at.
    pub token_ids: Vec<u32>,
    /// Page tables, one after the other.
    pub pages: Vec<u32>,
}

impl DeviceBatch {
    /// Positions that its rows attend to, all rows together.
    pub fn context(&self) -> usize {
        let sum = |group: &RowGroup| group.rows * group.first_position + group.rows * (group.rows + 1) / 2;
        self.groups.iter().map(sum).sum()
    }

    /// Rows whose tokens are given: prompts, and what preempted sequences had generated.
    pub fn prompt_rows(&self) -> usize {
        let given = self.groups.iter().filter(|group| group.input == GroupInput::Given);
        given.map(|group| group.rows).sum()
    }

    /// Gives every row its token: for a device that does not know what it sampled last.
    pub fn give_tokens(&mut self) {
        self.groups.iter_mut().for_each(|group| group.input = GroupInput::Given);
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.groups.clear();
        self.token_ids.clear();
        self.pages.clear();
    }
}
