//! A load on a real engine: submits each request when it is due and notes when every token came.
//!
//! Latency counts from when a request was due, also if the loop was late or no place was free: an open loop that forgave itself
//! its delays would report the latency of the load it managed, not of the one that was asked for.

use crate::drive::Client;
use crate::error::CliError;
use indicatif::ProgressBar;
use rally_engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_engine::schedule::planner::FinishReason;
use rally_engine::{RunEvent, SubmitHandle};
use rally_load::Load;
use rally_load::prompt::PromptPool;
use rally_load::summary::RequestTiming;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One load, once.
pub struct LoadClient<'a> {
    load: &'a Load,
    prompts: &'a PromptPool,
    bar: &'a ProgressBar,
    begun: Instant,
    /// Ids of its requests begin here: sequences of an engine never share one.
    first_id: u64,
    next: usize,
    under_way: usize,
    stopped: bool,
    timings: Vec<RequestTiming>,
    no_stops: Arc<[u32]>,
}

impl<'a> LoadClient<'a> {
    /// Begins now.
    pub fn new(load: &'a Load, prompts: &'a PromptPool, first_id: u64, bar: &'a ProgressBar) -> Self {
        let timing = |request: &rally_load::LoadRequest| RequestTiming {
            arrival_s: request.arrival_s,
            prompt_tokens: request.prompt_tokens,
            // Nothing is allocated while the load runs.
            token_s: Vec::with_capacity(request.output_tokens),
            completed: false,
        };
        Self {
            load,
            prompts,
            bar,
            begun: Instant::now(),
            first_id,
            next: 0,
            under_way: 0,
            stopped: false,
            timings: load.requests.iter().map(timing).collect(),
            no_stops: Arc::from([]),
        }
    }

    /// When it began.
    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// By request; and the seconds from the beginning to the last token.
    pub fn finish(self) -> (Vec<RequestTiming>, f64) {
        let last = self.timings.iter().filter_map(|timing| timing.token_s.last().copied());
        let duration_s = last.fold(0.0, f64::max);
        (self.timings, duration_s)
    }

    fn has_room(&self) -> bool {
        let most = self.load.max_concurrency.unwrap_or(usize::MAX);
        !self.stopped && self.next < self.load.requests.len() && self.under_way < most
    }

    fn due_at(&self, index: usize) -> Instant {
        self.begun + Duration::from_secs_f64(self.load.requests[index].arrival_s)
    }

    fn request(&self, index: usize) -> SequenceRequest {
        let request = self.load.requests[index];
        SequenceRequest {
            generated: std::sync::Arc::default(),
            id: self.first_id + index as u64,
            prompt: Arc::from(self.prompts.prompt(index as u64, request.prompt_tokens)),
            max_new_tokens: request.output_tokens,
            stop_token_ids: Arc::clone(&self.no_stops),
            sampling: SamplingParams::default(),
            detail: TokenDetail::default(),
        }
    }

    fn since_begun(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.begun).as_secs_f64()
    }
}

impl Client for LoadClient<'_> {
    fn due(&mut self, now: Instant) -> Vec<SequenceRequest> {
        let mut due = Vec::new();
        while self.has_room() && self.due_at(self.next) <= now {
            due.push(self.request(self.next));
            self.next += 1;
            self.under_way += 1;
        }
        due
    }

    fn next_due(&self) -> Option<Instant> {
        self.has_room().then(|| self.due_at(self.next))
    }

    fn event(&mut self, event: RunEvent, _handle: &SubmitHandle) -> Result<(), CliError> {
        match event {
            RunEvent::Token(report) => {
                let token_s = self.since_begun(report.at);
                let index = (report.sample.sequence - self.first_id) as usize;
                self.timings[index].token_s.push(token_s);
                self.bar.inc(1);
            }
            RunEvent::Finished(id, reason, _) => {
                self.timings[(id - self.first_id) as usize].completed = reason != FinishReason::Cancelled;
                self.under_way -= 1;
            }
            RunEvent::Admitted(..) | RunEvent::Failed(_) => {}
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.under_way == 0 && (self.stopped || self.next == self.load.requests.len())
    }

    fn interrupt(&mut self, handle: &SubmitHandle) {
        self.stopped = true;
        for (index, timing) in self.timings.iter().enumerate().take(self.next) {
            if !timing.completed {
                handle.cancel(self.first_id + index as u64);
            }
        }
    }
}
