//! What a lane asks of whoever decides about steps: the planner of this process, or the host that plans for all.

use crate::engine::EngineError;
use crate::stage::Sample;
use rally_schedule::batch::DeviceBatch;

/// Where steps come from and where they go when they end.
pub(crate) trait Steps: Send + Sync {
    /// Exchanges a lane's old descriptor for the one planned last.
    fn take_batch(&self, micro_batch: usize, device: usize, batch: &mut DeviceBatch);

    /// An exit task of `micro_batch` is done in `cycle`; step `next` follows. `samples` is emptied. Returns since when there was
    /// nothing to plan, if the lane was held up for want of work.
    fn end_step(&self, micro_batch: usize, cycle: u64, next: u64, samples: &mut Vec<Sample>) -> Option<u64>;

    /// Ends the run for all lanes.
    fn fail(&self, error: EngineError);
}
