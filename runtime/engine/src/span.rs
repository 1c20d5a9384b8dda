//! Spans: when each task of a lane ran, and how long the lane waited before it. Their shape is the schedule crate's, where
//! virtual lanes make the same.

pub use rally_schedule::span::{LaneReport, Span};
use std::time::Instant;

/// A bounded ring of spans and running sums. Owned by its lane.
///
/// Reading the clock is most of what a span costs, so a lane reads it once a task, and once more where it really waited: a task
/// begins where the one before it ended.
#[derive(Debug)]
pub(crate) struct Recorder {
    origin: Instant,
    ring: Vec<Span>,
    capacity: usize,
    next: usize,
    report: LaneReport,
    first_ns: Option<u64>,
    last_ns: u64,
    marked_ns: u64,
}

impl Recorder {
    pub(crate) fn new(name: &str, origin: Instant, capacity: usize) -> Self {
        let report = LaneReport { name: name.into(), ..LaneReport::default() };
        let ring = Vec::with_capacity(capacity);
        Self { origin, ring, capacity, next: 0, report, first_ns: None, last_ns: 0, marked_ns: 0 }
    }

    /// Reads the clock and remembers what it said.
    pub(crate) fn mark(&mut self) -> u64 {
        self.marked_ns = self.origin.elapsed().as_nanos() as u64;
        self.marked_ns
    }

    /// What the clock said last.
    pub(crate) fn marked_ns(&self) -> u64 {
        self.marked_ns
    }

    pub(crate) fn record(&mut self, span: Span) {
        self.first_ns.get_or_insert(span.start_ns);
        self.last_ns = span.end_ns;
        self.report.busy_ns += span.end_ns - span.start_ns;
        self.report.tasks += 1;
        if self.capacity == 0 {
            return;
        }
        if self.ring.len() < self.capacity {
            self.ring.push(span);
        } else {
            self.ring[self.next] = span;
            self.report.dropped_spans += 1;
        }
        self.next = if self.next + 1 == self.capacity { 0 } else { self.next + 1 };
    }

    pub(crate) fn into_report(mut self) -> LaneReport {
        if self.ring.len() == self.capacity {
            self.ring.rotate_left(self.next);
        }
        self.report.spans = self.ring;
        self.report.active_ns = self.first_ns.map_or(0, |first| self.last_ns - first);
        self.report
    }
}
