//! A plan with what its lanes left behind, and the questions about single spans that every analysis asks: what task it was, which
//! span it had to wait for.

use crate::work::{Side, Work};
use rally_graph::plan::{Plan, PlannedTask, TaskId, TaskTemplate};
use rally_schedule::span::{CounterSample, LaneReport, Span, WaitedFor};

/// Spans of a run, real or virtual, with the plan that explains them.
#[derive(Clone, Debug)]
pub struct Recording<'a> {
    /// The plan that the lanes walked.
    pub plan: &'a Plan,
    /// By lane, in the plan's order.
    pub lanes: Vec<&'a LaneReport>,
    /// How full the run was, oldest first; may be empty.
    pub counters: &'a [CounterSample],
    sides: Vec<Side>,
    /// By task of the table.
    work: Vec<Work>,
}

/// A span of a recording: lane, and index into the lane's spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId {
    /// Index of the lane.
    pub lane: usize,
    /// Index among the spans that were kept of it.
    pub span: usize,
}

impl<'a> Recording<'a> {
    /// `lanes`: one report for each lane of `plan`, in its order (as `RunReport::lanes`, or the reports of virtual lanes).
    pub fn new(plan: &'a Plan, lanes: impl IntoIterator<Item = &'a LaneReport>, counters: &'a [CounterSample]) -> Self {
        let lanes: Vec<&LaneReport> = lanes.into_iter().collect();
        assert_eq!(lanes.len(), plan.lanes.len(), "one report for each lane of the plan");
        let work = (0..plan.table.tasks.len()).map(|task| Work::of(&plan.table, task)).collect();
        Self { plan, lanes, counters, sides: Side::of_lanes(plan), work }
    }

    /// Spans kept of a lane, oldest first.
    pub fn spans(&self, lane: usize) -> &'a [Span] {
        &self.lanes[lane].spans
    }

    /// Spans that fell out of the rings.
    pub fn dropped_spans(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.dropped_spans).sum()
    }

    /// The span itself.
    pub fn span(&self, id: SpanId) -> &'a Span {
        &self.spans(id.lane)[id.span]
    }

    /// Side of a lane.
    pub fn side(&self, lane: usize) -> Side {
        self.sides[lane]
    }

    /// The entry of the lane's list that `span` was.
    pub fn planned(&self, lane: usize, span: &Span) -> &'a PlannedTask {
        &self.plan.lanes[lane].tasks[span.position as usize]
    }

    /// The task that `span` was.
    pub fn template(&self, lane: usize, span: &Span) -> &'a TaskTemplate {
        &self.plan.table.tasks[self.planned(lane, span).task]
    }

    /// What the span's time was spent on.
    pub fn work(&self, lane: usize, span: &Span) -> Work {
        self.work[self.planned(lane, span).task]
    }

    /// What a task of the table does.
    pub fn work_of(&self, task: TaskId) -> Work {
        self.work[task]
    }

    /// The span that this one had to wait for: the one on another lane that it awaited, or the one before it on its own lane.
    /// `None` if that was not kept.
    pub fn predecessor(&self, id: SpanId) -> Option<SpanId> {
        let before = id.span.checked_sub(1).map(|span| SpanId { span, ..id });
        let found = match self.awaited(id) {
            Some((awaited, true)) => Some(awaited),
            Some((_, false)) => self.last_before(self.span(id).start_ns),
            None => None,
        };
        before.into_iter().chain(found).max_by_key(|candidate| self.span(*candidate).end_ns)
    }

    /// The span that was over last by `at_ns`. Where a task without rows was awaited, what that one waited for is not known; the
    /// work that ended last is what set things going.
    fn last_before(&self, at_ns: u64) -> Option<SpanId> {
        let last = |lane: usize| {
            let count = self.spans(lane).partition_point(|span| span.end_ns <= at_ns);
            count.checked_sub(1).map(|span| SpanId { lane, span })
        };
        (0..self.lanes.len()).filter_map(last).max_by_key(|id| self.span(*id).end_ns)
    }

    /// The last span of the lane that `id` waited for which had to be over first, and whether it is the very one awaited (the
    /// task awaited may have had no rows and left none).
    pub(crate) fn awaited(&self, id: SpanId) -> Option<(SpanId, bool)> {
        let span = self.span(id);
        let lane = span.waited_for.lane()?;
        let spans = self.spans(lane);
        let waits = &self.planned(id.lane, span).waits;
        let own = matches!(span.waited_for, WaitedFor::Lane(_));
        let wait = waits.iter().find(|wait| own && wait.lane == lane);
        let target = wait.map(|wait| self.plan.wait_target(wait, self.cycle(id.lane, span)));
        let count = match target {
            Some(target) => spans.partition_point(|other| self.place(lane, other) < target),
            None => spans.partition_point(|other| other.end_ns <= span.start_ns),
        };
        let found = count.checked_sub(1)?;
        let exact = target.is_some_and(|target| self.place(lane, &spans[found]) + 1 == target);
        Some((SpanId { lane, span: found }, exact))
    }

    fn cycle(&self, lane: usize, span: &Span) -> i64 {
        span.step.wrapping_add(u64::from(self.planned(lane, span).behind)) as i64
    }

    /// How many tasks the lane had completed before this one since the start of the run.
    fn place(&self, lane: usize, span: &Span) -> i64 {
        self.cycle(lane, span) * self.plan.lanes[lane].tasks.len() as i64 + i64::from(span.position)
    }
}
