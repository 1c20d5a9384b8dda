//! Results as JSON: what was measured, on what, under which load.

use super::contender::Contender;
use super::round::Rounds;
use super::text::Told;
use crate::identity::{GraphIdentity, ModelIdentity};
use crate::load_args::MadeLoad;
use crate::machine::Machine;
use rally_load::goodput::Goal;
use rally_load::statistics::{Distribution, Spread};
use rally_load::summary::Summary;
use serde_json::{Map, Value, json};

/// A contender that was measured.
pub struct Measurement<'a> {
    /// What it is.
    pub contender: &'a Contender,
    /// Its name in tables.
    pub name: String,
    /// Its rounds, at least one.
    pub rounds: Rounds,
    /// All rounds as one.
    pub summary: Summary,
}

impl Measurement<'_> {
    /// As it is told to people.
    pub fn told(&self) -> Told<'_> {
        Told {
            summary: &self.summary,
            measured: &self.rounds.measured,
            rounds: self.rounds.summaries.len(),
            preemptions: self.rounds.preemptions,
        }
    }

    /// A figure of each round.
    pub fn each(&self, of: impl Fn(&Summary) -> f64) -> Vec<f64> {
        self.rounds.summaries.iter().map(of).collect()
    }

    /// The mean of a latency in each round that has one.
    pub fn each_mean(&self, of: impl Fn(&Summary) -> Option<Distribution>) -> Vec<f64> {
        self.rounds.summaries.iter().filter_map(of).map(|latency| latency.mean).collect()
    }

    fn json(&self) -> Value {
        let mut run = Map::new();
        run.insert("schedule".into(), json!(self.contender.schedule.label));
        run.insert("name".into(), json!(self.name));
        run.insert("graph".into(), json!(GraphIdentity::of(&self.contender.deployment, &self.contender.path)));
        run.append(&mut self.summary.to_json());
        self.rounds.measured.put_json(&mut run);
        run.insert("preemptions".into(), json!(self.rounds.preemptions));
        run.insert("interrupted".into(), json!(self.rounds.interrupted));
        run.insert("repeats".into(), self.rounds.summaries.iter().map(round_json).collect());
        run.insert(
            "spread".into(),
            json!({
                "output_throughput": spread_json(&self.each(Summary::output_throughput)),
                "mean_tpot_ms": spread_json(&self.each_mean(|summary| summary.tpot_ms)),
                "mean_ttft_ms": spread_json(&self.each_mean(|summary| summary.ttft_ms)),
            }),
        );
        Value::Object(run)
    }
}

/// The mean, or 0 where nothing came.
pub fn mean(latency: Option<Distribution>) -> f64 {
    latency.map_or(0.0, |latency| latency.mean)
}

fn round_json(summary: &Summary) -> Value {
    json!({
        "completed": summary.completed,
        "duration": summary.duration_s,
        "output_throughput": summary.output_throughput(),
        "request_goodput": summary.request_goodput(),
        "mean_ttft_ms": summary.ttft_ms.map(|latency| latency.mean),
        "mean_tpot_ms": summary.tpot_ms.map(|latency| latency.mean),
    })
}

fn spread_json(values: &[f64]) -> Value {
    Spread::of(values).map_or(Value::Null, |spread| {
        json!({
            "median": spread.median,
            "min": spread.min,
            "max": spread.max,
            "ci95": spread.ci95.map(|(low, high)| [low, high]),
            "count": spread.count,
        })
    })
}

/// The whole result. Its graph and model are those of the first contender.
pub fn result(
    machine: &Machine,
    load: &MadeLoad,
    warm_up: usize,
    goals: &[Goal],
    measurements: &[Measurement<'_>],
    verdict: &[String],
) -> Value {
    let first = measurements.first().map(|measurement| measurement.contender);
    let mut load_json = load.json.clone();
    load_json["warmup"] = json!(warm_up);
    json!({
        "machine": machine,
        "model": first.map(|contender| ModelIdentity::of(&contender.deployment)),
        "graph": first.map(|contender| GraphIdentity::of(&contender.deployment, &contender.path)),
        "load": load_json,
        "goodput": goals.iter().map(Goal::to_string).collect::<Vec<_>>(),
        "runs": measurements.iter().map(Measurement::json).collect::<Vec<_>>(),
        "verdict": verdict,
    })
}
