//! Parts that were measured each alone: attention's core, projections with their input quantised, what a layer takes beside them, and the
//! routed experts of shards.

use super::{StageTimes, Times};
use rally_cost::Dtype;
use rally_graph::model::ModelShape;
use serde::Deserialize;
use std::collections::BTreeMap;

/// As a file has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    hardware: String,
    source: String,
    shape: Shape,
    core: BTreeMap<String, Vec<CorePoint>>,
    projections: Vec<Point>,
    beside_us: f64,
    #[serde(rename = "beside_note")]
    _beside_note: String,
    experts: Vec<Shard>,
}

/// Times of one card.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PartTimes {
    shape: Shape,
    core: BTreeMap<String, Vec<CorePoint>>,
    projections: Vec<Point>,
    beside_us: f64,
    experts: Vec<Shard>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    hidden: usize,
    heads: usize,
    head_dim: usize,
    query_rank: usize,
    expert_width: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct CorePoint {
    sequences: u64,
    context: u64,
    us: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    rows: u64,
    us: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    experts: usize,
    width: usize,
    points: Vec<Point>,
}

/// Reads a file.
pub(super) fn read(text: &str) -> serde_json::Result<StageTimes> {
    let File { hardware, source, shape, core, projections, beside_us, experts, .. } = serde_json::from_str(text)?;
    let times = Times::Parts(PartTimes { shape, core, projections, beside_us, experts });
    Ok(StageTimes { hardware, source, times, shares: Vec::new() })
}

impl PartTimes {
    /// Whether these are times of a model of this shape.
    pub(super) fn fits(&self, shape: &ModelShape) -> bool {
        let ModelShape { hidden, heads, head_dim, query_rank, expert_width, .. } = *shape;
        self.shape == Shape { hidden, heads, head_dim, query_rank, expert_width }
    }

    /// Seconds of one layer's attention of `rows` sequences that attend to `context` positions in all, its output projection undivided.
    /// `None` for a cache in a type that was not measured.
    pub(super) fn attention_s(&self, rows: f64, context: f64, kv: Dtype) -> Option<f64> {
        let points = self.core.get(kv.name())?;
        let mut by_context: Vec<(f64, f64)> =
            points.iter().map(|point| ((point.sequences * point.context) as f64, point.us)).collect();
        // Of equal contexts in different shapes the slower one stands, unless it is the very shape.
        let same = |point: &&CorePoint| {
            let at = (point.sequences * point.context) as f64;
            (point.sequences as f64 - rows).abs() < 0.5 && (at - context).abs() < 0.01 * at
        };
        by_context.sort_by(|left, right| left.0.total_cmp(&right.0).then(right.1.total_cmp(&left.1)));
        by_context.dedup_by_key(|point| point.0);
        let core = points.iter().find(same).map_or_else(|| interpolated(&by_context, context), |point| point.us);
        Some((core + interpolated(&line(&self.projections), rows) + self.beside_us) * 1e-6)
    }

    /// Seconds of the routed experts of one layer on a device that holds `experts` of them, `width` columns of each, when `rows` rows
    /// choose among all. `None` for a shard that was not measured.
    pub(super) fn experts_s(&self, experts: usize, width: usize, rows: f64) -> Option<f64> {
        let shard = self.experts.iter().find(|shard| (shard.experts, shard.width) == (experts, width))?;
        Some(interpolated(&line(&shard.points), rows) * 1e-6)
    }

    pub(super) fn shards(&self) -> Vec<(usize, usize)> {
        self.experts.iter().map(|shard| (shard.experts, shard.width)).collect()
    }
}

fn line(points: &[Point]) -> Vec<(f64, f64)> {
    points.iter().map(|point| (point.rows as f64, point.us)).collect()
}

/// On the line between neighbours; as at the least point below it, as between the last two beyond. `points` ascend, two at least.
fn interpolated(points: &[(f64, f64)], at: f64) -> f64 {
    let above = points.partition_point(|point| point.0 < at).clamp(1, points.len() - 1);
    let ((x0, y0), (x1, y1)) = (points[above - 1], points[above]);
    (y0 + (y1 - y0) * (at - x0) / (x1 - x0)).max(points[0].1)
}
