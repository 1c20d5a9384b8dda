//! Spans: when each task of a lane ran, and what the lane waited for before it. Their shape is the schedule crate's, where
//! virtual lanes make the same.

use crate::clock::RunClock;
use crate::figures::LaneMeter;
use rally_graph::plan::{Plan, Wait};
pub use rally_schedule::span::{CounterSample, LaneReport, Span, WaitedFor};
use rally_schedule::span::{Gap, Ring};

/// A bounded ring of spans and running sums. Owned by its lane.
///
/// Reading the clock is most of what a span costs, so a lane reads it once a task, and once more where it really waited: a task
/// begins where the one before it ended.
#[derive(Debug)]
pub(crate) struct Recorder {
    clock: RunClock,
    ring: Ring<Span>,
    report: LaneReport,
    gap: Gap,
    meter: LaneMeter,
    first_ns: Option<u64>,
    last_ns: u64,
    marked_ns: u64,
}

impl Recorder {
    pub(crate) fn new(name: &str, clock: RunClock, capacity: usize, meter: LaneMeter) -> Self {
        let report = LaneReport { name: name.into(), ..LaneReport::default() };
        let ring = Ring::new(capacity);
        let gap = Gap::default();
        Self { clock, ring, report, gap, meter, first_ns: None, last_ns: 0, marked_ns: 0 }
    }

    /// Reads the clock and remembers what it said.
    pub(crate) fn mark(&mut self) -> u64 {
        self.marked_ns = self.clock.now_ns();
        self.marked_ns
    }

    /// What the clock said last.
    pub(crate) fn marked_ns(&self) -> u64 {
        self.marked_ns
    }

    /// What the lane is about to begin follows something that was over at `ns`. That can be after the last look at the clock: the
    /// system held the lane up in between. Time of the host, then, and an effect never precedes its cause.
    pub(crate) fn not_before(&mut self, ns: u64) {
        self.marked_ns = self.marked_ns.max(ns);
    }

    /// The lane turns to its next task.
    pub(crate) fn ready(&mut self) {
        self.gap.ready(self.marked_ns);
    }

    /// What is next in the lane's list is the task at `position`.
    pub(crate) fn turn_to(&mut self, position: usize) {
        self.meter.turn_to(position, self.marked_ns);
    }

    /// The lane is about to wait.
    pub(crate) fn begin_wait(&mut self) {
        self.meter.begin_wait();
    }

    /// The lane has waited until another one had completed `target` tasks.
    pub(crate) fn waited(&mut self, plan: &Plan, wait: &Wait, target: u64) {
        self.mark();
        self.gap.waited(wait.lane);
        self.meter.waited(plan, wait, target);
    }

    /// The lane begins the task at `position`. Returns when.
    pub(crate) fn begin(&mut self, position: u32) -> u64 {
        let (start_ns, mut gap) = (self.marked_ns, self.gap);
        self.meter.begin(&gap.end(Span { position, start_ns, ..Span::default() }));
        start_ns
    }

    /// The lane has routed rows of `layer`.
    pub(crate) fn routed(&self, layer: usize, expert_ids: &[u32]) {
        self.meter.routed(layer, expert_ids);
    }

    /// The lane has ended a step, which belongs to no task. There was nothing to plan since `idle_from_ns`, if so.
    pub(crate) fn planned(&mut self, idle_from_ns: Option<u64>) {
        let now_ns = self.mark();
        if let Some(from_ns) = idle_from_ns {
            let from_ns = self.gap.admission(from_ns, now_ns);
            self.meter.admission(from_ns, now_ns);
        }
    }

    /// A task with rows is over, the one that made it `completed` tasks: `span` lacks its end and what was before it. Those who wait
    /// for it may be told now; [`settle`](Self::settle) does the rest. Returns the whole span.
    #[inline]
    pub(crate) fn end(&mut self, span: Span, completed: u64) -> Span {
        let end_ns = self.mark();
        let span = self.gap.end(Span { end_ns, ..span });
        self.meter.end(&span, completed);
        span
    }

    /// Puts a task that is over into the sums. Nobody waits for those.
    #[inline]
    pub(crate) fn settle(&mut self, span: Span) {
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
