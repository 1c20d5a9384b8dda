//! What is done later: a queue by time, and the thread that does it.

use crate::transport::{Peer, Stamp, Transport};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Something that happens to the real transport.
pub(super) enum Action {
    /// Rows of a slot go out.
    Post(usize, Stamp),
    /// A message goes out.
    Send(Peer, Vec<u8>),
    /// The next thing that goes to a peer is changed, in the bit that a number chooses.
    Damage(Peer, u64),
    /// Signs of life stop, or go on.
    Hush(Peer, bool),
    /// Nothing more will come.
    Finish,
}

#[derive(Default)]
struct Queue {
    /// By time, and in order of coming.
    due: BTreeMap<(Instant, u64), Action>,
    number: u64,
    closed: bool,
}

struct Shared {
    inner: Arc<dyn Transport>,
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform(&self, action: Action) {
        match action {
            Action::Post(slot, stamp) => self.inner.post(slot, stamp),
            Action::Send(peer, message) => self.inner.send(peer, message),
            Action::Damage(peer, chosen) => self.inner.damage(peer, chosen),
            Action::Hush(peer, hushed) => self.inner.hush(peer, hushed),
            Action::Finish => self.inner.finish(),
        }
    }

    fn work(&self) {
        let mut queue = self.queue();
        loop {
            let now = Instant::now();
            match queue.due.first_key_value().map(|(key, _)| *key) {
                Some(key) if key.0 <= now => {
                    if let Some(action) = queue.due.remove(&key) {
                        drop(queue);
                        self.perform(action);
                        queue = self.queue();
                    }
                }
                // Whoever said that nothing more will come is to be heard.
                _ if queue.closed && !queue.due.values().any(|action| matches!(action, Action::Finish)) => return,
                Some((at, _)) => {
                    let waited = self.more.wait_timeout(queue, at - now);
                    queue = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None => queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Does things to a transport at their times.
pub(super) struct Later {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Later {
    pub(super) fn start(inner: Arc<dyn Transport>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { inner, queue: Mutex::default(), more: Condvar::new() });
        let working = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("faults".into()).spawn(move || working.work())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Does actions together at a time, behind what else is due by then; now if none is given.
    pub(super) fn at(&self, at: Option<Instant>, actions: impl IntoIterator<Item = Action>) {
        let Some(at) = at else {
            return actions.into_iter().for_each(|action| self.shared.perform(action));
        };
        let mut queue = self.shared.queue();
        for action in actions {
            queue.number += 1;
            let number = queue.number;
            queue.due.insert((at, number), action);
        }
        drop(queue);
        self.shared.more.notify_one();
    }

    /// Behind all that is waiting.
    pub(super) fn finish(&self) {
        let last = self.shared.queue().due.last_key_value().map(|((at, _), _)| *at);
        match last {
            Some(last) => self.at(Some(last), [Action::Finish]),
            None => self.shared.inner.finish(),
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.more.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
