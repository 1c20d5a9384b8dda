//! The way of events to the run's owner: in order, none lost, no lane held up by a slow reader, and no memory taken in a step
//! while the reader keeps up.
//!
//! A ring that is made once takes the events. What an owner has left unread beyond that (its terminal may be blocked) goes to a
//! list that grows as it must, and a courier thread, asleep otherwise, carries it on as the ring empties.

use crate::control::RunEvent;
use crossbeam::channel::{Receiver, Sender, TrySendError, bounded, never, select, unbounded};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Unread events that a ring has room for, for each sequence: a reader may sleep through this many steps.
const EVENTS_PER_SEQUENCE: usize = 16;
/// The same at least, in all.
const EVENTS_MIN: usize = 4096;

/// The lanes' end. Shared by all of them.
pub(crate) struct Outbox {
    ring: Sender<RunEvent>,
    spill: Sender<RunEvent>,
    /// Spilled events that have not reached the ring.
    behind: Arc<AtomicUsize>,
    /// Held while an event is sent, so that none overtakes another.
    turn: Mutex<()>,
}

/// The owner's end. Dropping it ends the courier; what nobody has read by then is gone.
pub(crate) struct Inbox {
    /// What arrives.
    pub(crate) events: Receiver<RunEvent>,
    stop: Option<Sender<()>>,
    courier: Option<JoinHandle<()>>,
}

/// Both ends, for a run of at most `sequences` at a time.
///
/// # Errors
/// The operating system gives no thread.
pub(crate) fn outbox(sequences: usize) -> std::io::Result<(Outbox, Inbox)> {
    with_room(EVENTS_MIN.max(sequences.saturating_mul(EVENTS_PER_SEQUENCE)))
}

fn with_room(room: usize) -> std::io::Result<(Outbox, Inbox)> {
    let (ring, events) = bounded(room);
    let (spill, spilled) = unbounded();
    let (stop, stopped) = bounded(0);
    let behind = Arc::new(AtomicUsize::new(0));
    let courier = Courier { spilled, ring: ring.clone(), stopped, behind: Arc::clone(&behind) };
    let courier = std::thread::Builder::new().name("rally-events".into()).spawn(move || courier.run())?;
    let outbox = Outbox { ring, spill, behind, turn: Mutex::new(()) };
    Ok((outbox, Inbox { events, stop: Some(stop), courier: Some(courier) }))
}

impl Outbox {
    /// Sends an event. Never waits for the reader; without one the event is dropped.
    pub(crate) fn send(&self, event: RunEvent) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Only a send adds to `behind`, and this is the only one; the courier takes off what has reached the ring.
        let event = if self.behind.load(Ordering::Acquire) == 0 {
            match self.ring.try_send(event) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(event)) => event,
            }
        } else {
            event
        };
        self.behind.fetch_add(1, Ordering::Relaxed);
        // The courier leaves with the owner; then nobody needs to know.
        let _ = self.spill.send(event);
    }
}

struct Courier {
    spilled: Receiver<RunEvent>,
    ring: Sender<RunEvent>,
    /// Disconnected when the owner has gone.
    stopped: Receiver<()>,
    behind: Arc<AtomicUsize>,
}

impl Courier {
    fn run(self) {
        loop {
            let event = select! {
                recv(self.spilled) -> event => event.ok(),
                recv(self.stopped) -> _ => None,
            };
            let Some(event) = event else { return };
            select! {
                send(self.ring, event) -> _ => {}
                recv(self.stopped) -> _ => return,
            }
            self.behind.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.events = never();
        self.stop = None;
        if let Some(courier) = self.courier.take() {
            // It does nothing that could panic.
            let _ = courier.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn event(id: u64) -> RunEvent {
        RunEvent::Admitted(id, Instant::now())
    }

    fn id(events: &Receiver<RunEvent>) -> u64 {
        match events.recv_timeout(Duration::from_secs(20)).expect("the event comes") {
            RunEvent::Admitted(id, _) => id,
            other => panic!("nobody sent {other:?}"),
        }
    }

    #[test]
    fn a_reader_that_falls_behind_gets_every_event_in_order() {
        let (outbox, inbox) = with_room(4).expect("a thread can be had");
        let (mut sent, mut read) = (0, 0);
        // Bursts larger and smaller than the ring; the reader catches up now and then and lags in between.
        for (burst, reads) in [(3, 3), (50, 20), (1, 31), (4, 0), (1, 0), (30, 35), (2, 0)] {
            (0..burst).for_each(|i| outbox.send(event(sent + i)));
            sent += burst;
            for _ in 0..reads {
                assert_eq!(id(&inbox.events), read);
                read += 1;
            }
        }
        assert_eq!(sent, 91);
        (read..sent).for_each(|next| assert_eq!(id(&inbox.events), next));
        assert!(inbox.events.is_empty());
    }

    #[test]
    fn an_owner_that_leaves_holds_nobody_up() {
        let (outbox, inbox) = with_room(4).expect("a thread can be had");
        (0..100).for_each(|next| outbox.send(event(next)));
        // Joins the courier, which is in the middle of its round.
        drop(inbox);
        (0..100).for_each(|next| outbox.send(event(next)));
    }
}
