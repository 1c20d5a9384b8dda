//! The critical path: the chain of tasks, each the one the next had to wait for, that leads from a window's begin to its end.
//!
//! Shortening a task that is not on it shortens nothing (at first).

use crate::recording::{Recording, SpanId};
use crate::window::Window;
use crate::work::Work;
use serde::Serialize;

/// A task on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The span.
    pub span: SpanId,
    /// Its part inside the window, nanoseconds.
    pub work_ns: u64,
    /// From the end of the link before, or the begin of the window, to its start: planning, handing over, waking, want of work.
    pub gap_ns: u64,
    /// How much of `gap_ns` was want of work.
    pub admission_ns: u64,
}

/// A critical path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CriticalPath {
    /// Its tasks, first one first.
    pub links: Vec<Link>,
    /// What its time went into.
    pub shares: PathShares,
}

/// What the time of a path went into, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PathShares {
    /// Computing attention and the like.
    pub attention_ns: u64,
    /// Computing FFNs.
    pub ffn_ns: u64,
    /// Carrying FFN inputs.
    pub a_to_f_ns: u64,
    /// Carrying FFN outputs.
    pub f_to_a_ns: u64,
    /// Planning, handing over, waking.
    pub host_ns: u64,
    /// Want of work.
    pub admission_ns: u64,
}

impl PathShares {
    /// Length of the path: all of it.
    pub fn length_ns(&self) -> u64 {
        Work::ALL.iter().map(|work| self.of(*work)).sum::<u64>() + self.host_ns + self.admission_ns
    }

    /// Time on the path that went into `work`.
    pub fn of(&self, work: Work) -> u64 {
        match work {
            Work::Attention => self.attention_ns,
            Work::Ffn => self.ffn_ns,
            Work::AToF => self.a_to_f_ns,
            Work::FToA => self.f_to_a_ns,
        }
    }

    fn add(&mut self, work: Work, ns: u64) {
        *match work {
            Work::Attention => &mut self.attention_ns,
            Work::Ffn => &mut self.ffn_ns,
            Work::AToF => &mut self.a_to_f_ns,
            Work::FToA => &mut self.f_to_a_ns,
        } += ns;
    }
}

/// Walks back from where `window` ends, over what each task had to wait for, to where it begins.
pub fn critical_path(recording: &Recording<'_>, window: &Window) -> CriticalPath {
    let mut path = CriticalPath::default();
    let mut at = window.last;
    // The begin of the link found last: what the next one must reach.
    let mut until_ns = window.to_ns;
    while let Some(id) = at {
        let span = recording.span(id);
        let before = recording.predecessor(id);
        let reached_ns = before.map_or(window.from_ns, |id| recording.span(id).end_ns).max(window.from_ns);
        let start_ns = span.start_ns.max(window.from_ns);
        let work_ns = span.end_ns.min(until_ns).saturating_sub(start_ns);
        let gap_ns = start_ns.saturating_sub(reached_ns);
        let admission_ns = held_ns(recording, id, before).min(gap_ns);
        path.shares.add(recording.work(id.lane, span), work_ns);
        path.shares.host_ns += gap_ns - admission_ns;
        path.shares.admission_ns += admission_ns;
        path.links.push(Link { span: id, work_ns, gap_ns, admission_ns });
        until_ns = start_ns;
        at = before.filter(|id| recording.span(*id).end_ns > window.from_ns);
    }
    path.links.reverse();
    path
}

/// For how long want of work stood between `id` and what it waited for: on its own lane, or on the other before that one said
/// that it was done.
fn held_ns(recording: &Recording<'_>, id: SpanId, before: Option<SpanId>) -> u64 {
    match before {
        Some(other) if other.lane != id.lane => {
            recording.spans(other.lane).get(other.span + 1).map_or(0, |next| next.admission_ns)
        }
        _ => recording.span(id).admission_ns,
    }
}
