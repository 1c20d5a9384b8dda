//! Bubbles: the time in which a lane did nothing, and why.
//!
//! A lane's time is its spans and the gaps between them, and a gap is, in this order: host (planning, handing over), admission
//! (nothing to decode), waiting for another lane. What a waiting lane waits *for* is what the other one is doing at that moment:
//! computing attention, computing an FFN, moving values, planning; and if that one waits itself, what *it* waits for. So a bubble
//! is traced to the work at its end, and one gap may have several causes, one after the other.

use crate::recording::{Recording, SpanId};
use crate::window::Window;
use crate::work::Cause;
use rally_schedule::span::Span;
use serde::Serialize;

/// A piece of time of a lane without a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bubble {
    /// When it began.
    pub from_ns: u64,
    /// When it ended.
    pub to_ns: u64,
    /// Why.
    pub cause: Cause,
}

/// The bubbles of `lane` in `window`, in order; neighbours differ in cause or have a task between them.
pub fn bubbles(recording: &Recording<'_>, lane: usize, window: &Window) -> Vec<Bubble> {
    let mut found: Vec<Bubble> = Vec::new();
    let mut add = |from_ns: u64, to_ns: u64, cause: Cause| match found.last_mut() {
        Some(last) if last.to_ns == from_ns && last.cause == cause => last.to_ns = to_ns,
        _ => found.push(Bubble { from_ns, to_ns, cause }),
    };
    let viewer = Viewer { recording, depth: 0 };
    viewer.walk(lane, window.from_ns, window.to_ns, &mut |piece| {
        if !piece.busy {
            add(piece.from_ns, piece.to_ns, piece.cause);
        }
    });
    found
}

/// What a lane did from one moment to another, or why nothing.
#[derive(Clone, Copy)]
struct Piece {
    from_ns: u64,
    to_ns: u64,
    busy: bool,
    cause: Cause,
}

#[derive(Clone, Copy)]
struct Viewer<'a> {
    recording: &'a Recording<'a>,
    /// How many lanes stand between the one that is asked about and this one.
    depth: usize,
}

type Sink<'s> = &'s mut dyn FnMut(Piece);

impl Viewer<'_> {
    /// Tells all that `lane` did from `from` to `to`, in order and without holes.
    fn walk(self, lane: usize, from: u64, to: u64, sink: Sink<'_>) {
        let spans = self.recording.spans(lane);
        let first = spans.partition_point(|span| span.end_ns <= from);
        let mut at = from;
        for (index, span) in spans.iter().enumerate().skip(first) {
            if at >= to {
                return;
            }
            self.gap(SpanId { lane, span: index }, at, span.start_ns.min(to), sink);
            let begin = at.max(span.start_ns);
            let end = span.end_ns.min(to);
            if begin < end {
                let cause = self.recording.work(lane, span).cause();
                sink(Piece { from_ns: begin, to_ns: end, busy: true, cause });
            }
            at = at.max(end);
        }
        if at < to {
            self.after_all(lane, at, to, sink);
        }
    }

    /// The gap before `id`, from `from` to `to` of it.
    fn gap(self, id: SpanId, from: u64, to: u64, sink: Sink<'_>) {
        let span = self.recording.span(id);
        let (host, admission) = host_and_admission(span);
        quiet(from, to.min(host), Cause::Host, sink);
        quiet(from.max(host), to.min(admission), Cause::Admission, sink);
        let from = from.max(admission);
        if from < to {
            self.wait(id, from, to, sink);
        }
    }

    /// A wait for another lane: what that one did until the task awaited was over, and then what held it up before it said so.
    fn wait(self, id: SpanId, from: u64, to: u64, sink: Sink<'_>) {
        let span = self.recording.span(id);
        let Some(lane) = span.waited_for.lane() else { return quiet(from, to, Cause::Host, sink) };
        if self.depth > self.recording.lanes.len() {
            return self.elsewhere(from, to, sink);
        }
        let other = Self { depth: self.depth + 1, ..self };
        match self.recording.awaited(id) {
            Some((awaited, true)) => {
                let end = self.recording.span(awaited).end_ns.clamp(from, to);
                other.walk(awaited.lane, from, end, &mut |piece| sink(Piece { busy: false, ..piece }));
                let next = self.recording.spans(awaited.lane).get(awaited.span + 1);
                let (host, admission) = next.map_or((to, to), host_and_admission);
                let (host, admission) = (host.clamp(end, to), admission.clamp(end, to));
                quiet(end, host, Cause::Host, sink);
                quiet(host, admission, Cause::Admission, sink);
                quiet(admission, to, Cause::Host, sink);
            }
            // The task awaited left no span; what its lane did meanwhile is known all the same.
            _ => other.walk(lane, from, to, &mut |piece| sink(Piece { busy: false, ..piece })),
        }
    }

    /// Waits of tasks without rows are told together, so lanes may seem to wait for each other; somebody had work all the same, or
    /// there was none.
    fn elsewhere(self, from: u64, to: u64, sink: Sink<'_>) {
        let mut at = from;
        while at < to {
            let (mut until, mut cause) = (to, Cause::Host);
            for lane in 0..self.recording.lanes.len() {
                let spans = self.recording.spans(lane);
                let Some(span) = spans.get(spans.partition_point(|span| span.end_ns <= at)) else { continue };
                let (host, admission) = host_and_admission(span);
                if span.start_ns <= at {
                    (until, cause) = (span.end_ns.min(to), self.recording.work(lane, span).cause());
                    break;
                }
                if (host..admission).contains(&at) {
                    (until, cause) = (until.min(admission), Cause::Admission);
                }
                let edges = [host, span.start_ns].into_iter().filter(|edge| *edge > at);
                until = edges.fold(until, u64::min);
            }
            quiet(at, until, cause, sink);
            at = until;
        }
    }

    /// A lane that has run its last task waits for the others to run theirs, and after that there is nothing to do. Not so if another
    /// one waits for it and goes on to a task with rows: then all that is left to do is to tell that one.
    fn after_all(self, lane: usize, from: u64, to: u64, sink: Sink<'_>) {
        let last = |lane: usize| self.recording.spans(lane).last().map_or(0, |span| span.end_ns);
        let lanes = 0..self.recording.lanes.len();
        let rest = if self.depth == 0 { Cause::Admission } else { Cause::Host };
        match lanes.max_by_key(|other| last(*other)) {
            Some(other) if other != lane && last(other) > from && self.depth == 0 => {
                let end = last(other).min(to);
                let viewer = Self { depth: 1, ..self };
                viewer.walk(other, from, end, &mut |piece| sink(Piece { busy: false, ..piece }));
                quiet(end, to, rest, sink);
            }
            _ => quiet(from, to, rest, sink),
        }
    }
}

/// Where in the gap before `span` the host's part ends, and where admission does.
fn host_and_admission(span: &Span) -> (u64, u64) {
    (span.ready_ns.saturating_sub(span.admission_ns), span.ready_ns)
}

fn quiet(from_ns: u64, to_ns: u64, cause: Cause, sink: Sink<'_>) {
    if from_ns < to_ns {
        sink(Piece { from_ns, to_ns, busy: false, cause });
    }
}
