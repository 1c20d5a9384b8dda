//! A lane's latest pieces of time, published for the lanes that wait for it: what it did from moment to moment, or why nothing.
//!
//! Pieces follow each other without holes. One lane writes; any lane reads without a lock, and a piece that is overwritten
//! meanwhile reads as forgotten.

use rally_metrics::BubbleCause;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bits of a piece's cause, below its end.
const CAUSE_BITS: u32 = 3;

/// No task is at hand.
const NOTHING: u64 = u64::MAX;

/// A piece of a lane's time; it begins where the one before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) to_ns: u64,
    /// What it is to a lane that waits meanwhile.
    pub(super) cause: BubbleCause,
    /// If it was a task with rows: how many tasks the lane had completed with it, those without rows too.
    pub(super) task: Option<u64>,
}

fn pack(at_ns: u64, cause: BubbleCause) -> u64 {
    at_ns << CAUSE_BITS | cause as u64
}

fn unpack(packed: u64) -> (u64, BubbleCause) {
    (packed >> CAUSE_BITS, BubbleCause::ALL[(packed % (1 << CAUSE_BITS)) as usize])
}

#[derive(Debug, Default)]
struct Cell {
    to_ns_and_cause: AtomicU64,
    /// 0: none.
    task: AtomicU64,
}

/// The latest pieces of one lane.
#[derive(Debug)]
pub(super) struct Pieces {
    cells: Box<[Cell]>,
    count: AtomicU64,
    /// When the task at hand began and what it is, as in a cell; [`NOTHING`] between two.
    at_hand: AtomicU64,
}

impl Pieces {
    /// Room for the last `capacity` pieces.
    pub(super) fn new(capacity: usize) -> Self {
        let cells = (0..capacity).map(|_| Cell::default()).collect();
        Self { cells, count: AtomicU64::new(0), at_hand: AtomicU64::new(NOTHING) }
    }

    fn cell(&self, index: u64) -> &Cell {
        &self.cells[(index % self.cells.len() as u64) as usize]
    }

    /// Adds a piece. Only the lane itself may.
    pub(super) fn push(&self, piece: Piece) {
        let index = self.count.load(Ordering::Relaxed);
        let cell = self.cell(index);
        // Pairs with the fence in `get`: who sees any of the new piece sees that the old one had its turn.
        fence(Ordering::Release);
        cell.to_ns_and_cause.store(pack(piece.to_ns, piece.cause), Ordering::Relaxed);
        cell.task.store(piece.task.unwrap_or(0), Ordering::Relaxed);
        self.count.store(index + 1, Ordering::Release);
    }

    /// The lane is at a task since `at_ns`, or about to be if it need not wait for it; all before is told.
    pub(super) fn begin(&self, at_ns: u64, cause: BubbleCause) {
        self.at_hand.store(pack(at_ns, cause), Ordering::Release);
    }

    /// The lane waits, or plans.
    pub(super) fn pause(&self) {
        self.at_hand.store(NOTHING, Ordering::Relaxed);
    }

    fn at_hand(&self) -> Option<(u64, BubbleCause)> {
        let packed = self.at_hand.load(Ordering::Acquire);
        (packed != NOTHING).then(|| unpack(packed))
    }

    /// Pieces there have been.
    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// `None` if it is forgotten.
    fn get(&self, index: u64) -> Option<Piece> {
        let cell = self.cell(index);
        let (end, task) = (cell.to_ns_and_cause.load(Ordering::Relaxed), cell.task.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let forgotten = self.count.load(Ordering::Relaxed) >= index + self.cells.len() as u64;
        let (to_ns, cause) = unpack(end);
        (!forgotten).then_some(Piece { to_ns, cause, task: (task > 0).then_some(task) })
    }

    /// What a wait for this lane from `from_ns` to `to_ns` was, in order and without holes, the task awaited being the one that
    /// made it `target` tasks. The rule is that of a trace's bubbles: what the lane did until that task was over; then, until the
    /// waiter went on, want of work if there was any, and else the host. Where that task left no piece, having had no rows, what
    /// the lane did all the while.
    pub(super) fn explain(
        &self,
        from_ns: u64,
        to_ns: u64,
        target: Option<u64>,
        sink: &mut dyn FnMut(u64, u64, BubbleCause),
    ) {
        // Before the pieces: what is at hand now may be one of them by then, but nothing is missed between.
        let at_hand = self.at_hand();
        let count = self.count();
        // Back to where the wait began, and to the task awaited, which may have been over by then.
        let (mut first, mut awaited) = (count, None);
        while let Some(piece) = first.checked_sub(1).and_then(|index| self.get(index)) {
            if awaited.is_none() && piece.task.is_some_and(|task| target.is_none_or(|target| task <= target)) {
                awaited = Some((first, target == piece.task));
            }
            if piece.to_ns <= from_ns && awaited.is_some() {
                break;
            }
            first -= 1;
        }
        let over = awaited.and_then(|(next, exact)| exact.then_some(next)).unwrap_or(u64::MAX);
        let mut at = from_ns;
        for index in first..count {
            let Some(piece) = self.get(index) else { continue };
            let until = piece.to_ns.min(to_ns);
            let told = index < over || piece.cause == BubbleCause::Admission;
            let cause = if told { piece.cause } else { BubbleCause::Host };
            if index >= over && piece.task.is_some() {
                break;
            }
            if at < until {
                sink(at, until, cause);
                at = until;
            }
        }
        let begun = at_hand.filter(|_| over == u64::MAX).map(|(since_ns, cause)| (since_ns.clamp(at, to_ns), cause));
        let (since_ns, cause) = begun.unwrap_or((to_ns, BubbleCause::Host));
        if at < since_ns {
            sink(at, since_ns, BubbleCause::Host);
        }
        if since_ns < to_ns {
            sink(since_ns, to_ns, cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BubbleCause::{Admission, Attention, Ffn, Host, Transfer};

    /// End, cause, and which task of the lane it was; 0: none.
    type Row = (u64, BubbleCause, u64);

    /// How long, and why.
    type Parts<'a> = &'a [(u64, BubbleCause)];

    fn pieces(capacity: usize, rows: &[Row]) -> Pieces {
        let pieces = Pieces::new(capacity);
        for (to_ns, cause, task) in rows {
            pieces.push(Piece { to_ns: *to_ns, cause: *cause, task: (*task > 0).then_some(*task) });
        }
        pieces
    }

    fn explained(pieces: &Pieces, from_ns: u64, to_ns: u64, target: Option<u64>) -> Vec<(u64, BubbleCause)> {
        let (mut parts, mut at) = (Vec::new(), from_ns);
        pieces.explain(from_ns, to_ns, target, &mut |from, to, cause| {
            assert_eq!(from, at, "without holes");
            at = to;
            parts.push((to - from, cause));
        });
        assert_eq!(at, to_ns, "to the end");
        parts
    }

    #[test]
    fn a_wait_is_what_the_other_lane_did() {
        // It attended, waited for an FFN, received, attended, wanted work, and went on.
        let rows = [
            (100, Attention, 7),
            (130, Ffn, 0),
            (140, Transfer, 9),
            (200, Attention, 10),
            (210, Host, 0),
            (250, Admission, 0),
            (300, Ffn, 12),
        ];
        let pieces = pieces(8, &rows);
        pieces.begin(310, Attention);
        // From, to, and which task was awaited; what the wait was.
        let cases: [(u64, u64, Option<u64>, Parts<'_>); 8] = [
            (40, 100, Some(7), &[(60, Attention)]),
            // It had waited for us, most likely; then it received.
            (110, 150, Some(9), &[(20, Ffn), (10, Transfer), (10, Host)]),
            (110, 205, Some(10), &[(20, Ffn), (10, Transfer), (60, Attention), (5, Host)]),
            // What it did next is no reason, but that it said nothing for want of work is one.
            (190, 290, Some(10), &[(10, Attention), (10, Host), (40, Admission), (40, Host)]),
            // The task awaited was over before; nobody woke us.
            (215, 230, Some(7), &[(15, Host)]),
            // It had no rows: all that the lane did.
            (110, 150, Some(8), &[(20, Ffn), (10, Transfer), (10, Attention)]),
            (190, 290, None, &[(10, Attention), (10, Host), (40, Admission), (40, Ffn)]),
            // What it does now is no piece yet.
            (280, 330, Some(20), &[(20, Ffn), (10, Host), (20, Attention)]),
        ];
        for (from, to, target, parts) in cases {
            assert_eq!(explained(&pieces, from, to, target), parts, "{from} to {to} for {target:?}");
        }
    }

    #[test]
    fn what_is_forgotten_is_told_with_the_oldest_that_is_not() {
        let rows: Vec<Row> = (1..=20).map(|i| (i * 10, if i % 2 == 0 { Ffn } else { Attention }, i)).collect();
        let pieces = pieces(4, &rows);
        assert_eq!(explained(&pieces, 45, 200, Some(20)), [(135, Ffn), (10, Attention), (10, Ffn)]);
        assert_eq!(explained(&Pieces::new(4), 5, 9, None), [(4, Host)]);
    }
}
