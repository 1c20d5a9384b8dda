//! Rows as they cross an edge (`cu/wire.cu`).

use super::{Ops, Stored, holds, launch};
use crate::error::CudaError;
use crate::memory::DeviceSlice;
use crate::stream::equal_lengths;

/// Channels that share a scale.
const SCALE_GROUP: usize = 128;

/// Bytes of one encoded row.
pub fn record_bytes(stored: Stored, width: usize) -> usize {
    let scales = if stored == Stored::Fp8 { width.div_ceil(SCALE_GROUP) * size_of::<f32>() } else { 0 };
    width * stored.bytes() + scales
}

#[repr(C)]
struct Wire {
    rows: u64,
    bytes: u64,
    width: i32,
    stored: i32,
}

impl Ops {
    /// Encodes `count` rows `[count, width]`.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    pub fn encode(
        &self,
        rows: &DeviceSlice<f32>,
        count: usize,
        width: usize,
        stored: Stored,
        bytes: &DeviceSlice<u8>,
    ) -> Result<(), CudaError> {
        let arguments = arguments(rows, count, width, stored, bytes)?;
        // SAFETY: lengths were checked.
        unsafe { launch(&*self.encode, count * width.div_ceil(SCALE_GROUP), arguments) }
    }

    /// The inverse of [`Ops::encode`].
    ///
    /// # Errors
    /// As [`Ops::encode`].
    pub fn decode(
        &self,
        bytes: &DeviceSlice<u8>,
        count: usize,
        width: usize,
        stored: Stored,
        rows: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        let arguments = arguments(rows, count, width, stored, bytes)?;
        // SAFETY: lengths were checked.
        unsafe { launch(&*self.decode, count * width.div_ceil(SCALE_GROUP), arguments) }
    }
}

/// Bytes of an item of [`Ops::take`].
const PIECE: usize = 2048;

#[repr(C)]
#[derive(Default)]
struct Take {
    from: [u64; 3],
    to: [u64; 3],
    bytes: [u64; 3],
}

impl Ops {
    /// Copies up to three runs of bytes, each `from` to `to`, by one kernel: where a few small copies would each cost what switching to the
    /// copy engine and back takes. `from` is memory that the machine reads ([`Machine::reads`](crate::machine::Machine::reads)).
    ///
    /// # Errors
    /// [`CudaError::Shape`] for more parts or lengths that differ; the driver's own.
    pub fn take(&self, parts: &[(&DeviceSlice<u8>, &DeviceSlice<u8>)]) -> Result<(), CudaError> {
        let mut arguments = Take::default();
        if parts.len() > arguments.from.len() {
            let problem = format!("{} parts at once; give it three at most", parts.len());
            return Err(CudaError::Shape { operation: "take", problem });
        }
        let mut pieces = 0;
        for (index, (from, to)) in parts.iter().enumerate() {
            equal_lengths("take", from.len(), to.len())?;
            (arguments.from[index], arguments.to[index]) = (from.address(), to.address());
            arguments.bytes[index] = from.len() as u64;
            pieces += from.len().div_ceil(PIECE);
        }
        // SAFETY: lengths agree.
        unsafe { launch(&*self.take, pieces, arguments) }
    }
}

fn arguments(
    rows: &DeviceSlice<f32>,
    count: usize,
    width: usize,
    stored: Stored,
    bytes: &DeviceSlice<u8>,
) -> Result<Wire, CudaError> {
    holds("wire", "rows [rows, width]", rows, count * width)?;
    holds("wire", "bytes of the records", bytes, count * record_bytes(stored, width))?;
    Ok(Wire { rows: rows.address(), bytes: bytes.address(), width: width as i32, stored: stored as i32 })
}
