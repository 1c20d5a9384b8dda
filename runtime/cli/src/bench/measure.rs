//! What the lanes of a contender did, over all its rounds: stage times, busy and bubble shares, overlap.
//!
//! What spans mean is `rally-trace`'s; here rounds are added up, so that percentiles are those of all tasks of all rounds.

use rally_engine::RunReport;
use rally_graph::plan::Plan;
use rally_load::statistics::{mean, percentile};
use rally_trace::digest::digest;
use rally_trace::{Analysis, Cause, Recording, Window};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// When the load of a round was under way, in nanoseconds since the run began.
#[derive(Clone, Copy, Debug)]
pub struct LoadTimes {
    /// It began; what came before is the warm-up.
    pub from_ns: u64,
    /// It began to drain: every request had begun, and the next one ended.
    pub drain_ns: u64,
}

/// A lane's time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaneSum {
    /// Its name.
    pub name: String,
    busy_ns: u64,
    transfer_ns: u64,
    /// In the order of [`Cause::ALL`].
    bubble_ns: [u64; 5],
}

impl LaneSum {
    fn wall_ns(&self) -> u64 {
        self.busy_ns + self.bubble_ns.iter().sum::<u64>()
    }

    fn share(&self, ns: u64) -> f64 {
        if self.wall_ns() == 0 { 0.0 } else { ns as f64 / self.wall_ns() as f64 }
    }

    /// Share of the time spent in tasks, 0 to 1.
    pub fn busy_share(&self) -> f64 {
        self.share(self.busy_ns)
    }

    /// Share of the time without a task, 0 to 1.
    pub fn bubble_share(&self) -> f64 {
        self.share(self.bubble_ns.iter().sum())
    }

    /// The same by what was waited for.
    pub fn bubble_shares(&self) -> impl Iterator<Item = (Cause, f64)> {
        Cause::ALL.into_iter().map(|cause| (cause, self.share(self.bubble_ns[cause.index()])))
    }

    fn json(&self) -> Value {
        let causes: serde_json::Map<String, Value> =
            self.bubble_shares().map(|(cause, share)| (cause.name().into(), json!(share))).collect();
        json!({
            "name": self.name,
            "busy_share": self.busy_share(),
            "bubble_share": self.bubble_share(),
            "transfer_share": self.share(self.transfer_ns),
            "bubbles": causes,
        })
    }
}

/// Times of one stage, or of one part of a transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct StageTimes {
    /// Id in the graph.
    pub stage: String,
    /// `compute`, `send`, `receive`, `exchange`.
    pub part: &'static str,
    /// Of each task, in microseconds, ascending.
    pub sorted_us: Vec<f64>,
}

impl StageTimes {
    /// Mean microseconds of a task.
    pub fn mean_us(&self) -> f64 {
        mean(&self.sorted_us).unwrap_or(0.0)
    }

    /// The `percent`-th percentile in microseconds.
    pub fn percentile_us(&self, percent: f64) -> f64 {
        percentile(&self.sorted_us, percent).unwrap_or(0.0)
    }

    /// Seconds of all tasks.
    pub fn total_s(&self) -> f64 {
        self.sorted_us.iter().sum::<f64>() / 1e6
    }

    fn json(&self) -> Value {
        json!({
            "stage": self.stage,
            "part": self.part,
            "count": self.sorted_us.len(),
            "mean_us": self.mean_us(),
            "p50_us": self.percentile_us(50.0),
            "p99_us": self.percentile_us(99.0),
        })
    }
}

/// Steps that only decoded, and what they took: a step that reads a prompt is as long as the prompt makes it, and says nothing of
/// how long a token takes.
#[derive(Clone, Copy, Debug, Default)]
struct Decoding {
    steps: u64,
    bound_ns: u64,
    measured_ns: u64,
}

impl Decoding {
    const FEWEST_STEPS: u64 = Window::FEWEST_STEPS as u64;

    fn add(&mut self, recording: &Recording<'_>, until_ns: u64) {
        for window in Window::decoding(recording, until_ns) {
            let overlap = Analysis::of(recording, window.clone()).overlap;
            self.steps += window.count as u64;
            self.bound_ns += overlap.bound_ns;
            self.measured_ns += overlap.measured_ns;
        }
    }

    fn unknown(&self) -> Option<String> {
        let few = self.steps < Self::FEWEST_STEPS;
        few.then(|| {
            format!(
                "{} of the load's steps only decoded, and it takes {}: longer outputs have more",
                self.steps,
                Self::FEWEST_STEPS
            )
        })
    }
}

/// Sums over the rounds of a contender.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// By lane, in the plan's order.
    pub lanes: Vec<LaneSum>,
    durations_us: BTreeMap<(String, &'static str), Vec<f64>>,
    steps: u64,
    decoding: Decoding,
    exposed_ns: u64,
    transfer_ns: u64,
    /// Hidden share of each round.
    hidden: Vec<f64>,
    dropped_spans: u64,
    /// Where the steps of the last round went, a line each.
    pub digest: Vec<String>,
    /// Who was slow in the last round.
    stragglers: Vec<Value>,
}

impl Measured {
    /// Adds a round: what its lanes did in `load`, its last part the `drain`, all in nanoseconds since the run began. The `last`
    /// round leaves a digest.
    pub fn add(&mut self, report: &mut RunReport, plan: &Plan, load: LoadTimes, last: bool) {
        for lane in &mut report.lanes {
            lane.spans.retain(|span| span.start_ns >= load.from_ns);
        }
        let cores = last.then(crate::doctor::available_cores);
        self.add_recording(&Recording::new(plan, &report.lanes, &report.counters), load.drain_ns, last, cores);
    }

    /// Adds what real or virtual lanes did, draining from `drain_ns` on. The `last` leaves a digest, which advises no more lanes than
    /// there are `cores`.
    pub fn add_recording(&mut self, recording: &Recording<'_>, drain_ns: u64, last: bool, cores: Option<usize>) {
        let plan = recording.plan;
        let analysis = Analysis::of(recording, Window::all(recording));
        self.lanes.resize_with(analysis.lanes.len(), LaneSum::default);
        for (sum, lane) in self.lanes.iter_mut().zip(&analysis.lanes) {
            sum.name.clone_from(&lane.name);
            sum.busy_ns += lane.busy_ns;
            sum.transfer_ns += lane.transfer_ns;
            sum.bubble_ns.iter_mut().zip(lane.bubble_ns).for_each(|(sum, ns)| *sum += ns);
        }
        for (lane, report) in recording.lanes.iter().enumerate() {
            for span in &report.spans {
                let task = recording.template(lane, span);
                let key = (plan.table.stages[task.stage].id.clone(), task.role.name());
                self.durations_us.entry(key).or_default().push((span.end_ns - span.start_ns) as f64 / 1e3);
            }
        }
        let Analysis { overlap, transfers, window, .. } = &analysis;
        self.steps += window.count as u64;
        self.decoding.add(recording, drain_ns);
        self.exposed_ns += transfers.exposed_ns;
        self.transfer_ns += transfers.a_to_f_ns + transfers.f_to_a_ns;
        self.hidden.push(overlap.hidden_share);
        self.dropped_spans += recording.dropped_spans();
        if last {
            self.digest = digest(recording, cores);
            self.stragglers = crate::stragglers::json(recording);
        }
    }

    /// The time that stage times allow, over the time that was measured, 0 to 1, of steps that only decoded.
    pub fn overlap_efficiency(&self) -> Option<f64> {
        let Decoding { bound_ns, measured_ns, .. } = self.decoding;
        (self.bound_unknown().is_none() && measured_ns > 0).then(|| bound_ns as f64 / measured_ns as f64)
    }

    /// Milliseconds a step that only decodes would take if the busiest lane never waited.
    pub fn bound_tpot_ms(&self) -> Option<f64> {
        let Decoding { steps, bound_ns, .. } = self.decoding;
        self.bound_unknown().is_none().then(|| bound_ns as f64 / 1e6 / steps as f64)
    }

    /// Why there is no bound, if there is none.
    pub fn bound_unknown(&self) -> Option<String> {
        self.decoding.unknown()
    }

    /// Milliseconds a step on which nothing but a transfer was under way that others waited for.
    pub fn exposed_transfer_ms(&self) -> f64 {
        self.exposed_ns as f64 / 1e6 / self.steps.max(1) as f64
    }

    /// Of the work that could run beside the busier side's, the share that did.
    pub fn hidden_share(&self) -> f64 {
        mean(&self.hidden).unwrap_or(0.0)
    }

    /// Tasks that fell out of the rings, of which nothing here knows.
    pub fn dropped_spans(&self) -> u64 {
        self.dropped_spans
    }

    /// By stage and part, the most time first.
    pub fn stages(&self) -> Vec<StageTimes> {
        let mut stages: Vec<StageTimes> = self
            .durations_us
            .iter()
            .map(|((stage, part), durations)| {
                let mut sorted_us = durations.clone();
                sorted_us.sort_by(f64::total_cmp);
                StageTimes { stage: stage.clone(), part, sorted_us }
            })
            .collect();
        stages.sort_by(|a, b| b.total_s().total_cmp(&a.total_s()));
        stages
    }

    /// Keys beside those of the requests.
    pub fn put_json(&self, run: &mut serde_json::Map<String, Value>) {
        run.insert("overlap_efficiency".into(), json!(self.overlap_efficiency()));
        run.insert("bound_tpot_ms".into(), json!(self.bound_tpot_ms()));
        run.insert("bound_unknown".into(), json!(self.bound_unknown()));
        run.insert("hidden_share".into(), json!(self.hidden_share()));
        run.insert("exposed_transfer_ms".into(), json!(self.exposed_transfer_ms()));
        run.insert("transfer_ms".into(), json!(self.transfer_ns as f64 / 1e6 / self.steps.max(1) as f64));
        run.insert("steps".into(), json!(self.steps));
        run.insert("lanes".into(), self.lanes.iter().map(LaneSum::json).collect());
        run.insert("stages".into(), self.stages().iter().map(StageTimes::json).collect());
        run.insert("dropped_spans".into(), json!(self.dropped_spans));
        run.insert("digest".into(), json!(self.digest));
        run.insert("stragglers".into(), json!(self.stragglers));
    }
}
