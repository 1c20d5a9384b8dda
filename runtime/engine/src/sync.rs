//! How lanes wait for each other: one progress counter a lane, spinning first, parking later.
//!
//! Behind the lanes' counters there may be others that no lane owns: what comes from other hosts is counted there (`hosts/`).

use crate::primitives::{self, AtomicBool, AtomicU64, Ordering, Thread, fence};
use crossbeam::utils::CachePadded;
use rally_transport::Pulse;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest busy wait before a lane parks. A futex wake costs 20–28 µs, a decode stage rarely more than a few hundred.
///
/// None under loom: there, looking again is one more interleaving of the same.
const SPIN: Duration = if cfg!(loom) { Duration::ZERO } else { Duration::from_micros(500) };
/// How much of it is spent without yielding, unless every lane has a core to itself. Two lanes may stand on one core even where
/// there are others (pinned to the same, or put there by the system): who spins through keeps the one it waits for from running,
/// half a millisecond at every handover.
const SPIN_TOGETHER: Duration = Duration::from_micros(10);
/// The same where lanes outnumber cores: who spins there keeps the one it waits for from running.
const SPIN_CROWDED: Duration = Duration::from_micros(20);
/// A parked lane looks again after this long even if nobody wakes it, so that a lost wake cannot become a hang.
const PARK: Duration = Duration::from_millis(50);
/// Looks between two glances at the clock.
const LOOKS: usize = if cfg!(loom) { 1 } else { 64 };

/// The lane must end: the run was stopped, or another lane failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stopped;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// There was nothing to wait for.
    Not,
    /// What was waited for has come.
    Reached,
    /// It has not come in time.
    Overdue,
}

struct LaneSignal {
    /// Tasks completed since the start.
    progress: AtomicU64,
    /// When the last of them was over, on the clock of the spans. Written before `progress`, on the same cache line.
    over_ns: AtomicU64,
    /// On a cache line of its own: others look at it with every task they complete, and must not miss because this lane has
    /// counted on.
    parked: CachePadded<AtomicBool>,
    /// The lane has left; its progress stays what it is.
    ended: AtomicBool,
    thread: OnceLock<Thread>,
}

/// Shared by all lanes of a run.
pub(crate) struct LaneSync {
    lanes: Vec<CachePadded<LaneSignal>>,
    /// Last cycle that lanes begin; `u64::MAX` while the run goes on.
    final_cycle: AtomicU64,
    aborted: AtomicBool,
    crowded: bool,
    /// Every lane is pinned to a core of its own.
    apart: bool,
}

impl LaneSync {
    /// For `lanes` that run here; `counters` in all, those of lanes first.
    pub(crate) fn new(counters: usize, lanes: usize, apart: bool) -> Self {
        let signal = || LaneSignal {
            progress: AtomicU64::new(0),
            over_ns: AtomicU64::new(0),
            parked: CachePadded::new(AtomicBool::new(false)),
            ended: AtomicBool::new(false),
            thread: OnceLock::new(),
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            lanes: (0..counters).map(|_| CachePadded::new(signal())).collect(),
            final_cycle: AtomicU64::new(u64::MAX),
            aborted: AtomicBool::new(false),
            crowded: lanes > cores,
            apart,
        }
    }

    /// To be called on the lane's own thread before it waits for anything.
    pub(crate) fn register(&self, lane: usize) {
        self.lanes[lane].thread.get_or_init(primitives::current);
    }

    /// Publishes that `lane` has completed `count` tasks, the last of them over at `over_ns`, and wakes those of `wakes` that
    /// parked.
    pub(crate) fn complete(&self, lane: usize, count: u64, over_ns: u64, wakes: &[usize]) {
        self.lanes[lane].over_ns.store(over_ns, Ordering::Relaxed);
        self.lanes[lane].progress.store(count, Ordering::Release);
        if wakes.is_empty() {
            return;
        }
        // Pairs with the fence in `park`: either the waiter sees the new count, or this sees that it parked.
        fence(Ordering::SeqCst);
        wakes.iter().for_each(|waiter| self.wake(*waiter));
    }

    /// Whether `lane` has left.
    pub(crate) fn has_ended(&self, lane: usize) -> bool {
        self.lanes[lane].ended.load(Ordering::Acquire)
    }

    /// How it is with `lanes`.
    pub(crate) fn pulse(&self, lanes: &[usize]) -> Pulse {
        let done = lanes.iter().map(|lane| self.lanes[*lane].progress.load(Ordering::Relaxed)).sum();
        let working = lanes.iter().filter(|lane| self.is_at_work(**lane)).count() as u32;
        Pulse { done, working }
    }

    /// Whether a lane that has begun and not ended is at a task, or only about to wait.
    pub(crate) fn is_at_work(&self, lane: usize) -> bool {
        let signal = &self.lanes[lane];
        let waits = signal.parked.load(Ordering::Relaxed) || signal.ended.load(Ordering::Relaxed);
        !waits && signal.thread.get().is_some()
    }

    fn wake(&self, lane: usize) {
        let signal = &self.lanes[lane];
        if signal.parked.load(Ordering::Relaxed)
            && signal.parked.swap(false, Ordering::AcqRel)
            && let Some(thread) = signal.thread.get()
        {
            thread.unpark();
        }
    }

    fn wake_all(&self) {
        fence(Ordering::SeqCst);
        (0..self.lanes.len()).for_each(|lane| self.wake(lane));
    }

    /// Ends the run at once: every lane leaves at its next wait or task.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        self.wake_all();
    }

    pub(crate) fn aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// `lane` has left for good. Who waits for a task it never came to leaves as well: at the end of a run a lane may be one cycle
    /// ahead of another, and nothing has rows any more.
    pub(crate) fn end(&self, lane: usize) {
        self.lanes[lane].ended.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Lanes finish `cycle` and begin none after it.
    pub(crate) fn finish_after(&self, cycle: u64) {
        self.final_cycle.fetch_min(cycle, Ordering::AcqRel);
        self.wake_all();
    }

    /// Whether a lane may begin or go on with `cycle`.
    pub(crate) fn check(&self, cycle: u64) -> Result<(), Stopped> {
        let over = self.aborted() || cycle > self.final_cycle.load(Ordering::Acquire);
        if over { Err(Stopped) } else { Ok(()) }
    }

    /// Whether waiting for `lane` to complete `target` tasks still makes sense, for a lane in `cycle`.
    fn worth_waiting(&self, cycle: u64, lane: usize, target: u64) -> Result<(), Stopped> {
        self.check(cycle)?;
        // In this order: a lane publishes its last task before it ends.
        let never = self.lanes[lane].ended.load(Ordering::Acquire) && !self.reached(lane, target);
        if never { Err(Stopped) } else { Ok(()) }
    }

    /// Whether `lane` has completed `target` tasks.
    pub(crate) fn reached(&self, lane: usize, target: u64) -> bool {
        self.lanes[lane].progress.load(Ordering::Acquire) >= target
    }

    /// When the last task that `lane` published was over. After `reached`, no earlier than the task that it told of.
    pub(crate) fn over_ns(&self, lane: usize) -> u64 {
        self.lanes[lane].over_ns.load(Ordering::Relaxed)
    }

    /// Waits, as lane `own` in `cycle`, until `lane` has completed `target` tasks. Returns whether there was anything to wait for.
    pub(crate) fn wait(&self, own: usize, cycle: u64, lane: usize, target: u64) -> Result<bool, Stopped> {
        let waited = self.wait_at_most(own, cycle, (lane, target), Duration::MAX)?;
        Ok(waited != Waited::Not)
    }

    /// The same, for no longer than `patience` and some time that a parked lane sleeps.
    pub(crate) fn wait_at_most(
        &self,
        own: usize,
        cycle: u64,
        (lane, target): (usize, u64),
        patience: Duration,
    ) -> Result<Waited, Stopped> {
        if self.reached(lane, target) {
            return Ok(Waited::Not);
        }
        let limit = if self.crowded { SPIN.min(SPIN_CROWDED) } else { SPIN };
        let began = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if self.reached(lane, target) {
                    return Ok(Waited::Reached);
                }
                std::hint::spin_loop();
            }
            self.worth_waiting(cycle, lane, target)?;
            let waited = began.elapsed();
            if waited >= limit {
                break;
            }
            if self.crowded || (!self.apart && waited > SPIN_TOGETHER) {
                primitives::yield_now();
            }
        }
        self.park(own, cycle, (lane, target), began, patience)
    }

    fn park(
        &self,
        own: usize,
        cycle: u64,
        (lane, target): (usize, u64),
        began: Instant,
        patience: Duration,
    ) -> Result<Waited, Stopped> {
        let signal = &self.lanes[own];
        loop {
            // Exchanges, not stores: so all changes of the flag have one order, and who takes it back sees the thread registered.
            signal.parked.swap(true, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            let over = self.reached(lane, target);
            let checked = self.worth_waiting(cycle, lane, target);
            if !over && checked.is_ok() {
                primitives::park_timeout(PARK);
            }
            signal.parked.swap(false, Ordering::AcqRel);
            if over {
                return Ok(Waited::Reached);
            }
            checked?;
            // No look at the clock where nobody asks for it.
            if patience != Duration::MAX && began.elapsed() >= patience {
                return Ok(Waited::Overdue);
            }
        }
    }
}
