//! Windows: the piece of a recording that is looked at.
//!
//! No barrier stands between steps, so a step has no end that all lanes share. It is taken to begin with the first task of any
//! lane that belongs to it; so windows of consecutive steps tile a run, and in a settled run each is as long as a step takes.

use crate::recording::{Recording, SpanId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// A piece of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Where it begins, in nanoseconds since the run began.
    pub from_ns: u64,
    /// Where it ends.
    pub to_ns: u64,
    /// Steps it holds.
    pub steps: Range<u64>,
    /// How many of them were run.
    pub count: usize,
    /// Whether the run began with it: lanes fill first.
    pub fills: bool,
    /// Whether the run ended with it: lanes drain at last.
    pub drains: bool,
    /// Where it was left: the span that begins the next window, or the last one of all.
    #[serde(skip)]
    pub(crate) last: Option<SpanId>,
}

impl Window {
    /// With fewer steps there is no settled run to speak of.
    pub const FEWEST_STEPS: usize = 4;

    /// Everything that was kept.
    pub fn all(recording: &Recording<'_>) -> Self {
        Self::among(&steps(recording), recording, 0..u64::MAX)
    }

    /// Steps `steps`, or what was kept of them.
    pub fn steps(recording: &Recording<'_>, range: Range<u64>) -> Self {
        Self::among(&steps(recording), recording, range)
    }

    /// One window for each step that was run, in order.
    pub fn each(recording: &Recording<'_>) -> Vec<Self> {
        let begins = steps(recording);
        begins.keys().map(|step| Self::among(&begins, recording, *step..*step + 1)).collect()
    }

    /// Everything but the first and the last steps that were kept, a fifth at most each: how the run went once it was settled.
    /// Everything if fewer than five steps were kept.
    pub fn settled(recording: &Recording<'_>) -> Self {
        let begins = steps(recording);
        let numbers: Vec<u64> = begins.keys().copied().collect();
        let margin = (numbers.len() / 5).min(2);
        match (numbers.get(margin), numbers.get(numbers.len().saturating_sub(margin + 1))) {
            (Some(first), Some(last)) if first <= last => Self::among(&begins, recording, *first..*last + 1),
            _ => Self::among(&begins, recording, 0..u64::MAX),
        }
    }

    /// Runs of consecutive steps in which every row decoded, nobody's prompt was read, and that were over by `until_ns`.
    pub fn decoding(recording: &Recording<'_>, until_ns: u64) -> Vec<Self> {
        let begins = steps(recording);
        let mut reads: BTreeMap<u64, bool> = BTreeMap::new();
        for sample in recording.counters.iter().filter(|sample| sample.rows > 0) {
            *reads.entry(sample.step).or_default() |= sample.prompt_rows > 0;
        }
        let decodes = |step: &u64| {
            // What fell out of the ring of counters is not known to be free of prompts.
            reads.get(step) == Some(&false) && Self::among(&begins, recording, *step..*step + 1).to_ns <= until_ns
        };
        let decoding: Vec<u64> = begins.keys().copied().filter(decodes).collect();
        let runs = decoding.chunk_by(|step, next| *next == *step + 1);
        runs.map(|run| Self::among(&begins, recording, run[0]..run[run.len() - 1] + 1)).collect()
    }

    /// Length.
    pub fn wall_ns(&self) -> u64 {
        self.to_ns - self.from_ns
    }

    /// Time of a step in milliseconds; with one token a sequence and step, this is the time per output token.
    pub fn step_ms(&self) -> f64 {
        self.wall_ns() as f64 / 1e6 / self.count.max(1) as f64
    }

    fn among(begins: &BTreeMap<u64, SpanId>, recording: &Recording<'_>, range: Range<u64>) -> Self {
        let inside: Vec<(&u64, &SpanId)> = begins.range(range.clone()).collect();
        let end = last_end(recording);
        let Some((first, last)) = inside.first().zip(inside.last()) else {
            let none = 0..0;
            return Self { from_ns: 0, to_ns: 0, steps: none, count: 0, fills: false, drains: false, last: None };
        };
        let next = begins.range(last.0 + 1..).next().map(|(_, id)| *id);
        let from_ns = recording.span(*first.1).start_ns;
        let to_ns = match next {
            Some(id) => recording.span(id).start_ns,
            None => end.map_or(from_ns, |id| recording.span(id).end_ns),
        };
        Self {
            from_ns,
            to_ns: to_ns.max(from_ns),
            steps: *first.0..*last.0 + 1,
            count: inside.len(),
            fills: begins.first_key_value().is_some_and(|(step, _)| step == first.0) && recording.dropped_spans() == 0,
            drains: next.is_none(),
            last: next.or(end),
        }
    }
}

/// The first span of every step that was kept. Rings of different lanes reach back differently far: what not all lanes remember
/// is left out.
fn steps(recording: &Recording<'_>) -> BTreeMap<u64, SpanId> {
    let lost = |lane: &usize| recording.lanes[*lane].dropped_spans > 0;
    let oldest = |lane: usize| recording.spans(lane).first().map_or(0, |span| span.end_ns);
    let known_from = (0..recording.lanes.len()).filter(lost).map(oldest).max().unwrap_or(0);
    let mut begins: BTreeMap<u64, SpanId> = BTreeMap::new();
    for lane in 0..recording.lanes.len() {
        for (span, entry) in recording.spans(lane).iter().enumerate() {
            let id = SpanId { lane, span };
            let first = begins.entry(entry.step).or_insert(id);
            if recording.span(*first).start_ns > entry.start_ns {
                *first = id;
            }
        }
    }
    // A step cut by the edge of a ring would look shorter than it was.
    let cut = begins.iter().filter(|(_, id)| recording.span(**id).start_ns < known_from).map(|(step, _)| *step).max();
    match cut {
        Some(cut) if begins.keys().next_back() > Some(&cut) => begins.split_off(&(cut + 1)),
        _ => begins,
    }
}

fn last_end(recording: &Recording<'_>) -> Option<SpanId> {
    let last = |lane: usize| recording.spans(lane).len().checked_sub(1).map(|span| SpanId { lane, span });
    (0..recording.lanes.len()).filter_map(last).max_by_key(|id| recording.span(*id).end_ns)
}
