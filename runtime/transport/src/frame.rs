//! Frames: what follows the handshake on a connection. A header of 32 bytes, then the bytes that it announces.
//!
//! | bytes | |
//! |---|---|
//! | 0 | kind: 1 rows of a slot, 2 a message, 3 a sign of life, 4 nothing more will come |
//! | 1 | 1: the rows' experts are with them |
//! | 2 | leg |
//! | 3 | 0 |
//! | 4–7 | bytes that follow; of rows and messages the last 8 are the check sum of the header and all before them |
//! | 8–15 | edge, micro-batch, from, to: 16 bits each |
//! | 16–23 | step |
//! | 24–27 | layer |
//! | 28–31 | rows |

use crate::transport::{SlotKey, Stamp};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;
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
    /// Nothing: the peer lives.
    Ping,
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
            Self::Ping => put(0, &[3]),
            Self::Done => put(0, &[4]),
        }
        header
    }

    /// From the wire.
    pub fn decode(header: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let [kind, routed, leg, zero, ..] = *header;
        let bytes = u32_at(4);
        // What only rows have is 0 in all others: nothing of a header goes unread.
        if kind != 1 && (leg != 0 || header[8..].iter().any(|byte| *byte != 0)) {
            return Err(FrameError::Kind([kind, routed, leg, zero]));
        }
        match (kind, routed, zero) {
            (1, 0 | 1, 0) => {
                let [edge, micro_batch, from, to] = [8, 10, 12, 14].map(u16_at);
                let step = u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32;
                let stamp = Stamp { step, layer: u32_at(24), rows: u32_at(28), routed: routed == 1 };
                Ok(Self::Rows { key: SlotKey { edge, micro_batch, from, to, leg }, stamp, bytes })
            }
            (2, 0, 0) if bytes as usize <= MOST_MESSAGE_BYTES => Ok(Self::Message { bytes }),
            (3, 0, 0) if bytes == 0 => Ok(Self::Ping),
            (4, 0, 0) if bytes == 0 => Ok(Self::Done),
            (2..=4, 0, 0) => Err(FrameError::TooLong(bytes)),
            _ => Err(FrameError::Kind([kind, routed, leg, zero])),
        }
    }
}
