//! A lane's own hand on its figures: it turns spans and waits into times by cause.
//!
//! What a waiting lane waits *for* is what the other one spends its time on meanwhile: its work, or what it waits for itself. So
//! a waiter looks at the other's sums before it waits and after: the difference is the wait, by cause. Sums rise when a task is
//! over, so what the other was in the middle of when the wait began counts whole at first; the part from before the wait is known
//! and taken off again. What is missing then (a task without rows, the time until a parked lane runs) is the host's. The analysis
//! of a trace says the same with all spans at hand.

use super::series::work_of;
use super::{AT_NO_TASK, LaneFigures, RunFigures, Series, Work, add};
use rally_graph::plan::{Plan, Wait};
use rally_graph::stage_graph::{StageGraph, StageIndex};
use rally_metrics::BubbleCause;
use rally_schedule::span::Span;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Writes one lane's figures.
#[derive(Debug)]
pub(crate) struct LaneMeter {
    figures: Arc<RunFigures>,
    lane: usize,
    /// By position: histogram and work.
    positions: Vec<(usize, Work)>,
    /// Since the last span, by cause.
    waits: [u64; 5],
    accounted_ns: u64,
    /// All causes, those first that others name when they wait for this lane.
    ours_first: [BubbleCause; 5],
}

/// A lane's sums when it was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
    at_ns: u64,
    work: [u64; 3],
    bubble: [u64; 5],
    /// Up to when the sums account for all time.
    accounted_ns: u64,
    /// The task at hand, and since when.
    at_hand: Option<(Work, u64)>,
}

impl LaneFigures {
    fn look(&self, at_ns: u64) -> Look {
        let read = |cell: &std::sync::atomic::AtomicU64| cell.load(Ordering::Relaxed);
        let at_hand = read(&self.at_hand);
        Look {
            at_ns,
            work: self.work_ns.each_ref().map(read),
            bubble: self.bubble_ns.each_ref().map(read),
            accounted_ns: read(&self.accounted_ns),
            at_hand: (at_hand != AT_NO_TASK).then(|| (Work::ALL[(at_hand & 3) as usize], at_hand >> 2)),
        }
    }
}

impl LaneMeter {
    pub(crate) fn new(figures: &Arc<RunFigures>, plan: &Plan, graph: &StageGraph, lane: usize) -> Self {
        let position = |position: usize| {
            let series = Series::of(plan, graph, lane, position);
            let known = &figures.lanes[lane].series;
            let place = known.iter().position(|other| *other == series);
            (place.expect("the figures have every series of the plan"), work_of(plan, graph, lane, position))
        };
        let positions: Vec<(usize, Work)> = (0..plan.lanes[lane].tasks.len()).map(position).collect();
        let mut ours_first = BubbleCause::ALL;
        let ours = |cause: &BubbleCause| positions.iter().any(|(_, work)| work.cause() == *cause);
        // Within either half: work, transfers, admission, the host.
        ours_first.sort_by_key(|cause| !ours(cause));
        Self { figures: Arc::clone(figures), lane, positions, waits: [0; 5], accounted_ns: 0, ours_first }
    }

    fn own(&self) -> &LaneFigures {
        &self.figures.lanes[self.lane]
    }

    /// Before a wait for `lane`.
    pub(crate) fn look(&self, lane: usize, at_ns: u64) -> Look {
        self.figures.lanes[lane].look(at_ns)
    }

    /// After it.
    pub(crate) fn waited(&mut self, plan: &Plan, wait: &Wait, before: Look, now_ns: u64) {
        let after = self.look(wait.lane, now_ns);
        let parts = split(&before, &after, &self.ours_first);
        self.waits.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        let transfer = parts[BubbleCause::Transfer as usize];
        if transfer > 0
            && let Some(edge) = edge_of(plan, wait)
        {
            add(&self.own().exposed_ns[edge], transfer);
        }
    }

    /// There was nothing to do, waits since the last span included.
    pub(crate) fn admission(&mut self) {
        self.waits = [0; 5];
    }

    /// The task at `position` begins.
    pub(crate) fn begin(&self, position: usize, start_ns: u64) {
        let (_, work) = self.positions[position];
        self.own().at_hand.store(start_ns << 2 | work as u64, Ordering::Relaxed);
    }

    /// The task has ended and had no rows.
    pub(crate) fn had_no_rows(&self) {
        self.own().at_hand.store(AT_NO_TASK, Ordering::Relaxed);
    }

    /// A task with rows is over.
    pub(crate) fn record(&mut self, span: &Span) {
        let own = &self.figures.lanes[self.lane];
        let gap_ns = span.start_ns - self.accounted_ns;
        let waited: u64 = self.waits.iter().sum();
        let admission_ns = span.admission_ns.min(gap_ns);
        for (cell, part) in own.bubble_ns.iter().zip(self.waits) {
            if part > 0 {
                add(cell, part);
            }
        }
        if admission_ns > 0 {
            add(&own.bubble_ns[BubbleCause::Admission as usize], admission_ns);
        }
        add(&own.bubble_ns[BubbleCause::Host as usize], gap_ns.saturating_sub(admission_ns + waited));
        let (series, work) = self.positions[span.position as usize];
        let duration_ns = span.end_ns - span.start_ns;
        add(&own.work_ns[work as usize], duration_ns);
        own.durations[series].record(duration_ns);
        add(&own.tasks, 1);
        own.accounted_ns.store(span.end_ns, Ordering::Relaxed);
        own.at_hand.store(AT_NO_TASK, Ordering::Relaxed);
        (self.waits, self.accounted_ns) = ([0; 5], span.end_ns);
    }

    /// Rows were routed: `expert_ids` of all of them.
    pub(crate) fn routed(&self, layer: usize, expert_ids: &[u32]) {
        let own = self.own();
        let counts = &own.expert_tokens[layer * own.experts..(layer + 1) * own.experts];
        for expert in expert_ids {
            add(&counts[*expert as usize], 1);
        }
    }
}

/// Divides a wait, from `before` to `after`, by what the other lane's sums rose meanwhile.
fn split(before: &Look, after: &Look, ours_first: &[BubbleCause; 5]) -> [u64; 5] {
    let waited = after.at_ns.saturating_sub(before.at_ns);
    let mut bubble = rise(before.bubble, after.bubble);
    let mut work = rise(before.work, after.work);
    // From the other's last task to the begin of the wait; its task at hand then is known, and a gap before it.
    let early = before.at_ns.saturating_sub(before.accounted_ns);
    let early_work = before.at_hand.map_or(0, |(_, since_ns)| before.at_ns.saturating_sub(since_ns)).min(early);
    let mut rest = early_work;
    if let Some((at_hand, _)) = before.at_hand {
        take(&mut work[at_hand as usize], &mut rest);
    }
    let mut early_gap = early - early_work + rest;
    // In that gap it waited for what this lane did then, most likely.
    ours_first.iter().for_each(|cause| take(&mut bubble[*cause as usize], &mut early_gap));
    work.iter_mut().for_each(|part| take(part, &mut early_gap));
    let mut parts = bubble;
    Work::ALL.iter().for_each(|kind| parts[kind.cause() as usize] += work[*kind as usize]);
    let sum: u64 = parts.iter().sum();
    parts[BubbleCause::Host as usize] += waited.saturating_sub(sum);
    // The other went on while it was looked at: a wait is no longer than it was.
    let mut over = sum.saturating_sub(waited);
    parts.iter_mut().for_each(|part| take(part, &mut over));
    parts
}

fn rise<const N: usize>(before: [u64; N], after: [u64; N]) -> [u64; N] {
    std::array::from_fn(|i| after[i].saturating_sub(before[i]))
}

/// Takes as much of `wanted` off `part` as is there.
fn take(part: &mut u64, wanted: &mut u64) {
    let taken = (*part).min(*wanted);
    *part -= taken;
    *wanted -= taken;
}

/// The transfer that a wait is for.
fn edge_of(plan: &Plan, wait: &Wait) -> Option<StageIndex> {
    let template = &plan.table.tasks[plan.lanes[wait.lane].tasks[wait.position].task];
    (!template.computes()).then_some(template.stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `work`: attention, ffn, transfer; the rest by cause.
    #[test]
    fn a_wait_is_what_the_other_lane_did() {
        use BubbleCause::{Admission, Attention, Ffn, Host, Transfer};
        let ffn_first = [Ffn, Transfer, Attention, Admission, Host];
        // How long before the wait the other lane had ended a task and what it had begun since; what came in; what the wait was.
        let cases = [
            // All of it seen from begin to end.
            (0, None, 110, [100, 0, 10], [0; 5], [100, 0, 10, 0, 0]),
            // Attention had been under way for 40 when the wait began, and for 30 before that the lane had waited for us.
            (70, Some((Work::Attention, 960)), 60, [90, 0, 10], [0, 25, 5, 0, 0], [50, 0, 10, 0, 0]),
            // It waited for us when the wait began, took 3 to wake, and then did its work.
            (30, None, 113, [100, 0, 10], [0, 25, 5, 0, 3], [100, 0, 10, 0, 3]),
            // It took 7 more until the waiter ran again, which does not make what was before any longer.
            (30, None, 120, [100, 0, 10], [0, 25, 5, 0, 3], [100, 0, 10, 0, 10]),
            // Nothing is known: the task had no rows.
            (40, Some((Work::Attention, 960)), 40, [0; 3], [0; 5], [0, 0, 0, 0, 40]),
        ];
        for (early, at_hand, waited, work, bubble, parts) in cases {
            let before = Look { at_ns: 1000, work: [3; 3], bubble: [3; 5], accounted_ns: 1000 - early, at_hand };
            let (work, bubble) = (work.map(|ns| ns + 3), bubble.map(|ns| ns + 3));
            let after = Look { at_ns: 1000 + waited, work, bubble, ..before };
            assert_eq!(split(&before, &after, &ffn_first), parts, "{waited} of {work:?} and {bubble:?}");
        }
    }
}
