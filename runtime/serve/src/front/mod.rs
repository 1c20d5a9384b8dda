//! The owner of a run: takes sequences in, hands each its tokens, and lets go of those that nobody waits for.
//!
//! One thread reads the run's events and lays each into the channel of whoever asked for it. Handlers submit and cancel from
//! their own threads, under a short lock that is never held while anyone waits. A [`Ticket`] that is dropped cancels its
//! sequence: a client that hangs up frees its pages with the step in flight.
//!
//! Sequences wait here rather than in the planner, which takes them as they come: it is handed only so many ahead as it lets in
//! between two looks, so that order stays open until the last moment.
//!
//! A run over several hosts may stop and go on with another engine ([`Revive`]). Streams see a pause, and what comes meanwhile waits.

mod queue;
mod revive;
mod state;
mod ticket;

pub use queue::Client;
pub use revive::{Revive, Why};
pub(crate) use ticket::{Ticket, Update, stopping};

use crate::api::error::ApiError;
use crossbeam::channel::{Receiver, Sender, bounded, never, select, tick};
use rally_engine::figures::RunSample;
use rally_engine::meter::{RequestMeter, RequestSample};
use rally_engine::schedule::batch::SequenceRequest;
use rally_engine::schedule::planner::{PlannerConfig, StepPlanner, SubmitError};
use rally_engine::{Engine, EngineError, RunEvent};
use rally_metrics::Exporter;
use state::{Closed, Run, State};
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
    /// Who sets the run going again that has failed; without, it has failed for good.
    pub revive: Option<Box<dyn Revive>>,
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
        let FrontParts { engine, planner, meter, exporter, waiting, revive } = parts;
        let shared = Arc::new(Shared {
            limits: StepPlanner::new(planner),
            waiting,
            state: Mutex::new(State::new(Run::of(&engine), meter, planner.sequences, waiting.most)),
        });
        let (stop, stopped) = bounded(0);
        let (fails, failed) = bounded(1);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("rally-front".into()).spawn(move || {
            if let Err(reason) = watch(engine, &theirs, &exporter, &stopped, revive) {
                theirs.state().fail(&reason);
                // Nobody need be listening.
                let _ = fails.try_send(reason);
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
        state.hand_over();
        Ok(tickets)
    }

    /// Takes nothing more in.
    pub fn close(&self) {
        self.shared.state().close(Closed::Draining);
    }

    /// Ends all that is open.
    pub fn cancel_all(&self) {
        self.shared.state().cut_off();
    }

    /// Sequences that have not ended.
    pub fn open(&self) -> usize {
        self.shared.state().open()
    }

    /// How requests do, and how the run does.
    pub(crate) fn sample(&self) -> (RequestSample, RunSample) {
        self.shared.state().sample()
    }

    /// Why nothing is taken in, if that is so.
    pub fn closed_because(&self) -> Option<String> {
        self.shared.state().closed_because()
    }

    /// Why the run stands still, if it does.
    pub fn stands_because(&self) -> Option<String> {
        self.shared.state().stands_because()
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
struct Locked<'a>(MutexGuard<'a, State>);

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.tell_waiting();
    }
}

impl Shared {
    fn state(&self) -> Locked<'_> {
        // Nothing panics under it but a fault in counting, and then counts are all that is lost.
        Locked(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn events(&self, first: RunEvent, more: impl Iterator<Item = RunEvent>) -> Result<(), EngineError> {
        let mut state = self.state();
        std::iter::once(first).chain(more).try_for_each(|event| state.event(event))?;
        state.hand_over();
        Ok(())
    }

    /// Refuses those that have waited too long.
    fn look(&self) {
        self.state().refuse_older(Instant::now(), self.waiting.longest);
    }
}

/// Hands events out until the front goes, or the run fails for good: why.
fn watch(
    mut engine: Engine,
    shared: &Shared,
    exporter: &Exporter,
    stopped: &Receiver<()>,
    mut revive: Option<Box<dyn Revive>>,
) -> Result<(), String> {
    loop {
        let breaks = revive.as_mut().map_or_else(never, |revive| revive.breaks());
        let Some(why) = until_broken(&engine, shared, exporter, stopped, &breaks) else {
            if revive.is_some() && shared.state().open() == 0 {
                // Hosts that work with this one hear that nothing more comes.
                engine.close();
                drop(engine.join());
            }
            return Ok(());
        };
        let Some(revive) = &mut revive else { return Err(why.to_string()) };
        shared.state().stand_still(&why);
        engine = revive.revive(engine, why)?;
        shared.state().go_on(Run::of(&engine));
    }
}

/// Hands events out until the front goes, and then returns nothing; or until the run does not go on as it is.
fn until_broken(
    engine: &Engine,
    shared: &Shared,
    exporter: &Exporter,
    stopped: &Receiver<()>,
    breaks: &Receiver<usize>,
) -> Option<Why> {
    let (tidy, look) = (tick(TIDY), tick(LOOK));
    let (mut breaks, mut back) = (breaks.clone(), None);
    loop {
        let told = select! {
            recv(engine.events()) -> event => match event {
                Ok(first) => shared.events(first, engine.events().try_iter().take(EVENTS_AT_ONCE)),
                Err(_) => Err(EngineError::EndedEarly),
            },
            recv(breaks) -> host => {
                if let Ok(host) = host {
                    // What was told before is heard first.
                    engine.break_off();
                    back = Some(host);
                }
                breaks = never();
                Ok(())
            }
            recv(look) -> _ => { shared.look(); Ok(()) }
            recv(tidy) -> _ => { exporter.tidy(); Ok(()) }
            recv(stopped) -> _ => return None,
        };
        if let Err(error) = told {
            let back = back.filter(|_| error == EngineError::BrokenOff);
            return Some(back.map_or(Why::Failed(error), Why::Returned));
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
