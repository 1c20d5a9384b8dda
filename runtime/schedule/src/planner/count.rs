//! How many micro-batches sequences are in, where a time per token is to be kept: so many that a round is as short as it gets.
//!
//! A step whose time comes from its weights takes as long for one row as for eight. Few sequences in all micro-batches then
//! wait for one such step after the other, and in one or two micro-batches they would not; many sequences want all of them,
//! so that lanes overlap. Which it is shows in this run's own rounds. What they take is learned by how many micro-batches had
//! rows, for about as many sequences as there are ([`bucket`]), and the number with the shortest round is used: the first
//! micro-batches, while the others' steps are empty.
//!
//! A number that was not tried with about so many sequences is *tried* if it is one more or one less than the one in use:
//! for [`TRIED_FOR`] rounds, or until one took [`TOO_LONG`] times what is expected. It is tried only if the target would be kept
//! on the mean even if rounds became as long as they can ([`Counts::can_afford`]), at most once in [`APART`] rounds, and,
//! as long as it loses, after twice as many rounds each time. Whoever changes its micro-batch waits for up to a round more
//! than usual, once; so a number is left only for one that is better by [`WORTH_IT`].
//!
//! Rounds are counted by the plan calls of micro-batch 0: nothing here reads a clock, and equal times give equal batches.

use super::StepPlanner;
use crate::cost::{CostLearner, CostModel};

/// Clean rounds of a trial.
const TRIED_FOR: u32 = 4;
/// Clean rounds after which a number counts as known.
const KNOWN: u32 = 3;
/// A trial ends early with a round so many times as long as the number before it is expected to take.
const TOO_LONG: f64 = 1.1;
/// Rounds that a trial may last, clean ones or not.
const LONGEST_TRIAL: u64 = 16;
/// Rounds after a change before anything is tried.
const APART: u64 = 16;
/// Rounds after a change before the next one: numbers of sequences come and go too, and who moves waits.
const STAYS: u64 = 8;
/// Rounds after which a number that was tried in vain is tried again; twice as many each time.
const PAUSE: u64 = 256;
const LONGEST_PAUSE: u64 = 1 << 14;
/// By so much a round must be shorter for sequences to move.
const WORTH_IT: f64 = 0.03;
/// A trial that fails costs some of the rounds in it and two moves: so many rounds as long as they can be.
const LOST: f64 = 4.0;
/// Tokens of an answer over which that may be spread.
const ANSWER: f64 = 64.0;
/// Rounds that take less than this share of the target with all micro-batches are short enough: all are used, as without a
/// target, and prompts are read as fast as they can be. From [`NOT_AT_EASE`] on they are not, until they have been for [`EASY_FOR`] rounds.
const AT_EASE: f64 = 0.25;
const NOT_AT_EASE: f64 = 0.3;
const EASY_FOR: u64 = 64;
/// Where rounds take so many times the target, nothing is left to be kept.
const NOT_KEPT: f64 = 1.1;

/// What is known of one number of micro-batches with about so many sequences.
#[derive(Clone, Debug)]
struct Cell {
    rounds: CostLearner,
    /// Clean rounds seen.
    seen: u32,
    /// The round from which on it may be tried.
    due: u64,
    pause: u64,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    /// The number before it, and the one that is tried.
    back: usize,
    tried: usize,
    /// Sequences in the [`bucket`] of which it began.
    bucket: usize,
    left: u32,
    ends: u64,
}

/// The number in use, and what is known of the others.
#[derive(Debug)]
pub(super) struct Counts {
    used: usize,
    buckets: usize,
    /// By number less one and bucket.
    cells: Vec<Cell>,
    trial: Option<Trial>,
    round: u64,
    /// When `used` was last another.
    changed: u64,
    /// Rounds are far shorter than they may be.
    at_ease: bool,
    /// Rounds for which they would have been.
    easy_for: u64,
}

/// What there is to choose for, at the beginning of a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) target_s: f64,
    /// Sequences that run.
    pub(super) sequences: usize,
    /// Rows of those that decode, and what they attend to.
    pub(super) rows: usize,
    pub(super) context: usize,
    /// Fewest micro-batches whose limits they keep to.
    pub(super) least: usize,
}

/// Numbers of sequences that are about the same: 1, 2, 3, 4–5, 6–7, 8–11, 12–15, …
fn bucket(sequences: usize) -> usize {
    let sequences = sequences.max(1);
    let octave = sequences.ilog2() as usize;
    let upper = octave > 0 && sequences & (1 << (octave - 1)) != 0;
    2 * octave + usize::from(upper)
}

impl Cell {
    fn new() -> Self {
        Self { rounds: CostLearner::new(CostModel::default()), seen: 0, due: 0, pause: PAUSE }
    }

    fn is_known(&self) -> bool {
        self.seen >= KNOWN
    }
}

impl Counts {
    pub(super) fn new(micro_batches: usize, sequences: usize) -> Self {
        let buckets = bucket(sequences) + 1;
        let cells = vec![Cell::new(); micro_batches * buckets];
        Self { used: micro_batches, buckets, cells, trial: None, round: 0, changed: 0, at_ease: true, easy_for: 0 }
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// The number that is in use but for a trial.
    pub(super) fn settled(&self) -> usize {
        self.trial.map_or(self.used, |trial| trial.back)
    }

    /// Micro-batches of the schedule.
    fn most(&self) -> usize {
        self.cells.len() / self.buckets
    }

    fn index(&self, count: usize, sequences: usize) -> usize {
        (count - 1) * self.buckets + bucket(sequences).min(self.buckets - 1)
    }

    fn cell(&self, count: usize, sequences: usize) -> &Cell {
        &self.cells[self.index(count, sequences)]
    }

    fn cell_mut(&mut self, count: usize, sequences: usize) -> &mut Cell {
        let index = self.index(count, sequences);
        &mut self.cells[index]
    }

    /// What `count` micro-batches are expected to take for so much, if they are known with about so many sequences.
    pub(super) fn expected(&self, count: usize, sequences: usize, rows: usize, context: usize) -> Option<f64> {
        let cell = self.cell(count, sequences);
        cell.is_known().then(|| cell.rounds.expected(rows, context))
    }

    /// Takes note of a round in which `count` micro-batches had rows all the time, and which is over now.
    pub(super) fn observe(&mut self, count: usize, sequences: usize, rows: usize, context: usize, seconds: f64) {
        let before = self.trial.filter(|_| count == self.used.min(sequences)).map(|trial| trial.back);
        let usual = before.and_then(|back| self.expected(back.min(sequences), sequences, rows, context));
        let cell = self.cell_mut(count, sequences);
        cell.rounds.observe(rows, context, seconds);
        cell.seen = cell.seen.saturating_add(1);
        if let (Some(trial), Some(_)) = (&mut self.trial, before) {
            let too_long = usual.is_some_and(|usual| seconds > TOO_LONG * usual);
            trial.left = if too_long { 0 } else { trial.left - 1 };
            if too_long {
                let cell = self.cell_mut(count, sequences);
                cell.seen = cell.seen.max(KNOWN);
            }
        }
    }

    /// Chooses the number for the round that begins. Returns whether it is another one than before. `usual`: what is known of rounds with
    /// the number in use, whatever there was in them, up to `trusted` sequences.
    pub(super) fn choose(&mut self, now: Now, usual: &CostLearner, trusted: usize) -> bool {
        self.round += 1;
        let before = self.used;
        if self.most() > 1 && now.sequences > 0 {
            self.decide(now, usual, trusted);
        }
        if self.used != before {
            self.changed = self.round;
        }
        self.used != before
    }

    fn decide(&mut self, now: Now, usual: &CostLearner, trusted: usize) {
        let trial = self.trial;
        if let Some(trial) = trial {
            let goes_on = trial.left > 0 && self.round < trial.ends && bucket(now.sequences) == trial.bucket;
            if goes_on && self.used >= now.least {
                return;
            }
            self.end_trial(trial);
        }
        self.used = self.used.max(now.least);
        let (own, at_ease) = (self.used, self.is_at_ease(now));
        if trial.is_some() || self.round >= self.changed + STAYS {
            self.used = if at_ease { self.most() } else { self.best(now, usual, trusted) };
        }
        if self.used != own {
            self.cell_mut(self.used.min(now.sequences), now.sequences).pause = PAUSE;
            self.put_off(own.min(now.sequences), bucket(now.sequences));
        } else if !at_ease && self.round >= self.changed + APART {
            self.try_another(now);
        }
    }

    /// Whether rounds with all micro-batches are so short that it matters little how long they are.
    fn is_at_ease(&mut self, now: Now) -> bool {
        let all = now.sequences.min(self.most());
        // One sequence is in one micro-batch, whatever the number.
        if all > 1
            && let Some(round_s) = self.expected(all, now.sequences, now.rows, now.context)
        {
            self.easy_for = if round_s < AT_EASE * now.target_s { self.easy_for + 1 } else { 0 };
            self.at_ease = if self.at_ease { round_s < NOT_AT_EASE * now.target_s } else { self.easy_for >= EASY_FOR };
        }
        self.at_ease
    }

    /// Back to the number before it; if the new one is better it is chosen now that it is known.
    fn end_trial(&mut self, trial: Trial) {
        self.put_off(trial.tried, trial.bucket);
        (self.used, self.trial) = (trial.back, None);
        self.changed = self.round;
    }

    /// `count` is not tried again for a while: twice as long as the last time, or briefly if it could not be seen what it is like.
    fn put_off(&mut self, count: usize, bucket: usize) {
        let round = self.round;
        let cell = &mut self.cells[(count - 1) * self.buckets + bucket];
        if cell.is_known() {
            cell.due = round + cell.pause;
            cell.pause = (2 * cell.pause).min(LONGEST_PAUSE);
        } else {
            cell.due = round + 2 * APART;
        }
    }

    /// The number with the shortest round of those that are known.
    fn best(&self, now: Now, usual: &CostLearner, trusted: usize) -> usize {
        let sequences = now.sequences;
        let own_count = self.used.min(sequences);
        let own = self.cell(own_count, sequences);
        let (model, is_known) =
            if own.is_known() { (&own.rounds, true) } else { (usual, usual.has_learned() && sequences <= trusted) };
        // Each is compared where it was seen: there it needs no model, and the number in use has the better one.
        let ratio = |count: usize| {
            let [rows, context, seconds] = self.cell(count, sequences).rounds.mean();
            let own_s = model.expects(rows, context);
            if is_known && own_s > 0.0 { seconds / own_s } else { 0.0 }
        };
        let others = (now.least..=sequences.min(self.most())).filter(|count| *count != own_count);
        let known = others.filter(|count| self.cell(*count, sequences).is_known());
        let key = |count: &usize| {
            let tie = self.cell(*count, sequences).rounds.expected(now.rows, now.context);
            (ratio(*count), tie)
        };
        let best = known.min_by(|a, b| {
            let (a, b) = (key(a), key(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        best.filter(|count| ratio(*count) < 1.0 - WORTH_IT).unwrap_or(self.used)
    }

    /// Begins to try one micro-batch less, or one more, where it is time to and the target allows it.
    fn try_another(&mut self, now: Now) {
        let most = now.sequences.min(self.most());
        let own_count = self.used.min(now.sequences);
        let Some(round_s) = self.expected(own_count, now.sequences, now.rows, now.context) else { return };
        let is_due = |count: usize| {
            (now.least.max(1)..=most).contains(&count)
                && self.cell(count, now.sequences).due <= self.round
                && Self::can_afford(own_count, count, round_s, now.target_s)
        };
        let Some(count) = [own_count - 1, own_count + 1].into_iter().find(|count| is_due(*count)) else { return };
        let (back, round) = (self.used, self.round);
        let cell = self.cell_mut(count, now.sequences);
        // It is asked what it is like now.
        (cell.rounds, cell.seen) = (CostLearner::new(CostModel::default()), 0);
        let bucket = bucket(now.sequences);
        self.trial = Some(Trial { back, tried: count, bucket, left: TRIED_FOR, ends: round + LONGEST_TRIAL });
        self.used = count;
    }

    /// Whether the target is kept on the mean over an answer even if rounds become as long as they can: of steps that take as long
    /// for fewer rows there are then more, or what overlapped before does not overlap any more.
    fn can_afford(from: usize, to: usize, round_s: f64, target_s: f64) -> bool {
        let worst = if to > from { to as f64 / from as f64 } else { from as f64 / to as f64 };
        round_s * (1.0 + LOST * (worst - 1.0) / ANSWER) <= target_s || round_s > NOT_KEPT * target_s
    }
}

impl StepPlanner {
    /// Micro-batches that sequences go to: all there are, unless a time per token is kept with fewer.
    pub fn micro_batches_in_use(&self) -> usize {
        self.loads.used()
    }

    /// Fewest micro-batches in which all that run keep to the limits of rows.
    pub(super) fn fewest_micro_batches(&self) -> usize {
        let config = &self.config;
        let on = |device: usize| self.running.iter().filter(|running| running.device == device).count();
        let of_devices = (0..config.devices).map(|device| on(device).div_ceil(config.rows_per_device.max(1))).max();
        let of_all = self.running.len().div_ceil(config.rows_per_micro_batch.max(1));
        of_all.max(of_devices.unwrap_or(1)).clamp(1, config.micro_batches)
    }

    /// Gives those that run their homes among the micro-batches in use, each where that levels most. Whoever has had no row since it
    /// moved last is left where it is until it has had one.
    #[inline(never)]
    pub(super) fn regroup(&mut self) {
        self.count_loads();
        self.scattered = false;
        for index in 0..self.running.len() {
            let running = &self.running[index];
            if running.ended {
                continue;
            }
            let (home, device, used) = (running.home, running.device, self.loads.used());
            let outside = home >= used;
            if running.fresh {
                self.scattered |= outside;
                continue;
            }
            let Some(to) = self.cheapest(device, 0).filter(|to| *to != home && *to < used) else { continue };
            let weight = self.weight(running);
            let gap = self.loads.pressure(home, device) - self.loads.pressure(to, device);
            if outside || gap > (1.0 + self.config.devices as f64) * weight {
                self.loads.move_load(weight, device, home, to);
                self.running[index].home = to;
                self.moving = true;
            }
        }
    }
}
