//! Which sequences are open, which of them wait, and how many the planner has ahead.

use super::Asking;
use super::queue::{Client, Entry, Queue};
use super::revive::Why;
use super::ticket::{Update, stopping};
use crate::api::error::ApiError;
use rally_engine::figures::{RunFigures, RunSample};
use rally_engine::meter::{RequestMeter, RequestSample};
use rally_engine::schedule::batch::{SequenceId, SequenceRequest};
use rally_engine::schedule::planner::{FinishReason, SubmitError};
use rally_engine::{Engine, EngineError, RunEvent, SubmitHandle, TokenReport};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Sequences that the planner has ahead at least: what it may let in at one plan call without being handed more.
const FEWEST_AHEAD: usize = 4;
/// Times to try again that are told, in seconds.
const RETRY_AFTER_S: (f64, f64) = (1.0, 60.0);
/// Share of what was known of the rate of admissions that a new look leaves: some ten seconds count.
const KEPT: f64 = 0.99;

/// Why no sequences are taken any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    Draining,
    Failed(String),
}

impl Closed {
    fn reason(&self) -> String {
        match self {
            Self::Draining => "the server is stopping".into(),
            Self::Failed(reason) => format!("the run has failed: {reason}"),
        }
    }
}

/// The engine that the run is on.
pub(super) struct Run {
    handle: SubmitHandle,
    figures: Arc<RunFigures>,
}

impl Run {
    pub(super) fn of(engine: &Engine) -> Self {
        Self { handle: engine.handle(), figures: engine.figures() }
    }
}

pub(super) struct State {
    run: Run,
    /// Why nothing is given to the planner: its run stands still.
    stands: Option<String>,
    /// All that the planner has.
    given: HashSet<SequenceId>,
    updates: HashMap<SequenceId, UnboundedSender<Update>>,
    queue: Queue<SequenceRequest>,
    /// Handed over and not let in yet, and when they came.
    ahead: HashMap<SequenceId, Instant>,
    /// How many that may be now, and at most.
    window: (usize, usize),
    /// Since the last look.
    admitted: usize,
    /// A mean over looks.
    admissions_per_s: f64,
    looked: Instant,
    meter: RequestMeter,
    closed: Option<Closed>,
    next_id: SequenceId,
}

impl State {
    /// Of a run that decodes `sequences` at once, for which at most `waiting` wait: of three in four of them the order stays open.
    pub(super) fn new(run: Run, meter: RequestMeter, sequences: usize, waiting: usize) -> Self {
        Self {
            run,
            stands: None,
            given: HashSet::new(),
            updates: HashMap::new(),
            queue: Queue::default(),
            ahead: HashMap::new(),
            window: (FEWEST_AHEAD, sequences.min(waiting / 4).max(FEWEST_AHEAD)),
            admitted: 0,
            admissions_per_s: 0.0,
            looked: Instant::now(),
            meter,
            closed: None,
            next_id: 0,
        }
    }

    pub(super) fn refuse_if_closed(&self) -> Result<(), ApiError> {
        self.closed.as_ref().map_or(Ok(()), |closed| Err(ApiError::NotReady(closed.reason())))
    }

    pub(super) fn closed_because(&self) -> Option<String> {
        self.closed.as_ref().map(Closed::reason)
    }

    pub(super) fn close(&mut self, closed: Closed) {
        self.closed.get_or_insert(closed);
    }

    pub(super) fn fail(&mut self, reason: &str) {
        let closed = Closed::Failed(reason.into());
        let refusal = ApiError::NotReady(closed.reason());
        self.closed = Some(closed);
        self.queue = Queue::default();
        for (_, updates) in self.updates.drain() {
            // Whoever has gone needs no reason.
            let _ = updates.send(Update::Refused(refusal.clone()));
        }
    }

    /// How requests do, and how the run does.
    pub(super) fn sample(&self) -> (RequestSample, RunSample) {
        (self.meter.sample(), self.run.figures.sample())
    }

    /// The run does not go on as it is: what comes waits.
    pub(super) fn stand_still(&mut self, why: &Why) {
        self.stands = Some(format!("the run stands still: {why}"));
    }

    pub(super) fn stands_because(&self) -> Option<String> {
        self.stands.clone()
    }

    /// The run goes on, with all that its planner had. Who has left meanwhile is let go.
    pub(super) fn go_on(&mut self, run: Run) {
        (self.run, self.stands) = (run, None);
        let left = self.given.iter().filter(|id| !self.updates.contains_key(id));
        left.for_each(|id| self.run.handle.cancel(*id));
        self.hand_over();
    }

    /// Tells the run's figures how many wait here.
    pub(super) fn tell_waiting(&self) {
        self.run.figures.set_waiting_outside(self.queue.len());
    }

    /// Sequences that have not ended.
    pub(super) fn open(&self) -> usize {
        self.updates.len()
    }

    /// Sequences that are not decoded yet.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len() + self.ahead.len()
    }

    /// A refusal that says when there may be room.
    pub(super) fn busy(&self, reason: &'static str) -> ApiError {
        let seconds = self.waiting() as f64 / self.admissions_per_s.max(f64::MIN_POSITIVE);
        let (least, most) = RETRY_AFTER_S;
        ApiError::Busy { reason, retry_after_s: seconds.ceil().clamp(least, most) as u64 }
    }

    /// Sees to it that `sequences` of `client` may wait where at most `most` may.
    ///
    /// # Errors
    /// There is no room, and nobody else has so much more waiting that it would have to make some.
    pub(super) fn make_room(&mut self, client: Client, sequences: usize, most: usize) -> Result<(), ApiError> {
        let needed = (self.waiting() + sequences).saturating_sub(most);
        if needed == 0 {
            return Ok(());
        }
        let refusal = self.busy("too many requests are waiting");
        let gone = self.queue.make_room(client, sequences, needed);
        gone.iter().for_each(|entry| self.refuse(entry.id, &refusal));
        if gone.is_empty() { Err(refusal) } else { Ok(()) }
    }

    /// Queues the sequences of a request, each under an id of its own.
    pub(super) fn queue(
        &mut self,
        requests: Vec<SequenceRequest>,
        asking: Asking,
        now: Instant,
    ) -> Vec<(SequenceId, UnboundedReceiver<Update>)> {
        let of = (self.next_id, requests.len());
        requests.into_iter().map(|request| self.queue_one(request, of, asking, now)).collect()
    }

    fn queue_one(
        &mut self,
        mut request: SequenceRequest,
        of: (u64, usize),
        asking: Asking,
        now: Instant,
    ) -> (SequenceId, UnboundedReceiver<Update>) {
        let id = self.next_id;
        self.next_id += 1;
        request.id = id;
        let (sender, updates) = unbounded_channel();
        self.updates.insert(id, sender);
        self.meter.submitted(id, request.prompt.len(), now);
        let tokens = request.prompt.len() + request.max_new_tokens;
        let Asking { client, priority } = asking;
        self.queue.push(Entry { id, client, priority, request: of, tokens, arrived: now, what: request });
        (id, updates)
    }

    /// Gives the planner as many as it may have ahead.
    pub(super) fn hand_over(&mut self) {
        while self.stands.is_none()
            && self.ahead.len() < self.window.0
            && let Some(entry) = self.queue.pop()
        {
            match self.run.handle.submit(entry.what.clone()) {
                Ok(()) => {
                    self.ahead.insert(entry.id, entry.arrived);
                    self.given.insert(entry.id);
                }
                // The run has failed, as will be heard: whether this one waits for another is said then.
                Err(SubmitError::Closed) => {
                    self.queue.put_back(entry);
                    return;
                }
                // It was held against the same limits when it came.
                Err(error) => self.refuse(entry.id, &ApiError::NotReady(error.to_string())),
            }
        }
    }

    pub(super) fn event(&mut self, event: RunEvent) -> Result<(), EngineError> {
        self.meter.event(&event);
        match event {
            RunEvent::Admitted(id, _, cached) => self.is_admitted(id, cached),
            RunEvent::Token(report) => self.token(report),
            RunEvent::Finished(id, reason, _) => self.finished(id, reason),
            RunEvent::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn is_admitted(&mut self, id: SequenceId, cached: usize) {
        self.ahead.remove(&id);
        self.admitted += 1;
        // It may have let in more, had there been more.
        if self.ahead.is_empty() && self.queue.len() > 0 {
            self.window.0 = (self.window.0 * 2).min(self.window.1);
        }
        self.tell(id, Update::Admitted(cached));
    }

    fn token(&mut self, report: TokenReport) {
        self.tell(report.sample.sequence, Update::Token(report));
    }

    fn finished(&mut self, id: SequenceId, reason: FinishReason) {
        self.ahead.remove(&id);
        self.given.remove(&id);
        self.tell(id, Update::Finished(reason));
        self.updates.remove(&id);
    }

    fn tell(&self, id: SequenceId, update: Update) {
        if let Some(updates) = self.updates.get(&id) {
            // Its reader is about to cancel it.
            let _ = updates.send(update);
        }
    }

    fn refuse(&mut self, id: SequenceId, error: &ApiError) {
        if let Some(updates) = self.updates.remove(&id) {
            let _ = updates.send(Update::Refused(error.clone()));
        }
        self.forget(id);
    }

    /// To the meter it is a request that was aborted.
    fn forget(&mut self, id: SequenceId) {
        self.meter.event(&RunEvent::Finished(id, FinishReason::Cancelled, Instant::now()));
    }

    /// Nobody waits for a sequence any more. Returns whom to tell so, if the planner has it. One that stands still hears of it when it
    /// goes on.
    pub(super) fn let_go(&mut self, id: SequenceId, stopped: bool) -> Option<SubmitHandle> {
        self.updates.remove(&id)?;
        if stopped {
            self.meter.stopped(id);
        }
        let waits = !self.queue.take(|entry| entry.id == id).is_empty();
        if waits {
            self.forget(id);
        }
        (!waits && self.stands.is_none()).then(|| self.run.handle.clone())
    }

    /// Refuses those that have waited for so long; those that the planner has it lets go of.
    pub(super) fn refuse_older(&mut self, now: Instant, longest: Duration) {
        let seconds = now.saturating_duration_since(self.looked).as_secs_f64().max(1e-3);
        self.looked = now;
        if self.admitted == 0 && self.ahead.len() >= self.window.0 {
            self.window.0 = (self.window.0 / 2).max(FEWEST_AHEAD);
        }
        let rate = std::mem::take(&mut self.admitted) as f64 / seconds;
        self.admissions_per_s = self.admissions_per_s * KEPT + rate * (1.0 - KEPT);
        let refusal = self.busy("there was no room for too long");
        for entry in self.queue.take_older(now, longest) {
            self.refuse(entry.id, &refusal);
        }
        let old = |(_, arrived): &(&SequenceId, &Instant)| now.saturating_duration_since(**arrived) >= longest;
        let old: Vec<SequenceId> = self.ahead.iter().filter(old).map(|(id, _)| *id).collect();
        for id in old {
            // The planner's own answer takes it out of `ahead`, and tells the meter.
            if let Some(updates) = self.updates.remove(&id) {
                let _ = updates.send(Update::Refused(refusal.clone()));
            }
            self.run.handle.cancel(id);
        }
    }

    /// Ends all that are open; those that wait here are told at once, the others by the planner, if it is there to do so.
    pub(super) fn cut_off(&mut self) {
        for entry in self.queue.take(|_| true) {
            self.refuse(entry.id, &stopping());
        }
        let open: Vec<SequenceId> = self.updates.keys().copied().collect();
        for id in open {
            match self.stands {
                Some(_) => self.refuse(id, &stopping()),
                None => self.run.handle.cancel(id),
            }
        }
    }
}
