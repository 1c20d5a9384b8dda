//! Spans: when each task of a lane ran, and what the lane waited for before it. Their shape is the schedule crate's, where
//! virtual lanes make the same.
//!
//! Where the device works later than it is told to, a span is when the device worked, and the gap before it is when it did not. So
//! what the lane knows when it has told is kept (`Late`) until the device says when that was.

use crate::clock::RunClock;
use crate::figures::{Awaited, LaneMeter};
use crate::remote::{Moment, RemoteValues};
use crate::stage::StageError;
use crate::step_work::StepWork;
use rally_graph::plan::{Plan, Wait};
pub use rally_schedule::span::{CounterSample, LaneReport, Span, WaitedFor};
use rally_schedule::span::{Gap, Ring};
use std::collections::VecDeque;
use std::time::Instant;

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
    /// Present if the device works later than it is told to.
    late: Option<VecDeque<Late>>,
    /// Whom the lane waited for last since it told the device something, and whether for the task at hand; of no meaning elsewhere.
    awaited: Option<Awaited>,
    waits_now: bool,
}

/// A task that the device was told.
#[derive(Debug)]
struct Late {
    /// Times as of the lane.
    span: Span,
    awaited: Option<Awaited>,
    completed: u64,
    /// The device's times. It begins with the end of the task before, if that was not over yet when this one was told.
    from: Begin,
    to: Moment,
    /// Of this micro-batch, if it counts as work.
    work: Option<usize>,
}

/// When a device begins a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// At this moment.
    At(Moment),
    /// When the one before is over.
    Behind,
}

/// Tasks of a device that are over and not yet told: room for these before more is taken.
const LATE: usize = 1024;

impl Recorder {
    /// `late`: the device works later than it is told to, and says when.
    pub(crate) fn new(name: &str, clock: RunClock, capacity: usize, meter: LaneMeter, late: bool) -> Self {
        let report = LaneReport { name: name.into(), ..LaneReport::default() };
        let ring = Ring::new(capacity);
        let gap = Gap::default();
        let late = late.then(|| VecDeque::with_capacity(LATE));
        Self {
            clock,
            ring,
            report,
            gap,
            meter,
            first_ns: None,
            last_ns: 0,
            marked_ns: 0,
            late,
            awaited: None,
            waits_now: false,
        }
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
        self.waits_now = false;
    }

    /// What is next in the lane's list is the task at `position`.
    pub(crate) fn turn_to(&mut self, position: usize) {
        if self.late.is_none() {
            self.meter.turn_to(position, self.marked_ns);
        }
    }

    /// The lane is about to wait.
    pub(crate) fn begin_wait(&mut self) {
        if self.late.is_none() {
            self.meter.begin_wait();
        }
    }

    /// The lane has waited until another one had completed `target` tasks.
    pub(crate) fn waited(&mut self, plan: &Plan, wait: &Wait, target: u64) {
        self.mark();
        self.gap.waited(wait.lane);
        let awaited = Awaited::of(plan, wait, target);
        match self.late {
            Some(_) => (self.awaited, self.waits_now) = (Some(awaited), true),
            None => self.meter.waited(awaited),
        }
    }

    /// Another lane had completed `target` tasks already, as far as the host goes: the device may have to wait all the same.
    pub(crate) fn reached(&mut self, plan: &Plan, wait: &Wait, target: u64) {
        if self.late.is_some() && !self.waits_now {
            (self.awaited, self.waits_now) = (Some(Awaited::of(plan, wait, target)), true);
        }
    }

    /// The lane begins the task at `position`. Returns when.
    pub(crate) fn begin(&mut self, position: u32) -> u64 {
        let (start_ns, mut gap) = (self.marked_ns, self.gap);
        if self.late.is_some() {
            return start_ns;
        }
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
            self.awaited = None;
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

    /// The device was told a task with rows, which it does between `from` and `to`: [`Recorder::hear`] records it when it
    /// is over. `work`: the micro-batch whose work it is, if it computes.
    pub(crate) fn tell(&mut self, span: Span, completed: u64, (from, to): (Begin, Moment), work: Option<usize>) {
        self.mark();
        let (mut span, awaited) = (self.gap.end(span), self.awaited.take());
        span.waited_for = match awaited.map(|awaited| awaited.lane() as u16) {
            Some(lane) if self.waits_now => WaitedFor::Lane(lane),
            Some(lane) => WaitedFor::Before(lane),
            None => WaitedFor::Nobody,
        };
        if let Some(late) = &mut self.late {
            late.push_back(Late { span, awaited, completed, from, to, work });
        }
    }

    /// The end of what the device was told last, unless it is known to be over.
    pub(crate) fn told_last(&self) -> Option<Moment> {
        self.late.as_ref()?.back().map(|last| last.to)
    }

    /// Records what the device has been told and is over with; all of it, waiting, if `all`.
    pub(crate) fn hear(
        &mut self,
        remote: &mut dyn RemoteValues,
        work: Option<&StepWork>,
        all: bool,
    ) -> Result<(), StageError> {
        while let Some((from, to)) = self.late.as_ref().and_then(|late| late.front()).map(|next| (next.from, next.to)) {
            let end = match remote.when(to)? {
                Some(end) => end,
                None if all => {
                    std::thread::yield_now();
                    continue;
                }
                None => break,
            };
            // A moment before one that has been has been.
            let start = match from {
                Begin::At(moment) => Some(remote.when(moment)?.unwrap_or(end)),
                Begin::Behind => None,
            };
            let Some(late) = self.late.as_mut().and_then(VecDeque::pop_front) else { break };
            let span = self.late_span(&late, start, end);
            if let (Some(work), Some(micro_batch)) = (work, late.work) {
                work.add(micro_batch, span.end_ns - span.start_ns);
            }
            if let Some(awaited) = late.awaited {
                self.meter.waited(awaited);
            }
            self.meter.begin(&span);
            self.meter.end(&span, late.completed);
            self.settle(span);
        }
        Ok(())
    }

    /// The span of a task as the device's: it began behind the one before, and its gap is the time in which the device had nothing.
    /// Of that the lane's own part lasts until it turned to the task, if that was so late; what follows is waiting for the lane that
    /// it had to wait for, on the host or on the device, if there was one.
    fn late_span(&mut self, late: &Late, start: Option<Instant>, end: Instant) -> Span {
        let (now_ns, now) = self.both_clocks();
        let ns = |at: Instant| now_ns.saturating_sub(now.saturating_duration_since(at).as_nanos() as u64);
        let end_ns = ns(end).max(self.last_ns);
        let start_ns = start.map_or(self.last_ns, ns).clamp(self.last_ns, end_ns);
        let ready_ns = late.span.ready_ns.clamp(self.last_ns, start_ns);
        let admission_ns = late.span.admission_ns.min(ready_ns - self.last_ns);
        Span { admission_ns, ready_ns, start_ns, end_ns, ..late.span }
    }

    /// The same moment on the run's clock and on the system's. The system may look elsewhere between two looks at a clock: then once more.
    fn both_clocks(&mut self) -> (u64, Instant) {
        const NEAR_NS: u64 = 1_000;
        const TRIES: usize = 16;
        for _ in 0..TRIES {
            let before_ns = self.mark();
            let now = Instant::now();
            if self.mark() - before_ns <= NEAR_NS {
                return (before_ns, now);
            }
        }
        (self.mark(), Instant::now())
    }

    pub(crate) fn into_report(mut self) -> LaneReport {
        (self.report.spans, self.report.dropped_spans) = self.ring.into_parts();
        self.report.active_ns = self.first_ns.map_or(0, |first| self.last_ns - first);
        self.report
    }
}
