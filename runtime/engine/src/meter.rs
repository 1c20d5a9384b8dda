//! Latencies and counts of requests, from the events of a run.
//!
//! The owner of a run feeds it every event as it comes. So a request's times cost the lanes nothing, and a request that a stop
//! string ended, which only the reader of the text can see, counts as stopped and not as cancelled.

use crate::control::RunEvent;
use rally_metrics::{CounterHandle, HistogramHandle, Identity, names};
use rally_schedule::batch::SequenceId;
use rally_schedule::planner::FinishReason;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Watches requests from submission to their ends.
#[derive(Debug)]
pub struct RequestMeter {
    handles: Handles,
    /// A finished request should have kept this mean time between tokens, in seconds.
    slo_tpot_s: Option<f64>,
    open: HashMap<SequenceId, Times>,
    tokens: u64,
    finished: u64,
    kept: u64,
    /// Of finished requests with at least two tokens.
    tpots: Tpots,
}

#[derive(Debug)]
struct Handles {
    first_token: HistogramHandle,
    between_tokens: HistogramHandle,
    per_output_token: HistogramHandle,
    whole: HistogramHandle,
    queued: HistogramHandle,
    generated: CounterHandle,
    prompt: CounterHandle,
    slo_violations: CounterHandle,
    stopped: CounterHandle,
    at_length: CounterHandle,
    aborted: CounterHandle,
}

#[derive(Debug)]
struct Times {
    submitted: Instant,
    prompt_tokens: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u64,
    /// A stop string was complete; what follows is surplus.
    stopped: bool,
}

impl Times {
    /// Mean time between its tokens so far, in seconds, from two tokens on.
    fn tpot_s(&self) -> Option<f64> {
        let (first, last) = self.first.zip(self.last)?;
        (self.tokens > 1).then(|| last.duration_since(first).as_secs_f64() / (self.tokens - 1) as f64)
    }
}

/// How requests do at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestSample {
    /// Requests that have not ended.
    pub open: u64,
    /// Requests that have.
    pub finished: u64,
    /// Tokens generated.
    pub tokens: u64,
    /// Mean times between tokens, over requests with at least two, running ones as they stand, in milliseconds: median, 90th and
    /// 99th percentile. `None` before there is such a request.
    pub tpot_ms: Option<[f64; 3]>,
    /// Share of them that is within the target, 0 to 1; 1 without a target.
    pub kept_share: f64,
}

impl RequestMeter {
    /// Nothing submitted yet. `slo_tpot_s`: the target of the graph, in seconds.
    pub fn new(identity: &Identity, slo_tpot_s: Option<f64>) -> Self {
        Self {
            handles: Handles::new(identity),
            slo_tpot_s,
            open: HashMap::new(),
            tokens: 0,
            finished: 0,
            kept: 0,
            tpots: Tpots::new(),
        }
    }

    /// A request was submitted.
    pub fn submitted(&mut self, id: SequenceId, prompt_tokens: usize, at: Instant) {
        let prompt_tokens = prompt_tokens as u64;
        let times = Times { submitted: at, prompt_tokens, first: None, last: None, tokens: 0, stopped: false };
        self.open.insert(id, times);
    }

    /// The reader of a request's text has seen a stop string: the request is over, and its cancellation only says so.
    pub fn stopped(&mut self, id: SequenceId) {
        if let Some(times) = self.open.get_mut(&id) {
            times.stopped = true;
        }
    }

    /// Takes note of an event. One of a request that was not [`submitted`](Self::submitted) here says nothing.
    pub fn event(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Admitted(id, at, _) => {
                if let Some(times) = self.open.get(id) {
                    self.handles.queued.record(at.duration_since(times.submitted).as_secs_f64());
                }
            }
            RunEvent::Token(report) => self.token(report.sample.sequence, report.at),
            RunEvent::Finished(id, reason, at) => self.finish(*id, *reason, *at),
            RunEvent::Failed(_) => {}
        }
    }

    fn token(&mut self, id: SequenceId, at: Instant) {
        let Some(times) = self.open.get_mut(&id).filter(|times| !times.stopped) else { return };
        match times.last {
            Some(last) => self.handles.between_tokens.record(at.duration_since(last).as_secs_f64()),
            None => {
                self.handles.first_token.record(at.duration_since(times.submitted).as_secs_f64());
                self.handles.prompt.add(times.prompt_tokens);
                times.first = Some(at);
            }
        }
        times.last = Some(at);
        times.tokens += 1;
        self.tokens += 1;
        self.handles.generated.add(1);
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason, at: Instant) {
        let Some(times) = self.open.remove(&id) else { return };
        let reason = if times.stopped { FinishReason::Stop } else { reason };
        match reason {
            FinishReason::Stop => self.handles.stopped.add(1),
            FinishReason::Length => self.handles.at_length.add(1),
            FinishReason::Cancelled => self.handles.aborted.add(1),
        }
        self.handles.whole.record(at.duration_since(times.submitted).as_secs_f64());
        self.finished += 1;
        if let Some(tpot_s) = times.tpot_s() {
            self.handles.per_output_token.record(tpot_s);
            self.tpots.add(tpot_s);
            let kept = self.keeps(tpot_s);
            self.kept += u64::from(kept);
            self.handles.slo_violations.add(u64::from(!kept));
        }
    }

    fn keeps(&self, tpot_s: f64) -> bool {
        self.slo_tpot_s.is_none_or(|slo| tpot_s <= slo)
    }

    /// How requests do.
    pub fn sample(&self) -> RequestSample {
        let mut all = self.tpots.clone();
        let mut kept = self.kept;
        for tpot_s in self.open.values().filter_map(Times::tpot_s) {
            all.add(tpot_s);
            kept += u64::from(self.keeps(tpot_s));
        }
        RequestSample {
            open: self.open.len() as u64,
            finished: self.finished,
            tokens: self.tokens,
            tpot_ms: all.percentiles([0.5, 0.9, 0.99]).map(|seconds| seconds.map(|s| s * 1e3)),
            kept_share: if all.count == 0 { 1.0 } else { kept as f64 / all.count as f64 },
        }
    }
}

impl Handles {
    fn new(identity: &Identity) -> Self {
        let ended = |reason: &str| names::REQUEST_SUCCESS.handle(identity, &[reason]);
        Self {
            first_token: names::TIME_TO_FIRST_TOKEN.handle(identity, &[]),
            between_tokens: names::INTER_TOKEN_LATENCY.handle(identity, &[]),
            per_output_token: names::TIME_PER_OUTPUT_TOKEN.handle(identity, &[]),
            whole: names::E2E_REQUEST_LATENCY.handle(identity, &[]),
            queued: names::REQUEST_QUEUE_TIME.handle(identity, &[]),
            generated: names::GENERATION_TOKENS.handle(identity, &[]),
            prompt: names::PROMPT_TOKENS.handle(identity, &[]),
            slo_violations: names::TPOT_SLO_VIOLATIONS.handle(identity, &[]),
            stopped: ended("stop"),
            at_length: ended("length"),
            aborted: ended("abort"),
        }
    }
}

/// Times between tokens in buckets of 2 %, so that a million requests take no more memory than one.
#[derive(Clone, Debug)]
struct Tpots {
    buckets: Box<[u64]>,
    count: u64,
}

/// Each bucket is this much wider than the one before; its middle is within 1 % of all in it.
const GROWTH: f64 = 1.02;
/// Lower end of the first bucket; shorter times count there.
const SHORTEST: Duration = Duration::from_nanos(100);
/// From 100 ns to beyond 100 s.
const BUCKETS: usize = 1048;

impl Tpots {
    fn new() -> Self {
        Self { buckets: vec![0; BUCKETS].into(), count: 0 }
    }

    fn add(&mut self, seconds: f64) {
        let bucket = (seconds / SHORTEST.as_secs_f64()).ln() / GROWTH.ln();
        self.buckets[(bucket.max(0.0) as usize).min(BUCKETS - 1)] += 1;
        self.count += 1;
    }

    /// In seconds, each within 1 %; `None` if there are none.
    fn percentiles<const N: usize>(&self, shares: [f64; N]) -> Option<[f64; N]> {
        let of = |share: f64| {
            let rank = ((share * self.count as f64).ceil() as u64).max(1);
            let mut seen = 0;
            let bucket = self.buckets.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            SHORTEST.as_secs_f64() * GROWTH.powf(bucket.unwrap_or(BUCKETS - 1) as f64 + 0.5)
        };
        (self.count > 0).then(|| shares.map(of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::TokenReport;
    use crate::stage::Sample;

    fn token(id: SequenceId, index: u64, at: Instant) -> RunEvent {
        let sample = Sample { sequence: id, token: 1, logprobs: None, logits: None };
        RunEvent::Token(TokenReport { index, sample, last: false, at })
    }

    /// Submits `id`, gives it five tokens `tpot_ms` apart, and ends it.
    fn request(meter: &mut RequestMeter, id: SequenceId, tpot_ms: u64, reason: FinishReason) {
        let start = Instant::now();
        meter.submitted(id, 3, start);
        let at = |index: u64| start + Duration::from_millis(20 + index * tpot_ms);
        (0..5).for_each(|index| meter.event(&token(id, index, at(index))));
        meter.event(&RunEvent::Finished(id, reason, at(5)));
    }

    #[test]
    fn percentiles_are_within_two_percent_of_the_truth() {
        let mut tpots = Tpots::new();
        (1..=1000).for_each(|ms| tpots.add(f64::from(ms) / 1e3));
        let found = tpots.percentiles([0.5, 0.9, 0.99]).expect("there are samples");
        for (found, truth) in found.into_iter().zip([0.5, 0.9, 0.99]) {
            assert!((found / truth - 1.0).abs() < 0.02, "{found} for {truth}");
        }
    }

    #[test]
    fn requests_that_are_slower_than_the_target_are_counted() {
        let mut meter = RequestMeter::new(&Identity::new("toy"), Some(0.05));
        for (id, tpot_ms) in [(0, 10), (1, 50), (2, 60), (3, 500)] {
            request(&mut meter, id, tpot_ms, FinishReason::Length);
        }
        let sample = meter.sample();
        assert_eq!((sample.open, sample.finished, sample.tokens), (0, 4, 20));
        assert_eq!(sample.kept_share, 0.5, "a request at the target keeps it");
    }

    #[test]
    fn a_running_request_counts_as_it_stands() {
        let mut meter = RequestMeter::new(&Identity::new("toy"), Some(0.05));
        let start = Instant::now();
        meter.submitted(7, 3, start);
        assert_eq!(meter.sample().tpot_ms, None);
        meter.event(&token(7, 0, start));
        assert_eq!(meter.sample().tpot_ms, None, "one token has no time between");
        meter.event(&token(7, 1, start + Duration::from_millis(80)));
        let sample = meter.sample();
        let [median, ..] = sample.tpot_ms.expect("two tokens have");
        assert!((median / 80.0 - 1.0).abs() < 0.02, "{median}");
        assert_eq!((sample.open, sample.kept_share), (1, 0.0));
    }

    #[test]
    fn tokens_after_a_stop_string_are_surplus() {
        let mut meter = RequestMeter::new(&Identity::new("toy"), None);
        let start = Instant::now();
        meter.submitted(1, 3, start);
        meter.event(&token(1, 0, start));
        meter.stopped(1);
        meter.event(&token(1, 1, start));
        meter.event(&RunEvent::Finished(1, FinishReason::Cancelled, start));
        let sample = meter.sample();
        assert_eq!((sample.tokens, sample.finished), (1, 1));
    }
}
