//! A lane's own hand on its figures: it turns spans and the gaps before them into times by cause.
//!
//! What a waiting lane waits *for* is what the other one spends its time on meanwhile: its work, or what it waits for itself. Every
//! lane publishes its latest pieces of time, waits included; so when a task is over, the wait before it is read off the pieces of
//! the lane awaited. The analysis of a trace goes by the same rule, with all spans at hand.

use super::pieces::Piece;
use super::series::work_of;
use super::{LaneFigures, RunFigures, Series, Work, add};
use rally_graph::plan::{Plan, Wait};
use rally_graph::stage_graph::{StageGraph, StageIndex};
use rally_metrics::BubbleCause;
use rally_schedule::span::{Span, WaitedFor};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Writes one lane's figures.
#[derive(Debug)]
pub(crate) struct LaneMeter {
    figures: Arc<RunFigures>,
    lane: usize,
    /// By position: histogram and work.
    positions: Vec<(usize, Work)>,
    /// The last wait since the last span.
    awaited: Option<Awaited>,
    accounted_ns: u64,
    /// The gap before the task at hand, by cause, if there was one.
    gap: Option<[u64; 5]>,
    /// The task at hand, or the next one, is told to those who wait.
    is_told: bool,
    told: Told,
}

/// Whom a lane waited for.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    lane: usize,
    /// How many tasks it had to have completed.
    target: u64,
    /// The transfer that the task awaited is part of.
    edge: Option<StageIndex>,
}

/// Pieces on their way out: neighbours of one cause become one.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    to_ns: u64,
    last: Option<BubbleCause>,
}

impl Told {
    /// The lane did nothing up to `to_ns`.
    fn bubble(&mut self, figures: &LaneFigures, to_ns: u64, cause: BubbleCause) {
        if to_ns <= self.to_ns {
            return;
        }
        if self.last.is_some_and(|last| last != cause) {
            self.flush(figures);
        }
        (self.to_ns, self.last) = (to_ns, Some(cause));
    }

    fn flush(&mut self, figures: &LaneFigures) {
        if let Some(cause) = self.last.take() {
            figures.pieces.push(Piece { to_ns: self.to_ns, cause, task: None });
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
        Self {
            figures: Arc::clone(figures),
            lane,
            positions,
            awaited: None,
            accounted_ns: 0,
            gap: None,
            is_told: false,
            told: Told::default(),
        }
    }

    fn own(&self) -> &LaneFigures {
        &self.figures.lanes[self.lane]
    }

    /// The lane has waited until another one had completed `target` tasks.
    pub(crate) fn waited(&mut self, plan: &Plan, wait: &Wait, target: u64) {
        self.awaited = Some(Awaited { lane: wait.lane, target, edge: edge_of(plan, wait) });
    }

    /// There was nothing to do from `from_ns` to `to_ns`, waits since the last span included. Told
    /// at once: who waits for this lane is about to be woken.
    pub(crate) fn admission(&mut self, from_ns: u64, to_ns: u64) {
        let figures = &self.figures.lanes[self.lane];
        self.told.bubble(figures, from_ns, BubbleCause::Host);
        self.told.bubble(figures, to_ns, BubbleCause::Admission);
        self.told.flush(figures);
        self.awaited = None;
    }

    /// The lane turns to the task at `position`.
    pub(crate) fn turn_to(&mut self, position: usize, at_ns: u64) {
        let (_, work) = self.positions[position];
        self.own().pieces.begin(at_ns, work.cause());
        self.is_told = true;
    }

    /// It cannot begin yet: it waits.
    pub(crate) fn begin_wait(&mut self) {
        self.own().pieces.pause();
        self.is_told = false;
    }

    /// A task begins; `span` knows nothing yet but what was before it. Most begin where the one before ended, and are told already.
    pub(crate) fn begin(&mut self, span: &Span) {
        self.gap = (span.start_ns > self.accounted_ns).then(|| self.bubbles(span));
        if self.gap.is_some() || !self.is_told {
            self.turn_to(span.position as usize, span.start_ns);
        }
    }

    /// A task with rows is over: the one that made it `completed` tasks.
    pub(crate) fn record(&mut self, span: &Span, completed: u64) {
        let own = self.own();
        if let Some(gap) = self.gap {
            for (cell, part) in own.bubble_ns.iter().zip(gap) {
                if part > 0 {
                    add(cell, part);
                }
            }
            let transfer_ns = gap[BubbleCause::Transfer as usize];
            if transfer_ns > 0
                && let Some(edge) = self.awaited.and_then(|awaited| awaited.edge)
            {
                add(&own.exposed_ns[edge], transfer_ns);
            }
        }
        let (series, work) = self.positions[span.position as usize];
        let duration_ns = span.end_ns - span.start_ns;
        add(&own.work_ns[work as usize], duration_ns);
        own.durations[series].record(duration_ns);
        own.efforts[series].record(u64::from(span.effort), duration_ns);
        add(&own.tasks, 1);
        own.accounted_ns.store(span.end_ns, Ordering::Relaxed);
        own.pieces.push(Piece { to_ns: span.end_ns, cause: work.cause(), task: Some(completed) });
        own.pieces.pause();
        self.is_told = false;
        self.told.to_ns = span.end_ns;
        (self.awaited, self.accounted_ns) = (None, span.end_ns);
    }

    /// What the gap before `span` was, by cause: host, then admission, then waiting, as the span says.
    fn bubbles(&mut self, span: &Span) -> [u64; 5] {
        let mut bubbles = [0; 5];
        let Self { figures, lane, told, .. } = self;
        let own = &figures.lanes[*lane];
        let mut at = self.accounted_ns;
        let mut tell = |to_ns: u64, cause: BubbleCause| {
            bubbles[cause as usize] += to_ns.saturating_sub(at);
            at = at.max(to_ns);
            told.bubble(own, to_ns, cause);
        };
        tell(span.ready_ns.saturating_sub(span.admission_ns).min(span.start_ns), BubbleCause::Host);
        tell(span.ready_ns.min(span.start_ns), BubbleCause::Admission);
        if span.ready_ns < span.start_ns {
            match self.awaited.filter(|_| span.waited_for != WaitedFor::Nobody) {
                None => tell(span.start_ns, BubbleCause::Host),
                Some(Awaited { lane, target, .. }) => {
                    let target = matches!(span.waited_for, WaitedFor::Lane(_)).then_some(target);
                    let other = &figures.lanes[lane].pieces;
                    other.explain(span.ready_ns, span.start_ns, target, &mut |_, to_ns, cause| tell(to_ns, cause));
                }
            }
        }
        told.flush(own);
        bubbles
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

/// The transfer that the awaited task belongs to, if it does.
fn edge_of(plan: &Plan, wait: &Wait) -> Option<StageIndex> {
    let template = &plan.table.tasks[plan.lanes[wait.lane].tasks[wait.position].task];
    (!template.computes()).then_some(template.stage)
}
