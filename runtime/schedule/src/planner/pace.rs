//! The time per token that is to be kept: how long a round takes, whom there is room for, how much of prompts is read beside.
//!
//! A *round* is the time from one plan call of a micro-batch to its next, in which every micro-batch has a step: the time
//! between two tokens of a sequence. It is learned from rounds that were timed, as rows, context and what takes equally long
//! for any of them. A sequence is let in if a round is expected to keep to the target with it, its context counted half way to its
//! end, beside rows of prompts in the proportion of prompts to answers; prompts are read as fast as the rest of the round allows,
//! shared by the micro-batches that have some. A sequence a micro-batch, and a row of a prompt in each step, go on whatever the
//! target says: one that cannot be kept must not stop the run.
//!
//! Times come from whoever drives the planner. Without a target nothing here does anything.

use super::StepPlanner;
use super::sequence::{Running, Sequence};
use crate::cost::{CostLearner, CostModel};

/// Rounds are planned to take this share of the target: what was learned is a mean, and rounds scatter about it.
const AIM: f64 = 0.95;
/// A round is trusted to be as expected up to this many times the rows that were ever seen in one.
const FURTHEST: usize = 2;

/// What is known of rounds.
#[derive(Debug)]
pub(super) struct Pace {
    /// Seconds that a round may take.
    target_s: f64,
    rounds: CostLearner,
    /// Most rows of a timed round.
    most_rows: usize,
    /// By micro-batch, when it was planned last, in seconds; `None` if the run has been idle since.
    planned_s: Vec<Option<f64>>,
}

impl Pace {
    /// Seconds that are left of a round with so much in it.
    fn room_s(&self, rows: usize, context: usize) -> f64 {
        self.target_s * AIM - self.rounds.expected(rows, context)
    }
}

impl StepPlanner {
    /// Makes it keep to a time per token, in seconds, from now on. Batches then depend on the times that
    /// [`StepPlanner::begin_plan`] is told.
    pub fn keep_tpot(&mut self, target_s: f64) {
        self.pace = Some(Pace {
            target_s,
            rounds: CostLearner::new(CostModel::default()),
            most_rows: 0,
            planned_s: vec![None; self.config.micro_batches],
        });
    }

    /// Whether there is a time per token to keep.
    pub fn keeps_tpot(&self) -> bool {
        self.pace.is_some()
    }

    /// To be called before [`StepPlanner::plan`] where there is a time to be kept, with the time on any one clock, in seconds.
    pub fn begin_plan(&mut self, micro_batch: usize, now_s: f64) {
        if self.pace.is_none() {
            return;
        }
        let (rows, context) = self.in_flight();
        let Some(pace) = &mut self.pace else { return };
        if let Some(before_s) = pace.planned_s[micro_batch].replace(now_s)
            && rows > 0
        {
            pace.rounds.observe(rows, context, now_s - before_s);
            pace.most_rows = pace.most_rows.max(rows);
        }
    }

    /// Seconds that a round is expected to take as it stands, prompts apart; `None` without a target, or before one was timed.
    pub fn expected_round_s(&self) -> Option<f64> {
        let pace = self.pace.as_ref().filter(|pace| pace.rounds.has_learned())?;
        let (rows, context) = self.decoding();
        Some(pace.rounds.expected(rows, context))
    }

    /// The time that passed while nobody was there is no round.
    pub(super) fn forget_times(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.planned_s.fill(None);
        }
    }

    /// Whether a round keeps to the target with one more sequence.
    pub(super) fn has_time_for(&self, next: &Sequence) -> bool {
        let Some(pace) = &self.pace else { return true };
        let alive = || self.running.iter().filter(|running| !running.ended);
        let rows = alive().count() + 1;
        // Who was preempted has its place, and a micro-batch without anyone helps nobody.
        if next.preempted_at.is_some() || rows <= self.config.micro_batches {
            return true;
        }
        if rows > FURTHEST * pace.most_rows.max(self.config.micro_batches) {
            return false;
        }
        let own = next.known_tokens() + next.most / 2;
        let context = alive().map(halfway).sum::<usize>() + own;
        // For as many prompts to be read as answers end: in the long run each token that is made has its share of its prompt.
        let (prompts, answers) = alive()
            .map(|running| &running.sequence)
            .chain(std::iter::once(next))
            .fold((0, 0), |(prompts, answers), one| (prompts + one.request.prompt.len(), answers + one.most));
        let read = (rows * prompts).div_ceil(answers.max(1)).min(self.config.prefill_chunk);
        pace.room_s(rows + read, context) >= 0.0
    }

    /// Rows of prompts that `micro_batch` may have in a step on each device, for the round to keep to the target.
    pub(super) fn rows_in_time(&self, micro_batch: usize) -> usize {
        let Some(pace) = self.pace.as_ref().filter(|pace| pace.rounds.has_learned()) else { return usize::MAX };
        let reads = |m: usize| self.running.iter().any(|r| r.micro_batch == m && !r.ended && r.prefilling());
        let readers = (0..self.config.micro_batches).filter(|m| *m == micro_batch || reads(*m)).count();
        let (rows, context) = self.decoding();
        let share_s = pace.room_s(rows, context) / readers as f64;
        // Of the longest prompt of those that are read: what it attends to costs most.
        let own = self.running.iter().filter(|r| r.micro_batch == micro_batch && !r.ended && r.prefilling());
        let read = own.map(|running| running.prefilled).max().unwrap_or(0);
        let rows = pace.rounds.model().prompt_rows(share_s.max(0.0), read);
        (rows / self.config.devices).max(1)
    }

    /// Rows of those that decode, one each, and what they attend to.
    fn decoding(&self) -> (usize, usize) {
        let decoding = self.running.iter().filter(|running| running.decodes());
        decoding.fold((0, 0), |(rows, context), running| (rows + 1, context + running.context()))
    }
}

/// What a sequence attends to when it has made half of what it has still to make.
fn halfway(running: &Running) -> usize {
    let left = running.sequence.most.saturating_sub(running.planned);
    running.sequence.request.prompt.len() + running.planned + left / 2
}
