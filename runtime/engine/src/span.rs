//! Spans: when each task of a lane ran, and what the lane waited for before it. Their shape is the schedule crate's, where
//! virtual lanes make the same.

use crate::figures::{LaneMeter, Look};
use rally_graph::plan::{Plan, Wait};
pub use rally_schedule::span::{CounterSample, LaneReport, Span, WaitedFor};
use rally_schedule::span::{Gap, Ring};
use std::time::Instant;

/// A bounded ring of spans and running sums. Owned by its lane.
#[derive(Debug)]
pub(crate) struct Recorder {
    origin: Instant,
    ring: Ring<Span>,
    report: LaneReport,
    gap: Gap,
    meter: LaneMeter,
    first_ns: Option<u64>,
    last_ns: u64,
}

impl Recorder {
    pub(crate) fn new(name: &str, origin: Instant, capacity: usize, meter: LaneMeter) -> Self {
        let report = LaneReport { name: name.into(), ..LaneReport::default() };
        Self { origin, ring: Ring::new(capacity), report, gap: Gap::default(), meter, first_ns: None, last_ns: 0 }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// The lane turns to its next task.
    pub(crate) fn ready(&mut self) {
        let origin = self.origin;
        self.gap.ready(|| origin.elapsed().as_nanos() as u64);
    }

    /// The lane is about to wait for `lane`.
    pub(crate) fn look(&self, lane: usize) -> Look {
        self.meter.look(lane, self.now_ns())
    }

    /// The lane has waited for another one.
    pub(crate) fn waited(&mut self, plan: &Plan, wait: &Wait, before: Look) {
        self.gap.waited(wait.lane);
        self.meter.waited(plan, wait, before, self.now_ns());
    }

    /// The lane begins the task at `position`. Returns when.
    pub(crate) fn begin(&self, position: usize) -> u64 {
        let start_ns = self.now_ns();
        self.meter.begin(position, start_ns);
        start_ns
    }

    /// The task has ended and had no rows: it leaves no span.
    pub(crate) fn had_no_rows(&self) {
        self.meter.had_no_rows();
    }

    /// The lane has routed rows of `layer`.
    pub(crate) fn routed(&self, layer: usize, expert_ids: &[u32]) {
        self.meter.routed(layer, expert_ids);
    }

    /// There was nothing to plan since `from_ns`, until now.
    pub(crate) fn admission(&mut self, from_ns: u64) {
        self.gap.admission(from_ns, self.now_ns());
        self.meter.admission();
    }

    /// A task with rows is over: `span` lacks its end and what was before it.
    pub(crate) fn record(&mut self, span: Span) {
        let span = self.gap.end(Span { end_ns: self.now_ns(), ..span });
        self.meter.record(&span);
        self.first_ns.get_or_insert(span.start_ns);
        self.last_ns = span.end_ns;
        self.report.busy_ns += span.end_ns - span.start_ns;
        self.report.tasks += 1;
        self.ring.push(span);
    }

    pub(crate) fn into_report(mut self) -> LaneReport {
        (self.report.spans, self.report.dropped_spans) = self.ring.into_parts();
        self.report.active_ns = self.first_ns.map_or(0, |first| self.last_ns - first);
        self.report
    }
}
