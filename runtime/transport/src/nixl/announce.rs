//! What two hosts whose rows go over NIXL say to each other on their TCP connection: at the beginning of an epoch who and where they are,
//! at its end how many rows went out.

use crate::codec::{CodecError, Reader, Writer};
use crate::transport::{FIRST_ASIDE, PARTS, SlotKey};

/// Longest name of an agent.
const MOST_NAME_BYTES: usize = 128;
/// Bytes of a slot among others: its key, whose memory it is in, and address and room of each part.
const SLOT_BYTES: usize = 9 + 4 + PARTS * 16;
/// Stands for no card: the memory is the host's own.
const NO_CARD: u32 = u32::MAX;

/// Where a slot is in its host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemotePlace {
    /// The card whose memory it is, if it is a card's.
    pub card: Option<u32>,
    /// Address of each part, and how many bytes it has room for.
    pub parts: [(u64, u64); PARTS],
}

/// What a host must know to write into another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// The agent's name: no other one has it, in this epoch or another.
    pub agent: String,
    /// What NIXL gives for others to load.
    pub metadata: Vec<u8>,
    /// The slots that the other host fills.
    pub slots: Vec<(SlotKey, RemotePlace)>,
}

/// A message between transports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aside {
    /// At the beginning of an epoch.
    Announced(Announcement),
    /// Nothing more will come: so many rows' slots went out over NIXL.
    Sent(u32),
}

impl Aside {
    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        match self {
            Self::Announced(Announcement { agent, metadata, slots }) => {
                writer.u8(FIRST_ASIDE).text(agent).count(metadata.len()).raw(metadata).count(slots.len());
                for (key, place) in slots {
                    for part in [key.edge, key.micro_batch, key.from, key.to] {
                        writer.raw(&part.to_le_bytes());
                    }
                    writer.u8(key.leg).u32(place.card.unwrap_or(NO_CARD));
                    for (address, bytes) in &place.parts {
                        writer.u64(*address).u64(*bytes);
                    }
                }
            }
            Self::Sent(count) => {
                writer.u8(FIRST_ASIDE + 1).u32(*count);
            }
        }
        writer.finish()
    }

    /// Of a message that begins as these do; `None` for any other.
    pub fn decode(bytes: &[u8]) -> Option<Result<Self, CodecError>> {
        bytes.first().is_some_and(|first| *first >= FIRST_ASIDE).then(|| decode(bytes))
    }
}

fn decode(bytes: &[u8]) -> Result<Aside, CodecError> {
    let mut reader = Reader::new(bytes);
    let aside = match reader.u8("a message between transports")?.wrapping_sub(FIRST_ASIDE) {
        0 => {
            let agent = reader.text(MOST_NAME_BYTES, "an agent's name")?.to_owned();
            let length = reader.length(1, "an agent's metadata")?;
            let metadata = reader.raw(length, "an agent's metadata")?.to_vec();
            let count = reader.length(SLOT_BYTES, "a number of slots")?;
            let slots = (0..count).map(|_| slot(&mut reader)).collect::<Result<_, _>>()?;
            Aside::Announced(Announcement { agent, metadata, slots })
        }
        1 => Aside::Sent(reader.u32("a number of rows")?),
        _ => return Err(CodecError { what: "a message between transports", at: 0 }),
    };
    reader.end("the end of a message between transports")?;
    Ok(aside)
}

fn slot(reader: &mut Reader<'_>) -> Result<(SlotKey, RemotePlace), CodecError> {
    let mut part = || reader.array("a slot's key").map(u16::from_le_bytes);
    let [edge, micro_batch, from, to] = [part()?, part()?, part()?, part()?];
    let key = SlotKey { edge, micro_batch, from, to, leg: reader.u8("a slot's key")? };
    let card = Some(reader.u32("a slot's card")?).filter(|card| *card != NO_CARD);
    let mut place = RemotePlace { card, ..RemotePlace::default() };
    for (address, bytes) in &mut place.parts {
        (*address, *bytes) = (reader.u64("a slot's address")?, reader.u64("a slot's room")?);
    }
    Ok((key, place))
}
