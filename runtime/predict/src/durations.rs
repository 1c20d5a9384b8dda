//! Where durations come from, and how they scatter.

use rally_load::random::SeededRandom;
use rally_schedule::virtual_lanes::{Transit, VirtualCosts, VirtualTask};

/// Seconds of tasks: a cost table, or a machine's figures.
pub trait Durations {
    /// Of a task with rows.
    fn task_s(&self, task: &VirtualTask<'_>) -> f64;

    /// Of planning the next step after `exit`.
    fn plan_s(&self, exit: &VirtualTask<'_>) -> f64;

    /// What rows do after a send or an exchange; `None`: the lane has done it all.
    fn transit(&self, task: &VirtualTask<'_>) -> Option<Transit> {
        let _ = task;
        None
    }
}

/// Durations that scatter: each is multiplied by a number of mean 1 from a gamma distribution, drawn for the task, its micro-batch
/// and its step, so that one schedule meets the same luck as another.
pub struct Scattered<'a> {
    /// What they scatter around.
    pub durations: &'a dyn Durations,
    /// Standard deviation over mean; 0: none.
    pub jitter: f64,
    /// Of the draws.
    pub seed: u64,
}

impl Scattered<'_> {
    fn ns(&self, seconds: f64, task: &VirtualTask<'_>) -> u64 {
        let scatter = match self.jitter > 0.0 {
            false => 1.0,
            true => {
                let stream = (task.task as u64) << 40 ^ (task.micro_batch as u64) << 32 ^ task.step;
                SeededRandom::new(self.seed, stream).gamma_of_mean_one(1.0 / (self.jitter * self.jitter))
            }
        };
        (seconds * scatter * 1e9).round().max(0.0) as u64
    }
}

impl VirtualCosts for Scattered<'_> {
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64 {
        self.ns(self.durations.task_s(task), task)
    }

    fn plan_ns(&self, exit: &VirtualTask<'_>) -> u64 {
        self.ns(self.durations.plan_s(exit), exit)
    }

    fn transit(&self, task: &VirtualTask<'_>) -> Option<Transit> {
        self.durations.transit(task)
    }
}
