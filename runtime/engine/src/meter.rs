//! How long the stages of a micro-batch's step worked, all lanes together: what the step planner learns costs from.
//!
//! It times stages from outside and knows nothing about lanes; waiting and transfers are not in it. Steady steps
//! allocate nothing.

use crate::stage::{Stage, StageError, TaskContext};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Nanoseconds of work by micro-batch, since they were taken last.
#[derive(Debug)]
pub(crate) struct Meter(Vec<AtomicU64>);

impl Meter {
    pub(crate) fn new(micro_batches: usize) -> Self {
        Self((0..micro_batches).map(|_| AtomicU64::new(0)).collect())
    }

    /// Seconds of the step that has just ended, and none of it is left. Nobody works on the micro-batch between two
    /// steps.
    pub(crate) fn take_s(&self, micro_batch: usize) -> f64 {
        self.0[micro_batch].swap(0, Ordering::Relaxed) as f64 * 1e-9
    }
}

/// A stage that is timed.
pub(crate) struct Timed {
    pub(crate) stage: Box<dyn Stage>,
    pub(crate) meter: Arc<Meter>,
}

impl Stage for Timed {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let began = Instant::now();
        let result = self.stage.run(task);
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.meter.0[task.micro_batch].fetch_add(nanos, Ordering::Relaxed);
        result
    }
}
