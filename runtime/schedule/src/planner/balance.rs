//! Which micro-batch a sequence belongs to: all micro-batches should cost the same.
//!
//! A sequence has a *home*; it moves there at the plan call of the micro-batch it is in, when none of its rows is in flight.
//! Two may swap homes: each leaves at its own micro-batch's call, and neither micro-batch is ever over a limit. Whoever
//! has moved has rows before it moves again, so a sequence that decodes has a row at least every second round of plan
//! calls.
//!
//! **What is levelled.** The FFN runs a micro-batch over all devices, attention runs it on each device by itself. So a
//! micro-batch is level if it costs at most 1.15 of the mean over the micro-batches, first in total, then on each
//! device. The sum of squares of both falls with every change of homes among sequences that decode, so these come to an
//! end. A prompt counts with its *floor*, a quarter of a chunk that it shares with the prompts beside it: that is what
//! it reads in any case, and `rows.rs` gives it more where the step stays level: beside what the other micro-batches are
//! going to cost, and beside what they have in flight, so many prompts that come at once take a few rounds to get their
//! whole chunks. Where not even prompts at their floor leave a level step, and they are most of the work, they have
//! whole chunks at once.
//!
//! Whoever moves is missing until the plan call of the micro-batch it goes to, and a swap leaves a step without either:
//! so a swap counts for less the heavier what comes back is, and light sequences are moved rather than heavy ones.
//!
//! **Where it can be.** Homes end at most 5 % above the mean, in total, wherever moves and swaps allow it. They surely
//! allow 15 % if the heaviest micro-batch has a member lighter than 0.14 of the mean and the lightest has room: of
//! members all heavier than that (one alone above the mean, two for three micro-batches) no moving makes equal parts.

use super::StepPlanner;
use super::sequence::{Running, Sequence};
use crate::batch::DeviceBatch;
use std::ops::Range;

/// A heaviest micro-batch within this share above the mean is left in peace.
const LEVEL_ENOUGH: f64 = 0.05;
/// A change must better things by this share of the mean: costs drift with every token, and nobody should move for ever.
const WORTH_IT: f64 = 0.01;
/// Changes of home at one plan call: the rest can wait for the next one.
const CHANGES_PER_CALL: usize = 8;
/// Plan calls for which level micro-batches of sequences that only decode are not looked at again: each costs a token more a round.
const LEVEL_FOR: usize = 32;
/// Prompts may fill a step up to this share above the mean: what they leave to 15 % is for costs that change within a
/// round.
const FILL: f64 = 0.05;
/// The same beside the steps in flight, which are what they are: by so much more than their mean a step may cost, or
/// prompts would never get going.
const FILL_IN_FLIGHT: f64 = 0.07;
/// A step that costs at most this share more than the mean is level.
const LEVEL: f64 = 0.15;
/// Where no rows of prompts make a step level, and prompts at their floor are more than this share of all cost, reading
/// is the work: holding them back for the few who decode would only cost time.
const MOSTLY_PROMPTS: f64 = 0.5;
/// A prompt's floor is a chunk over this: it never stands still for the sake of balance.
const FLOOR_PARTS: usize = 4;

/// Cost and members by micro-batch and device, counted by home.
#[derive(Debug)]
pub(super) struct Loads {
    devices: usize,
    /// Micro-batches, from the first on, that sequences go to and that are to be level.
    used: usize,
    /// With prompts at their floor.
    cost: Vec<f64>,
    /// Of that, the prompts.
    reading: Vec<f64>,
    /// With as many prompt rows as limits allow.
    full: Vec<f64>,
    /// `cost` by micro-batch: asked for once for every sequence that starts.
    cost_in_all: Vec<f64>,
    members: Vec<usize>,
    members_in_all: Vec<usize>,
    prompts: Vec<usize>,
    /// Rows and context of what was planned last; what these cost may be learned anew.
    in_flight: Vec<(usize, usize)>,
}

/// What prompts of a micro-batch may cost on all devices together, and what they could use.
#[derive(Clone, Copy)]
pub(super) struct PromptCost {
    /// Whether someone decodes beside them.
    beside: bool,
    most: f64,
    wanted: f64,
}

/// Running sequences by device, each device's in their order.
#[derive(Debug, Default)]
pub(super) struct ByDevice {
    sequences: Vec<usize>,
    /// Where each device's begin, and the end.
    begins: Vec<usize>,
}

impl ByDevice {
    fn sort(&mut self, devices: usize, running: &[Running]) {
        let Self { sequences, begins } = self;
        begins.clear();
        begins.resize(devices + 1, 0);
        running.iter().for_each(|running| begins[running.device] += 1);
        let mut end = 0;
        for begin in begins.iter_mut() {
            end += *begin;
            *begin = end;
        }
        sequences.clear();
        sequences.resize(running.len(), 0);
        // From the back, each device's end moves to its beginning.
        for (index, running) in running.iter().enumerate().rev() {
            begins[running.device] -= 1;
            sequences[begins[running.device]] = index;
        }
    }

    fn of(&self, device: usize) -> &[usize] {
        &self.sequences[self.begins[device]..self.begins[device + 1]]
    }
}

/// A better home for a sequence, maybe in exchange for another one.
struct Change {
    gain: f64,
    sequence: usize,
    to: usize,
    back: Option<usize>,
}

/// A micro-batch that is too heavy, all of it or its part on one device.
#[derive(Clone, Copy)]
struct Heavy {
    micro_batch: usize,
    device: Option<usize>,
}

impl Loads {
    pub(super) fn new(micro_batches: usize, devices: usize) -> Self {
        let cells = micro_batches * devices;
        let [cost, reading, full] = std::array::from_fn(|_| vec![0.0; cells]);
        let [members, prompts] = std::array::from_fn(|_| vec![0; cells]);
        let (cost_in_all, members_in_all) = (vec![0.0; micro_batches], vec![0; micro_batches]);
        let in_flight = vec![(0, 0); cells];
        let used = micro_batches;
        Self { devices, used, cost, reading, full, cost_in_all, members, members_in_all, prompts, in_flight }
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn set_used(&mut self, micro_batches: usize) {
        self.used = micro_batches;
    }

    /// Micro-batches with rows in flight.
    pub(super) fn occupied(&self) -> usize {
        self.in_flight.chunks(self.devices).filter(|cells| cells.iter().any(|(rows, _)| *rows > 0)).count()
    }

    /// A sequence that costs `weight` has another home.
    pub(super) fn move_load(&mut self, weight: f64, device: usize, from: usize, to: usize) {
        let (left, reached) = (self.cell(from, device), self.cell(to, device));
        self.cost[left] -= weight;
        self.cost[reached] += weight;
        self.cost_in_all[from] -= weight;
        self.cost_in_all[to] += weight;
        self.members[left] -= 1;
        self.members[reached] += 1;
        self.members_in_all[from] -= 1;
        self.members_in_all[to] += 1;
    }

    fn cell(&self, micro_batch: usize, device: usize) -> usize {
        micro_batch * self.devices + device
    }

    fn cells(&self, micro_batch: usize) -> Range<usize> {
        micro_batch * self.devices..(micro_batch + 1) * self.devices
    }

    fn micro_batches(&self) -> Range<usize> {
        0..self.used
    }

    /// Cost of a micro-batch, all of it or its part on one device.
    fn of(&self, costs: &[f64], micro_batch: usize, device: Option<usize>) -> f64 {
        match device {
            Some(device) => costs[self.cell(micro_batch, device)],
            None => costs[self.cells(micro_batch)].iter().sum(),
        }
    }

    /// Cost of a micro-batch with prompts at their floor, all of it or its part on one device.
    fn cost(&self, micro_batch: usize, device: Option<usize>) -> f64 {
        match device {
            Some(device) => self.cost[self.cell(micro_batch, device)],
            None => self.cost_in_all[micro_batch],
        }
    }

    fn mean(&self, device: Option<usize>) -> f64 {
        let sum: f64 = self.micro_batches().map(|m| self.cost(m, device)).sum();
        sum / self.micro_batches().len() as f64
    }

    fn heaviest(&self, device: Option<usize>) -> usize {
        let cost = |m: &usize| self.cost(*m, device);
        self.micro_batches().max_by(|a, b| cost(a).total_cmp(&cost(b))).expect("there is a micro-batch")
    }

    /// The heaviest micro-batch, then the heaviest on each device, where it is well above the mean.
    fn heavy(&self) -> impl Iterator<Item = Heavy> {
        let parts = std::iter::once(None).chain((0..self.devices).map(Some));
        parts.filter_map(|device| {
            let heavy = Heavy { micro_batch: self.heaviest(device), device };
            let limit = self.mean(device) * (1.0 + LEVEL_ENOUGH);
            (self.cost(heavy.micro_batch, device) > limit).then_some(heavy)
        })
    }

    /// What a sequence of `device` finds in a micro-batch: the whole and, as often again as there are devices, its device's
    /// part. With one device simply twice the micro-batch's cost.
    pub(super) fn pressure(&self, micro_batch: usize, device: usize) -> f64 {
        let part = self.cost[self.cell(micro_batch, device)];
        self.cost_in_all[micro_batch] + self.devices as f64 * part
    }

    /// What prompts may bring a micro-batch up to, in all or on one device: [`FILL`] above the mean of what the
    /// micro-batches then cost, and no less than one costs anyhow. `None` where prompts may have whole chunks.
    fn cap(&self, device: Option<usize>) -> Option<f64> {
        let at = |costs: &[f64], m: usize| self.of(costs, m, device);
        let floor = at(&self.cost, self.heaviest(device));
        let sum = |costs: &[f64]| self.micro_batches().map(|m| at(costs, m)).sum::<f64>();
        let count = self.micro_batches().len() as f64;
        let filled: f64 = self.micro_batches().map(|m| at(&self.full, m).min(floor)).sum();
        if floor * count > filled * (1.0 + LEVEL) && sum(&self.reading) > MOSTLY_PROMPTS * sum(&self.cost) {
            return None;
        }
        let mut cap = f64::INFINITY;
        // Each turn takes those above the cap to cost just that; a lower cap may catch more of them.
        for _ in self.micro_batches() {
            let (mut capped, mut rest) = (0.0, 0.0);
            for full in self.micro_batches().map(|m| at(&self.full, m)) {
                if full > cap { capped += 1.0 } else { rest += full }
            }
            let share = count - capped * (1.0 + FILL);
            if share <= 0.0 {
                break;
            }
            cap = cap.min(rest * (1.0 + FILL) / share).max(floor);
        }
        Some(cap)
    }
}

impl StepPlanner {
    /// Counts what the next step of every micro-batch costs.
    pub(super) fn count_loads(&mut self) {
        let Self { loads, running, .. } = self;
        loads.cost.fill(0.0);
        loads.reading.fill(0.0);
        loads.full.fill(0.0);
        loads.members.fill(0);
        loads.members_in_all.fill(0);
        loads.prompts.fill(0);
        for running in running.iter().filter(|running| !running.ended) {
            let cell = loads.cell(running.home, running.device);
            loads.members[cell] += 1;
            loads.members_in_all[running.home] += 1;
            loads.prompts[cell] += usize::from(running.prefilling());
        }
        let most = self.prompt_rows_of_a_device();
        for index in 0..self.running.len() {
            let running = &self.running[index];
            if running.ended {
                continue;
            }
            let cell = self.loads.cell(running.home, running.device);
            let (cost, full) = if running.decodes() {
                let cost = self.cost.of(1, running.context());
                (cost, cost)
            } else {
                let rows = most.div_ceil(self.loads.prompts[cell].max(1)).min(self.config.prefill_chunk);
                (self.weight(running), self.weight_with(running, rows))
            };
            self.loads.reading[cell] += if running.prefilling() { cost } else { 0.0 };
            self.loads.cost[cell] += cost;
            self.loads.full[cell] += full;
        }
        let loads = &mut self.loads;
        let costs = loads.cost.chunks(loads.devices).map(|cells| cells.iter().sum());
        loads.cost_in_all.iter_mut().zip(costs).for_each(|(all, cost)| *all = cost);
    }

    /// Counts a sequence that is about to start, with so many tokens read.
    pub(super) fn count_new(&mut self, sequence: &Sequence, read: usize, micro_batch: usize, device: usize) {
        let cell = self.loads.cell(micro_batch, device);
        let rows = self.prompt_floor().min(sequence.known_tokens() - read);
        let cost = self.cost.of_prompt(rows, read);
        self.loads.cost[cell] += cost;
        self.loads.cost_in_all[micro_batch] += cost;
        self.loads.members[cell] += 1;
        self.loads.members_in_all[micro_batch] += 1;
        self.loads.prompts[cell] += 1;
    }

    /// Rows that all prompts of a device together have in a step of a micro-batch, whatever that does to balance.
    pub(super) fn prompt_floor(&self) -> usize {
        self.config.prefill_chunk.div_ceil(FLOOR_PARTS)
    }

    /// What a sequence will cost in a step, its prompt at its share of the floor.
    pub(super) fn weight(&self, running: &Running) -> f64 {
        if running.decodes() {
            return self.weight_with(running, 0);
        }
        let prompts = self.loads.prompts[self.loads.cell(running.home, running.device)].max(1);
        self.weight_with(running, self.prompt_floor().div_ceil(prompts))
    }

    /// The same, with as many rows of its prompt.
    fn weight_with(&self, running: &Running, prompt_rows: usize) -> f64 {
        if running.decodes() {
            self.cost.of(1, running.context())
        } else {
            self.cost.of_prompt(prompt_rows.min(running.prefill - running.prefilled), running.prefilled)
        }
    }

    /// What the prompts of `micro_batch` on all devices may cost beside its decode rows, whose cost is given.
    pub(super) fn prompt_cost_in_all(&self, micro_batch: usize, decode: f64) -> PromptCost {
        // While nobody decodes, nobody is kept waiting by a step that is longer than the one before it.
        let beside = self.someone_decodes();
        PromptCost {
            beside,
            most: self.cap_beside(micro_batch, None, beside).map_or(f64::INFINITY, |cap| cap - decode),
            wanted: self.loads.of(&self.loads.full, micro_batch, None) - decode,
        }
    }

    /// The same on `device`, given what there is for all.
    pub(super) fn prompt_cost(&self, micro_batch: usize, device: usize, decode: f64, in_all: PromptCost) -> f64 {
        let (loads, cell) = (&self.loads, self.loads.cell(micro_batch, device));
        let own = self.cap_beside(micro_batch, Some(device), in_all.beside).map_or(f64::INFINITY, |cap| cap - decode);
        // Devices share what is left in all as they could use it.
        let wanted = loads.full[cell] - decode;
        let share = if in_all.wanted > 0.0 { (wanted / in_all.wanted).clamp(0.0, 1.0) } else { 1.0 };
        let most = if in_all.most.is_finite() { in_all.most * share } else { f64::INFINITY };
        own.min(most).max(0.0)
    }

    fn cap_beside(&self, micro_batch: usize, device: Option<usize>, beside: bool) -> Option<f64> {
        let beside = if beside { self.cap_in_flight(micro_batch, device) } else { f64::INFINITY };
        Some(self.loads.cap(device)?.min(beside))
    }

    /// What a step may cost for its cost to be [`FILL_IN_FLIGHT`] above the mean of its own and those of the other
    /// micro-batches' steps in flight, in all or on one device.
    fn cap_in_flight(&self, micro_batch: usize, device: Option<usize>) -> f64 {
        let loads = &self.loads;
        let others = (0..self.config.micro_batches).filter(|m| *m != micro_batch);
        let cells = |m| device.map_or(loads.cells(m), |device| loads.cell(m, device)..loads.cell(m, device) + 1);
        let others = others.flat_map(cells);
        let sum: f64 =
            others.map(|cell| loads.in_flight[cell]).map(|(rows, context)| self.cost.of(rows, context)).sum();
        let share = loads.used as f64 - (1.0 + FILL_IN_FLIGHT);
        if share <= 0.0 { f64::INFINITY } else { sum * (1.0 + FILL_IN_FLIGHT) / share }
    }

    /// Rows of the steps in flight and what they attend to, over all micro-batches.
    pub(super) fn in_flight(&self) -> (usize, usize) {
        let all = self.loads.in_flight.iter();
        all.fold((0, 0), |(rows, context), cell| (rows + cell.0, context + cell.1))
    }

    /// Takes note of the step that was planned.
    pub(super) fn note_in_flight(&mut self, micro_batch: usize, batches: &[DeviceBatch]) {
        let cells = self.loads.cells(micro_batch);
        for (planned, batch) in self.loads.in_flight[cells].iter_mut().zip(batches) {
            *planned = (batch.rows, batch.context());
        }
    }

    /// Whether `micro_batch` can have one more sequence on `device`: each needs a row a step.
    pub(super) fn rows_room(&self, micro_batch: usize, device: usize) -> bool {
        self.loads.members[self.loads.cell(micro_batch, device)] < self.config.rows_per_device
            && self.loads.members_in_all[micro_batch] < self.config.rows_per_micro_batch
    }

    /// The micro-batch that a new sequence of `device` goes to: the cheapest of those in use, and of equals the one that is planned
    /// soonest. Where all of them are at their limits it is one of the others: a limit of rows is no reason to wait.
    pub(super) fn cheapest(&self, device: usize, planned_now: usize) -> Option<usize> {
        let (count, used) = (self.config.micro_batches, self.loads.used);
        let soonest_first = || (0..count).map(|i| (planned_now + i) % count).filter(|m| self.rows_room(*m, device));
        let by_pressure =
            |a: &usize, b: &usize| self.loads.pressure(*a, device).total_cmp(&self.loads.pressure(*b, device));
        let in_use = soonest_first().filter(|m| *m < used).min_by(by_pressure);
        in_use.or_else(|| soonest_first().min_by(by_pressure))
    }

    /// Gives sequences other homes until the heaviest micro-batch is near the mean, or nothing helps.
    #[inline(never)]
    pub(super) fn balance(&mut self) {
        for _ in 0..CHANGES_PER_CALL {
            self.count_loads();
            let mean = self.loads.mean(None);
            if self.loads.heavy().next().is_none() {
                self.level_for = LEVEL_FOR;
                return;
            }
            self.by_device.sort(self.loads.devices, &self.running);
            let Some((from, change)) = self.loads.heavy().find_map(|heavy| {
                let change = self.best_change(heavy, mean)?;
                Some((heavy.micro_batch, change))
            }) else {
                return;
            };
            self.running[change.sequence].home = change.to;
            self.moving = true;
            if let Some(back) = change.back {
                self.running[back].home = from;
            }
        }
    }

    fn best_change(&self, heavy: Heavy, mean: f64) -> Option<Change> {
        let from = heavy.micro_batch;
        let mut best: Option<Change> = None;
        let mut consider = |change: Option<Change>| {
            if let Some(change) = change
                && best.as_ref().is_none_or(|best| change.gain > best.gain)
            {
                best = Some(change);
            }
        };
        // Whoever moves waits for another plan call. It has rows in between, or it could move for ever and never have
        // any.
        let may_move = |(_, running): &(usize, &Running)| !running.ended && !running.fresh;
        let gives = |(_, r): &(usize, &Running)| r.home == from && heavy.device.is_none_or(|device| device == r.device);
        let all = 0..self.running.len();
        let own = heavy.device.map_or(&[][..], |device| self.by_device.of(device));
        let all = all.filter(|_| heavy.device.is_none()).chain(own.iter().copied());
        let with = |sequence: usize| (sequence, &self.running[sequence]);
        for (sequence, giver) in all.map(with).filter(may_move).filter(gives) {
            let (given, device) = (self.weight(giver), giver.device);
            for to in self.loads.micro_batches().filter(|to| *to != from && self.rows_room(*to, device)) {
                let gain = self.gain(heavy, to, device, given, mean);
                consider(gain.map(|gain| Change { gain, sequence, to, back: None }));
            }
            let others = self.by_device.of(device).iter().map(|other| with(*other)).filter(may_move);
            for (back, taker) in others.filter(|(_, r)| r.home != from && r.home < self.loads.used) {
                let taken = self.weight(taker);
                let gain = self.gain(heavy, taker.home, device, given - taken, mean);
                // Until it is there, its new micro-batch lacks it.
                let gain = gain.map(|gain| gain - taken * taken);
                consider(gain.map(|gain| Change { gain, sequence, to: taker.home, back: Some(back) }));
            }
        }
        best
    }

    /// By how much the sum of squared loads falls if `moved` leaves a heavy micro-batch; `None` if that is not worth
    /// it. What is done for the total must better the total; what is done for a device must leave the total level.
    fn gain(&self, heavy: Heavy, to: usize, device: usize, moved: f64, mean: f64) -> Option<f64> {
        let (loads, from) = (&self.loads, heavy.micro_batch);
        let weights = 1.0 + self.config.devices as f64;
        let gap = (loads.pressure(from, device) - loads.pressure(to, device)) / weights;
        let (total, total_to) = (loads.cost_in_all[from], loads.cost_in_all[to]);
        let bettered = match heavy.device {
            None => moved.min(total - total_to - moved),
            Some(_) if total_to + moved > mean * (1.0 + LEVEL_ENOUGH) => return None,
            Some(_) => moved.min(gap - moved),
        };
        (bettered > WORTH_IT * mean).then_some(moved * (gap - moved))
    }

    /// Members of `micro_batch` that have another home go there.
    #[inline(never)]
    pub(super) fn send_home(&mut self, micro_batch: usize) {
        for running in self.running.iter_mut().filter(|running| running.micro_batch == micro_batch) {
            running.fresh |= running.micro_batch != running.home;
            running.micro_batch = running.home;
        }
        self.moving = self.running.iter().any(|running| running.micro_batch != running.home);
    }
}
