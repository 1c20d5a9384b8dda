//! The end of a micro-batch's step: samples in, next descriptor out.
//!
//! The lane that ends a micro-batch's step last calls the step planner itself, so there is no dispatcher thread and no lane
//! waits for one. Submissions and cancellations from outside go to the same planner, under the same short lock.

use crate::clock::RunClock;
use crate::engine::EngineError;
use crate::figures::RunFigures;
use crate::hosts::{Followers, Patience};
use crate::outbox::Outbox;
use crate::primitives::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};
use crate::rehearsal::FixedBatches;
use crate::stage::Sample;
use crate::step_work::StepWork;
use crate::steps::{StepEnd, Steps};
use crate::sync::LaneSync;
use rally_graph::plan::Plan;
use rally_schedule::batch::{DeviceBatch, SequenceId, SequenceRequest};
use rally_schedule::cost::CostModel;
use rally_schedule::planner::{FinishReason, PlannerEvent, StepPlanner, SubmitError};
use rally_schedule::span::{CounterSample, Ring};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A token that counts, with what its request wanted to know.
#[derive(Clone, Debug)]
pub struct TokenReport {
    /// Index among the generated ones.
    pub index: u64,
    /// The token and its details.
    pub sample: Sample,
    /// Whether its sequence ends with it, of which [`RunEvent::Finished`] tells next.
    pub last: bool,
    /// When it was sampled.
    pub at: Instant,
}

/// What a run tells its owner, in order.
#[derive(Debug)]
pub enum RunEvent {
    /// A sequence left the queue; so many tokens of its prompt need not be read, since they are cached.
    Admitted(SequenceId, Instant, usize),
    /// A token.
    Token(TokenReport),
    /// A sequence ended; nothing of it follows.
    Finished(SequenceId, FinishReason, Instant),
    /// The run failed; nothing follows at all.
    Failed(EngineError),
}

struct MicroBatchState {
    batches: Vec<DeviceBatch>,
    samples: Vec<Sample>,
    /// Rows of this step, and what they attend to, where costs are learned.
    load: (usize, usize),
    /// Exit tasks of this step that are done.
    arrived: usize,
    /// Where hosts follow: what was planned last, kept to be planned again should a host be lost meanwhile.
    in_flight: Vec<DeviceBatch>,
    /// It is to be planned again: the epoch in which it was planned first has ended before the step did.
    again: bool,
}

/// What the planner of a run knows when an epoch ends, for the next one: sequences go on where they are, and steps that were not
/// ended are done again. KV that they wrote is written as it was.
#[derive(Debug)]
pub struct Kept {
    planner: StepPlanner,
    /// By micro-batch.
    in_flight: Vec<Vec<DeviceBatch>>,
    patience: Patience,
}

impl Kept {
    pub(crate) fn into_parts(self) -> (StepPlanner, Vec<Vec<DeviceBatch>>, Patience) {
        (self.planner, self.in_flight, self.patience)
    }

    /// Whether any sequence is queued or running.
    pub fn has_sequences(&self) -> bool {
        !self.planner.is_idle()
    }
}

struct State {
    planner: StepPlanner,
    closed: bool,
    /// Nothing that comes is taken any more: what the owner was told last is that the run has failed.
    failed: bool,
    /// Reused between steps.
    planner_events: Vec<PlannerEvent>,
    counters: Ring<CounterSample>,
}

/// Shared by all lanes of a run and its owner.
pub(crate) struct Control {
    state: Mutex<State>,
    /// Signalled when work arrives, or none will any more.
    changed: Condvar,
    micro_batches: Vec<Mutex<MicroBatchState>>,
    exits: usize,
    /// Present if costs are learned.
    work: Option<Arc<StepWork>>,
    sync: Arc<LaneSync>,
    events: Outbox,
    clock: RunClock,
    figures: Arc<RunFigures>,
    /// Present in a rehearsal: its steps are not planned.
    fixed: Option<FixedBatches>,
    /// Present where other hosts follow.
    followers: Option<Followers>,
    patience: Mutex<Patience>,
    /// A lane of this host will not come back.
    hangs: AtomicBool,
}

/// What a run's control works with.
pub(crate) struct Surroundings {
    pub(crate) sync: Arc<LaneSync>,
    pub(crate) events: Outbox,
    pub(crate) clock: RunClock,
    /// Counter samples that are kept; 0: none.
    pub(crate) counters: usize,
    pub(crate) figures: Arc<RunFigures>,
    /// Present if costs are learned.
    pub(crate) work: Option<Arc<StepWork>>,
    /// Present in a rehearsal.
    pub(crate) fixed: Option<FixedBatches>,
    /// Present where other hosts follow.
    pub(crate) followers: Option<Followers>,
    /// Lanes that nobody runs: those of hosts that are away.
    pub(crate) away: Vec<usize>,
    /// By micro-batch, what the epoch before this one has left in flight; none in the first one.
    pub(crate) in_flight: Vec<Vec<DeviceBatch>>,
    /// For how long nothing may move, where there are other hosts.
    pub(crate) patience: Patience,
}

/// A lane that panicked while it held a lock has already aborted the run; the data is only looked at to shut down.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    pub(crate) fn new(planner: StepPlanner, plan: &Plan, surroundings: Surroundings) -> Self {
        let Surroundings {
            sync,
            events,
            clock,
            counters,
            figures,
            work,
            fixed,
            followers,
            away,
            mut in_flight,
            patience,
        } = surroundings;
        let config = *planner.config();
        let runs = |lane: usize| !away.contains(&lane);
        let device_runs =
            |device: usize| plan.lanes.iter().enumerate().any(|(i, lane)| lane.device == device && runs(i));
        let exits = plan.table.exits.iter().filter(|task| device_runs(plan.table.tasks[**task].device)).count();
        let mut micro_batch = |m: usize| MicroBatchState {
            batches: vec![DeviceBatch::default(); config.devices],
            // A sequence is sampled at most once a step.
            samples: Vec::with_capacity(config.sequences.min(config.rows_per_device * config.devices)),
            load: (0, 0),
            arrived: plan.exits_at_start(m, runs),
            again: !in_flight.is_empty(),
            in_flight: match in_flight.get_mut(m) {
                Some(batches) => std::mem::take(batches),
                None => vec![DeviceBatch::default(); if followers.is_some() { config.devices } else { 0 }],
            },
        };
        Self {
            micro_batches: (0..config.micro_batches).map(|m| Mutex::new(micro_batch(m))).collect(),
            state: Mutex::new(State {
                planner,
                closed: false,
                failed: false,
                planner_events: Vec::new(),
                counters: Ring::new(counters),
            }),
            changed: Condvar::new(),
            exits,
            work,
            sync,
            events,
            clock,
            figures,
            fixed,
            followers,
            patience: Mutex::new(patience),
            hangs: AtomicBool::new(false),
        }
    }

    pub(crate) fn submit(&self, requests: impl IntoIterator<Item = SequenceRequest>) -> Result<(), SubmitError> {
        let mut state = lock(&self.state);
        if state.closed || self.sync.aborted() {
            return Err(SubmitError::Closed);
        }
        let result = requests.into_iter().try_for_each(|request| state.planner.submit(request));
        self.figures.queue(&state.planner);
        drop(state);
        self.changed.notify_all();
        result
    }

    pub(crate) fn cancel(&self, id: SequenceId) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.failed {
            return;
        }
        state.planner.cancel(id, &mut state.planner_events);
        self.figures.queue(&state.planner);
        self.publish(&mut state.planner_events, &mut Vec::new());
        drop(guard);
        self.changed.notify_all();
    }

    pub(crate) fn preempt(&self, id: SequenceId) -> bool {
        lock(&self.state).planner.preempt(id)
    }

    pub(crate) fn keep_tpot(&self, target_s: f64) {
        lock(&self.state).planner.keep_tpot(target_s);
    }

    pub(crate) fn reuse_prefixes(&self) {
        lock(&self.state).planner.reuse_prefixes();
    }

    pub(crate) fn pretend_read(&self, tokens: usize) {
        lock(&self.state).planner.pretend_read(tokens);
    }

    /// Tokens that sequences have brought, and of them those that were cached.
    pub(crate) fn prefix_queries_and_hits(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.planner.prefix_queries(), state.planner.prefix_hits())
    }

    pub(crate) fn cached_pages(&self) -> usize {
        lock(&self.state).planner.cached_pages()
    }

    pub(crate) fn preemptions(&self) -> u64 {
        lock(&self.state).planner.preemptions()
    }

    pub(crate) fn learned_costs(&self) -> Option<CostModel> {
        lock(&self.state).planner.learned_costs()
    }

    pub(crate) fn free_pages(&self) -> usize {
        lock(&self.state).planner.free_pages()
    }

    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn running_and_waiting(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.planner.running(), state.planner.waiting())
    }

    /// What the next epoch goes on with; this one has ended.
    pub(crate) fn keep(&self) -> Kept {
        let in_flight = |micro_batch: &Mutex<MicroBatchState>| {
            let mut batches = std::mem::take(&mut lock(micro_batch).in_flight);
            batches.iter_mut().for_each(DeviceBatch::give_tokens);
            batches
        };
        let in_flight = self.micro_batches.iter().map(in_flight).collect();
        let mut state = lock(&self.state);
        let fresh = StepPlanner::new(*state.planner.config());
        let mut planner = std::mem::replace(&mut state.planner, fresh);
        planner.forget_last_tokens();
        Kept { planner, in_flight, patience: *lock(&self.patience) }
    }

    /// For how long nothing may move.
    pub(crate) fn patience(&self) -> MutexGuard<'_, Patience> {
        lock(&self.patience)
    }

    /// Whether there is something to do: sequences, or to end.
    pub(crate) fn has_work(&self) -> bool {
        let state = lock(&self.state);
        !state.failed && (state.closed || !state.planner.is_idle())
    }

    /// Whether nothing more is submitted.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Whether a lane of this host will not come back.
    pub(crate) fn hangs(&self) -> bool {
        self.hangs.load(Ordering::Acquire)
    }

    /// A device has nothing any more of what was in it; its sequences begin anew elsewhere or, unless it is `away`, there.
    pub(crate) fn lost_device(&self, device: usize, away: bool) {
        for micro_batch in &self.micro_batches {
            if let Some(batch) = lock(micro_batch).in_flight.get_mut(device) {
                batch.clear();
            }
        }
        let mut state = lock(&self.state);
        state.planner.lost_device(device, away);
        self.figures.queue(&state.planner);
    }

    /// Tells the owner of the end, behind all that was counted: nothing is from then on.
    pub(crate) fn break_off(&self, error: EngineError) {
        lock(&self.state).failed = true;
        self.events.send(RunEvent::Failed(error));
    }

    /// A device takes part, as it is.
    pub(crate) fn has_device(&self, device: usize) {
        lock(&self.state).planner.has_device(device);
    }

    pub(crate) fn followers(&self) -> Option<&Followers> {
        self.followers.as_ref()
    }

    pub(crate) fn abort(&self) {
        self.sync.abort();
        // Under the lock no lane is between its check and its wait.
        lock(&self.state).failed = true;
        self.changed.notify_all();
    }

    /// Counter samples, oldest first, and how many were lost. Takes them.
    pub(crate) fn take_counters(&self) -> (Vec<CounterSample>, u64) {
        std::mem::replace(&mut lock(&self.state).counters, Ring::new(0)).into_parts()
    }

    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Nothing once the run has failed: those steps are done again, or by nobody.
    fn observe(&self, samples: &mut Vec<Sample>) -> Option<MutexGuard<'_, State>> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.failed {
            samples.clear();
            return None;
        }
        for sample in samples.iter() {
            state.planner.observe(sample.sequence, sample.token, &mut state.planner_events);
        }
        self.publish(&mut state.planner_events, samples);
        samples.clear();
        Some(guard)
    }

    /// With nothing to do the lane that plans blocks here, and every other lane waits for it, parked. Returns since when.
    #[cold]
    fn await_work<'a>(&self, mut state: MutexGuard<'a, State>, cycle: u64) -> (MutexGuard<'a, State>, Option<u64>) {
        let mut idle_from_ns = None;
        // Not before pages have come back: idle, a deployment holds none.
        while state.planner.is_idle() && !self.sync.aborted() {
            if state.closed {
                // Every micro-batch is empty from here on; a cycle more lets all lanes see the last descriptors through.
                self.sync.finish_after(cycle + 1);
                if let Some(followers) = &self.followers {
                    followers.finish(cycle + 1);
                }
                break;
            }
            idle_from_ns.get_or_insert_with(|| self.now_ns());
            let waited = self.changed.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (state, idle_from_ns)
    }

    /// Sends planner events on, each token with its sample (order of tokens = order of samples).
    fn publish(&self, events: &mut Vec<PlannerEvent>, samples: &mut Vec<Sample>) {
        if events.is_empty() {
            return;
        }
        let at = self.clock.now();
        let mut events = events.drain(..).peekable();
        while let Some(event) = events.next() {
            let event = match event {
                PlannerEvent::Admitted { sequence, cached_tokens } => RunEvent::Admitted(sequence, at, cached_tokens),
                PlannerEvent::Finished(id, reason) => RunEvent::Finished(id, reason, at),
                PlannerEvent::Token { sequence, index, .. } => {
                    let found = samples.iter().position(|sample| sample.sequence == sequence);
                    let found = found.expect("the planner reports a token only when it observes that sample");
                    let last = matches!(events.peek(), Some(PlannerEvent::Finished(id, _)) if *id == sequence);
                    RunEvent::Token(TokenReport { index, sample: samples.swap_remove(found), last, at })
                }
            };
            self.events.send(event);
        }
    }
}

impl Steps for Control {
    fn take_batch(&self, micro_batch: usize, device: usize, batch: &mut DeviceBatch) {
        std::mem::swap(&mut lock(&self.micro_batches[micro_batch]).batches[device], batch);
    }

    /// The last exit task of a step plans the next one.
    fn end_step(&self, end: StepEnd, samples: &mut Vec<Sample>) -> Option<u64> {
        let StepEnd { micro_batch, cycle, next, .. } = end;
        let mut micro_batch_state = lock(&self.micro_batches[micro_batch]);
        micro_batch_state.samples.append(samples);
        micro_batch_state.arrived += 1;
        if micro_batch_state.arrived < self.exits {
            return None;
        }
        micro_batch_state.arrived = 0;
        let MicroBatchState { batches, samples, load, in_flight, again, .. } = &mut *micro_batch_state;
        if let Some(fixed) = &self.fixed {
            samples.clear();
            if fixed.put(micro_batch, cycle, batches) {
                self.sync.finish_after(cycle + 1);
            }
            return None;
        }
        let Some(mut state) = self.observe(samples) else {
            // What lanes took last lies here again. Until they hear that the run is over they may go on, and with a step from before
            // they would write over KV that is kept.
            batches.iter_mut().for_each(DeviceBatch::clear);
            return None;
        };
        if let Some(work) = &self.work {
            state.planner.learn(load.0, load.1, work.take_s(micro_batch));
        }
        let (mut state, idle_from_ns) =
            if state.planner.is_idle() { self.await_work(state, cycle) } else { (state, None) };
        let State { planner, planner_events, counters, .. } = &mut *state;
        if planner.keeps_tpot() {
            planner.begin_plan(micro_batch, self.now_ns() as f64 * 1e-9);
        }
        if std::mem::take(again) && in_flight.iter().any(|batch| batch.rows > 0) {
            batches.clone_from(in_flight);
        } else {
            planner.plan(micro_batch, batches, planner_events);
            if self.followers.is_some() {
                in_flight.clone_from(batches);
            }
        }
        if self.work.is_some() {
            let sum = |of: fn(&DeviceBatch) -> usize| batches.iter().map(of).sum();
            *load = (sum(|batch| batch.rows), sum(DeviceBatch::context));
        }
        self.figures.planned(planner, batches);
        if let Some(followers) = &self.followers {
            followers.planned(micro_batch, next, batches);
        }
        if counters.is_on() {
            counters.push(planner.sample(self.now_ns(), next, micro_batch, batches));
        }
        self.publish(planner_events, samples);
        idle_from_ns
    }

    fn fail(&self, error: EngineError) {
        // What others say of the first is no news.
        if std::mem::replace(&mut lock(&self.state).failed, true) {
            return;
        }
        // Before the owner hears, who may close the connections at once.
        if let Some(followers) = &self.followers {
            followers.failed(&error);
        }
        if matches!(error, EngineError::LaneHangs { .. }) {
            self.hangs.store(true, Ordering::Release);
        }
        self.break_off(error);
        self.abort();
    }
}

/// For tests: of one lane, with nothing to do.
#[cfg(test)]
pub(crate) fn idle() -> (Arc<Control>, crate::outbox::Inbox) {
    idle_with(None)
}

/// The same with hosts that follow.
#[cfg(test)]
pub(crate) fn idle_with(followers: Option<Followers>) -> (Arc<Control>, crate::outbox::Inbox) {
    use crate::toy::{Setup, policy};
    let parts = Setup { split: false, ..Setup::simple(policy(false), 1) }.parts();
    let (events, inbox) = crate::outbox::outbox(parts.planner.sequences).expect("a thread can be had");
    let planner = StepPlanner::new(parts.planner);
    let clock = RunClock::start();
    let figures = Arc::new(RunFigures::new(clock.clone(), &parts.plan, &parts.graph, &planner, &[0]));
    let surroundings = Surroundings {
        sync: Arc::new(LaneSync::new(1, 1, false)),
        events,
        clock,
        counters: 0,
        figures,
        work: None,
        fixed: None,
        followers,
        away: Vec::new(),
        in_flight: Vec::new(),
        patience: Patience::new(crate::hosts::STANDSTILL),
    };
    (Arc::new(Control::new(planner, &parts.plan, surroundings)), inbox)
}

#[cfg(all(test, not(loom)))]
mod tests;
