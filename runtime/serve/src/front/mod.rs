//! The owner of a run: takes sequences in, hands each its tokens, and lets go of those that nobody waits for.
//!
//! One thread reads the run's events and lays each into the channel of whoever asked for it. Handlers submit and cancel from
//! their own threads, under a short lock that is never held while anyone waits. A [`Ticket`] that is dropped cancels its
//! sequence: a client that hangs up frees its pages with the step in flight.
//!
//! Sequences wait here rather than in the planner, which takes them as they come: it is handed only so many ahead as it lets in
//! between two looks, so that order stays open until the last moment.

mod queue;
mod state;
mod ticket;

pub use queue::Client;
pub(crate) use ticket::{Ticket, Update, stopping};

use crate::api::error::ApiError;
use crossbeam::channel::{Receiver, Sender, bounded, select, tick};
use rally_engine::figures::{RunFigures, RunSample};
use rally_engine::meter::{RequestMeter, RequestSample};
use rally_engine::schedule::batch::SequenceRequest;
use rally_engine::schedule::planner::{PlannerConfig, StepPlanner, SubmitError};
use rally_engine::{Engine, EngineError, RunEvent, SubmitHandle};
use rally_metrics::Exporter;
use state::{Closed, State};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often samples are put into their buckets when nobody scrapes.
const TIDY: Duration = Duration::from_secs(5);
/// How often waiting sequences are looked through for those that have waited too long.
const LOOK: Duration = Duration::from_millis(100);
/// Events that are handed out under one lock.
const EVENTS_AT_ONCE: usize = 1024;

/// What a front works with.
pub struct FrontParts {
    /// The run.
    pub engine: Engine,
    /// Sizes its planner keeps to.
    pub planner: PlannerConfig,
    /// Counts requests.
    pub meter: RequestMeter,
    /// Whose samples are tidied up now and then.
    pub exporter: Exporter,
    /// How long requests may wait.
    pub waiting: Waiting,
}

/// How many sequences may wait to be decoded, and how long.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Beyond so many, more are refused.
    pub most: usize,
    /// Whoever has waited so long is refused.
    pub longest: Duration,
}

/// Who asks for sequences, and how urgently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking {
    pub(crate) client: Client,
    /// Lower is earlier.
    pub(crate) priority: i32,
}

struct Shared {
    handle: SubmitHandle,
    figures: Arc<RunFigures>,
    /// Never planned with: it knows what fits.
    limits: StepPlanner,
    waiting: Waiting,
    state: Mutex<State>,
}

/// Of one run. Dropped, it ends the run at once.
pub struct Front {
    shared: Arc<Shared>,
    failed: Receiver<String>,
    /// Dropped, it ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Front {
    /// Takes the run over.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn start(parts: FrontParts) -> std::io::Result<Self> {
        let FrontParts { engine, planner, meter, exporter, waiting } = parts;
        let shared = Arc::new(Shared {
            handle: engine.handle(),
            figures: engine.figures(),
            limits: StepPlanner::new(planner),
            waiting,
            state: Mutex::new(State::new(meter, planner.sequences, waiting.most)),
        });
        let (stop, stopped) = bounded(0);
        let (fails, failed) = bounded(1);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rally-front".into()).spawn(move || {
            if let Err(error) = watch(&engine, &theirs, &exporter, &stopped) {
                theirs.state().fail(&error.to_string());
                // Nobody need be listening.
                let _ = fails.try_send(error.to_string());
            }
        })?;
        Ok(Self { shared, failed, stop: Some(stop), thread: Some(thread) })
    }

    /// Takes sequences in, all or none; their ids are set here.
    ///
    /// # Errors
    /// One can never run here, too many wait, or none are taken any more.
    pub(crate) fn submit(&self, requests: Vec<SequenceRequest>, asking: Asking) -> Result<Vec<Ticket>, ApiError> {
        let shared = &self.shared;
        for request in &requests {
            shared.limits.accepts(request).map_err(|error| refusal(&error, request, shared.limits.config()))?;
        }
        let mut state = shared.state();
        state.refuse_if_closed()?;
        state.make_room(asking.client, requests.len(), shared.waiting.most)?;
        let queued = state.queue(requests, asking, Instant::now()).into_iter();
        let tickets = queued.map(|(id, updates)| Ticket::new(id, updates, Arc::clone(shared))).collect();
        state.hand_over(&shared.handle);
        Ok(tickets)
    }

    /// Takes nothing more in.
    pub fn close(&self) {
        self.shared.state().close(Closed::Draining);
    }

    /// Ends all that is open.
    pub fn cancel_all(&self) {
        self.shared.state().cut_off().into_iter().for_each(|id| self.shared.handle.cancel(id));
    }

    /// Sequences that have not ended.
    pub fn open(&self) -> usize {
        self.shared.state().open()
    }

    /// How requests do, and how the run does.
    pub(crate) fn sample(&self) -> (RequestSample, RunSample) {
        let requests = self.shared.state().sample();
        (requests, self.shared.figures.sample())
    }

    /// Why nothing is taken in, if that is so.
    pub fn closed_because(&self) -> Option<String> {
        self.shared.state().closed_because()
    }

    /// Gets the reason when the run fails.
    pub fn failures(&self) -> Receiver<String> {
        self.failed.clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of its has been printed.
            let _ = thread.join();
        }
    }
}

/// The state for a moment. Let go of, it tells the run's figures how many wait here.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    figures: &'a RunFigures,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.figures.set_waiting_outside(self.state.queued());
    }
}

impl Shared {
    fn state(&self) -> Locked<'_> {
        // Nothing panics under it but a fault in counting, and then counts are all that is lost.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { state, figures: &self.figures }
    }

    fn events(&self, first: RunEvent, more: impl Iterator<Item = RunEvent>) -> Result<(), EngineError> {
        let mut state = self.state();
        std::iter::once(first).chain(more).try_for_each(|event| state.event(event))?;
        state.hand_over(&self.handle);
        Ok(())
    }

    /// Refuses those that have waited too long.
    fn look(&self) {
        let mut state = self.state();
        let handed_over = state.refuse_older(Instant::now(), self.waiting.longest);
        drop(state);
        handed_over.into_iter().for_each(|id| self.handle.cancel(id));
    }
}

/// Hands events out until the run fails or the front goes.
fn watch(engine: &Engine, shared: &Shared, exporter: &Exporter, stopped: &Receiver<()>) -> Result<(), EngineError> {
    let (tidy, look) = (tick(TIDY), tick(LOOK));
    loop {
        select! {
            recv(engine.events()) -> event => {
                let first = event.map_err(|_| EngineError::EndedEarly)?;
                shared.events(first, engine.events().try_iter().take(EVENTS_AT_ONCE))?;
            }
            recv(look) -> _ => shared.look(),
            recv(tidy) -> _ => exporter.tidy(),
            recv(stopped) -> _ => return Ok(()),
        }
    }
}

fn refusal(error: &SubmitError, request: &SequenceRequest, config: &PlannerConfig) -> ApiError {
    let too_long =
        |context| ApiError::TooLong { prompt: Some(request.prompt.len()), max_tokens: request.max_new_tokens, context };
    match error {
        SubmitError::TooLong { max_positions, .. } => too_long(*max_positions),
        SubmitError::NeverFits { capacity, .. } => too_long(config.max_positions.min(*capacity)),
        other => ApiError::NeverFits(other.to_string()),
    }
}
