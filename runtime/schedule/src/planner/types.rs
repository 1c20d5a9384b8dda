//! What goes into the step planner and what comes out: sizes, events, refusals.

use crate::batch::SequenceId;

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
    /// Rows all devices together may have in one micro-batch of one step.
    pub rows_per_micro_batch: usize,
    /// Most prompt tokens of one sequence in one step; and, while any sequence decodes, of all sequences of a device.
    pub prefill_chunk: usize,
    /// KV pages of a device.
    pub pages_per_device: u32,
    /// Tokens of a page.
    pub page_tokens: usize,
    /// Longest sequence, prompt and output together.
    pub max_positions: usize,
}

impl PlannerConfig {
    /// Tokens that the KV cache of one device holds.
    pub fn device_kv_tokens(&self) -> usize {
        self.pages_per_device as usize * self.page_tokens
    }
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
    /// A sequence left the queue for the first time.
    Admitted {
        /// This one.
        sequence: SequenceId,
        /// Tokens of its prompt that it need not read: they were cached.
        cached_tokens: usize,
    },
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
    /// It had all its tokens in a run before.
    #[error("all of its {most} tokens were generated in a run before: {generated} are there")]
    NothingLeft {
        /// Tokens it has.
        generated: usize,
        /// Most it can have.
        most: usize,
    },
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
