//! What a lane asks of whoever decides about steps: the planner of this process, or the host that plans for all.

use crate::engine::EngineError;
use crate::stage::Sample;
use rally_schedule::batch::DeviceBatch;

/// An exit task of a micro-batch is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepEnd {
    pub(crate) micro_batch: usize,
    /// Where: an index among the attention devices.
    pub(crate) device: usize,
    /// The lane's cycle.
    pub(crate) cycle: u64,
    /// The step that follows.
    pub(crate) next: u64,
}

/// Where steps come from and where they go when they end.
pub(crate) trait Steps: Send + Sync {
    /// Exchanges a lane's old descriptor for the one planned last.
    fn take_batch(&self, micro_batch: usize, device: usize, batch: &mut DeviceBatch);

    /// A step is over on a lane. `samples` is emptied. Returns since when there was nothing to plan, if the lane was held up for want
    /// of work.
    fn end_step(&self, end: StepEnd, samples: &mut Vec<Sample>) -> Option<u64>;

    /// Ends the run for all lanes.
    fn fail(&self, error: EngineError);
}
