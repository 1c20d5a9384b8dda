//! The transport trait: what moves a slot's bytes to another host, and what it tells about it.
//!
//! A transport is one-sided, as RDMA is: the sender posts a write of a slot, the bytes land in the slot of the same key on the other
//! host, and that host is told that they are there. Slots are registered once per membership epoch, so an engine that must pin or
//! map memory does it then. Whether a slot may be written is not asked: the plan keeps a slot untouched until the answer to it is in.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Index of a host in the graph's `hosts`.
pub type Peer = usize;

/// Which slot: the same on both ends, since both hosts compile the same plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotKey {
    /// Index of the transfer stage.
    pub edge: u16,
    /// Micro-batch.
    pub micro_batch: u16,
    /// Device the rows come from.
    pub from: u16,
    /// Device they go to.
    pub to: u16,
    /// Which way between the two, where there are several.
    pub leg: u8,
}

/// What is in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Step, from 0.
    pub step: u64,
    /// Layer.
    pub layer: u32,
    /// Rows.
    pub rows: u32,
    /// Whether the rows' experts and their weights are with them.
    pub routed: bool,
}

/// Parts of a slot that lie apart in memory: rows, expert ids, expert weights.
pub const PARTS: usize = 3;

/// Address and bytes of each part.
pub type Place = [(usize, usize); PARTS];

/// A slot's memory, as a transport sees it. It stays where it is for the whole of an epoch.
pub trait SlotMemory: Send + Sync {
    /// Bytes of each part for what `stamp` says; `None` if that is more than there is room for.
    fn lengths(&self, stamp: &Stamp) -> Option<[usize; PARTS]>;

    /// Shows the parts to `take`, as long as `stamp` says.
    ///
    /// # Errors
    /// `take`'s own; [`io::ErrorKind::WouldBlock`] if someone else has the slot, which only a wrong plan lets happen.
    fn read(&self, stamp: &Stamp, take: &mut dyn FnMut([&[u8]; PARTS]) -> io::Result<()>) -> io::Result<()>;

    /// Where each part begins and how many bytes there is room for, if an engine may read and write there by itself. The plan orders
    /// that with what lanes do: a slot is not touched before the answer to it is in.
    fn place(&self) -> Option<Place> {
        None
    }

    /// The CUDA card whose memory [`SlotMemory::place`] names; none if it is the processor's.
    fn card(&self) -> Option<u32> {
        None
    }

    /// Lets `fill` write the parts, as long as `stamp` says, and notes the stamp.
    ///
    /// # Errors
    /// As [`SlotMemory::read`]. What was there is gone then.
    fn write(&self, stamp: &Stamp, fill: &mut dyn FnMut([&mut [u8]; PARTS]) -> io::Result<()>) -> io::Result<()>;
}

/// Which way a slot's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From this host to the peer.
    Out,
    /// From the peer to this host.
    In,
}

/// A slot whose other end is on another host.
#[derive(Clone)]
pub struct Registration {
    /// Which.
    pub key: SlotKey,
    /// The other host.
    pub peer: Peer,
    /// Which way.
    pub direction: Direction,
    /// This host's end.
    pub memory: Arc<dyn SlotMemory>,
}

/// What a transport tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer's write has landed in the slot with this index in the registration.
    Arrived {
        /// Index into what was registered.
        slot: usize,
        /// What it is.
        stamp: Stamp,
    },
    /// A peer said something.
    Message {
        /// Who.
        peer: Peer,
        /// What, as it was sent.
        bytes: Vec<u8>,
    },
    /// A peer has sent all that it will send. The end of its connection is no fault after that.
    Done {
        /// Who.
        peer: Peer,
    },
    /// A peer is gone. Told once; nothing of it follows.
    Down {
        /// Who.
        peer: Peer,
        /// Why.
        error: TransportError,
    },
}

/// How it is with a host's lanes; it comes with every sign of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Tasks that they have completed in this epoch, all together.
    pub done: u64,
    /// Lanes that are at a task: that wait neither for each other nor for another host.
    pub working: u32,
}

/// Whether polling again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// There may be more.
    Again,
    /// Nothing will come any more.
    Ended,
}

/// What went wrong between two hosts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The connection ended although the peer had more to say.
    #[error("it closed the connection")]
    Closed,
    /// The system gave an error.
    #[error("the connection failed: {0}")]
    Io(String),
    /// Nothing was heard for too long, not even a sign of life.
    #[error("it has been silent for {0} ms")]
    Silent(u128),
    /// It lives, and does not say what it is to say.
    #[error("it shows signs of life and has said nothing for {0} ms")]
    Mute(u128),
    /// It took nothing for too long.
    #[error("it has taken nothing for {0} ms")]
    Stuck(u128),
    /// A frame that makes no sense.
    #[error("it sent a frame that cannot be: {0}")]
    BadFrame(#[from] crate::frame::FrameError),
    /// A slot was in someone's hands when its bytes came or went.
    #[error("a slot was in use when its rows came or went: the plan is wrong")]
    SlotBusy,
    /// Something else than was due.
    #[error("it said something out of turn")]
    OutOfTurn,
    /// This side gave it up.
    #[error("{0}")]
    GivenUp(String),
    /// There is no connection to it.
    #[error("there is no connection to it")]
    Unconnected,
}

/// Messages that begin with this byte or a larger one are what two transports have to say to each other.
pub const FIRST_ASIDE: u8 = 0xf0;

/// Moves slots and messages to other hosts.
///
/// Posting and sending return at once; what becomes of them is told by [`Transport::poll`]. An implementation has one or more
/// *lanes*, each polled by a thread of its own, so that transfers hold up no lane that computes.
pub trait Transport: Send + Sync {
    /// Makes slots known, once, before the first post and the first poll that may bring rows. Ids are indices into `slots`.
    fn register(&self, slots: Vec<Registration>);

    /// Begins to write a slot, registered as going out, to its peer. A peer that is gone takes nothing, and says nothing.
    fn post(&self, slot: usize, stamp: Stamp);

    /// Begins to send a message, in order with the other messages to that peer. Its first byte is below
    /// [`FIRST_ASIDE`]: what begins otherwise is between transports.
    fn send(&self, peer: Peer, message: Vec<u8>);

    /// Waits for the next message of a peer, for `patience` if it shows signs of life: only before polling begins, when no rows can
    /// come yet.
    ///
    /// # Errors
    /// The peer is gone, says something else, or nothing.
    fn receive(&self, peer: Peer, patience: Duration) -> Result<Vec<u8>, TransportError>;

    /// Says to every peer that nothing more will come, behind all that was posted and sent.
    fn finish(&self);

    /// Lanes that have to be polled.
    fn lanes(&self) -> usize;

    /// Waits a while for something to happen on `lane`, and tells it to `sink`.
    fn poll(&self, lane: usize, sink: &mut dyn FnMut(Event)) -> Polled;

    /// For how long nothing has come from a peer, not even a sign of life; `None` where nobody knows.
    fn silent_for(&self, peer: Peer) -> Option<Duration> {
        let _ = peer;
        None
    }

    /// What goes with signs of life from now on.
    fn show(&self, _pulse: Arc<dyn Fn() -> Pulse + Send + Sync>) {}

    /// What came with a peer's last sign of life; `None` where nobody knows. Signs come while nothing else does.
    fn pulse_of(&self, _peer: Peer) -> Option<Pulse> {
        None
    }

    /// Shows a peer no sign of life any more, or again: for faults on purpose.
    fn hush(&self, _peer: Peer, _hushed: bool) {}

    /// Changes the next thing that goes to a peer on its way, in the bit that `chosen` chooses: for faults on purpose.
    fn damage(&self, _peer: Peer, _chosen: u64) {}

    /// Gives a peer up: what is on its way is dropped, and it is told as [`Event::Down`] unless it was already.
    fn peer_down(&self, peer: Peer, why: &str);
}
