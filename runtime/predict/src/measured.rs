//! Stage times that were measured on a card with rally's own kernels, for the shapes of Step-3.
//!
//! Only what was measured is here: attention's core, an undivided output projection with the others, what an attention layer takes beside
//! them, and experts as two ways of sharding have them. What a deployment has beside that follows from the card's figures, and is named.

use rally_cost::Dtype;
use rally_graph::model::ModelShape;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Measured times of one card.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageTimes {
    /// The card, as the library of hardware calls it.
    pub hardware: String,
    /// Where and how they were measured.
    pub source: String,
    shape: Shape,
    core: BTreeMap<String, Vec<CorePoint>>,
    projections: Vec<Point>,
    beside_us: f64,
    /// What `beside_us` is, for readers of the file.
    pub beside_note: String,
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

/// Cards that have been measured.
static ALL: LazyLock<Vec<StageTimes>> = LazyLock::new(|| {
    [include_str!("measured/h200.json")].map(|text| serde_json::from_str(text).expect("a test reads it")).into()
});

impl StageTimes {
    /// Of the card with this name, if it was measured.
    pub fn of(hardware: &str) -> Option<&'static Self> {
        ALL.iter().find(|measured| measured.hardware.eq_ignore_ascii_case(hardware))
    }

    /// Names of the cards there are.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ALL.iter().map(|measured| measured.hardware.as_str())
    }

    /// Whether these are times of a model of this shape.
    pub fn fits(&self, shape: &ModelShape) -> bool {
        let ModelShape { hidden, heads, head_dim, query_rank, expert_width, .. } = *shape;
        self.shape == Shape { hidden, heads, head_dim, query_rank, expert_width }
    }

    /// Seconds of one layer's attention of `rows` sequences that attend to `context` positions in all, its output projection undivided.
    /// `None` for a cache in a type that was not measured.
    pub fn attention_s(&self, rows: f64, context: f64, kv: Dtype) -> Option<f64> {
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
    pub fn experts_s(&self, experts: usize, width: usize, rows: f64) -> Option<f64> {
        let shard = self.experts.iter().find(|shard| (shard.experts, shard.width) == (experts, width))?;
        Some(interpolated(&line(&shard.points), rows) * 1e-6)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_points_are_given_back_and_nothing_else_is_claimed() {
        let h200 = StageTimes::of("h200").expect("it was measured");
        let near =
            |got: Option<f64>, us: f64| assert!(got.is_some_and(|s| (s * 1e6 - us).abs() < 1e-6), "{got:?} {us}");
        near(h200.experts_s(24, 640, 2048.0), 319.0);
        near(h200.experts_s(48, 640, 256.0), 218.0);
        near(h200.experts_s(24, 640, 1536.0), 265.0);
        assert_eq!(h200.experts_s(12, 640, 64.0), None);
        near(h200.attention_s(128.0, 128.0 * 4096.0, Dtype::Bf16), 137.7 + 90.5 + 58.3);
        near(h200.attention_s(64.0, 64.0 * 8192.0, Dtype::Bf16), 142.2 + 70.7 + 58.3);
        near(h200.attention_s(64.0, 64.0 * 4096.0, Dtype::Fp8), 49.0 + 70.7 + 58.3);
        assert_eq!(h200.attention_s(64.0, 1.0, Dtype::F32), None);
        // Few rows take no less than the fewest that were measured.
        near(h200.experts_s(24, 640, 1.0), 112.0);
        assert_eq!(StageTimes::of("H800"), None);
    }

    /// A whole layer was measured beside its parts: 278 and 669 µs of 64 sequences.
    #[test]
    fn parts_add_up_to_whole_layers_that_were_measured() {
        let h200 = StageTimes::of("H200").expect("it was measured");
        for (context, whole_us) in [(8192.0, 278.0), (32_768.0, 669.0)] {
            let us = h200.attention_s(64.0, 64.0 * context, Dtype::Bf16).expect("bf16 was measured") * 1e6;
            assert!((us / whole_us - 1.0).abs() < 0.04, "{context}: {us} of {whole_us}");
        }
    }
}
