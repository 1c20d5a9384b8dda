//! The run loop that commands share: submit what is due, hand events to whoever asked, until all has ended or Ctrl-C.

use crate::error::{Blame, CliError};
use crate::observe::Observer;
use crossbeam::channel::{Receiver, at, never, select};
use rally_engine::schedule::batch::{SequenceId, SequenceRequest};
use rally_engine::schedule::planner::SubmitError;
use rally_engine::{Engine, EngineError, RunEvent, SubmitHandle};
use std::time::Instant;

/// What a run is for.
pub trait Client {
    /// Requests to submit now, together. Asked at first, at every due time, and after every event.
    fn due(&mut self, now: Instant) -> Vec<SequenceRequest>;

    /// When [`Client::due`] has something more to give, or [`Client::settled`] something to do, that no event will bring about.
    fn next_due(&self) -> Option<Instant>;

    /// Something happened; never [`RunEvent::Failed`].
    fn event(&mut self, event: RunEvent, handle: &SubmitHandle) -> Result<(), CliError>;

    /// For now nothing more has happened than what was told. Also at times that [`Client::next_due`] gave, and before the end.
    fn settled(&mut self) -> Result<(), CliError> {
        Ok(())
    }

    /// A request that an event has ended for a reason that only its reader sees, a stop string. Each is told once.
    fn ended(&mut self) -> Option<SequenceId> {
        None
    }

    /// Whether nothing is under way and nothing more will be submitted.
    fn is_done(&self) -> bool;

    /// Ctrl-C: cancel what is under way and submit nothing more.
    fn interrupt(&mut self, handle: &SubmitHandle);
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// Its client is done, after Ctrl-C or not.
    Done {
        /// Whether Ctrl-C came before.
        interrupted: bool,
    },
    /// It failed.
    Failed(EngineError),
    /// A host that was away answers again; the run goes on meanwhile.
    Returned(usize),
}

/// Runs `client` to its end, watched by `observer`. Returns whether Ctrl-C came before it.
pub fn drive(
    engine: &Engine,
    client: &mut dyn Client,
    interrupts: &Receiver<()>,
    observer: &Observer,
) -> Result<bool, CliError> {
    match drive_until_failure(engine, client, interrupts, observer, &never())? {
        End::Done { interrupted } => Ok(interrupted),
        End::Returned(_) => unreachable!("nobody looks out for hosts here"),
        End::Failed(error) => Err(CliError::Failure(error.to_string())),
    }
}

/// The same; a run that fails, or that a host comes back to, may go on with another engine.
pub fn drive_until_failure(
    engine: &Engine,
    client: &mut dyn Client,
    interrupts: &Receiver<()>,
    observer: &Observer,
    returned: &Receiver<usize>,
) -> Result<End, CliError> {
    let (handle, mut returned) = (engine.handle(), returned.clone());
    let (mut interrupted, mut back) = (false, None);
    loop {
        let due = client.due(Instant::now());
        if !due.is_empty() {
            observer.submitted(&due);
            match engine.submit(due) {
                // Failed already: the event says why.
                Err(SubmitError::Closed) => {}
                submitted => submitted.or_mistake()?,
            }
        }
        if client.is_done() {
            client.settled()?;
            return Ok(End::Done { interrupted });
        }
        let clock = client.next_due().map_or_else(never, at);
        select! {
            recv(engine.events()) -> event => match event {
                Ok(event) => {
                    observer.event(&event);
                    if let RunEvent::Failed(error) = event {
                        client.settled()?;
                        let back = back.filter(|_| error == EngineError::BrokenOff);
                        return Ok(back.map_or(End::Failed(error), End::Returned));
                    }
                    client.event(event, &handle)?;
                    while let Some(id) = client.ended() {
                        observer.stopped(id);
                    }
                    if engine.events().is_empty() {
                        client.settled()?;
                    }
                }
                Err(_) => return Err(CliError::Failure("the lanes ended before the requests did".into())),
            },
            recv(interrupts) -> _ => {
                interrupted = true;
                client.interrupt(&handle);
            }
            recv(returned) -> host => {
                if let Ok(host) = host {
                    // What was told before is heard first.
                    engine.break_off();
                    back = Some(host);
                }
                // Nobody is looked for any more.
                returned = never();
            }
            recv(clock) -> _ => client.settled()?,
        }
    }
}
