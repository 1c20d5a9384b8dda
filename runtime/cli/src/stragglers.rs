//! Stragglers as results name them.

use rally_trace::Recording;
use rally_trace::stragglers::{Culprit, Straggler, while_settled};
use serde_json::{Value, json};

/// Who was slow while the run was settled, the costliest first.
pub fn json(recording: &Recording<'_>) -> Vec<Value> {
    while_settled(recording).iter().map(|straggler| one(straggler, recording)).collect()
}

fn one(straggler: &Straggler, recording: &Recording<'_>) -> Value {
    let (kind, lane, stage, layer) = match straggler.culprit {
        Culprit::Device { lane } => ("device", Some(lane), None, None),
        Culprit::Stage { stage, lane, layer } => ("stage", lane, Some(stage), layer),
        Culprit::Transfer { stage, lane } => ("transfer", lane, Some(stage), None),
        Culprit::Host { lane } => ("host", Some(lane), None, None),
    };
    json!({
        "kind": kind,
        "device": lane.map(|lane| &recording.plan.lanes[lane].name),
        "stage": stage.map(|stage| &recording.plan.table.stages[stage].id),
        "layer": layer,
        "ratio": straggler.ratio,
        "excess_ms": straggler.excess_ns as f64 / 1e6,
        "evidence": straggler.evidence,
        "text": straggler.describe(recording),
    })
}
