//! What is shown where one of all devices that do the same was run: sums, by class of devices.

use crate::table::Table;
use rally_engine::schedule::virtual_lanes::{Fold, StageSum, VirtualLane, VirtualReport};
use rally_graph::plan::Plan;
use rally_graph::stage_graph::StageGraph;
use serde_json::{Map, Value, json};

/// Sums of a folded run.
pub struct Folded<'a> {
    /// The stage graph of all devices.
    pub graph: &'a StageGraph,
    /// The lanes that were run.
    pub plan: &'a Plan,
    /// For whom.
    pub fold: &'a Fold,
    /// What they did.
    pub report: &'a VirtualReport,
}

impl Folded<'_> {
    /// Lanes that were run, with how many do the same.
    fn lanes(&self) -> impl Iterator<Item = (&VirtualLane, usize)> {
        let times = self.plan.lanes.iter().map(|lane| self.fold.members(lane.device).len());
        self.report.lanes.iter().zip(times)
    }

    fn share(&self, ns: u64) -> f64 {
        if self.report.wall_ns == 0 { 0.0 } else { ns as f64 / self.report.wall_ns as f64 }
    }

    fn mean_us(sum: &StageSum) -> f64 {
        sum.busy_ns as f64 / 1e3 / sum.tasks.max(1) as f64
    }

    /// Keys beside those of the requests.
    pub fn put_json(&self, run: &mut Map<String, Value>) {
        let lane = |(lane, alike): (&VirtualLane, usize)| {
            json!({
                "name": lane.report.name,
                "alike": alike,
                "busy_share": self.share(lane.report.busy_ns),
                "bubble_share": self.share(lane.bubble_ns),
            })
        };
        let stage = |sum: &StageSum| {
            json!({
                "stage": self.graph.stages[sum.stage].id,
                "part": sum.role.name(),
                "count": sum.tasks,
                "mean_us": Self::mean_us(sum),
            })
        };
        run.insert("lanes".into(), self.lanes().map(lane).collect());
        run.insert("stages".into(), self.report.stages.iter().map(stage).collect());
    }

    /// Stages and classes of lanes, as tables.
    pub fn text(&self) -> String {
        let all: u64 = self.report.stages.iter().map(|sum| sum.busy_ns).sum();
        let mut sums: Vec<&StageSum> = self.report.stages.iter().collect();
        sums.sort_by_key(|sum| std::cmp::Reverse(sum.busy_ns));
        let mut stages = Table::new(&["stage", "mean µs", "tasks", "of all work"]);
        for sum in sums {
            let (id, part) = (&self.graph.stages[sum.stage].id, sum.role.name());
            let name = if part == "compute" { id.clone() } else { format!("{id} {part}") };
            let share = sum.busy_ns as f64 / all.max(1) as f64 * 100.0;
            let mean = format!("{:.1}", Self::mean_us(sum));
            stages.row(&[&name, &mean, &sum.tasks.to_string(), &format!("{share:.1} %")]);
        }
        let mut lanes = Table::new(&["lane", "devices that do the same", "busy", "bubble"]);
        for (lane, alike) in self.lanes() {
            let percent = |ns: u64| format!("{:.0} %", self.share(ns) * 100.0);
            lanes.row(&[
                &lane.report.name,
                &alike.to_string(),
                &percent(lane.report.busy_ns),
                &percent(lane.bubble_ns),
            ]);
        }
        format!("{stages}\n{lanes}")
    }
}
