//! `GET /live`: how the run does at this moment, for the page at `/`. Sums since the start, of which the page takes differences.

use super::{App, json_response};
use crate::api::error::ApiError;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) async fn live(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let service = app.service()?;
    let (requests, run) = service.front.sample();
    let lane = |lane: &rally_engine::figures::LaneSample| json!({ "name": lane.name, "busy_s": seconds(lane.busy_ns), "accounted_s": seconds(lane.accounted_ns) });
    let [p50, p90, p99] = requests.tpot_ms.map_or([None; 3], |all| all.map(Some));
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "model": service.model.name,
            "at_s": seconds(run.at_ns),
            "lanes": run.lanes.iter().map(lane).collect::<Vec<Value>>(),
            "running": run.running,
            "waiting": run.waiting,
            "kv_used_pages": run.used_pages,
            "kv_pages": run.pages,
            "tokens": requests.tokens,
            "finished": requests.finished,
            "tpot_ms": { "p50": p50, "p90": p90, "p99": p99, "target": service.model.slo_tpot_ms },
            "kept_share": requests.kept_share,
        }),
    ))
}

fn seconds(ns: u64) -> f64 {
    ns as f64 * 1e-9
}
