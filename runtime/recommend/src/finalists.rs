//! The search's finalists on virtual lanes: each with as many rows as keep the target there, and the cheapest of them.
//!
//! The search ranks by arithmetic. Of every kind of layout (devices of an instance, sharding, wire, micro-batches) that comes near its
//! winner, the cheapest is simulated; the best few are given the rows that the target leaves on virtual lanes and are tried in other
//! orders; the cheapest of those is recommended.

use crate::pipeline::{Layout, Outcome, Workload};
use crate::search::{Candidate, Found, Pool};
use crate::simulate::{Counted, SimulateError, Simulated, Simulator, Terms};
use rally_cost::Hardware;
use rally_predict::PredictError;

/// Layouts that are simulated once, and of those the ones whose rows are fitted to the target.
const SIMULATED: usize = 6;
const FITTED: usize = 2;
/// Points of the front of cost that are simulated, the cheapest.
const OF_FRONT: usize = 4;
/// A layout dearer than this by arithmetic is no finalist.
const NEAR: f64 = 1.6;
/// The policy that the best of all is tried with beside ping-pong. One micro-batch after the other never keeps a target better.
const OTHER_POLICY: &str = "greedy";

/// A layout with what arithmetic and virtual lanes make of it, at the same rows.
#[derive(Clone, Debug)]
pub struct Finalist {
    /// By arithmetic.
    pub candidate: Candidate,
    /// On virtual lanes.
    pub simulated: Simulated,
}

impl Finalist {
    /// By how much virtual lanes take longer a token, as a share of what arithmetic says.
    pub fn off(&self) -> f64 {
        self.simulated.tpot_s / self.candidate.outcome.tpot_s - 1.0
    }
}

/// What virtual lanes say of a search's result.
#[derive(Clone, Debug)]
pub struct Finals {
    /// The cheapest tokens that keep the target on virtual lanes.
    pub best: Option<Finalist>,
    /// The same layout in the order that lost, at the same rows.
    pub other_order: Option<Simulated>,
    /// Every finalist that was simulated, at the rows that arithmetic gave it, the most promising first.
    pub finalists: Vec<Finalist>,
    /// The cheapest points of the front of cost, at their own rows, the cheapest first.
    pub front: Vec<Finalist>,
    /// Why the best takes longer under ping-pong than arithmetic says.
    pub terms: Option<Terms>,
}

/// The finalists of `found`.
pub struct Finalists<'a> {
    simulator: Simulator<'a>,
    workload: &'a Workload,
    pool: &'a [Pool],
    tpot_s: f64,
}

impl<'a> Finalists<'a> {
    /// `None` for models that rally has no stages for.
    pub fn new(workload: &'a Workload, pool: &'a [Pool], tpot_s: f64) -> Option<Self> {
        Some(Self { simulator: Simulator::new(workload)?, workload, pool, tpot_s })
    }

    /// Simulates them.
    ///
    /// # Errors
    /// [`SimulateError`] where a layout is no graph that runs, or specs lack a figure.
    pub fn run(&self, found: &Found) -> Result<Finals, SimulateError> {
        let least = found.best.as_ref().map_or(f64::INFINITY, |best| best.outcome.usd_per_mtok());
        let near = found.kinds.iter().filter(|candidate| candidate.outcome.usd_per_mtok() <= NEAR * least);
        let mut finalists = Vec::new();
        for candidate in near.take(SIMULATED) {
            finalists.extend(self.simulated_if_even(candidate)?);
        }
        finalists.sort_by(|left, right| self.hoped(left).total_cmp(&self.hoped(right)));
        let mut best: Option<Finalist> = None;
        for finalist in finalists.iter().take(FITTED) {
            let Some(fitted) = self.fitted(finalist)? else { continue };
            if best.as_ref().is_none_or(|best| fitted.simulated.usd_per_mtok() < best.simulated.usd_per_mtok()) {
                best = Some(fitted);
            }
        }
        let (mut other_order, mut terms) = (None, None);
        if let Some(best) = &mut best {
            let outcome = &best.candidate.outcome;
            terms = Some(self.simulator.terms(self.on(&best.candidate), &outcome.layout, self.rows(outcome))?);
            let other = self.simulated(&best.candidate, OTHER_POLICY)?;
            // An order must be better by more than rounding makes it.
            let loser = match other.simulated.tpot_s < best.simulated.tpot_s * 0.999 {
                true => std::mem::replace(best, other),
                false => other,
            };
            other_order = Some(loser.simulated);
        }
        let front = found.cost_front.iter().rev().take(OF_FRONT);
        let front: Vec<Option<Finalist>> =
            front.map(|candidate| self.simulated_if_even(candidate)).collect::<Result<_, _>>()?;
        let front = front.into_iter().flatten().collect();
        Ok(Finals { best, other_order, finalists, front, terms })
    }

    /// A layout of the search on virtual lanes, in the order of `policy`.
    ///
    /// # Errors
    /// As [`Finalists::run`].
    pub fn simulated(&self, candidate: &Candidate, policy: &str) -> Result<Finalist, SimulateError> {
        let outcome = &candidate.outcome;
        let rows = self.rows(outcome);
        let simulated = self.simulator.run(self.on(candidate), &outcome.layout, rows, policy, Counted::ALL)?;
        Ok(Finalist { candidate: candidate.clone(), simulated })
    }

    /// Under ping-pong; `None` where so many devices do not all do the same that it would take minutes.
    fn simulated_if_even(&self, candidate: &Candidate) -> Result<Option<Finalist>, SimulateError> {
        match self.simulated(candidate, "ping_pong") {
            Err(SimulateError::Predict(PredictError::Uneven(_))) => Ok(None),
            simulated => simulated.map(Some),
        }
    }

    fn on(&self, candidate: &Candidate) -> (&'a Hardware, &'a Hardware) {
        (&self.pool[candidate.attention_on].hardware, &self.pool[candidate.ffn_on].hardware)
    }

    fn rows(&self, outcome: &Outcome) -> f64 {
        (outcome.batch / f64::from(outcome.layout.micro_batches)).round()
    }

    /// What its tokens would cost with rows that keep the target: with half the rows a token takes more than half the time.
    fn hoped(&self, finalist: &Finalist) -> f64 {
        let over = (finalist.simulated.tpot_s / self.tpot_s).max(1.0);
        finalist.simulated.usd_per_mtok() * over.sqrt()
    }

    /// The same layout with the most rows that keep the target on virtual lanes; none where no rows do.
    fn fitted(&self, finalist: &Finalist) -> Result<Option<Finalist>, SimulateError> {
        let Layout { attention, devices, .. } = finalist.candidate.outcome.layout;
        let step = f64::from(attention * devices);
        let steps = |outcome: &Outcome| (self.rows(outcome) / step).round() as u32;
        let (mut good, mut bad): (Option<Finalist>, Option<(u32, f64)>) = (None, None);
        let mut tried = finalist.clone();
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            let (here, took) = (steps(&tried.candidate.outcome), tried.simulated.tpot_s);
            match took <= self.tpot_s {
                true => good = Some(tried.clone()),
                false => bad = Some((here, took)),
            }
            let Some((most, over_s)) = bad else { break };
            let known = good.as_ref().map(|good| (steps(&good.candidate.outcome), good.simulated.tpot_s));
            // On the line through what is known. As long as nothing holds, half the target is taken to be what no rows would take: too
            // few rows are made more again.
            let (least, under_s) = known.unwrap_or((0, 0.5 * self.tpot_s));
            if most <= 1 || most - least <= 1 + least / 100 {
                break;
            }
            let share = (self.tpot_s - under_s) / (over_s - under_s);
            let next = least + ((f64::from(most - least) * share) as u32).clamp(1, most - least - 1);
            let outcome = &finalist.candidate.outcome;
            let on = self.on(&finalist.candidate);
            let outcome = Outcome::of(self.workload, on, &outcome.layout, step * f64::from(next))?;
            match self.simulated_if_even(&Candidate { outcome, ..finalist.candidate.clone() })? {
                Some(simulated) => tried = simulated,
                None => break,
            }
        }
        Ok(good)
    }
}
