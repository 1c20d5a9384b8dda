//! Spans: when each task of a lane ran, and how long the lane waited before it.

use std::time::Instant;

/// One task, once. Times in nanoseconds since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Index into the plan lane's task list.
    pub position: u32,
    /// Step, from 0.
    pub step: u64,
    /// Rows it had.
    pub rows: u32,
    /// Bytes it put on or took off an edge.
    pub bytes: u64,
    /// When the lane began to wait for it.
    pub ready_ns: u64,
    /// When it began.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
}

/// What a lane did in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneReport {
    /// Name of the lane.
    pub name: String,
    /// Time in tasks that had rows.
    pub busy_ns: u64,
    /// Tasks that had rows.
    pub tasks: u64,
    /// From the first such task's start to the last one's end.
    pub active_ns: u64,
    /// The newest spans, oldest first, if they were asked for.
    pub spans: Vec<Span>,
    /// Spans that fell out of the ring.
    pub dropped_spans: u64,
}

impl LaneReport {
    /// Share of the active time spent in tasks, 0 to 1.
    pub fn busy_share(&self) -> f64 {
        if self.active_ns == 0 { 0.0 } else { self.busy_ns as f64 / self.active_ns as f64 }
    }
}

/// A bounded ring of spans and running sums. Owned by its lane.
#[derive(Debug)]
pub(crate) struct Recorder {
    origin: Instant,
    ring: Vec<Span>,
    capacity: usize,
    next: usize,
    report: LaneReport,
    first_ns: Option<u64>,
    last_ns: u64,
}

impl Recorder {
    pub(crate) fn new(name: &str, origin: Instant, capacity: usize) -> Self {
        let report = LaneReport { name: name.into(), ..LaneReport::default() };
        Self { origin, ring: Vec::with_capacity(capacity), capacity, next: 0, report, first_ns: None, last_ns: 0 }
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
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
        self.next = (self.next + 1) % self.capacity;
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
