//! The stage trait: what a lane calls, and what it hands over.

use crate::exchange::{Exchange, ExchangeSize};
use crate::slot::SlotError;
use crate::values::Values;
use rally_kernels::team::Team;
use rally_schedule::batch::{DeviceBatch, SequenceId};

/// The work of one stage on one device, for all its layers. A lane owns its stages and calls them one at a time.
///
/// A stage reads and writes [`TaskContext::values`]; it never waits for another lane, and in a steady step it allocates
/// nothing.
pub trait Stage: Send {
    /// Does the rows of one micro-batch in one layer. Not called when there are none. A stage whose devices exchange rows
    /// ([`Exchanges`](rally_graph::routes::Exchanges)) is called once a part, and [`TaskContext::exchange`] says which it is.
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError>;

    /// What one device sends to another after each part but the last: the same on all devices of the stage.
    fn exchanges(&self) -> Vec<ExchangeSize> {
        Vec::new()
    }

    /// Lets rows choose these experts from the next task on, whatever they would be routed to: `[rows, top_k]` ids, of which the first
    /// of a row gets the most; several that layers and micro-batches take in turn, and rows beyond begin again. None: as they are
    /// routed. For whoever measures. Returns whether the stage does that; one that leaves its choice in [`TaskContext::values`] need not, since
    /// it can be written over there.
    ///
    /// # Errors
    /// A device's own.
    fn choose(&mut self, _choices: &[Vec<u32>]) -> Result<bool, StageError> {
        Ok(false)
    }

    /// Writes something to all that the stage keeps of sequences, as if they had been read: for whoever measures. Returns whether the stage
    /// does that; for one that does not, rows are run.
    ///
    /// # Errors
    /// A device's own.
    fn pretend(&mut self) -> Result<bool, StageError> {
        Ok(false)
    }

    /// Experts of a layer, for a stage that routes: its lane then counts the tokens of each. The ids it leaves in
    /// [`Values::expert_ids`] are all below.
    fn routed_experts(&self) -> usize {
        0
    }
}

/// What a task works on.
pub struct TaskContext<'a> {
    /// Layer; 0 for stages outside the layers.
    pub layer: usize,
    /// Micro-batch.
    pub micro_batch: usize,
    /// Which rows these are; empty on devices that hold no sequences.
    pub batch: &'a DeviceBatch,
    /// The rows' values on this device.
    pub values: &'a mut Values,
    /// Token last sampled, by sequence slot.
    pub last_tokens: &'a mut [u32],
    /// Where a sampling stage leaves tokens.
    pub samples: &'a mut Vec<Sample>,
    /// What the task's time should follow. It comes as the number of rows; a stage that does more for some rows than for others, or
    /// nothing for rows that are not its own, leaves how much it did.
    pub effort: usize,
    /// Threads of this device.
    pub team: &'a Team,
    /// What the stage's devices hand each other; [`Exchange::ALONE`] for most.
    pub exchange: Exchange<'a>,
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Of which sequence.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// Its log probability and the most likely tokens with theirs, if the request asked.
    pub logprobs: Option<(f32, Vec<(u32, f32)>)>,
    /// The logits it was chosen from, if the request asked.
    pub logits: Option<Vec<f32>>,
}

/// Why a stage could not do its work. It ends the run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// Logits that no token can be chosen from.
    #[error("sequence {sequence}: logit {token} is not finite")]
    NonFiniteLogits {
        /// The sequence.
        sequence: SequenceId,
        /// First such logit.
        token: usize,
    },
    /// A token id past the end of the vocabulary.
    #[error("sequence {sequence}: token id {token} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The sequence.
        sequence: SequenceId,
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Another task has the rows of an exchange. A fault of ours.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A stage that reaches for an exchange which the graph does not give it. A fault of the stage.
    #[error("the stage exchanges rows with other devices, but this graph gives it no such peer")]
    NoExchange,
    /// A device with memory of its own could not do what was asked.
    #[error("{device}: {message}")]
    Device {
        /// What it is.
        device: String,
        /// What went wrong.
        message: String,
    },
    /// A fault of a stage that is not built in.
    #[error("{0}")]
    Other(String),
}

/// Sees values after each task; for tests and debugging. Runs on the lane's thread.
pub trait Probe: Send + Sync {
    /// Called after a stage or a receive has run with at least one row. `stage` is the stage's id.
    fn after(&self, stage: &str, layer: Option<usize>, batch: &DeviceBatch, values: &Values);
}
