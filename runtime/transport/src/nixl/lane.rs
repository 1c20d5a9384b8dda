//! The lane that speaks to NIXL: one thread has the agent, posts writes, and polls what has come of them and what has come in.

use super::NixlError;
use super::announce::{Announcement, RemotePlace};
use super::engine::failed;
use super::over_nixl::Inbox;
use super::way::Way;
use super::writes::{NOTE_BYTES, Outgoing, arrive, notes, write};
use crate::link::DEADLINE;
use crate::tcp::{Tcp, Turn};
use crate::transport::{Direction, Event, Peer, Polled, Registration, SlotKey, Stamp, Transport, TransportError};
use nixl_sys::{Agent, RegistrationHandle};
use rally_ffi::nixl::Region;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// For so long after something happened the lane looks again at once: longer than what is on its way here takes, of which NIXL says
/// nothing before all of it has come. What it has written itself moves on only while it looks.
const AWAKE: Duration = Duration::from_millis(5);
/// Then as often as this, and more seldom when nothing has happened for [`DROWSY`]: NIXL wakes nobody.
const NAP: Duration = Duration::from_micros(50);
const DROWSY: Duration = Duration::from_millis(50);
const LONG_NAP: Duration = Duration::from_micros(500);
/// So long the lane goes on when all is done: what NIXL calls done may still be on its way out.
const LINGER: Duration = Duration::from_millis(10);
/// Notifications of agents that have not announced themselves yet; each is a slot's, and there are not as many.
const MOST_EARLY: usize = 4096;

/// Something for the lane to do.
pub(super) enum Item {
    /// A peer says where it is.
    Announced(Peer, Announcement),
    /// Rows go out.
    Post { slot: usize, stamp: Stamp, damage: Option<u64> },
    /// A peer says how many slots' rows it has sent.
    Sent(Peer, u32),
    /// A peer will say nothing more.
    Done(Peer),
    /// A peer is gone.
    Down(Peer),
}

#[derive(Default)]
struct Other {
    /// Its agent, once it has announced itself.
    agent: Option<String>,
    arrived: u32,
    sent: Option<u32>,
    /// Since when it says nothing more.
    silent_since: Option<Instant>,
    told: bool,
    down: bool,
}

pub(super) struct Lane {
    outgoing: HashMap<usize, Outgoing>,
    /// By slot, the last rows that went out: rows that come again, or late, would change what is being read, and so do not go.
    latest: HashMap<SlotKey, Turn>,
    registrations: Vec<RegistrationHandle>,
    others: HashMap<Peer, Other>,
    peers: HashMap<String, Peer>,
    /// Of agents that are not known yet.
    early: Vec<(String, Vec<u8>)>,
    busy_at: Instant,
    /// Behind the requests and registrations, which are to be dropped first.
    agent: Agent,
}

type Parts<'a> = (&'a Tcp, &'a HashMap<Peer, Way>);

impl Lane {
    pub(super) fn new(agent: Agent, peers: &[Peer]) -> Self {
        Self {
            outgoing: HashMap::new(),
            latest: HashMap::new(),
            registrations: Vec::new(),
            others: peers.iter().map(|peer| (*peer, Other::default())).collect(),
            peers: HashMap::new(),
            early: Vec::new(),
            busy_at: Instant::now(),
            agent,
        }
    }

    /// Registers the memory of slots of `edges`. Returns what to announce to whom.
    pub(super) fn register(
        &mut self,
        slots: &[Registration],
        edges: &BTreeSet<u16>,
    ) -> Result<Vec<(Peer, Announcement)>, NixlError> {
        let mut incoming: HashMap<Peer, Vec<(SlotKey, RemotePlace)>> =
            self.others.keys().map(|peer| (*peer, Vec::new())).collect();
        for (index, Registration { key, peer, direction, memory }) in slots.iter().enumerate() {
            if !edges.contains(&key.edge) {
                continue;
            }
            let (place, card) = (memory.place(), memory.card());
            for (address, bytes) in place.into_iter().flatten().filter(|(_, bytes)| *bytes > 0) {
                let registered = self.agent.register_memory(&Region::on(card, address, bytes), None);
                self.registrations.push(failed("registering a slot with NIXL", registered)?);
            }
            match (direction, place) {
                (Direction::Out, place) => {
                    let (key, peer, waiting) = (*key, *peer, VecDeque::new());
                    let (remote, request, since, copy) = (None, None, None, None);
                    self.outgoing
                        .insert(index, Outgoing { key, peer, place, card, remote, request, since, waiting, copy });
                }
                (Direction::In, Some(place)) => {
                    let parts = place.map(|(address, bytes)| (address as u64, bytes as u64));
                    incoming.entry(*peer).or_default().push((*key, RemotePlace { card, parts }));
                }
                (Direction::In, None) => {
                    let why = "peers cannot write to where its rows come in".into();
                    return Err(NixlError::Call { what: "registering a slot with NIXL", why });
                }
            }
        }
        let agent = self.agent.name();
        let metadata = failed("asking NIXL for what peers need", self.agent.get_local_md())?;
        let announce = |(peer, slots)| (peer, Announcement { agent: agent.clone(), metadata: metadata.clone(), slots });
        Ok(incoming.into_iter().map(announce).collect())
    }

    /// Looks once at everything, and waits a moment if nothing had happened.
    pub(super) fn poll(
        &mut self,
        inbox: &Inbox,
        links: &Tcp,
        ways: &HashMap<Peer, Way>,
        sink: &mut dyn FnMut(Event),
    ) -> Polled {
        let parts = (links, ways);
        let items = inbox.take();
        let mut busy = !items.is_empty();
        for item in items {
            self.take(item, parts, sink);
        }
        busy |= self.complete(parts, sink);
        busy |= self.listen(parts, sink);
        self.end(parts, sink);
        if busy {
            self.busy_at = Instant::now();
            return Polled::Again;
        }
        let idle = self.busy_at.elapsed();
        let writes = self.outgoing.values().any(|out| out.since.is_some());
        let over = |(peer, other): (&Peer, &Other)| other.down || (other.told && ways[peer].is_finished());
        if self.others.iter().all(over) && idle > LINGER {
            return Polled::Ended;
        }
        match idle {
            _ if idle < AWAKE || writes => std::thread::yield_now(),
            _ if idle < DROWSY => inbox.wait(NAP),
            _ => inbox.wait(LONG_NAP),
        }
        Polled::Again
    }

    fn take(&mut self, item: Item, parts: Parts<'_>, sink: &mut dyn FnMut(Event)) {
        match item {
            Item::Announced(peer, announcement) => self.meet(peer, announcement, parts, sink),
            Item::Post { slot, stamp, damage } => {
                let Some(out) = self.outgoing.get_mut(&slot) else { return };
                if self.others.get(&out.peer).is_none_or(|other| other.down) {
                    return parts.1[&out.peer].is_through(parts.0);
                }
                out.waiting.push_back((stamp, damage));
                self.start(slot, parts, sink);
            }
            Item::Sent(peer, count) => self.with(peer, |other| other.sent = Some(count)),
            Item::Done(peer) => self.with(peer, |other| other.silent_since = Some(Instant::now())),
            Item::Down(peer) => self.forget(peer, parts),
        }
    }

    fn with(&mut self, peer: Peer, change: impl FnOnce(&mut Other)) {
        if let Some(other) = self.others.get_mut(&peer) {
            change(other);
        }
    }

    /// A peer says where it is: what waited for that goes out.
    fn meet(&mut self, peer: Peer, announced: Announcement, parts: Parts<'_>, sink: &mut dyn FnMut(Event)) {
        let known = self.others.get(&peer).is_none_or(|other| other.down || other.agent.is_some());
        if known || self.peers.contains_key(&announced.agent) {
            return self.lose(peer, "it has announced itself twice", parts, sink);
        }
        match self.agent.load_remote_md(&announced.metadata) {
            Ok(agent) if agent == announced.agent => {}
            Ok(_) => return self.lose(peer, "it has announced another agent than its own", parts, sink),
            Err(error) => return self.lose(peer, &format!("NIXL cannot read what it announced: {error}"), parts, sink),
        }
        let places: HashMap<SlotKey, RemotePlace> = announced.slots.into_iter().collect();
        for out in self.outgoing.values_mut().filter(|out| out.peer == peer) {
            out.remote = places.get(&out.key).copied();
        }
        self.peers.insert(announced.agent.clone(), peer);
        self.with(peer, |other| other.agent = Some(announced.agent));
        let slots: Vec<usize> = self.outgoing.keys().copied().collect();
        slots.into_iter().for_each(|slot| self.start(slot, parts, sink));
        for (agent, note) in std::mem::take(&mut self.early) {
            self.hear(agent, note, parts, sink);
        }
    }

    /// Begins the next write of a slot, if there is one and nothing speaks against it.
    fn start(&mut self, slot: usize, parts: Parts<'_>, sink: &mut dyn FnMut(Event)) {
        let (links, ways) = parts;
        loop {
            let Some(out) = self.outgoing.get_mut(&slot).filter(|out| out.since.is_none()) else { return };
            let peer = out.peer;
            let Some(agent) = self.others.get(&peer).and_then(|other| other.agent.as_ref()) else { return };
            let Some((stamp, damage)) = out.waiting.pop_front() else { return };
            let turn = (stamp.step, stamp.layer);
            if self.latest.get(&out.key).is_some_and(|latest| *latest >= turn) {
                tracing::debug!(peer, key = ?out.key, ?stamp, "rows that had gone, or later ones, do not go again");
                ways[&peer].is_through(links);
                continue;
            }
            match write(&self.agent, agent, out, &links.registered()[slot], stamp, damage) {
                Ok(under_way) => {
                    self.latest.insert(out.key, turn);
                    ways[&peer].goes_out();
                    match under_way {
                        true => out.since = Some(Instant::now()),
                        false => ways[&peer].is_through(links),
                    }
                }
                Err(why) => {
                    ways[&peer].is_through(links);
                    return self.lose(peer, &why, parts, sink);
                }
            }
        }
    }

    /// Looks at the writes that are under way.
    fn complete(&mut self, parts: Parts<'_>, sink: &mut dyn FnMut(Event)) -> bool {
        let (mut through, mut lost) = (Vec::new(), Vec::new());
        for (slot, out) in &mut self.outgoing {
            let (Some(since), Some((_, request))) = (out.since, &out.request) else { continue };
            match self.agent.get_xfer_status(request) {
                Ok(status) if status.is_success() => {
                    out.since = None;
                    through.push((*slot, out.peer));
                }
                Ok(_) if since.elapsed() < DEADLINE => {}
                Ok(_) => lost.push((out.peer, TransportError::Stuck(DEADLINE.as_millis()).to_string())),
                Err(_) => lost.push((out.peer, "a write over NIXL failed".to_owned())),
            }
        }
        let busy = !through.is_empty();
        for (slot, peer) in through {
            parts.1[&peer].is_through(parts.0);
            self.start(slot, parts, sink);
        }
        lost.into_iter().for_each(|(peer, why)| self.lose(peer, &why, parts, sink));
        busy
    }

    /// Hears what peers have written. Asking also moves everything on.
    fn listen(&mut self, parts: Parts<'_>, sink: &mut dyn FnMut(Event)) -> bool {
        let heard = notes(&self.agent).unwrap_or_default();
        let busy = !heard.is_empty();
        heard.into_iter().for_each(|(agent, note)| self.hear(agent, note, parts, sink));
        busy
    }

    fn hear(&mut self, agent: String, note: Vec<u8>, parts: Parts<'_>, sink: &mut dyn FnMut(Event)) {
        let Some(peer) = self.peers.get(&agent).copied() else {
            // Its announcement may be on its way. A stranger's never comes.
            if self.early.len() < MOST_EARLY && note.len() == NOTE_BYTES {
                self.early.push((agent, note));
            }
            return;
        };
        if self.others[&peer].down || self.others[&peer].told {
            return;
        }
        match arrive(parts.0, peer, &note) {
            Ok(arrived) => {
                self.with(peer, |other| other.arrived = other.arrived.wrapping_add(1));
                arrived.into_iter().for_each(sink);
            }
            Err(error) => self.lose(peer, &error.to_string(), parts, sink),
        }
    }

    /// Tells of peers that will say nothing more, once all that they sent is here.
    fn end(&mut self, parts: Parts<'_>, sink: &mut dyn FnMut(Event)) {
        let mut lost = Vec::new();
        for (peer, other) in &mut self.others {
            let Some(since) = other.silent_since.filter(|_| !other.told && !other.down) else { continue };
            if other.arrived >= other.sent.unwrap_or(0) {
                other.told = true;
                sink(Event::Done { peer: *peer });
            } else if since.elapsed() > DEADLINE {
                lost.push(*peer);
            }
        }
        lost.into_iter().for_each(|peer| self.lose(peer, "rows that it sent have not come", parts, sink));
    }

    /// Gives a peer up.
    fn lose(&mut self, peer: Peer, why: &str, parts: Parts<'_>, sink: &mut dyn FnMut(Event)) {
        let Some(other) = self.others.get(&peer) else { return };
        // Its connection tells, unless that has ended as it should.
        if other.silent_since.is_some() && !other.told && !other.down {
            sink(Event::Down { peer, error: TransportError::GivenUp(why.into()) });
        }
        self.forget(peer, parts);
        parts.1[&peer].give_up(parts.0);
        parts.0.peer_down(peer, why);
    }

    /// Drops what is on its way to a peer.
    fn forget(&mut self, peer: Peer, (links, ways): Parts<'_>) {
        self.with(peer, |other| other.down = true);
        for out in self.outgoing.values_mut().filter(|out| out.peer == peer) {
            let dropped = usize::from(out.since.take().is_some()) + out.waiting.drain(..).count();
            out.request = None;
            (0..dropped).for_each(|_| ways[&peer].is_through(links));
        }
    }
}
