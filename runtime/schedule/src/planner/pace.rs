//! The time per token that is to be kept: how long a round takes, whom there is room for, how much of prompts is read beside.
//!
//! A *round* is the time from one plan call of a micro-batch to its next, in which every micro-batch has a step: the time
//! between two tokens of a sequence. It is learned from rounds that were timed, as rows, context and what takes equally long
//! for any of them. A sequence is let in if a round is expected to keep to the target with it, its context counted half way to its
//! end, beside rows of prompts in the proportion of prompts to answers; prompts are read as fast as the rest of the round allows,
//! shared by the micro-batches that have some. A sequence a micro-batch, and a row of a prompt in each step, go on whatever the
//! target says: one that cannot be kept must not stop the run.
//!
//! Rounds are learned by the micro-batches that had rows in them; how many those are is chosen too (`count.rs`).
//!
//! Times come from whoever drives the planner. Without a target nothing here does anything.

use super::StepPlanner;
use super::count::{Counts, Now};
use super::sequence::{Running, Sequence};
use super::types::PlannerConfig;
use crate::cost::{CostLearner, CostModel};

/// Rounds are planned to take this share of the target: what was learned is a mean, and rounds scatter about it.
const AIM: f64 = 0.95;
/// A round is trusted to be as expected up to this many times the rows that were ever seen in one.
const FURTHEST: usize = 2;

/// Rounds in which so many micro-batches had rows.
#[derive(Clone, Debug)]
struct Rounds {
    learner: CostLearner,
    /// Most rows of a timed round.
    most_rows: usize,
}

/// What is known of rounds.
#[derive(Debug)]
pub(super) struct Pace {
    /// Seconds that a round may take.
    target_s: f64,
    /// By micro-batches with rows, less one.
    rounds: Vec<Rounds>,
    counts: Counts,
    /// By micro-batch, when it was planned last, in seconds, and the number of that call; `None` if the run has been idle since.
    planned: Vec<Option<(f64, u64)>>,
    calls: u64,
    /// Micro-batches with rows, and the call that first saw so many.
    occupied: usize,
    occupied_since: u64,
}

impl Pace {
    /// Seconds that a round may take by plan.
    fn aim_s(&self) -> f64 {
        self.target_s * AIM
    }

    /// Rounds with so many sequences in the micro-batches in use; before there was one, those of the number that is most like it.
    fn usual(&self, sequences: usize) -> &Rounds {
        let own = self.counts.settled().min(sequences.max(1));
        let learned = (1..=self.rounds.len()).filter(|count| self.rounds[count - 1].learner.has_learned());
        &self.rounds[learned.min_by_key(|count| count.abs_diff(own)).unwrap_or(own) - 1]
    }

    /// Seconds that are left of a round with so much in it.
    fn room_s(&self, sequences: usize, rows: usize, context: usize) -> f64 {
        self.aim_s() - self.usual(sequences).learner.expected(rows, context)
    }

    /// Whether another number of micro-batches than the one in use is known to have time for so much. Where that one is known too it
    /// is the better one, and has the last word: with another, nobody would move there, and too many would be let in.
    fn another_has_time(&self, sequences: usize, rows: usize, context: usize) -> bool {
        let expected = |count| self.counts.expected(count, sequences, rows, context);
        let own = self.counts.settled().min(sequences);
        expected(own).is_none()
            && (1..=self.rounds.len().min(sequences)).filter_map(expected).any(|seconds| seconds <= self.aim_s())
    }
}

impl StepPlanner {
    /// Makes it keep to a time per token, in seconds, from now on. Batches then depend on the times that
    /// [`StepPlanner::begin_plan`] is told.
    pub fn keep_tpot(&mut self, target_s: f64) {
        let PlannerConfig { micro_batches, sequences, .. } = self.config;
        let rounds = Rounds { learner: CostLearner::new(CostModel::default()), most_rows: 0 };
        self.pace = Some(Pace {
            target_s,
            rounds: vec![rounds; micro_batches],
            counts: Counts::new(micro_batches, sequences),
            planned: vec![None; micro_batches],
            calls: 0,
            occupied: 0,
            occupied_since: 0,
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
        self.time_round(micro_batch, now_s);
        if micro_batch == 0 {
            self.choose_count();
        }
    }

    /// Learns from the round that ends with a plan call of `micro_batch`.
    fn time_round(&mut self, micro_batch: usize, now_s: f64) {
        let ((rows, context), occupied) = (self.in_flight(), self.loads.occupied());
        let sequences = self.alive().count();
        let Some(pace) = &mut self.pace else { return };
        pace.calls += 1;
        if occupied != pace.occupied {
            (pace.occupied, pace.occupied_since) = (occupied, pace.calls);
        }
        let before = pace.planned[micro_batch].replace((now_s, pace.calls));
        let Some((before_s, call)) = before.filter(|_| occupied > 0) else { return };
        let rounds = &mut pace.rounds[occupied - 1];
        // What a plan call made of it is seen at the next one.
        let is_clean = pace.occupied_since <= call + 1;
        if is_clean || !rounds.learner.has_learned() {
            rounds.learner.observe(rows, context, now_s - before_s);
            rounds.most_rows = rounds.most_rows.max(rows);
        }
        if is_clean && micro_batch == 0 {
            pace.counts.observe(occupied, sequences, rows, context, now_s - before_s);
        }
    }

    fn choose_count(&mut self) {
        let (sequences, least) = (self.alive().count(), self.fewest_micro_batches());
        let (rows, context) = self.decoding();
        let Some(pace) = &mut self.pace else { return };
        let now = Now { target_s: pace.target_s, sequences, rows, context, least };
        let own = pace.counts.settled().min(sequences.max(1)) - 1;
        let Rounds { learner, most_rows } = &pace.rounds[own];
        if pace.counts.choose(now, learner, FURTHEST * most_rows) {
            self.loads.set_used(pace.counts.used());
            self.scattered = true;
            self.level_for = 0;
        }
    }

    /// Seconds that a round is expected to take as it stands, prompts apart; `None` without a target, or before one was timed.
    pub fn expected_round_s(&self) -> Option<f64> {
        let pace = self.pace.as_ref()?;
        let usual = &pace.usual(self.alive().count()).learner;
        let (rows, context) = self.decoding();
        usual.has_learned().then(|| usual.expected(rows, context))
    }

    /// The time that passed while nobody was there is no round.
    pub(super) fn forget_times(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.planned.fill(None);
        }
    }

    /// Whether a round keeps to the target with one more sequence.
    pub(super) fn has_time_for(&self, next: &Sequence) -> bool {
        let Some(pace) = &self.pace else { return true };
        let rows = self.alive().count() + 1;
        // Who was preempted has its place, and a micro-batch without anyone helps nobody.
        if next.preempted_at.is_some() || rows <= self.config.micro_batches {
            return true;
        }
        let own = next.known_tokens() + next.most / 2;
        let context = self.alive().map(halfway).sum::<usize>() + own;
        // For as many prompts to be read as answers end: in the long run each token that is made has its share of its prompt.
        let (prompts, answers) = self
            .alive()
            .map(|running| &running.sequence)
            .chain(std::iter::once(next))
            .fold((0, 0), |(prompts, answers), one| (prompts + one.request.prompt.len(), answers + one.most));
        let read = (rows * prompts).div_ceil(answers.max(1)).min(self.config.prefill_chunk);
        let trusted = FURTHEST * pace.usual(rows).most_rows.max(self.config.micro_batches);
        (rows <= trusted && pace.room_s(rows, rows + read, context) >= 0.0)
            || pace.another_has_time(rows, rows + read, context)
    }

    /// Rows of prompts that `micro_batch` may have in a step on each device, for the round to keep to the target.
    pub(super) fn rows_in_time(&self, micro_batch: usize) -> usize {
        let sequences = self.alive().count();
        let learned = self.pace.as_ref().filter(|pace| pace.usual(sequences).learner.has_learned());
        let Some(pace) = learned else { return usize::MAX };
        let reads = |m: usize| self.running.iter().any(|r| r.micro_batch == m && !r.ended && r.prefilling());
        let readers = (0..self.config.micro_batches).filter(|m| *m == micro_batch || reads(*m)).count();
        let (rows, context) = self.decoding();
        let share_s = pace.room_s(sequences, rows, context) / readers as f64;
        // Of the longest prompt of those that are read: what it attends to costs most.
        let own = self.running.iter().filter(|r| r.micro_batch == micro_batch && !r.ended && r.prefilling());
        let read = own.map(|running| running.prefilled).max().unwrap_or(0);
        let rows = pace.usual(sequences).learner.model().prompt_rows(share_s.max(0.0), read);
        (rows / self.config.devices).max(1)
    }

    /// Those that run and have not ended.
    fn alive(&self) -> impl Iterator<Item = &Running> {
        self.running.iter().filter(|running| !running.ended)
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
