//! Exchanges inside a stage: what its devices hand each other between its parts.
//!
//! Owns the rows on their way and who gets them; which rows those are is the stage's business. All that a part leaves for a
//! later one crosses here, what a device keeps for itself too: a lane may serve other micro-batches between two parts.

use crate::engine::EngineError;
use crate::remote::Parcel;
use crate::slot::{self, Header};
use crate::stage::StageError;
use crate::transfer::expect_header;
use crate::wiring::SharedSlot;

/// Most rows that a device sends to one peer between two parts of a stage, and their width in values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExchangeSize {
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
    /// Whether a device sends to itself as well.
    pub own: bool,
    /// Whether the rows stay in the memory of devices ([`Exchange::leave`]).
    pub stays: bool,
}

/// The slots of one part on one device, a slot a peer, its own among them.
#[derive(Default)]
pub(crate) struct Legs {
    pub(crate) part: usize,
    /// From the part before.
    pub(crate) incoming: Vec<SharedSlot>,
    pub(crate) incoming_width: usize,
    /// For the part after.
    pub(crate) outgoing: Vec<SharedSlot>,
    pub(crate) outgoing_width: usize,
}

impl Legs {
    /// Empties what goes out, and returns how many rows have come in.
    pub(crate) fn begin(&self, header: Header) -> Result<usize, EngineError> {
        for slot in &self.outgoing {
            slot::take(slot)?.begin(header);
        }
        let mut rows = 0;
        for slot in &self.incoming {
            let got = slot::take(slot)?.header();
            expect_header(got, header, None)?;
            rows += got.rows;
        }
        Ok(rows)
    }

    /// Whether the part works on what came in, and not on the device's own rows.
    pub(crate) fn is_between(&self) -> bool {
        !self.incoming.is_empty() && !self.outgoing.is_empty()
    }

    /// Bytes that go out.
    pub(crate) fn bytes(&self) -> Result<u64, EngineError> {
        let mut rows = 0;
        for slot in &self.outgoing {
            rows += slot::take(slot)?.header().rows;
        }
        Ok((rows * self.outgoing_width * size_of::<f32>()) as u64)
    }
}

/// What a stage sees of its exchange: a part of the stage, the rows that its peers sent, and where its own go.
#[derive(Clone, Copy, Default)]
pub struct Exchange<'a> {
    legs: Option<&'a Legs>,
}

impl<'a> Exchange<'a> {
    /// A stage whose devices work alone.
    pub const ALONE: Self = Self { legs: None };

    pub(crate) fn new(legs: Option<&'a Legs>) -> Self {
        Self { legs }
    }

    /// Part of the stage, from 0.
    pub fn part(&self) -> usize {
        self.legs.map_or(0, |legs| legs.part)
    }

    /// Devices that exchange with each other, this one among them; 0 for a stage whose devices work alone.
    pub fn peers(&self) -> usize {
        self.legs.map_or(0, |legs| legs.outgoing.len().max(legs.incoming.len()))
    }

    /// Adds f32 rows, `[rows, width]` as in [`ExchangeSize`], to what `peer` gets.
    pub fn send(&self, peer: usize, rows: &[f32]) -> Result<(), StageError> {
        let legs = self.legs.ok_or(StageError::NoExchange)?;
        let slot = legs.outgoing.get(peer).filter(|_| legs.outgoing_width > 0).ok_or(StageError::NoExchange)?;
        slot::take(slot)?.push_rows(rows, legs.outgoing_width);
        Ok(())
    }

    /// Leaves `rows` rows in the memory of devices for `peer`: `parcel` says where. In an exchange whose rows stay there.
    pub fn leave(&self, peer: usize, rows: usize, parcel: &Parcel) -> Result<(), StageError> {
        let legs = self.legs.ok_or(StageError::NoExchange)?;
        let slot = legs.outgoing.get(peer).filter(|_| legs.outgoing_width > 0).ok_or(StageError::NoExchange)?;
        slot::take(slot)?.leave(rows, parcel);
        Ok(())
    }

    /// What `peer` has left, if it was any rows.
    pub fn left_by(&self, peer: usize) -> Result<Option<Parcel>, StageError> {
        let slot = self.legs.and_then(|legs| legs.incoming.get(peer)).ok_or(StageError::NoExchange)?;
        let slot = slot::take(slot)?;
        Ok(slot.left().filter(|_| slot.header().rows > 0))
    }

    /// Rows that came from `peer`.
    pub fn rows_from(&self, peer: usize) -> Result<usize, StageError> {
        let slot = self.legs.and_then(|legs| legs.incoming.get(peer)).ok_or(StageError::NoExchange)?;
        Ok(slot::take(slot)?.header().rows)
    }

    /// Copies rows that came from `peer`, from `first` on, as many as `target`, `[rows, width]`, holds.
    pub fn receive(&self, peer: usize, first: usize, target: &mut [f32]) -> Result<(), StageError> {
        let legs = self.legs.ok_or(StageError::NoExchange)?;
        let slot = legs.incoming.get(peer).ok_or(StageError::NoExchange)?;
        slot::take(slot)?.read_rows(first, legs.incoming_width, target);
        Ok(())
    }
}
