//! How rows and words get from host to host: the transport trait, its implementations over TCP and over NIXL, and the handshake that
//! both ends of a connection go through first.
//!
//! It knows slots by their keys and moves their bytes; what is in them, and who waits for them, is the engine's business. It plans
//! nothing and retries nothing: whatever goes wrong with a peer is told once, as [`Event::Down`], and the peer is gone for the rest of
//! the membership epoch.

#![forbid(unsafe_code)]

pub mod checksum;
pub mod codec;
pub mod doorman;
pub mod faults;
pub mod frame;
pub mod handshake;
pub mod key;
pub mod link;
pub mod nixl;
pub mod probe;
pub mod tcp;
pub mod transport;

pub use transport::{
    Direction, Event, Peer, Polled, Pulse, Registration, SlotKey, SlotMemory, Stamp, Transport, TransportError,
};

// Slots cross as they lie in memory.
const _: () =
    assert!(cfg!(target_endian = "little"), "the order of bytes on the wire is that of little-endian machines");
