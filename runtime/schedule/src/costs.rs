//! Stage costs: how long a stage's work takes for a number of rows. What `greedy` orders by and virtual lanes may run on.

use rally_graph::kinds::{KindRegistry, Role, WeightPart};
use rally_graph::model::ModelShape;
use rally_graph::plan::{StageLabel, TaskId, TaskRole, TaskTable};
use rally_graph::shard::ShardCounts;
use rally_graph::stage_graph::StageGraph;
use std::collections::BTreeMap;

/// Seconds by kind of stage, part of it, and rows. Where nothing is known, an assumption by role stands in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageCosts {
    /// Rows and seconds, by ascending rows.
    known: BTreeMap<CostKey, Vec<(usize, f64)>>,
}

/// Kind, role, and part of a stage that is done in several.
type CostKey = (String, &'static str, usize);

/// Of an H800 (Step-3 paper, table 5).
const BYTES_PER_SECOND: f64 = 3.35e12;
/// Of an H800 in 8 bits.
const FLOPS: f64 = 1.98e15;

/// Seconds that one unit of the assumed costs stands for.
const UNIT: f64 = 10e-6;

impl StageCosts {
    /// Nothing known. Attention and FFN are taken to be alike, as a balanced deployment has them, and the rest to be small: 8
    /// units each, 2 for sampling, 1 for anything else that computes, nothing for transfers. One unit is 10 µs, whatever the rows.
    pub fn assumed() -> Self {
        Self::default()
    }

    /// Taken from the model's shapes: of every kind the fullest device and layer of `graph`, for `rows`
    /// rows. A stage takes as long as reading the weights that its rows touch, or as multiplying with them,
    /// whichever is longer, on a card of Step-3's report (H800: 3.35 TB/s, 1.98 PFLOP/s in 8 bits); attention's look at its
    /// context is left out. Only the ratios of stages mean anything on another machine.
    pub fn of_shapes(graph: &StageGraph, shape: &ModelShape, kinds: &KindRegistry, rows: usize) -> Self {
        let mut costs = Self::default();
        for instance in graph.graph.node_weights() {
            let stage = &graph.stages[instance.stage];
            let Some(info) = kinds.get(&stage.kind).filter(|info| info.role() != Role::Transfer) else { continue };
            let counts = ShardCounts::of(stage.spec.shard.as_ref());
            let seconds = (0..stage.devices.len()).map(|device| {
                let position = counts.position(device);
                let part = WeightPart { shape, layer: instance.layer, counts, position, held: None };
                let (bytes, active) = (info.weights_bytes(&part) as f64, info.active_share(shape));
                let touched = (rows as f64 * active).min(1.0);
                (bytes * touched / BYTES_PER_SECOND).max(2.0 * bytes * active * rows as f64 / FLOPS)
            });
            let longest = seconds.fold(0.0, f64::max);
            let known = costs.known.entry((stage.kind.clone(), TaskRole::Compute.name(), 0)).or_default();
            match known.first_mut() {
                Some((_, before)) => *before = longest.max(*before),
                None => known.push((rows, longest)),
            }
        }
        costs
    }

    /// What is known here, and where nothing is, what `other` knows.
    pub fn or(mut self, other: Self) -> Self {
        for (key, points) in other.known {
            self.known.entry(key).or_insert(points);
        }
        self
    }

    /// Adds what was measured: a task with `role` of a stage of `kind` takes `seconds` for `rows`; of a stage that is done in
    /// several parts, its first part.
    pub fn set(&mut self, kind: &str, role: TaskRole, rows: usize, seconds: f64) {
        self.set_part(kind, role, 0, rows, seconds);
    }

    /// Adds what was measured of a stage that is done in several parts: the one with index `part` takes `seconds` for `rows`.
    pub fn set_part(&mut self, kind: &str, role: TaskRole, part: usize, rows: usize, seconds: f64) {
        let points = self.known.entry((kind.into(), role.name(), part)).or_default();
        match points.binary_search_by_key(&rows, |point| point.0) {
            Ok(index) => points[index].1 = seconds,
            Err(index) => points.insert(index, (rows, seconds)),
        }
    }

    /// Seconds of a task with `role` of a stage, of its first part if it is done in several: between two known numbers of rows
    /// on the line between them, outside as at the nearest.
    pub fn seconds(&self, stage: &StageLabel, role: TaskRole, rows: usize) -> f64 {
        self.part_seconds(stage, role, 0, rows)
    }

    /// The same of the part with index `part`.
    pub fn part_seconds(&self, stage: &StageLabel, role: TaskRole, part: usize, rows: usize) -> f64 {
        let known = self.known.get(&(stage.kind.clone(), role.name(), part));
        let Some(points) = known else { return assumed(stage, role) };
        let above = points.partition_point(|point| point.0 < rows);
        match (above.checked_sub(1).map(|below| points[below]), points.get(above)) {
            (Some((low, from)), Some((high, to))) => from + (to - from) * (rows - low) as f64 / (high - low) as f64,
            (Some((_, nearest)), None) | (None, Some(&(_, nearest))) => nearest,
            (None, None) => assumed(stage, role),
        }
    }

    /// Nanoseconds of a task.
    pub fn task_ns(&self, table: &TaskTable, task: TaskId, rows: usize) -> u64 {
        let template = &table.tasks[task];
        let stage = &table.stages[template.stage];
        (self.part_seconds(stage, template.role, template.part, rows) * 1e9).round().max(0.0) as u64
    }

    /// Whether some known cost of `now` is off the same cost here by more than `tolerance` (0.2: a fifth), or new.
    pub fn drifted(&self, now: &Self, tolerance: f64) -> bool {
        now.known.iter().any(|(key, points)| {
            let before = self.known.get(key);
            points.iter().any(|(rows, seconds)| {
                let old = before.and_then(|points| points.iter().find(|point| point.0 == *rows));
                old.is_none_or(|(_, old)| (seconds - old).abs() > tolerance * old.abs())
            })
        })
    }
}

fn assumed(stage: &StageLabel, role: TaskRole) -> f64 {
    let units = match (role, stage.role) {
        (TaskRole::Send | TaskRole::Receive | TaskRole::Exchange, _) => 0.0,
        (_, Role::Attention | Role::Ffn) => 8.0,
        (_, Role::Sampling) => 2.0,
        _ => 1.0,
    };
    units * UNIT
}
