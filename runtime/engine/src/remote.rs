//! Values that live in a device's own memory: what the engine asks for when rows of theirs cross an edge.
//!
//! A lane's [`Values`] then say how many rows there are and where they came from, and hold the numbers only where a probe looks.

use crate::stage::StageError;
use crate::values::Values;
use rally_kernels::dtype::StorageDtype;

/// Which of a micro-batch's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// FFN input u.
    Input,
    /// FFN output y.
    Output,
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

/// The values of all micro-batches on one device. Its stages work on the same memory, in the order in which they are called.
pub trait RemoteValues: Send {
    /// What the device is, for people.
    fn name(&self) -> String;

    /// Encodes rows as `dtype` has them ([`rally_kernels::wire`]), and waits for the bytes.
    fn encode(&mut self, field: Field, at: RemoteRows, dtype: StorageDtype, bytes: &mut [u8])
    -> Result<(), StageError>;

    /// The inverse of [`RemoteValues::encode`]; `bytes` may be let go at once.
    fn decode(&mut self, field: Field, at: RemoteRows, dtype: StorageDtype, bytes: &[u8]) -> Result<(), StageError>;

    /// Writes rows of y, `[rows, hidden]`, as they are.
    fn write_output(&mut self, at: RemoteRows, rows: &[f32]) -> Result<(), StageError>;

    /// Reads the chosen experts of rows and their weights, `[rows, top_k]`.
    fn read_routing(&mut self, at: RemoteRows, ids: &mut [u32], weights: &mut [f32]) -> Result<(), StageError>;

    /// Writes them.
    fn write_routing(&mut self, at: RemoteRows, ids: &[u32], weights: &[f32]) -> Result<(), StageError>;

    /// Copies all that there is of a micro-batch's `values.rows` rows to `values`, for a probe.
    fn fetch(&mut self, micro_batch: usize, values: &mut Values) -> Result<(), StageError>;
}
