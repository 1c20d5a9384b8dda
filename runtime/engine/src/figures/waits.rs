//! A lane's own hand on its figures: it turns spans and the gaps before them into times by cause.
//!
//! What a waiting lane waits *for* is what the other one spends its time on meanwhile: its work, or what it waits for itself. Every
//! lane publishes its latest pieces of time, waits included; so once a task is over and those who waited for it are awake, the wait
//! before it is read off the pieces of the lane awaited. The analysis of a trace goes by the same rule, with all spans at hand.

use super::pieces::{AllPieces, Piece, Pieces, WaitFor, What, explain};
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
    /// The gap before the task at hand, if there was one.
    gap: Option<PastGap>,
    /// The task at hand, or the next one, is told to those who wait.
    is_told: bool,
    told: Told,
}

/// Whom a lane waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Awaited {
    lane: usize,
    /// How many tasks it had to have completed.
    target: u64,
    /// The transfer that the task awaited is part of.
    edge: Option<StageIndex>,
}

impl Awaited {
    /// Another lane, until it had completed `target` tasks.
    pub(crate) fn of(plan: &Plan, wait: &Wait, target: u64) -> Self {
        Self { lane: wait.lane, target, edge: edge_of(plan, wait) }
    }

    /// The lane.
    pub(crate) fn lane(&self) -> usize {
        self.lane
    }
}

/// A gap that is over: from when to when the lane did nothing, or waited.
#[derive(Clone, Copy, Debug)]
struct PastGap {
    from_ns: u64,
    /// Up to here it was the host; then want of work.
    host_ns: u64,
    ready_ns: u64,
    to_ns: u64,
    /// For whom it waited since `ready_ns`; nobody: the host.
    wait: Option<WaitFor>,
}

/// Pieces on their way out: neighbours of one cause become one.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    to_ns: u64,
    last: Option<BubbleCause>,
}

impl Told {
    /// The lane did nothing up to `to_ns`.
    fn bubble(&mut self, pieces: &Pieces, to_ns: u64, cause: BubbleCause) {
        if to_ns <= self.to_ns {
            return;
        }
        if self.last.is_some_and(|last| last != cause) {
            self.flush(pieces);
        }
        (self.to_ns, self.last) = (to_ns, Some(cause));
    }

    /// It waited up to `to_ns`.
    fn wait(&mut self, pieces: &Pieces, to_ns: u64, wait: WaitFor) {
        if to_ns > self.to_ns {
            self.flush(pieces);
            pieces.push(Piece { to_ns, what: What::Wait(wait) });
            self.to_ns = to_ns;
        }
    }

    fn flush(&mut self, pieces: &Pieces) {
        if let Some(cause) = self.last.take() {
            pieces.push(Piece { to_ns: self.to_ns, what: What::Own { cause, task: None } });
        }
    }
}

impl AllPieces for RunFigures {
    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn of(&self, lane: usize) -> &Pieces {
        &self.lanes[lane].pieces
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
    pub(crate) fn waited(&mut self, awaited: Awaited) {
        self.awaited = Some(awaited);
    }

    /// There was nothing to do from `from_ns` to `to_ns`, waits since the last span included. Told
    /// at once: who waits for this lane is about to be woken.
    pub(crate) fn admission(&mut self, from_ns: u64, to_ns: u64) {
        let pieces = &self.figures.lanes[self.lane].pieces;
        self.told.bubble(pieces, from_ns, BubbleCause::Host);
        self.told.bubble(pieces, to_ns, BubbleCause::Admission);
        self.told.flush(pieces);
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
        self.gap = (span.start_ns > self.accounted_ns).then(|| self.tell_gap(span));
        if self.gap.is_some() || !self.is_told {
            self.turn_to(span.position as usize, span.start_ns);
        }
    }

    /// A task with rows is over: the one that made it `completed` tasks. Told at once, for those who waited for it.
    pub(crate) fn end(&mut self, span: &Span, completed: u64) {
        let (_, work) = self.positions[span.position as usize];
        let pieces = &self.own().pieces;
        pieces.push(Piece { to_ns: span.end_ns, what: What::Own { cause: work.cause(), task: Some(completed) } });
        pieces.pause();
        self.is_told = false;
        self.told.to_ns = span.end_ns;
    }

    /// What a task that is over took, and what the gap before it was, goes into the sums. Nobody waits for those.
    pub(crate) fn record(&mut self, span: &Span) {
        let own = self.own();
        if let Some(gap) = self.gap {
            let parts = self.parts(gap);
            for (cell, part) in own.bubble_ns.iter().zip(parts) {
                if part > 0 {
                    add(cell, part);
                }
            }
            let transfer_ns = parts[BubbleCause::Transfer as usize];
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
        (self.awaited, self.accounted_ns) = (None, span.end_ns);
    }

    /// The gap before `span`: host, then admission, then waiting, as the span says.
    fn tell_gap(&mut self, span: &Span) -> PastGap {
        let Self { figures, lane, told, .. } = self;
        let pieces = &figures.lanes[*lane].pieces;
        let wait =
            self.awaited.filter(|_| span.waited_for != WaitedFor::Nobody).map(|Awaited { lane, target, .. }| {
                let target = matches!(span.waited_for, WaitedFor::Lane(_)).then_some(target);
                WaitFor { lane, target }
            });
        let ready_ns = span.ready_ns.min(span.start_ns);
        let host_ns = span.ready_ns.saturating_sub(span.admission_ns).min(span.start_ns);
        told.bubble(pieces, host_ns, BubbleCause::Host);
        told.bubble(pieces, ready_ns, BubbleCause::Admission);
        match wait {
            None => told.bubble(pieces, span.start_ns, BubbleCause::Host),
            Some(wait) => told.wait(pieces, span.start_ns, wait),
        }
        told.flush(pieces);
        PastGap { from_ns: self.accounted_ns, host_ns, ready_ns, to_ns: span.start_ns, wait }
    }

    /// A gap by cause.
    fn parts(&self, gap: PastGap) -> [u64; 5] {
        let mut parts = [0; 5];
        let mut at = gap.from_ns;
        let mut part = |_: u64, to_ns: u64, cause: BubbleCause| {
            parts[cause as usize] += to_ns.saturating_sub(at);
            at = at.max(to_ns);
        };
        part(0, gap.host_ns, BubbleCause::Host);
        part(0, gap.ready_ns, BubbleCause::Admission);
        match gap.wait.filter(|_| gap.ready_ns < gap.to_ns) {
            None => part(0, gap.to_ns, BubbleCause::Host),
            Some(wait) => explain(&*self.figures, wait, gap.ready_ns, gap.to_ns, &mut part),
        }
        parts
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
