//! Names of the metrics a run counts, through the `metrics` façade: free until someone installs a recorder.
//!
//! Suffixes are those of vLLM, so that dashboards need only another prefix.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use rally_schedule::planner::{FinishReason, StepPlanner};

const TOKENS: &str = "rally_generation_tokens_total";
const FINISHED: &str = "rally_request_success_total";
const RUNNING: &str = "rally_num_requests_running";
const WAITING: &str = "rally_num_requests_waiting";

/// Help and units, once a run.
pub(crate) fn describe() {
    describe_counter!(TOKENS, Unit::Count, "Tokens generated that count");
    describe_counter!(FINISHED, Unit::Count, "Sequences that ended, by finished_reason");
    describe_gauge!(RUNNING, Unit::Count, "Sequences that hold KV pages");
    describe_gauge!(WAITING, Unit::Count, "Sequences in the queue");
}

pub(crate) fn token() {
    counter!(TOKENS).increment(1);
}

pub(crate) fn finished(reason: FinishReason) {
    let reason = match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "abort",
    };
    counter!(FINISHED, "finished_reason" => reason).increment(1);
}

pub(crate) fn queue(planner: &StepPlanner) {
    gauge!(RUNNING).set(planner.running() as f64);
    gauge!(WAITING).set(planner.waiting() as f64);
}
