//! From the times of every token to the keys of `vllm bench serve`.
//!
//! Definitions are vLLM's: TTFT from arrival to the first token; TPOT (end-to-end − TTFT) / (tokens − 1), of requests with two
//! tokens or more; ITL every single gap; E2EL from arrival to the last token. Only completed requests count.

use crate::goodput::Goal;
use crate::statistics::Distribution;
use serde_json::{Map, Value, json};

/// One request, as it went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestTiming {
    /// When it was due to arrive, in seconds after the load began: not when the system got round to it.
    pub arrival_s: f64,
    /// Its prompt.
    pub prompt_tokens: usize,
    /// When each token came, in seconds after the load began.
    pub token_s: Vec<f64>,
    /// Whether it came to its own end.
    pub completed: bool,
}

impl RequestTiming {
    /// Milliseconds from arrival to the first token.
    pub fn ttft_ms(&self) -> Option<f64> {
        Some((self.token_s.first()? - self.arrival_s) * 1e3)
    }

    /// Milliseconds from arrival to the last token.
    pub fn e2el_ms(&self) -> Option<f64> {
        Some((self.token_s.last()? - self.arrival_s) * 1e3)
    }

    /// Mean milliseconds between tokens; of two tokens or more.
    pub fn tpot_ms(&self) -> Option<f64> {
        let gaps = self.token_s.len().checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some((self.e2el_ms()? - self.ttft_ms()?) / gaps as f64)
    }

    /// Milliseconds of every gap.
    pub fn itl_ms(&self) -> impl Iterator<Item = f64> {
        self.token_s.windows(2).map(|pair| (pair[1] - pair[0]) * 1e3)
    }
}

/// What is said of a load that was run.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Requests of the load.
    pub num_prompts: usize,
    /// Requests that came to their end.
    pub completed: usize,
    /// Seconds from the load's beginning to its last token, over all repeats.
    pub duration_s: f64,
    /// Prompt tokens of completed requests.
    pub total_input_tokens: usize,
    /// Generated tokens of completed requests.
    pub total_output_tokens: usize,
    /// Completed requests that kept every goal; `None` without goals.
    pub good: Option<usize>,
    /// Time to first token.
    pub ttft_ms: Option<Distribution>,
    /// Time per output token.
    pub tpot_ms: Option<Distribution>,
    /// Gaps between tokens.
    pub itl_ms: Option<Distribution>,
    /// End-to-end latency.
    pub e2el_ms: Option<Distribution>,
}

impl Summary {
    /// Of all requests of one run, or of several runs together (`duration_s` then being the sum of theirs).
    pub fn of(timings: &[RequestTiming], duration_s: f64, goals: &[Goal]) -> Self {
        let completed: Vec<&RequestTiming> = timings.iter().filter(|timing| timing.completed).collect();
        let each = |of: &dyn Fn(&RequestTiming) -> Option<f64>| {
            Distribution::of(completed.iter().filter_map(|timing| of(timing)).collect())
        };
        let is_good = |timing: &&&RequestTiming| goals.iter().all(|goal| goal.kept_by(timing));
        Self {
            num_prompts: timings.len(),
            completed: completed.len(),
            duration_s,
            total_input_tokens: completed.iter().map(|timing| timing.prompt_tokens).sum(),
            total_output_tokens: completed.iter().map(|timing| timing.token_s.len()).sum(),
            good: (!goals.is_empty()).then(|| completed.iter().filter(is_good).count()),
            ttft_ms: each(&RequestTiming::ttft_ms),
            tpot_ms: each(&RequestTiming::tpot_ms),
            itl_ms: Distribution::of(completed.iter().flat_map(|timing| timing.itl_ms()).collect()),
            e2el_ms: each(&RequestTiming::e2el_ms),
        }
    }

    /// Of a second, or 0 where no time passed.
    fn per_second(&self, count: usize) -> f64 {
        if self.duration_s > 0.0 { count as f64 / self.duration_s } else { 0.0 }
    }

    /// Completed requests a second.
    pub fn request_throughput(&self) -> f64 {
        self.per_second(self.completed)
    }

    /// Generated tokens a second.
    pub fn output_throughput(&self) -> f64 {
        self.per_second(self.total_output_tokens)
    }

    /// Prompt and generated tokens a second.
    pub fn total_token_throughput(&self) -> f64 {
        self.per_second(self.total_input_tokens + self.total_output_tokens)
    }

    /// Requests a second that kept every goal.
    pub fn request_goodput(&self) -> Option<f64> {
        self.good.map(|good| self.per_second(good))
    }

    /// The keys of `vllm bench serve`; null where there was nothing to measure.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut keys = Map::new();
        let mut put = |key: String, value: Value| keys.insert(key, value);
        put("num_prompts".into(), json!(self.num_prompts));
        put("completed".into(), json!(self.completed));
        put("duration".into(), json!(self.duration_s));
        put("total_input_tokens".into(), json!(self.total_input_tokens));
        put("total_output_tokens".into(), json!(self.total_output_tokens));
        put("request_throughput".into(), json!(self.request_throughput()));
        put("request_goodput".into(), json!(self.request_goodput()));
        put("output_throughput".into(), json!(self.output_throughput()));
        put("total_token_throughput".into(), json!(self.total_token_throughput()));
        let latencies = [("ttft", self.ttft_ms), ("tpot", self.tpot_ms), ("itl", self.itl_ms), ("e2el", self.e2el_ms)];
        for (name, latency) in latencies {
            put(format!("mean_{name}_ms"), json!(latency.map(|latency| latency.mean)));
            put(format!("median_{name}_ms"), json!(latency.map(|latency| latency.median)));
            put(format!("std_{name}_ms"), json!(latency.map(|latency| latency.std)));
            put(format!("p99_{name}_ms"), json!(latency.map(|latency| latency.p99)));
        }
        keys
    }
}
