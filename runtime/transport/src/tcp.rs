//! The transport over TCP: plain frames on one connection a peer, on the standard library's blocking sockets.
//!
//! A thread a peer reads, straight into the slots, and one writes. No runtime: with a handful of peers, threads that block are
//! woken by the system as soon as an event loop's would be, without the hop from the loop's thread to the lane that waits.

use crate::checksum::{CHECK_BYTES, Checksum};
use crate::frame::{Frame, FrameError};
use crate::link::{Link, ReadError, Shown, Slots};
use crate::transport::{
    Direction, Event, PARTS, Peer, Polled, Pulse, Registration, SlotKey, Stamp, Transport, TransportError,
};
use std::collections::HashMap;
use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Step and layer.
pub(crate) type Turn = (u64, u32);

/// One end of all of a host's connections in a membership epoch.
#[derive(Default)]
pub struct Tcp {
    /// One a lane.
    links: Vec<Link>,
    /// By lane: nothing comes any more.
    ended: Vec<AtomicBool>,
    slots: Slots,
    shown: Shown,
    /// What peers may fill.
    incoming: OnceLock<HashMap<SlotKey, usize>>,
    /// By slot, step and layer of the last rows that came: what comes again, or late, is dropped.
    latest: OnceLock<Vec<Mutex<Option<Turn>>>>,
}

impl Tcp {
    /// Takes over a connection whose handshake is done. From here on the peer sees that this host lives.
    ///
    /// # Errors
    /// What the system said.
    pub fn add(&mut self, peer: Peer, stream: TcpStream) -> io::Result<()> {
        self.links.push(Link::new(peer, stream, Arc::clone(&self.slots), Arc::clone(&self.shown))?);
        self.ended.push(AtomicBool::new(false));
        Ok(())
    }

    /// Whom there are connections to, by lane.
    #[cfg(feature = "nixl")]
    pub(crate) fn peers(&self) -> impl Iterator<Item = Peer> {
        self.links.iter().map(|link| link.peer)
    }

    /// What was registered.
    #[cfg(feature = "nixl")]
    pub(crate) fn registered(&self) -> &[Registration] {
        self.slots.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// [`Transport::finish`] for one peer.
    #[cfg(feature = "nixl")]
    pub(crate) fn finish_one(&self, peer: Peer) {
        if let Some(link) = self.link(peer) {
            link.finish();
        }
    }

    fn link(&self, peer: Peer) -> Option<&Link> {
        self.links.iter().find(|link| link.peer == peer)
    }

    /// The slot that `key` means, if `peer` may fill it.
    pub(crate) fn slot(&self, peer: Peer, key: SlotKey) -> Option<(usize, &Registration)> {
        let slot = *self.incoming.get()?.get(&key)?;
        let registration = self.slots.get()?.get(slot)?;
        (registration.peer == peer).then_some((slot, registration))
    }

    fn take(&self, peer: Peer, frame: Frame, from: &mut dyn Read) -> Result<Option<Event>, ReadError> {
        match frame {
            Frame::Ping(pulse) => {
                if let Some(link) = self.link(peer) {
                    link.beats(pulse);
                }
                Ok(None)
            }
            Frame::Done => Ok(Some(Event::Done { peer })),
            Frame::Message { bytes } => {
                // Taken as they come: a length alone reserves nothing.
                let mut message = Vec::new();
                let Some(length) = (bytes as usize).checked_sub(CHECK_BYTES) else {
                    return Err(FrameError::Garbled.into());
                };
                from.take(length as u64).read_to_end(&mut message)?;
                if message.len() < length {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                check(from, Checksum::of(&[&frame.encode(), &message]))?;
                Ok(Some(Event::Message { peer, bytes: message }))
            }
            Frame::Rows { key, stamp, bytes } => {
                let (slot, registration) = self.slot(peer, key).ok_or(FrameError::Slot(key))?;
                let right = |lengths: &[usize; PARTS]| lengths.iter().sum::<usize>() + CHECK_BYTES == bytes as usize;
                if registration.memory.lengths(&stamp).filter(right).is_none() {
                    return Err(FrameError::Length { key, rows: stamp.rows, bytes }.into());
                }
                if !self.is_news(slot, &stamp) {
                    tracing::debug!(peer, ?key, ?stamp, "rows came again, or late, and were dropped");
                    return drop_bytes(bytes, from).map(|()| None);
                }
                fill(registration, &frame, &stamp, from)?;
                Ok(Some(Event::Arrived { slot, stamp }))
            }
        }
    }

    /// Whether rows are of a later step or layer than all before them in their slot.
    pub(crate) fn is_news(&self, slot: usize, stamp: &Stamp) -> bool {
        let Some(latest) = self.latest.get().and_then(|latest| latest.get(slot)) else { return false };
        let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        let news = latest.is_none_or(|latest| (stamp.step, stamp.layer) > latest);
        if news {
            *latest = Some((stamp.step, stamp.layer));
        }
        news
    }
}

/// Reads what nobody wants.
fn drop_bytes(bytes: u32, from: &mut dyn Read) -> Result<(), ReadError> {
    let dropped = io::copy(&mut from.take(u64::from(bytes)), &mut io::sink())?;
    if dropped < u64::from(bytes) { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) } else { Ok(()) }
}

/// Reads rows into their slot, which has room for them.
fn fill(registration: &Registration, frame: &Frame, stamp: &Stamp, from: &mut dyn Read) -> Result<(), ReadError> {
    let mut sum = Checksum::default();
    sum.add(&frame.encode());
    let mut began = false;
    let written = registration.memory.write(stamp, &mut |parts| {
        began = true;
        parts.into_iter().try_for_each(|part| {
            from.read_exact(part)?;
            sum.add(part);
            Ok(())
        })
    });
    match written {
        Err(error) if !began && error.kind() == io::ErrorKind::WouldBlock => Err(ReadError::SlotBusy),
        written => {
            written?;
            check(from, sum.finish())
        }
    }
}

/// Holds a sum against the one that was sent.
fn check(from: &mut dyn Read, sum: [u8; CHECK_BYTES]) -> Result<(), ReadError> {
    let mut sent = [0; CHECK_BYTES];
    from.read_exact(&mut sent)?;
    if sent == sum { Ok(()) } else { Err(FrameError::Garbled.into()) }
}

impl Transport for Tcp {
    fn register(&self, slots: Vec<Registration>) {
        let incoming = slots.iter().enumerate().filter(|(_, slot)| slot.direction == Direction::In);
        let incoming = incoming.map(|(index, slot)| (slot.key, index)).collect();
        let latest = slots.iter().map(|_| Mutex::default()).collect();
        let fresh = self.slots.set(slots).is_ok() && self.incoming.set(incoming).is_ok();
        let fresh = fresh && self.latest.set(latest).is_ok();
        assert!(fresh, "slots are registered once an epoch, and a transport lives for one");
    }

    fn post(&self, slot: usize, stamp: Stamp) {
        let registration = self.slots.get().and_then(|slots| slots.get(slot));
        if let Some(link) = registration.and_then(|slot| self.link(slot.peer)) {
            link.post(slot, stamp);
        }
    }

    fn send(&self, peer: Peer, message: Vec<u8>) {
        if let Some(link) = self.link(peer) {
            link.send(message);
        }
    }

    fn receive(&self, peer: Peer, patience: Duration) -> Result<Vec<u8>, TransportError> {
        let (link, began) = (self.link(peer).ok_or(TransportError::Unconnected)?, Instant::now());
        loop {
            if began.elapsed() > patience {
                return Err(TransportError::Mute(patience.as_millis()));
            }
            match link.read(|frame, from| self.take(peer, frame, from))? {
                None => {}
                Some(Event::Message { bytes, .. }) => return Ok(bytes),
                Some(_) => return Err(TransportError::OutOfTurn),
            }
        }
    }

    fn finish(&self) {
        self.links.iter().for_each(Link::finish);
    }

    fn lanes(&self) -> usize {
        self.links.len()
    }

    fn poll(&self, lane: usize, sink: &mut dyn FnMut(Event)) -> Polled {
        let Some(link) = self.links.get(lane) else { return Polled::Ended };
        if self.ended[lane].load(Ordering::Acquire) {
            return Polled::Ended;
        }
        match link.read(|frame, from| self.take(link.peer, frame, from)) {
            Ok(None) => Polled::Again,
            Ok(Some(event)) => {
                let last = matches!(event, Event::Done { .. });
                self.ended[lane].store(last, Ordering::Release);
                sink(event);
                if last { Polled::Ended } else { Polled::Again }
            }
            Err(error) => {
                self.ended[lane].store(true, Ordering::Release);
                let silent = matches!(error, TransportError::Silent(_));
                if !silent {
                    link.give_up(error.clone());
                }
                sink(Event::Down { peer: link.peer, error: error.clone() });
                if silent {
                    // It may wake, and is then to hear what was said of it.
                    link.finish();
                    link.give_up(error);
                }
                Polled::Ended
            }
        }
    }

    fn silent_for(&self, peer: Peer) -> Option<Duration> {
        self.link(peer).map(Link::silent_for)
    }

    fn show(&self, pulse: Arc<dyn Fn() -> Pulse + Send + Sync>) {
        let fresh = self.shown.set(pulse).is_ok();
        assert!(fresh, "what is shown is said once an epoch, and a transport lives for one");
    }

    fn pulse_of(&self, peer: Peer) -> Option<Pulse> {
        self.link(peer).and_then(Link::pulse)
    }

    fn hush(&self, peer: Peer, hushed: bool) {
        if let Some(link) = self.link(peer) {
            link.hush(hushed);
        }
    }

    fn damage(&self, peer: Peer, chosen: u64) {
        if let Some(link) = self.link(peer) {
            link.damage(chosen);
        }
    }

    fn peer_down(&self, peer: Peer, why: &str) {
        if let Some(link) = self.link(peer) {
            link.give_up(TransportError::GivenUp(why.into()));
        }
    }
}
