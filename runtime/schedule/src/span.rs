//! Spans, counters and lane reports: what a run leaves behind, on real lanes and on virtual ones.

/// One task, once. Times in nanoseconds since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Index into the plan lane's task list.
    pub position: u32,
    /// Step, from 0.
    pub step: u64,
    /// Rows it had.
    pub rows: u32,
    /// What its time should follow: its rows, or in a stage whose devices do unequal work for the same rows how many it really did,
    /// a row counted once for every expert that worked on it here.
    pub effort: u32,
    /// Bytes it put on or took off an edge.
    pub bytes: u64,
    /// For how long before `ready_ns` the lane had nothing to do at all: no sequence was there to be decoded.
    pub admission_ns: u64,
    /// When the lane began to wait for other lanes. Waits of tasks without rows, which leave no span, count with the next task
    /// that has some. What lies between the span before and this, admission aside, is the host's: planning, handing over.
    pub ready_ns: u64,
    /// When it began.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
    /// The lane whose completion was awaited last before it.
    pub waited_for: WaitedFor,
}

/// Whom a lane waited for last before a task that had rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitedFor {
    /// Nobody: all was there.
    #[default]
    Nobody,
    /// The task itself waited for this lane.
    Lane(u16),
    /// It did not, but one without rows just before it did.
    Before(u16),
}

impl WaitedFor {
    /// Index of the lane, if there was one.
    pub fn lane(self) -> Option<usize> {
        match self {
            Self::Nobody => None,
            Self::Lane(lane) | Self::Before(lane) => Some(usize::from(lane)),
        }
    }
}

/// What a lane has done since its last span: how real and virtual lanes fill in what a span says about the time before it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gap {
    ready_ns: Option<u64>,
    admission_ns: u64,
    waited_for: WaitedFor,
}

impl Gap {
    /// The lane turns to a task, and may have to wait for it. Only the first such moment counts.
    pub fn ready(&mut self, now_ns: u64) {
        match (self.ready_ns, self.waited_for) {
            (None, _) => self.ready_ns = Some(now_ns),
            (Some(_), WaitedFor::Lane(lane)) => self.waited_for = WaitedFor::Before(lane),
            (Some(_), _) => {}
        }
    }

    /// It has waited for `lane`.
    pub fn waited(&mut self, lane: usize) {
        self.waited_for = WaitedFor::Lane(lane as u16);
    }

    /// There was nothing to plan from `from_ns` to `to_ns`. Waits just before were for tasks without rows: the same want of work.
    /// Returns since when there was nothing to do, these waits included.
    pub fn admission(&mut self, from_ns: u64, to_ns: u64) -> u64 {
        let from_ns = self.ready_ns.take().map_or(from_ns, |ready_ns| ready_ns.min(from_ns));
        self.admission_ns += to_ns - from_ns;
        self.waited_for = WaitedFor::Nobody;
        from_ns
    }

    /// The gap ends with `span`, which gets told what it was.
    pub fn end(&mut self, span: Span) -> Span {
        let Self { ready_ns, admission_ns, waited_for } = std::mem::take(self);
        Span { admission_ns, ready_ns: ready_ns.unwrap_or(span.start_ns), waited_for, ..span }
    }
}

/// How full the run was when a step had been planned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterSample {
    /// When, in nanoseconds since the run began.
    pub at_ns: u64,
    /// The step, counted as in [`Span::step`].
    pub step: u64,
    /// Micro-batch whose step was planned.
    pub micro_batch: u32,
    /// Rows it will have, all attention devices together.
    pub rows: u32,
    /// Those of them that read a prompt, or what a preempted sequence had.
    pub prompt_rows: u32,
    /// Sequences that hold pages.
    pub running: u32,
    /// Sequences in the queue.
    pub waiting: u32,
    /// KV pages in use, all attention devices together.
    pub used_pages: u32,
}

/// A bounded ring: the newest entries, and how many older ones fell out. It never grows beyond the room it was made with.
#[derive(Clone, Debug)]
pub struct Ring<T> {
    entries: Vec<T>,
    capacity: usize,
    next: usize,
    dropped: u64,
}

impl<T> Ring<T> {
    /// Room for `capacity` entries; 0 keeps nothing and counts nothing.
    pub fn new(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), capacity, next: 0, dropped: 0 }
    }

    /// Whether it keeps anything at all.
    pub fn is_on(&self) -> bool {
        self.capacity > 0
    }

    /// Adds an entry; a full ring loses its oldest.
    pub fn push(&mut self, entry: T) {
        if self.entries.len() < self.capacity {
            self.entries.push(entry);
        } else if self.capacity > 0 {
            self.entries[self.next] = entry;
            self.dropped += 1;
            self.next += 1;
            if self.next == self.capacity {
                self.next = 0;
            }
        }
    }

    /// The entries, oldest first, and how many were lost.
    pub fn into_parts(mut self) -> (Vec<T>, u64) {
        self.entries.rotate_left(self.next);
        (self.entries, self.dropped)
    }
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
