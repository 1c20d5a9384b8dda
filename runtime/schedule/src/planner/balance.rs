//! Which micro-batch a sequence belongs to: all micro-batches should cost the same.
//!
//! A sequence has a *home*; it moves there at the plan call of the micro-batch it is in, when none of its rows is in flight.
//! Two may swap homes: each leaves at its own micro-batch's call, and neither micro-batch is ever over a limit.
//!
//! With one attention device the heaviest micro-batch ends at most 5 % above the mean wherever moves and swaps allow it. They
//! surely allow 15 % if it has a member lighter than 0.14 of the mean and the lightest micro-batch has room: of sequences all
//! heavier than that (one alone above the mean, two for three micro-batches) no moving makes equal parts. With several
//! devices the sum over devices and each device's part are evened out together.

use super::StepPlanner;
use super::sequence::Running;
use crate::cost::CostModel;

/// A heaviest micro-batch within this share above the mean is left in peace.
const LEVEL_ENOUGH: f64 = 0.05;
/// A change must better things by this share of the mean: costs drift with every token, and nobody should move for ever.
const WORTH_IT: f64 = 0.01;
/// Changes of home at one plan call: the rest can wait for the next one.
const CHANGES_PER_CALL: usize = 8;

/// Cost and members by micro-batch and device, counted by home.
#[derive(Debug)]
pub(super) struct Loads {
    devices: usize,
    cost: Vec<f64>,
    members: Vec<usize>,
}

/// A better home for a sequence, maybe in exchange for another one.
struct Change {
    gain: f64,
    sequence: usize,
    to: usize,
    back: Option<usize>,
}

impl Loads {
    pub(super) fn new(micro_batches: usize, devices: usize) -> Self {
        let cells = micro_batches * devices;
        Self { devices, cost: vec![0.0; cells], members: vec![0; cells] }
    }

    fn count(&mut self, running: &[Running], model: CostModel) {
        self.cost.fill(0.0);
        self.members.fill(0);
        for running in running.iter().filter(|running| !running.ended) {
            self.add(running.home, running.device, weight(running, model));
        }
    }

    pub(super) fn add(&mut self, micro_batch: usize, device: usize, cost: f64) {
        self.cost[micro_batch * self.devices + device] += cost;
        self.members[micro_batch * self.devices + device] += 1;
    }

    fn cells(&self, micro_batch: usize) -> std::ops::Range<usize> {
        micro_batch * self.devices..(micro_batch + 1) * self.devices
    }

    fn total(&self, micro_batch: usize) -> f64 {
        self.cost[self.cells(micro_batch)].iter().sum()
    }

    /// What a sequence of `device` finds in a micro-batch: the whole and, as often again as there are devices, its device's
    /// part. With one device simply twice the micro-batch's cost.
    fn pressure(&self, micro_batch: usize, device: usize) -> f64 {
        let part = self.cost[micro_batch * self.devices + device];
        self.total(micro_batch) + self.devices as f64 * part
    }
}

/// What a sequence will cost in a decode step.
fn weight(running: &Running, model: CostModel) -> f64 {
    model.of(1, running.context())
}

impl StepPlanner {
    pub(super) fn count_loads(&mut self) {
        self.loads.count(&self.running, self.cost);
    }

    /// Whether `micro_batch` can have one more sequence on `device`: each needs a row a step.
    pub(super) fn rows_room(&self, micro_batch: usize, device: usize) -> bool {
        let members = &self.loads.members[self.loads.cells(micro_batch)];
        members[device] < self.config.rows_per_device
            && members.iter().sum::<usize>() < self.config.rows_per_micro_batch
    }

    /// The micro-batch that a new sequence of `device` goes to: the cheapest, and of equals the one that is planned soonest.
    pub(super) fn cheapest(&self, device: usize, planned_now: usize) -> Option<usize> {
        let count = self.config.micro_batches;
        let soonest_first = (0..count).map(|i| (planned_now + i) % count).filter(|m| self.rows_room(*m, device));
        soonest_first.min_by(|a, b| self.loads.pressure(*a, device).total_cmp(&self.loads.pressure(*b, device)))
    }

    /// Gives sequences other homes until the heaviest micro-batch is near the mean, or nothing helps.
    pub(super) fn balance(&mut self) {
        let count = self.config.micro_batches;
        for _ in 0..CHANGES_PER_CALL {
            self.count_loads();
            let mean = (0..count).map(|m| self.loads.total(m)).sum::<f64>() / count as f64;
            let heaviest = (0..count).max_by(|a, b| self.loads.total(*a).total_cmp(&self.loads.total(*b)));
            let Some(from) = heaviest.filter(|m| self.loads.total(*m) > mean * (1.0 + LEVEL_ENOUGH)) else { return };
            let Some(change) = self.best_change(from, mean) else { return };
            self.running[change.sequence].home = change.to;
            if let Some(back) = change.back {
                self.running[back].home = from;
            }
        }
    }

    fn best_change(&self, from: usize, mean: f64) -> Option<Change> {
        let mut best: Option<Change> = None;
        let mut consider = |change: Option<Change>| {
            if let Some(change) = change
                && best.as_ref().is_none_or(|best| change.gain > best.gain)
            {
                best = Some(change);
            }
        };
        // Whoever moves waits for another plan call. It has rows in between, or it could move for ever and never have any.
        let may_move = |(_, running): &(usize, &Running)| !running.ended && !running.fresh;
        for (sequence, giver) in self.running.iter().enumerate().filter(may_move).filter(|(_, r)| r.home == from) {
            let (given, device) = (weight(giver, self.cost), giver.device);
            for to in (0..self.config.micro_batches).filter(|to| *to != from && self.rows_room(*to, device)) {
                let gain = self.gain(from, to, device, given, mean);
                consider(gain.map(|gain| Change { gain, sequence, to, back: None }));
            }
            let others = self.running.iter().enumerate().filter(may_move);
            for (back, taker) in others.filter(|(_, r)| r.home != from && r.device == device) {
                let gain = self.gain(from, taker.home, device, given - weight(taker, self.cost), mean);
                consider(gain.map(|gain| Change { gain, sequence, to: taker.home, back: Some(back) }));
            }
        }
        best
    }

    /// By how much the sum of squared loads falls if `moved` goes from one micro-batch to another; `None` if that is not worth
    /// it. The sum falls with every change, so changes come to an end.
    fn gain(&self, from: usize, to: usize, device: usize, moved: f64, mean: f64) -> Option<f64> {
        let weights = 1.0 + self.config.devices as f64;
        let gap = (self.loads.pressure(from, device) - self.loads.pressure(to, device)) / weights;
        let bettered = moved.min(gap - moved);
        (bettered > WORTH_IT * mean).then_some(moved * (gap - moved))
    }

    /// Members of `micro_batch` that have another home go there.
    pub(super) fn send_home(&mut self, micro_batch: usize) {
        for running in self.running.iter_mut().filter(|running| running.micro_batch == micro_batch) {
            running.fresh |= running.micro_batch != running.home;
            running.micro_batch = running.home;
        }
    }
}
