//! Frames: what follows the handshake on a connection. A header of 40 bytes, then the bytes that it announces.
//!
//! | bytes | |
//! |---|---|
//! | 0 | kind: 1 rows of a slot, 2 a message, 3 a sign of life, 4 nothing more will come |
//! | 1 | 1: the rows' experts are with them |
//! | 2 | leg |
//! | 3 | 0 |
//! | 4–7 | bytes that follow; of rows and messages the last 8 are the check sum of the header and all before them |
//! | 8–15 | edge, micro-batch, from, to: 16 bits each |
//! | 16–23 | step; of a sign of life: tasks that the lanes have completed |
//! | 24–27 | layer |
//! | 28–31 | rows; of a sign of life: lanes that are at a task |
//! | 32–39 | check sum of all before: nobody waits for bytes that a changed header announces |

use crate::checksum::{CHECK_BYTES, Checksum};
use crate::transport::{Pulse, SlotKey, Stamp};

/// Bytes of a header.
pub const HEADER_BYTES: usize = SAID_BYTES + CHECK_BYTES;
/// Bytes of a header before its check sum.
const SAID_BYTES: usize = 32;
/// Longest message: samples of a step with their logits are the longest there are (a hundred rows of 128,000 values: 51 MB).
pub const MOST_MESSAGE_BYTES: usize = 256 << 20;

/// A header that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such kind of frame, or a byte that must be 0 is not.
    #[error("no frame begins with {0:?}")]
    Kind([u8; 4]),
    /// Rows for a slot that does not come from that host.
    #[error("rows for a slot that is not its to fill: {0:?}")]
    Slot(SlotKey),
    /// More rows than the slot has room for, or not as many bytes as its rows take.
    #[error("{bytes} bytes for {rows} rows of slot {key:?}")]
    Length {
        /// The slot.
        key: SlotKey,
        /// Rows announced.
        rows: u32,
        /// Bytes announced.
        bytes: u32,
    },
    /// What came is not what was sent.
    #[error("what came has another check sum than what was sent")]
    Garbled,
    /// A message that is too long, or a sign of life with a message.
    #[error("a frame of {0} bytes")]
    TooLong(u32),
}

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a slot.
    Rows {
        /// Which slot.
        key: SlotKey,
        /// What is in it.
        stamp: Stamp,
        /// How many bytes, check sum included.
        bytes: u32,
    },
    /// A message.
    Message {
        /// How many bytes, check sum included.
        bytes: u32,
    },
    /// Nothing but that the peer lives, and how it is with its lanes.
    Ping(Pulse),
    /// Nothing, ever again.
    Done,
}

impl Frame {
    /// As on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        match self {
            Self::Rows { key, stamp, bytes } => {
                put(0, &[1, u8::from(stamp.routed), key.leg]);
                put(4, &bytes.to_le_bytes());
                for (index, part) in [key.edge, key.micro_batch, key.from, key.to].into_iter().enumerate() {
                    put(8 + 2 * index, &part.to_le_bytes());
                }
                put(16, &stamp.step.to_le_bytes());
                put(24, &stamp.layer.to_le_bytes());
                put(28, &stamp.rows.to_le_bytes());
            }
            Self::Message { bytes } => {
                put(0, &[2]);
                put(4, &bytes.to_le_bytes());
            }
            Self::Ping(Pulse { done, working }) => {
                put(0, &[3]);
                put(16, &done.to_le_bytes());
                put(28, &working.to_le_bytes());
            }
            Self::Done => put(0, &[4]),
        }
        seal(&mut header);
        header
    }

    /// From the wire.
    ///
    /// # Errors
    /// [`FrameError::Garbled`] if its check sum is another one; what makes no sense although it was sent so.
    pub fn decode(header: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let (said, check) = header.split_at(SAID_BYTES);
        if Checksum::of(&[said]) != *check {
            return Err(FrameError::Garbled);
        }
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let [kind, routed, leg, zero, ..] = *header;
        let bytes = u32_at(4);
        // What only rows have is 0 in all others: nothing of a header goes unread.
        let unused = match kind {
            1 => &[][..],
            3 => &[8..16, 24..28],
            _ => &[8..16, 16..SAID_BYTES],
        };
        if kind != 1 && (leg != 0 || unused.iter().any(|part| said[part.clone()].iter().any(|byte| *byte != 0))) {
            return Err(FrameError::Kind([kind, routed, leg, zero]));
        }
        let word_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        match (kind, routed, zero) {
            (1, 0 | 1, 0) => {
                let [edge, micro_batch, from, to] = [8, 10, 12, 14].map(u16_at);
                let stamp = Stamp { step: word_at(16), layer: u32_at(24), rows: u32_at(28), routed: routed == 1 };
                Ok(Self::Rows { key: SlotKey { edge, micro_batch, from, to, leg }, stamp, bytes })
            }
            (2, 0, 0) if bytes as usize <= MOST_MESSAGE_BYTES => Ok(Self::Message { bytes }),
            (3, 0, 0) if bytes == 0 => Ok(Self::Ping(Pulse { done: word_at(16), working: u32_at(28) })),
            (4, 0, 0) if bytes == 0 => Ok(Self::Done),
            (2..=4, 0, 0) => Err(FrameError::TooLong(bytes)),
            _ => Err(FrameError::Kind([kind, routed, leg, zero])),
        }
    }
}

/// Writes the check sum of a header behind what it says.
pub fn seal(header: &mut [u8; HEADER_BYTES]) {
    let (said, check) = header.split_at_mut(SAID_BYTES);
    check.copy_from_slice(&Checksum::of(&[said]));
}
