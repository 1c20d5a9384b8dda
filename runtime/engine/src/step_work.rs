//! How long the stages of a micro-batch's step worked, all lanes together: what the step planner learns costs from.
//!
//! Lanes add what their spans say of computing; waiting and transfers are not in it. Steady steps allocate nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds of work by micro-batch, since they were taken last.
#[derive(Debug)]
pub(crate) struct StepWork(Vec<AtomicU64>);

impl StepWork {
    pub(crate) fn new(micro_batches: usize) -> Self {
        Self((0..micro_batches).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn add(&self, micro_batch: usize, nanos: u64) {
        self.0[micro_batch].fetch_add(nanos, Ordering::Relaxed);
    }

    /// Seconds of the step that has just ended, and none of it is left. Nobody works on the micro-batch between two
    /// steps.
    pub(crate) fn take_s(&self, micro_batch: usize) -> f64 {
        self.0[micro_batch].swap(0, Ordering::Relaxed) as f64 * 1e-9
    }
}
