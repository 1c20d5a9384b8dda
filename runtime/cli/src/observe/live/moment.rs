//! From figures that only rise to what a person wants to know: how it goes just now.

use rally_engine::figures::{LaneSample, RunSample};
use rally_engine::meter::RequestSample;
use std::collections::VecDeque;

/// Shares and rates are those of so long, if there is so much: steady enough to be read.
const WINDOW_NS: u64 = 2_000_000_000;

/// The newest samples.
pub struct History {
    samples: VecDeque<(RunSample, u64)>,
    /// When watching began, in nanoseconds since the run did.
    from_ns: u64,
    /// Before watching began.
    preemptions: u64,
}

/// A lane just now: shares of its time, which add up to 1, or all 0 if it has ended no task lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaneNow {
    /// Name of the lane.
    pub name: String,
    /// Computing.
    pub compute: f64,
    /// Sending, receiving, exchanging.
    pub transfer: f64,
    /// Doing nothing, by cause.
    pub bubble: [f64; 5],
}

impl LaneNow {
    /// In tasks.
    pub fn busy(&self) -> f64 {
        self.compute + self.transfer
    }
}

/// A run just now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moment {
    /// Since watching began.
    pub elapsed_s: f64,
    /// By lane.
    pub lanes: Vec<LaneNow>,
    /// Generated lately.
    pub tokens_per_s: f64,
    /// Of the run so far.
    pub requests: RequestSample,
    /// Sequences that hold pages.
    pub running: u64,
    /// Sequences in the queue.
    pub waiting: u64,
    /// Share of KV pages in use.
    pub kv_share: f64,
    /// Times that a sequence gave its pages back.
    pub preemptions: u64,
}

impl History {
    /// Watching begins at `start`: what came before is not told.
    pub fn new(start: RunSample) -> Self {
        let (from_ns, preemptions) = (start.at_ns, start.preemptions);
        Self { samples: VecDeque::from([(start, 0)]), from_ns, preemptions }
    }

    /// Adds a sample, and says how things stand.
    pub fn add(&mut self, run: RunSample, requests: RequestSample) -> Moment {
        let from_ns = run.at_ns.saturating_sub(WINDOW_NS);
        // The oldest kept is the newest that is old enough.
        while self.samples.get(1).is_some_and(|(next, _)| next.at_ns <= from_ns) {
            self.samples.pop_front();
        }
        let moment = self.samples.front().map(|(before, tokens)| since(before, *tokens, &run, requests.clone()));
        let moment = moment.map(|moment| Moment {
            elapsed_s: run.at_ns.saturating_sub(self.from_ns) as f64 / 1e9,
            preemptions: run.preemptions.saturating_sub(self.preemptions),
            ..moment
        });
        self.samples.push_back((run, requests.tokens));
        moment.unwrap_or_default()
    }
}

fn since(before: &RunSample, tokens: u64, run: &RunSample, requests: RequestSample) -> Moment {
    let nothing = LaneSample::default();
    let lanes = run.lanes.iter().enumerate();
    let seconds = run.at_ns.saturating_sub(before.at_ns).max(1) as f64 / 1e9;
    Moment {
        lanes: lanes.map(|(index, lane)| lane_since(before.lanes.get(index).unwrap_or(&nothing), lane)).collect(),
        tokens_per_s: requests.tokens.saturating_sub(tokens) as f64 / seconds,
        requests,
        running: run.running,
        waiting: run.waiting,
        kv_share: run.used_pages as f64 / run.pages.max(1) as f64,
        ..Moment::default()
    }
}

fn lane_since(before: &LaneSample, now: &LaneSample) -> LaneNow {
    let rise = |before: u64, now: u64| now.saturating_sub(before) as f64;
    let busy = rise(before.busy_ns, now.busy_ns);
    let transfer = rise(before.transfer_ns, now.transfer_ns).min(busy);
    let bubble: [f64; 5] = std::array::from_fn(|cause| rise(before.bubble_ns[cause], now.bubble_ns[cause]));
    let all = (busy + bubble.iter().sum::<f64>()).max(1.0);
    LaneNow {
        name: now.name.clone(),
        compute: (busy - transfer) / all,
        transfer: transfer / all,
        bubble: bubble.map(|part| part / all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_s: f64, busy_s: f64, host_s: f64) -> RunSample {
        let ns = |seconds: f64| (seconds * 1e9) as u64;
        let lane = LaneSample {
            name: "attn".into(),
            busy_ns: ns(busy_s),
            transfer_ns: ns(busy_s / 4.0),
            bubble_ns: [0, 0, 0, 0, ns(host_s)],
            ..LaneSample::default()
        };
        RunSample { at_ns: ns(at_s), lanes: vec![lane], pages: 8, used_pages: 2, ..RunSample::default() }
    }

    #[test]
    fn shares_and_rates_are_those_of_the_last_two_seconds() {
        let mut history = History::new(RunSample::default());
        let requests = |tokens| RequestSample { tokens, ..RequestSample::default() };
        // Ten idle seconds, then busy ones.
        for step in 0..=20 {
            history.add(sample(f64::from(step) * 0.5, 0.0, f64::from(step) * 0.5), requests(0));
        }
        let mut moment = Moment::default();
        for step in 1..=8u32 {
            let at = f64::from(step) * 0.5;
            moment = history.add(sample(10.0 + at, at * 0.8, 10.0 + at * 0.2), requests(u64::from(step) * 50));
        }
        let lane = &moment.lanes[0];
        assert!((lane.busy() - 0.8).abs() < 1e-9 && (lane.transfer - 0.2).abs() < 1e-9, "{lane:?}");
        assert!((lane.bubble[4] - 0.2).abs() < 1e-9, "{lane:?}");
        assert!((moment.tokens_per_s - 100.0).abs() < 1e-6 && moment.kv_share == 0.25, "{moment:?}");
        assert!(history.samples.len() <= 6, "{}", history.samples.len());
    }
}
