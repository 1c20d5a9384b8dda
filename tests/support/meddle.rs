//! Preemption forced from within a run.

use rally::engine::SubmitHandle;
use rally::engine::schedule::batch::DeviceBatch;
use rally::engine::stage::Probe;
use rally::engine::values::Values;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const MEDDLED_STEPS: u64 = 100;

/// Preempts sequences whose rows are in flight, one step in so many of the first [`MEDDLED_STEPS`]: whoever is preempted more often
/// than it takes to read a prompt never gets on.
#[derive(Default)]
pub struct Preempter {
    pub one_in: u64,
    pub seed: u64,
    pub steps: AtomicU64,
    pub handle: OnceLock<SubmitHandle>,
}

impl Probe for Preempter {
    fn after(&self, stage: &str, _layer: Option<usize>, batch: &DeviceBatch, _values: &Values) {
        if stage != "embed" || batch.groups.is_empty() {
            return;
        }
        let step = self.steps.fetch_add(1, Ordering::Relaxed);
        if step >= MEDDLED_STEPS {
            return;
        }
        // A generator's upper bits: looks random, and is a function of seed and step.
        let number = (self.seed ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        if number.is_multiple_of(self.one_in) {
            let group = &batch.groups[(number / self.one_in) as usize % batch.groups.len()];
            self.handle.get().expect("it is set before anything is submitted").preempt(group.sequence);
        }
    }
}
