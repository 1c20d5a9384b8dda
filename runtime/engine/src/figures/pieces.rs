//! A lane's latest pieces of time, published for the lanes that wait for it: what it did from moment to moment, or why nothing.
//!
//! Pieces follow each other without holes. One lane writes; any lane reads without a lock, and a piece that is overwritten
//! meanwhile reads as forgotten. A wait is published as what it was, a wait for a task of another lane; who wants to know what that
//! one did meanwhile looks there, when it has time to: no lane reads another one's memory on its way to a task.

use rally_metrics::BubbleCause;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bits of what a piece is, below its end.
const WHAT_BITS: u32 = 3;
/// There, a wait; a [`BubbleCause`] is its own number.
const WAIT: u64 = (1 << WHAT_BITS) - 1;
/// Bits of a number of tasks, below a lane's.
const TARGET_BITS: u32 = 48;

/// No task is at hand.
const NOTHING: u64 = u64::MAX;

/// Whom a lane waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WaitFor {
    pub(super) lane: usize,
    /// How many tasks that one had to have completed, if it was the next task that asked for them.
    pub(super) target: Option<u64>,
}

/// What a lane's time was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// This, to a lane that waits meanwhile; if it was a task with rows: how many tasks the lane had completed with it, those
    /// without rows too.
    Own { cause: BubbleCause, task: Option<u64> },
    /// What another lane's was.
    Wait(WaitFor),
}

/// A piece of a lane's time; it begins where the one before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) to_ns: u64,
    pub(super) what: What,
}

impl Piece {
    /// As in a cell.
    fn pack(self) -> (u64, u64) {
        let (what, more) = match self.what {
            What::Own { cause, task } => (cause as u64, task.unwrap_or(0)),
            What::Wait(WaitFor { lane, target }) => (WAIT, (lane as u64) << TARGET_BITS | target.unwrap_or(0)),
        };
        (self.to_ns << WHAT_BITS | what, more)
    }

    fn unpack((end, more): (u64, u64)) -> Self {
        let some = |count: u64| (count > 0).then_some(count);
        let what = match end % (1 << WHAT_BITS) {
            WAIT => {
                let target = some(more % (1 << TARGET_BITS));
                What::Wait(WaitFor { lane: (more >> TARGET_BITS) as usize, target })
            }
            cause => What::Own { cause: BubbleCause::ALL[cause as usize], task: some(more) },
        };
        Self { to_ns: end >> WHAT_BITS, what }
    }

    fn task(self) -> Option<u64> {
        match self.what {
            What::Own { task, .. } => task,
            What::Wait(_) => None,
        }
    }
}

/// Gets parts of a wait: from when to when, and why.
pub(super) type Sink<'a> = &'a mut dyn FnMut(u64, u64, BubbleCause);

#[derive(Debug, Default)]
struct Cell {
    to_ns_and_what: AtomicU64,
    more: AtomicU64,
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
        let (end, more) = piece.pack();
        cell.to_ns_and_what.store(end, Ordering::Relaxed);
        cell.more.store(more, Ordering::Relaxed);
        self.count.store(index + 1, Ordering::Release);
    }

    /// The lane is at a task since `at_ns`, or about to be if it need not wait for it; all before is told.
    pub(super) fn begin(&self, at_ns: u64, cause: BubbleCause) {
        self.at_hand.store(at_ns << WHAT_BITS | cause as u64, Ordering::Release);
    }

    /// The lane waits, or plans.
    pub(super) fn pause(&self) {
        self.at_hand.store(NOTHING, Ordering::Relaxed);
    }

    fn at_hand(&self) -> Option<(u64, BubbleCause)> {
        let packed = self.at_hand.load(Ordering::Acquire);
        (packed != NOTHING).then(|| (packed >> WHAT_BITS, BubbleCause::ALL[(packed % (1 << WHAT_BITS)) as usize]))
    }

    /// Pieces there have been.
    fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// `None` if it is forgotten.
    fn get(&self, index: u64) -> Option<Piece> {
        let cell = self.cell(index);
        let packed = (cell.to_ns_and_what.load(Ordering::Relaxed), cell.more.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let forgotten = self.count.load(Ordering::Relaxed) >= index + self.cells.len() as u64;
        (!forgotten).then(|| Piece::unpack(packed))
    }
}

/// The pieces of all lanes, to be looked at by one of them.
pub(super) trait AllPieces {
    fn lanes(&self) -> usize;
    fn of(&self, lane: usize) -> &Pieces;
}

/// What a wait from `from_ns` to `to_ns` was, in order and without holes. The rule is that of a trace's bubbles: what the lane
/// awaited did until the task awaited was over, and where it waited itself, the same of that wait; then, until the waiter went on,
/// want of work if there was any, and else the host. Where that task left no piece, having had no rows, what the lane did all the
/// while.
pub(super) fn explain(all: &impl AllPieces, wait: WaitFor, from_ns: u64, to_ns: u64, sink: Sink<'_>) {
    look(all, wait, from_ns, to_ns, all.lanes(), sink);
}

/// `depth`: how many waits in a row are followed, at most; somebody works at every moment, so no more than there are lanes.
fn look(all: &impl AllPieces, wait: WaitFor, from_ns: u64, to_ns: u64, depth: usize, sink: Sink<'_>) {
    let (pieces, target) = (all.of(wait.lane), wait.target);
    // Before the pieces: what is at hand now may be one of them by then, but nothing is missed between.
    let at_hand = pieces.at_hand();
    let count = pieces.count();
    // Back to where the wait began, and to the task awaited, which may have been over by then.
    let (mut first, mut awaited) = (count, None);
    while let Some(piece) = first.checked_sub(1).and_then(|index| pieces.get(index)) {
        if awaited.is_none() && piece.task().is_some_and(|task| target.is_none_or(|target| task <= target)) {
            awaited = Some((first, target == piece.task()));
        }
        if piece.to_ns <= from_ns && awaited.is_some() {
            break;
        }
        first -= 1;
    }
    let over = awaited.and_then(|(next, exact)| exact.then_some(next)).unwrap_or(u64::MAX);
    let mut at = from_ns;
    for index in first..count {
        let Some(piece) = pieces.get(index) else { continue };
        let until = piece.to_ns.min(to_ns);
        if index >= over && piece.task().is_some() {
            break;
        }
        if at < until {
            match piece.what {
                What::Own { cause, .. } if index < over || cause == BubbleCause::Admission => sink(at, until, cause),
                What::Wait(wait) if index < over && depth > 0 => look(all, wait, at, until, depth - 1, sink),
                _ => sink(at, until, BubbleCause::Host),
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use BubbleCause::{Admission, Attention, Ffn, Host, Transfer};

    /// End, cause, and which task of the lane it was; 0: none.
    type Row = (u64, BubbleCause, u64);

    /// How long, and why.
    type Parts<'a> = &'a [(u64, BubbleCause)];

    impl AllPieces for Vec<Pieces> {
        fn lanes(&self) -> usize {
            self.len()
        }

        fn of(&self, lane: usize) -> &Pieces {
            &self[lane]
        }
    }

    fn pieces(capacity: usize, rows: &[Row]) -> Pieces {
        let pieces = Pieces::new(capacity);
        for (to_ns, cause, task) in rows {
            let task = (*task > 0).then_some(*task);
            pieces.push(Piece { to_ns: *to_ns, what: What::Own { cause: *cause, task } });
        }
        pieces
    }

    fn wait_for(lane: usize, target: u64) -> WaitFor {
        WaitFor { lane, target: Some(target) }
    }

    fn explained(all: &Vec<Pieces>, wait: WaitFor, from_ns: u64, to_ns: u64) -> Vec<(u64, BubbleCause)> {
        let (mut parts, mut at) = (Vec::new(), from_ns);
        explain(all, wait, from_ns, to_ns, &mut |from, to, cause| {
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
        let all = vec![pieces];
        for (from, to, target, parts) in cases {
            let wait = WaitFor { lane: 0, target };
            assert_eq!(explained(&all, wait, from, to), parts, "{from} to {to} for {target:?}");
        }
    }

    #[test]
    fn what_is_forgotten_is_told_with_the_oldest_that_is_not() {
        let rows: Vec<Row> = (1..=20).map(|i| (i * 10, if i % 2 == 0 { Ffn } else { Attention }, i)).collect();
        let all = vec![pieces(4, &rows), Pieces::new(4)];
        assert_eq!(explained(&all, wait_for(0, 20), 45, 200), [(135, Ffn), (10, Attention), (10, Ffn)]);
        assert_eq!(explained(&all, WaitFor { lane: 1, target: None }, 5, 9), [(4, Host)]);
    }

    #[test]
    fn a_wait_for_one_that_waits_is_what_the_third_did() {
        let first = pieces(8, &[(50, Attention, 3)]);
        first.push(Piece { to_ns: 120, what: What::Wait(wait_for(1, 5)) });
        first.push(Piece { to_ns: 150, what: What::Own { cause: Attention, task: Some(4) } });
        let second = pieces(8, &[(90, Ffn, 5), (110, Transfer, 6)]);
        let all = vec![first, second];
        // It was woken 30 late, and it does not matter what the one it waited for did next.
        let parts = [(10, Attention), (40, Ffn), (30, Host), (30, Attention), (5, Host)];
        assert_eq!(explained(&all, wait_for(0, 4), 40, 155), parts);
        // Once over, its waits are no reason.
        assert_eq!(explained(&all, wait_for(0, 3), 40, 100), [(10, Attention), (50, Host)]);
    }

    #[test]
    fn lanes_that_seem_to_wait_for_each_other_are_not_followed_for_ever() {
        let all = vec![Pieces::new(4), Pieces::new(4)];
        for (lane, pieces) in all.iter().enumerate() {
            pieces.push(Piece { to_ns: 10, what: What::Own { cause: Ffn, task: Some(1) } });
            pieces.push(Piece { to_ns: 30, what: What::Wait(wait_for(1 - lane, 2)) });
            pieces.push(Piece { to_ns: 40, what: What::Own { cause: Ffn, task: Some(2) } });
        }
        assert_eq!(explained(&all, wait_for(0, 2), 5, 40), [(5, Ffn), (20, Host), (10, Ffn)]);
    }

    #[test]
    fn a_piece_reads_as_it_was_written() {
        let own = |cause, task| What::Own { cause, task };
        let wait = |lane, target| What::Wait(WaitFor { lane, target });
        for what in [own(Attention, None), own(Host, Some(1 << 40)), wait(0, None), wait(65_535, Some((1 << 48) - 1))] {
            let piece = Piece { to_ns: 1 << 60, what };
            assert_eq!(Piece::unpack(piece.pack()), piece);
        }
    }
}
