//! Every metric there is: name, help, unit, labels, buckets. This table is the only place that can make one.
//!
//! Latencies carry vLLM's names under another prefix, and its labels, so that a dashboard needs only the prefix changed. Times
//! are seconds. An edge at 0.05 makes a 50 ms target read exactly; edges below 10 ms are finer than vLLM's, since steps are.

use crate::family::{Counter, Family, Histogram, SampledCounter, SampledGauge, SampledHistogram, Unit};
use crate::label::Label;

/// Between tokens. OpenTelemetry's edges for time per output token from 0.01 on, and finer ones around and below.
const TOKEN_SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05,
    0.06, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
/// Of a whole request, or until its first token.
const REQUEST_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0,
    120.0, 300.0, 600.0,
];
/// Of one task: a stage of one layer and micro-batch. A layer of Step-3 at 50 ms a token has 819 µs, a slot of three 273.
const TASK_SECONDS: &[f64] = &[
    1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 0.0001, 0.0002, 0.000273, 0.0004, 0.000819, 0.001, 0.002, 0.005, 0.01, 0.02,
    0.05, 0.1, 0.2, 0.5, 1.0,
];
/// Rows of a micro-batch.
const BATCH_TOKENS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const NO_EDGES: &[f64] = &[];

macro_rules! families {
    ($($name:ident: $kind:ident($text:literal, $unit:ident, [$($label:ident),*], $edges:ident) $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $name: $kind = $kind(Family {
                name: $text,
                help: $help,
                unit: Unit::$unit,
                labels: &[$(Label::$label),*],
                edges: $edges,
            });
        )*

        /// All of them, in the order of this file.
        pub static FAMILIES: &[&Family] = &[$(&$name.0),*];

        /// Those that go through the façade, by what they are.
        pub(crate) fn describe() {
            $(facade!($kind, $text, $help);)*
        }
    };
}

/// Only façade metrics are described to it; the exposition writes the others' help itself.
macro_rules! facade {
    (Counter, $text:literal, $help:literal) => {
        metrics::describe_counter!($text, $help)
    };
    (Histogram, $text:literal, $help:literal) => {
        metrics::describe_histogram!($text, $help)
    };
    ($sampled:ident, $text:literal, $help:literal) => {};
}

families! {
    TIME_TO_FIRST_TOKEN: Histogram("rally_time_to_first_token_seconds", Seconds, [ModelName, Engine], REQUEST_SECONDS)
        "From submission to the first token of a request, in seconds.";
    INTER_TOKEN_LATENCY: Histogram("rally_inter_token_latency_seconds", Seconds, [ModelName, Engine], TOKEN_SECONDS)
        "From one token of a request to its next, in seconds.";
    TIME_PER_OUTPUT_TOKEN: Histogram("rally_request_time_per_output_token_seconds", Seconds, [ModelName, Engine], TOKEN_SECONDS)
        "Mean time between the tokens of a finished request, in seconds.";
    E2E_REQUEST_LATENCY: Histogram("rally_e2e_request_latency_seconds", Seconds, [ModelName, Engine], REQUEST_SECONDS)
        "From submission to the end of a request, in seconds.";
    REQUEST_QUEUE_TIME: Histogram("rally_request_queue_time_seconds", Seconds, [ModelName, Engine], REQUEST_SECONDS)
        "From submission to admission of a request, in seconds.";
    GENERATION_TOKENS: Counter("rally_generation_tokens_total", Tokens, [ModelName, Engine], NO_EDGES)
        "Tokens generated that count toward an answer.";
    PROMPT_TOKENS: Counter("rally_prompt_tokens_total", Tokens, [ModelName, Engine], NO_EDGES)
        "Prompt tokens of requests that have got their first token.";
    REQUEST_SUCCESS: Counter("rally_request_success_total", Requests, [ModelName, Engine, FinishedReason], NO_EDGES)
        "Requests that ended, by reason: stop, length, or abort for those that were cancelled.";
    TPOT_SLO_VIOLATIONS: Counter("rally_tpot_slo_violations_total", Requests, [ModelName, Engine], NO_EDGES)
        "Finished requests whose mean time between tokens was above the tpot_ms of the graph.";
    NUM_REQUESTS_RUNNING: SampledGauge("rally_num_requests_running", Requests, [ModelName, Engine], NO_EDGES)
        "Requests that hold KV pages.";
    NUM_REQUESTS_WAITING: SampledGauge("rally_num_requests_waiting", Requests, [ModelName, Engine], NO_EDGES)
        "Requests in the queue, preempted ones too.";
    KV_CACHE_USAGE: SampledGauge("rally_kv_cache_usage_perc", Ratio, [ModelName, Engine], NO_EDGES)
        "Share of KV pages in use, 0 to 1, over all attention devices.";
    NUM_PREEMPTIONS: SampledCounter("rally_num_preemptions_total", Events, [ModelName, Engine], NO_EDGES)
        "Times that a request had to give its KV pages back and queue again.";
    PREFIX_CACHE_QUERIES: SampledCounter("rally_prefix_cache_queries_total", Tokens, [ModelName, Engine], NO_EDGES)
        "Tokens of admitted requests, where prefixes are reused.";
    PREFIX_CACHE_HITS: SampledCounter("rally_prefix_cache_hits_total", Tokens, [ModelName, Engine], NO_EDGES)
        "Of these, tokens that were not read, since their KV pages were cached.";
    MICRO_BATCHES_IN_USE: SampledGauge("rally_micro_batches_in_use", MicroBatches, [], NO_EDGES)
        "Micro-batches that requests go to: all of the schedule, or fewer where a time per token is kept and rounds are shorter so.";
    MICRO_BATCH_TOKENS: SampledHistogram("rally_micro_batch_tokens", Tokens, [], BATCH_TOKENS)
        "Rows of a micro-batch in a step, over all attention devices; steps without any are left out.";
    STAGE_SECONDS: SampledHistogram("rally_stage_seconds", Seconds, [Stage, LayerKind, Device], TASK_SECONDS)
        "Time a device took for a stage in one layer of one micro-batch, in seconds.";
    TRANSFER_SECONDS: SampledHistogram("rally_transfer_seconds", Seconds, [Edge], TASK_SECONDS)
        "Time a lane took for its part of a transfer (send, exchange or receive) of one micro-batch in one layer, in seconds.";
    TRANSFER_EXPOSED_SECONDS: SampledCounter("rally_transfer_exposed_seconds_total", Seconds, [Edge], NO_EDGES)
        "Time lanes stood idle while rows for them were on their way over this edge, in seconds: the part of it that nothing hid.";
    LANE_BUSY_SECONDS: SampledCounter("rally_lane_busy_seconds_total", Seconds, [Lane], NO_EDGES)
        "Time a lane spent in tasks that had rows, in seconds.";
    LANE_BUBBLE_SECONDS: SampledCounter("rally_lane_bubble_seconds_total", Seconds, [Lane, Cause], NO_EDGES)
        "Time a lane spent outside such tasks, in seconds, by cause: waiting for attention, for the ffn, for a transfer, for admission, or kept by the host.";
    EXPERT_TOKENS: SampledCounter("rally_expert_tokens_total", Tokens, [Layer, Expert], NO_EDGES)
        "Tokens routed to an expert; only for models of at most 4096 layer and expert pairs.";
    EXPERT_IMBALANCE: SampledGauge("rally_expert_imbalance_ratio", Ratio, [Layer], NO_EDGES)
        "Tokens of a layer's busiest expert since the start, divided by the mean over its experts.";
    STRAGGLER: SampledGauge("rally_straggler", Ratio, [Device, Stage, StragglerCause], NO_EDGES)
        "How many times as long as its siblings would a device has taken for the same work since the start, if it is slow; else 0. Cause device stands for all stages.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_their_unit() {
        let names: HashSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            let base = family.name.strip_suffix("_total").unwrap_or(family.name);
            assert!(family.name.starts_with("rally_"), "{}", family.name);
            assert_eq!(base.ends_with("_seconds"), family.unit == Unit::Seconds, "{}", family.name);
            assert_eq!(family.help.contains("in seconds"), family.unit == Unit::Seconds, "{}", family.name);
            assert!(family.help.ends_with('.') && family.help.len() > 20, "{}", family.name);
            assert!(family.edges.is_sorted_by(|a, b| a < b), "{}", family.name);
        }
    }

    #[test]
    fn a_target_of_fifty_milliseconds_is_an_edge() {
        for family in FAMILIES.iter().filter(|family| family.unit == Unit::Seconds && !family.edges.is_empty()) {
            assert!(family.edges.contains(&0.05), "{}", family.name);
            let finer = family.edges.iter().filter(|edge| **edge < 0.01).count();
            assert!(finer >= 3, "{} has {finer} edges below 10 ms", family.name);
        }
    }

    /// What users of vLLM look for.
    #[test]
    fn vllm_names_are_there_with_its_labels() {
        for suffix in [
            "time_to_first_token_seconds",
            "inter_token_latency_seconds",
            "request_time_per_output_token_seconds",
            "e2e_request_latency_seconds",
            "request_queue_time_seconds",
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "generation_tokens_total",
            "prompt_tokens_total",
            "request_success_total",
            "num_preemptions_total",
            "prefix_cache_queries_total",
            "prefix_cache_hits_total",
        ] {
            let found = FAMILIES.iter().find(|family| family.name.strip_prefix("rally_") == Some(suffix));
            let family = found.unwrap_or_else(|| panic!("no {suffix}"));
            assert_eq!(family.labels[..2], [Label::ModelName, Label::Engine], "{suffix}");
        }
    }
}
