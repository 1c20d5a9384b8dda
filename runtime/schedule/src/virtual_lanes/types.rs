//! What goes into a virtual run and what comes out: tasks with their loads, durations, options, arrivals, reports.

use super::fold::Uneven;
use super::links::Transit;
use crate::batch::{SequenceId, SequenceRequest};
use crate::planner::{FinishReason, SubmitError};
use crate::span::{CounterSample, LaneReport};
use rally_graph::kinds::Role;
use rally_graph::plan::{TaskId, TaskRole, TaskTable};
use rally_graph::stage_graph::StageIndex;
use std::collections::BTreeMap;

/// What a task works on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Rows.
    pub rows: usize,
    /// Tokens of context, the rows' own included, summed over the sequences.
    pub context: usize,
}

/// A task that is about to run.
#[derive(Clone, Copy, Debug)]
pub struct VirtualTask<'a> {
    /// All tasks.
    pub table: &'a TaskTable,
    /// Which one.
    pub task: TaskId,
    /// Of which micro-batch.
    pub micro_batch: usize,
    /// In which step.
    pub step: u64,
    /// On what.
    pub load: Load,
    /// Rows that a token is sampled after; of a sampling stage, else 0.
    pub sampled: usize,
    /// Whether another micro-batch has just used the same weights ([`super::NearBy`]).
    pub warm: bool,
}

impl VirtualTask<'_> {
    /// Rows that its time follows: of a sampling stage those that a token is sampled after, else all.
    pub fn rows(&self) -> usize {
        let stage = &self.table.stages[self.table.tasks[self.task].stage];
        if stage.role == Role::Sampling { self.sampled } else { self.load.rows }
    }
}

/// How long things take. A closure from task to nanoseconds is one.
pub trait VirtualCosts {
    /// Nanoseconds of a task; asked only where there are rows.
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64;

    /// Nanoseconds from a task's end until a lane that waited for it goes on.
    fn wake_ns(&self) -> u64 {
        0
    }

    /// Nanoseconds that the lane which ends a step last plans the next one for; `exit` is the task that ended it.
    fn plan_ns(&self, _exit: &VirtualTask<'_>) -> u64 {
        0
    }

    /// What rows do after a send or an exchange until they are there; `None`: they are there at its end.
    fn transit(&self, _task: &VirtualTask<'_>) -> Option<Transit> {
        None
    }
}

impl<F: Fn(&VirtualTask<'_>) -> u64> VirtualCosts for F {
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64 {
        self(task)
    }
}

/// What a virtual run does beside walking its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualOptions {
    /// Most requests under way at once: what arrives later waits outside. `None`: no bound.
    pub max_under_way: Option<usize>,
    /// Whether the step planner learns what steps cost, as in a run that does.
    pub learns: bool,
    /// Nanoseconds between tokens that the step planner keeps to, if it does.
    pub keep_tpot_ns: Option<u64>,
    /// Whether sequences that begin alike share pages.
    pub reuse_prefixes: bool,
    /// Tokens of every prompt that count as read.
    pub pretend_read: usize,
    /// Whether spans and counters are kept; else only sums, and memory does not grow with steps.
    pub keeps_spans: bool,
    /// Cores that all lanes share: a lane that has found work keeps its core until it must wait, and then the one that has waited longest
    /// for a core gets it. `None`: a core a lane.
    pub cores: Option<usize>,
}

impl Default for VirtualOptions {
    fn default() -> Self {
        Self {
            max_under_way: None,
            learns: false,
            keep_tpot_ns: None,
            reuse_prefixes: false,
            pretend_read: 0,
            keeps_spans: true,
            cores: None,
        }
    }
}

/// A request and when it comes.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Nanoseconds since the start.
    pub at_ns: u64,
    /// The request.
    pub request: SequenceRequest,
}

/// What happened to a sequence, in nanoseconds since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceTimes {
    /// When it came.
    pub arrived_ns: u64,
    /// When it left the queue.
    pub admitted_ns: Option<u64>,
    /// Its tokens, and when each was sampled.
    pub tokens: Vec<(u32, u64)>,
    /// Why and when it ended.
    pub finished: Option<(FinishReason, u64)>,
}

/// A lane of a virtual run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualLane {
    /// The same report as a real lane's, with every span.
    pub report: LaneReport,
    /// Time without a task that has rows, from the start to the end of the run.
    pub bubble_ns: u64,
}

/// What one stage did, or one part of a transfer, on all devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageSum {
    /// Which stage.
    pub stage: StageIndex,
    /// What part of it.
    pub role: TaskRole,
    /// Tasks that had rows.
    pub tasks: u64,
    /// Nanoseconds of all of them.
    pub busy_ns: u64,
}

/// What a virtual run leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualReport {
    /// By lane, in the plan's order.
    pub lanes: Vec<VirtualLane>,
    /// Of what had rows, by stage.
    pub stages: Vec<StageSum>,
    /// End of the last task that had rows.
    pub wall_ns: u64,
    /// How full the run was, a sample a planned step.
    pub counters: Vec<CounterSample>,
    /// By id.
    pub sequences: BTreeMap<SequenceId, SequenceTimes>,
    /// KV pages free at the end, over all devices.
    pub free_pages: usize,
}

/// Why a folded run has no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldedError {
    /// A request that can never run.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The devices do not do the same.
    #[error(transparent)]
    Uneven(#[from] Uneven),
}
