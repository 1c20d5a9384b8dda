//! Spans and lane reports: what a run leaves behind, on real lanes and on virtual ones.

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
