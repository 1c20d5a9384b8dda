//! The transport: posts go to the lane that speaks to NIXL, words and signs of life to the TCP connections.

use super::announce::Aside;
use super::lane::{Item, Lane};
use super::way::Way;
use crate::tcp::Tcp;
use crate::transport::{Event, Peer, Polled, Pulse, Registration, Stamp, Transport, TransportError};
use nixl_sys::Agent;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the lane has to do.
#[derive(Default)]
pub(super) struct Inbox {
    items: Mutex<Vec<Item>>,
    more: Condvar,
}

impl Inbox {
    fn items(&self) -> MutexGuard<'_, Vec<Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, item: Item) {
        self.items().push(item);
        self.more.notify_one();
    }

    pub(super) fn take(&self) -> Vec<Item> {
        std::mem::take(&mut *self.items())
    }

    /// Until something is there, but no longer than `time`.
    pub(super) fn wait(&self, time: Duration) {
        let items = self.items();
        if items.is_empty() {
            drop(self.more.wait_timeout(items, time).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// One end of all of a host's connections in a membership epoch, with rows over NIXL.
pub(super) struct OverNixl {
    links: Tcp,
    /// Numbers of the transfers whose rows go over NIXL.
    edges: BTreeSet<u16>,
    ways: HashMap<Peer, Way>,
    inbox: Inbox,
    /// In the hands of the one thread that polls it.
    lane: Mutex<Lane>,
}

impl OverNixl {
    pub(super) fn new(agent: Agent, links: Tcp, edges: BTreeSet<u16>) -> Self {
        let peers: Vec<Peer> = links.peers().collect();
        let ways = peers.iter().map(|peer| (*peer, Way::to(*peer))).collect();
        Self { links, edges, ways, inbox: Inbox::default(), lane: Mutex::new(Lane::new(agent, &peers)) }
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what another transport says. Returns whether that was it.
    fn aside(&self, peer: Peer, bytes: &[u8]) -> bool {
        match Aside::decode(bytes) {
            None => return false,
            Some(Ok(Aside::Announced(announcement))) => self.inbox.push(Item::Announced(peer, announcement)),
            Some(Ok(Aside::Sent(count))) => self.inbox.push(Item::Sent(peer, count)),
            Some(Err(error)) => {
                self.peer_down(peer, &format!("its transport said something that makes no sense: {error}"))
            }
        }
        true
    }
}

impl Transport for OverNixl {
    fn register(&self, slots: Vec<Registration>) {
        self.links.register(slots);
        match self.lane().register(self.links.registered(), &self.edges) {
            Ok(announcements) => {
                for (peer, announcement) in announcements {
                    self.links.send(peer, Aside::Announced(announcement).encode());
                }
            }
            Err(error) => self.ways.keys().for_each(|peer| self.peer_down(*peer, &error.to_string())),
        }
    }

    fn post(&self, slot: usize, stamp: Stamp) {
        let Some(registration) = self.links.registered().get(slot) else { return };
        let Some(way) = self.ways.get(&registration.peer) else { return };
        if !self.edges.contains(&registration.key.edge) {
            if let Some(chosen) = way.take_damage() {
                self.links.damage(registration.peer, chosen);
            }
            return self.links.post(slot, stamp);
        }
        if let Some(damage) = way.take() {
            self.inbox.push(Item::Post { slot, stamp, damage });
        }
    }

    fn send(&self, peer: Peer, message: Vec<u8>) {
        if let Some(chosen) = self.ways.get(&peer).and_then(Way::take_damage) {
            self.links.damage(peer, chosen);
        }
        self.links.send(peer, message);
    }

    fn receive(&self, peer: Peer, patience: Duration) -> Result<Vec<u8>, TransportError> {
        loop {
            let bytes = self.links.receive(peer, patience)?;
            if !self.aside(peer, &bytes) {
                return Ok(bytes);
            }
        }
    }

    fn finish(&self) {
        self.ways.values().for_each(|way| way.finish(&self.links));
    }

    fn lanes(&self) -> usize {
        self.links.lanes() + 1
    }

    fn poll(&self, lane: usize, sink: &mut dyn FnMut(Event)) -> Polled {
        if lane == self.links.lanes() {
            return self.lane().poll(&self.inbox, &self.links, &self.ways, sink);
        }
        self.links.poll(lane, &mut |event| match event {
            Event::Message { peer, bytes } if self.aside(peer, &bytes) => {}
            // Told by the lane, once the rows that went out before are there too.
            Event::Done { peer } => self.inbox.push(Item::Done(peer)),
            Event::Down { peer, error } => {
                if let Some(way) = self.ways.get(&peer) {
                    way.give_up(&self.links);
                }
                self.inbox.push(Item::Down(peer));
                sink(Event::Down { peer, error });
            }
            event => sink(event),
        })
    }

    fn silent_for(&self, peer: Peer) -> Option<Duration> {
        self.links.silent_for(peer)
    }

    fn show(&self, pulse: Arc<dyn Fn() -> Pulse + Send + Sync>) {
        self.links.show(pulse);
    }

    fn pulse_of(&self, peer: Peer) -> Option<Pulse> {
        self.links.pulse_of(peer)
    }

    fn hush(&self, peer: Peer, hushed: bool) {
        self.links.hush(peer, hushed);
    }

    fn damage(&self, peer: Peer, chosen: u64) {
        if let Some(way) = self.ways.get(&peer) {
            way.damage(chosen);
        }
    }

    fn peer_down(&self, peer: Peer, why: &str) {
        if let Some(way) = self.ways.get(&peer) {
            way.give_up(&self.links);
        }
        self.links.peer_down(peer, why);
    }
}
