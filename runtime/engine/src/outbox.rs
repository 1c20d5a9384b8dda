//! The way of events to the run's owner: in order, none lost, no lane held up by a slow reader, and no memory taken in a step
//! while the reader keeps up.
//!
//! Lanes lay events on a tray, and a courier thread carries them to the owner's channel. A lane that woke the owner itself would
//! spend microseconds in the system at every end of a step, longer than on anything else it does between tasks. So it only ever
//! wakes the courier, and that only for news after a silence: a courier that has just carried something looks again by itself.
//! Tokens may lie on the tray that long. What an owner answers (a sequence ended) is carried at once.

use crate::control::RunEvent;
use crossbeam::channel::{Receiver, Sender, bounded, never};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Unread events that the tray and the channel have room for, for each sequence: a reader may sleep through this many steps.
const EVENTS_PER_SEQUENCE: usize = 16;
/// The same at least, in all.
const EVENTS_MIN: usize = 2048;
/// How long a courier that has carried something lets tokens gather before it looks again.
const NAP: Duration = Duration::from_millis(1);

/// What the courier is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Courier {
    /// It carries, and looks at the tray before it rests.
    Up,
    /// It looks again within [`NAP`].
    Naps,
    /// It looks when it is woken.
    Sleeps,
}

struct Tray {
    events: VecDeque<RunEvent>,
    courier: Courier,
    /// One of the two ends has gone.
    closed: bool,
}

struct Shared {
    tray: Mutex<Tray>,
    wake: Condvar,
}

impl Shared {
    fn tray(&self) -> MutexGuard<'_, Tray> {
        self.tray.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.tray().closed = true;
        self.wake.notify_one();
    }
}

/// The lanes' end. Shared by all of them. Once it is dropped the owner's channel ends behind the last event.
pub(crate) struct Outbox(Arc<Shared>);

/// The owner's end. Dropping it ends the courier; what nobody has read by then is gone.
pub(crate) struct Inbox {
    /// What arrives.
    pub(crate) events: Receiver<RunEvent>,
    shared: Arc<Shared>,
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
    let (sender, events) = bounded(room);
    let tray = Tray { events: VecDeque::with_capacity(room), courier: Courier::Up, closed: false };
    let shared = Arc::new(Shared { tray: Mutex::new(tray), wake: Condvar::new() });
    let theirs = Arc::clone(&shared);
    let courier =
        std::thread::Builder::new().name("rally-events".into()).spawn(move || carry(&theirs, &sender, room))?;
    Ok((Outbox(Arc::clone(&shared)), Inbox { events, shared, courier: Some(courier) }))
}

impl Outbox {
    /// Sends an event. Never waits for the reader; without one the event is dropped.
    pub(crate) fn send(&self, event: RunEvent) {
        let mut tray = self.0.tray();
        if tray.closed {
            return;
        }
        let wakes = match tray.courier {
            Courier::Up => false,
            Courier::Naps => !matches!(event, RunEvent::Token(_)),
            Courier::Sleeps => true,
        };
        tray.events.push_back(event);
        if wakes {
            tray.courier = Courier::Up;
            drop(tray);
            self.0.wake.notify_one();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The courier's work. Ends when either end has gone and, if that is the lanes', everything has been carried.
fn carry(shared: &Shared, sender: &Sender<RunEvent>, room: usize) {
    let mut load = VecDeque::with_capacity(room);
    loop {
        let mut tray = rest(shared);
        tray.courier = Courier::Up;
        std::mem::swap(&mut tray.events, &mut load);
        let closed = tray.closed && load.is_empty();
        drop(tray);
        // A full channel holds nobody up but this thread, until the reader reads on or leaves.
        if closed || load.drain(..).any(|event| sender.send(event).is_err()) {
            return;
        }
    }
}

/// Returns once there is something on the tray, or nothing will be.
fn rest(shared: &Shared) -> MutexGuard<'_, Tray> {
    let mut tray = shared.tray();
    tray.courier = Courier::Naps;
    if tray.events.is_empty() {
        let rests = |tray: &mut Tray| tray.courier == Courier::Naps && !tray.closed;
        let napped = shared.wake.wait_timeout_while(tray, NAP, rests);
        tray = napped.unwrap_or_else(PoisonError::into_inner).0;
    }
    if tray.events.is_empty() && !tray.closed {
        tray.courier = Courier::Sleeps;
        let rests = |tray: &mut Tray| tray.courier == Courier::Sleeps && !tray.closed;
        tray = shared.wake.wait_while(tray, rests).unwrap_or_else(PoisonError::into_inner);
    }
    tray
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // Gone with it: a courier in the middle of a send hears of that.
        self.events = never();
        self.shared.close();
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
        RunEvent::Admitted(id, Instant::now(), 0)
    }

    fn id(events: &Receiver<RunEvent>) -> u64 {
        match events.recv_timeout(Duration::from_secs(20)).expect("the event comes") {
            RunEvent::Admitted(id, ..) => id,
            other => panic!("nobody sent {other:?}"),
        }
    }

    #[test]
    fn a_reader_that_falls_behind_gets_every_event_in_order() {
        let (outbox, inbox) = with_room(4).expect("a thread can be had");
        let (mut sent, mut read) = (0, 0);
        // Bursts larger and smaller than the channel; the reader catches up now and then and lags in between.
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
    fn lanes_that_leave_take_nothing_back() {
        let (outbox, inbox) = with_room(4).expect("a thread can be had");
        (0..20).for_each(|next| outbox.send(event(next)));
        drop(outbox);
        (0..20).for_each(|next| assert_eq!(id(&inbox.events), next));
        assert!(inbox.events.recv().is_err(), "the channel has ended");
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
