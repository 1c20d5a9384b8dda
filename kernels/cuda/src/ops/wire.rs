//! Rows as they cross an edge (`cu/wire.cu`).

use super::{Ops, Stored, holds, launch};
use crate::error::CudaError;
use crate::memory::DeviceSlice;

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
