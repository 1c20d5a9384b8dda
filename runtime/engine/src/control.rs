//! The end of a micro-batch's step: samples in, next descriptor out.
//!
//! The lane that ends a micro-batch's step last calls the step planner itself, so there is no dispatcher thread and no lane
//! waits for one. Submissions and cancellations from outside go to the same planner, under the same short lock.

use crate::engine::EngineError;
use crate::meter::Meter;
use crate::stage::Sample;
use crate::sync::LaneSync;
use crate::telemetry;
use crossbeam::channel::Sender;
use rally_graph::plan::Plan;
use rally_schedule::batch::{DeviceBatch, SequenceId, SequenceRequest};
use rally_schedule::cost::CostModel;
use rally_schedule::planner::{FinishReason, PlannerEvent, StepPlanner, SubmitError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A token that counts, with what its request wanted to know.
#[derive(Clone, Debug)]
pub struct TokenReport {
    /// Index among the generated ones.
    pub index: u64,
    /// The token and its details.
    pub sample: Sample,
    /// When it was sampled.
    pub at: Instant,
}

/// What a run tells its owner, in order.
#[derive(Debug)]
pub enum RunEvent {
    /// A sequence left the queue.
    Admitted(SequenceId, Instant),
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
}

struct State {
    planner: StepPlanner,
    closed: bool,
    /// Reused between steps.
    planner_events: Vec<PlannerEvent>,
}

/// Shared by all lanes of a run and its owner.
pub(crate) struct Control {
    state: Mutex<State>,
    /// Signalled when work arrives, or none will any more.
    changed: Condvar,
    micro_batches: Vec<Mutex<MicroBatchState>>,
    exits: usize,
    /// Present if costs are learned.
    meter: Option<Arc<Meter>>,
    sync: Arc<LaneSync>,
    events: Sender<RunEvent>,
}

/// A lane that panicked while it held a lock has already aborted the run; the data is only looked at to shut down.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    pub(crate) fn new(
        planner: StepPlanner,
        plan: &Plan,
        meter: Option<Arc<Meter>>,
        sync: Arc<LaneSync>,
        events: Sender<RunEvent>,
    ) -> Self {
        let config = *planner.config();
        let exits = plan.table.exits.len();
        let micro_batch = |m: usize| MicroBatchState {
            batches: vec![DeviceBatch::default(); config.devices],
            // A sequence is sampled at most once a step.
            samples: Vec::with_capacity(config.sequences.min(config.rows_per_device * config.devices)),
            load: (0, 0),
            arrived: plan.exits_at_start(m),
        };
        Self {
            micro_batches: (0..config.micro_batches).map(|m| Mutex::new(micro_batch(m))).collect(),
            state: Mutex::new(State { planner, closed: false, planner_events: Vec::new() }),
            changed: Condvar::new(),
            exits,
            meter,
            sync,
            events,
        }
    }

    pub(crate) fn submit(&self, requests: impl IntoIterator<Item = SequenceRequest>) -> Result<(), SubmitError> {
        let mut state = lock(&self.state);
        if state.closed || self.sync.aborted() {
            return Err(SubmitError::Closed);
        }
        let result = requests.into_iter().try_for_each(|request| state.planner.submit(request));
        drop(state);
        self.changed.notify_all();
        result
    }

    pub(crate) fn cancel(&self, id: SequenceId) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.planner.cancel(id, &mut state.planner_events);
        self.publish(&mut state.planner_events, &mut Vec::new());
        drop(guard);
        self.changed.notify_all();
    }

    pub(crate) fn preempt(&self, id: SequenceId) -> bool {
        lock(&self.state).planner.preempt(id)
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

    pub(crate) fn fail(&self, error: EngineError) {
        // The owner may have gone; then nobody needs to know.
        let _ = self.events.send(RunEvent::Failed(error));
        self.abort();
    }

    pub(crate) fn abort(&self) {
        self.sync.abort();
        // Taking the lock once makes sure that no lane is between its check and its wait.
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// Exchanges a lane's old descriptor for the one planned last.
    pub(crate) fn take_batch(&self, micro_batch: usize, device: usize, batch: &mut DeviceBatch) {
        std::mem::swap(&mut lock(&self.micro_batches[micro_batch]).batches[device], batch);
    }

    /// An exit task of `micro_batch` is done in `cycle`; the last one plans the next step. `samples` is emptied.
    pub(crate) fn end_step(&self, micro_batch: usize, cycle: u64, samples: &mut Vec<Sample>) {
        let mut micro_batch_state = lock(&self.micro_batches[micro_batch]);
        micro_batch_state.samples.append(samples);
        micro_batch_state.arrived += 1;
        if micro_batch_state.arrived < self.exits {
            return;
        }
        micro_batch_state.arrived = 0;
        let MicroBatchState { batches, samples, load, .. } = &mut *micro_batch_state;
        let mut state = self.observe(samples);
        if let Some(meter) = &self.meter {
            state.planner.learn(load.0, load.1, meter.take_s(micro_batch));
        }
        state = self.await_work(state, cycle);
        let State { planner, planner_events, .. } = &mut *state;
        planner.plan(micro_batch, batches, planner_events);
        if self.meter.is_some() {
            let sum = |of: fn(&DeviceBatch) -> usize| batches.iter().map(of).sum();
            *load = (sum(|batch| batch.rows), sum(DeviceBatch::context));
        }
        telemetry::queue(planner);
        self.publish(planner_events, samples);
    }

    fn observe(&self, samples: &mut Vec<Sample>) -> MutexGuard<'_, State> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        for sample in samples.iter() {
            state.planner.observe(sample.sequence, sample.token, &mut state.planner_events);
        }
        self.publish(&mut state.planner_events, samples);
        samples.clear();
        guard
    }

    /// With nothing to do the lane that plans blocks here, and every other lane waits for it, parked.
    fn await_work<'a>(&self, mut state: MutexGuard<'a, State>, cycle: u64) -> MutexGuard<'a, State> {
        while state.planner.only_retired() && !self.sync.aborted() {
            if state.closed {
                // Every micro-batch is empty from here on; a cycle more lets all lanes see the last descriptors through.
                self.sync.finish_after(cycle + 1);
                break;
            }
            let waited = self.changed.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    /// Sends planner events on, each token with its sample (order of tokens = order of samples).
    fn publish(&self, events: &mut Vec<PlannerEvent>, samples: &mut Vec<Sample>) {
        let at = Instant::now();
        for event in events.drain(..) {
            let event = match event {
                PlannerEvent::Admitted(id) => RunEvent::Admitted(id, at),
                PlannerEvent::Finished(id, reason) => {
                    telemetry::finished(reason);
                    RunEvent::Finished(id, reason, at)
                }
                PlannerEvent::Token { sequence, index, .. } => {
                    telemetry::token();
                    let found = samples.iter().position(|sample| sample.sequence == sequence);
                    let found = found.expect("the planner reports a token only when it observes that sample");
                    RunEvent::Token(TokenReport { index, sample: samples.swap_remove(found), at })
                }
            };
            // The owner may have gone; the run then ends when it notices.
            let _ = self.events.send(event);
        }
    }
}
