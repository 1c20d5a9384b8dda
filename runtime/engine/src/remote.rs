//! Values that live in a device's own memory: what the engine asks for when rows of theirs cross an edge.
//!
//! A lane's [`Values`] then say how many rows there are and where they came from, and hold the numbers only where a probe looks.
//! Between two such devices rows do not come to the host: a slot holds a [`Parcel`], which says where they are and from when on.

use crate::stage::StageError;
use crate::values::Values;
use rally_kernels::dtype::StorageDtype;
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

/// Which of a micro-batch's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// FFN input u.
    Input,
    /// FFN output y.
    Output,
    /// What several parts of y are summed in before it is y, or goes home.
    Sum,
    /// One part of it, for as long as it takes to add it.
    Part,
}

/// Consecutive rows of a micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteRows {
    /// The micro-batch.
    pub micro_batch: usize,
    /// First row.
    pub first: usize,
    /// How many.
    pub rows: usize,
}

/// Rows that one device offers to another: where they are. What is in it is the devices' business, which are of one kind in a run.
pub type Parcel = Arc<dyn Any + Send + Sync>;

/// How rows cross.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// What they are stored as on the way.
    pub dtype: StorageDtype,
    /// Whether the chosen experts and their weights go with them.
    pub routed: bool,
}

/// Room in a device's own memory for the rows of a slot whose other end is on another host: what carries them reads and writes there by
/// itself, and they never come to the host.
pub trait Room: Send + Sync + std::fmt::Debug {
    /// Address and bytes of rows, expert ids and weights.
    fn place(&self) -> [(usize, usize); 3];

    /// The CUDA card it is on; none where the processor has it too.
    fn card(&self) -> Option<u32>;

    /// Copies the beginning of each part to the host, behind all that the device was told, as many bytes as the parts given have.
    fn read(&self, parts: [&mut [u8]; 3]) -> Result<(), StageError>;

    /// For the device that made it.
    fn as_any(&self) -> &dyn Any;
}

/// A point in a device's work, as the device numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub usize);

/// The values of all micro-batches on one device. Its stages work on the same memory, in the order in which they are called.
///
/// Nothing here waits for the device but what hands numbers to the host.
pub trait RemoteValues: Send {
    /// What the device is, for people.
    fn name(&self) -> String;

    /// Encodes rows as `dtype` has them ([`rally_kernels::wire`]), and waits for the bytes.
    fn encode(&mut self, field: Field, at: RemoteRows, dtype: StorageDtype, bytes: &mut [u8])
    -> Result<(), StageError>;

    /// The inverse of [`RemoteValues::encode`]; `bytes` may be let go at once.
    fn decode(&mut self, field: Field, at: RemoteRows, dtype: StorageDtype, bytes: &[u8]) -> Result<(), StageError>;

    /// Offers rows to another device, encoded. `parcel` is the slot's own, made here when it is first used. Until they have been
    /// accepted and, along the way of the rows, something has come back, they stay as they are: the plan sees to that.
    fn offer(
        &mut self,
        field: Field,
        at: RemoteRows,
        crossing: Crossing,
        parcel: &mut Option<Parcel>,
    ) -> Result<(), StageError>;

    /// Lets all that the device is told from now on wait until what is in `parcel` is there.
    fn expect(&mut self, parcel: Option<&Parcel>) -> Result<(), StageError>;

    /// Takes rows over that another device has offered, and that were expected.
    fn accept(
        &mut self,
        field: Field,
        at: RemoteRows,
        crossing: Crossing,
        parcel: Option<&Parcel>,
    ) -> Result<(), StageError>;

    /// Makes room for at most `rows` rows that cross to or from another host.
    fn room(&mut self, rows: usize, crossing: Crossing) -> Result<Arc<dyn Room>, StageError>;

    /// Encodes rows into a room of its own, and waits until they are there.
    fn fill(&mut self, field: Field, at: RemoteRows, crossing: Crossing, room: &dyn Room) -> Result<(), StageError>;

    /// Takes rows over that have come into a room of its own.
    fn empty(&mut self, field: Field, at: RemoteRows, crossing: Crossing, room: &dyn Room) -> Result<(), StageError>;

    /// `to += from`, row by row.
    fn add(&mut self, to: Field, from: Field, at: RemoteRows) -> Result<(), StageError>;

    /// Whether [`RemoteValues::sum`] may do what it is asked.
    fn sums_at_once(&self) -> bool {
        false
    }

    /// Sums parts of y to `to`, each offered by another device and expected, if there is a way to do so at once, and it is worth it.
    /// Returns whether it did: where not, they are accepted and added one after the other. Of more than two parts the order in which
    /// they are added is that way's own.
    fn sum(
        &mut self,
        _to: Field,
        _at: RemoteRows,
        _crossing: Crossing,
        _parcels: &[Parcel],
    ) -> Result<bool, StageError> {
        Ok(false)
    }

    /// Rounds rows as if they had crossed.
    fn round(&mut self, field: Field, at: RemoteRows, dtype: StorageDtype) -> Result<(), StageError>;

    /// Reads the chosen experts of rows and their weights, `[rows, top_k]`.
    fn read_routing(&mut self, at: RemoteRows, ids: &mut [u32], weights: &mut [f32]) -> Result<(), StageError>;

    /// Writes them.
    fn write_routing(&mut self, at: RemoteRows, ids: &[u32], weights: &[f32]) -> Result<(), StageError>;

    /// Notes the moment between all that the device was told so far and what comes: `again`, instead of what was noted under it, or
    /// a new one.
    fn note(&mut self, again: Option<Moment>) -> Result<Moment, StageError>;

    /// Whether a moment has been.
    fn is_over(&mut self, moment: Moment) -> Result<bool, StageError>;

    /// When a moment was, on the host's clock, if it has been: then it is forgotten.
    fn when(&mut self, moment: Moment) -> Result<Option<Instant>, StageError>;

    /// Writes over more memory than the device's caches hold, so that what its stages read next comes from afar.
    fn sweep(&mut self) -> Result<(), StageError>;

    /// Lets all that the device is told from now on wait until whoever left `before` has ended its turn.
    fn await_turn(&mut self, before: Option<&Parcel>) -> Result<(), StageError>;

    /// The end of a turn, behind all that the device was told so far: for whose turn is next.
    fn end_turn(&mut self) -> Result<Parcel, StageError>;

    /// Copies all that there is of a micro-batch's `values.rows` rows to `values`, for a probe.
    fn fetch(&mut self, micro_batch: usize, values: &mut Values) -> Result<(), StageError>;
}
