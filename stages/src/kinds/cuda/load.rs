//! Weights from a checkpoint to a device, one matrix at a time.

use super::super::registry::{BuildContext, BuildError};
use super::device::CudaDevice;
use super::fault;
use crate::checkpoint::{CheckpointError, Part};
use rally_cuda::CudaError;
use rally_cuda::memory::{DeviceSlice, bytes_of};
use rally_cuda::ops::{HostMatrix, Stored, Weights};
use rally_kernels::dtype::StorageDtype;
use rally_kernels::matrix::{self, Matrix};

/// How a device names a storage format.
pub(super) fn stored(dtype: StorageDtype) -> Stored {
    match dtype {
        StorageDtype::F32 => Stored::F32,
        StorageDtype::Bf16 => Stored::Bf16,
        StorageDtype::Fp8E4m3 => Stored::Fp8,
    }
}

/// Why weights could not be brought over.
pub(super) enum LoadError {
    Weights(CheckpointError),
    Device(CudaError),
}

impl From<CheckpointError> for LoadError {
    fn from(error: CheckpointError) -> Self {
        Self::Weights(error)
    }
}

impl From<CudaError> for LoadError {
    fn from(error: CudaError) -> Self {
        Self::Device(error)
    }
}

impl LoadError {
    /// As whoever makes stages reports it.
    pub(super) fn on(device: &CudaDevice) -> impl Fn(LoadError) -> BuildError {
        |error| match error {
            LoadError::Weights(error) => BuildError::Weights(error),
            LoadError::Device(error) => fault(device)(error),
        }
    }
}

/// A vector.
pub(super) fn vector(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    name: &str,
    len: usize,
) -> Result<DeviceSlice<f32>, LoadError> {
    Ok(device.copied(&context.weights.vector(name, len)?)?)
}

/// The whole of one matrix.
pub(super) fn matrix(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<Weights, LoadError> {
    matrix_part(context, device, name, rows, cols, Part::all(rows, cols))
}

/// A part of one matrix.
pub(super) fn matrix_part(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    name: &str,
    rows: usize,
    cols: usize,
    part: Part,
) -> Result<Weights, LoadError> {
    let matrix = context.weights.matrix(name, rows, cols, part)?;
    Ok(Weights::one(device.machine(), host(&matrix))?)
}

/// `count` matrices of one shape, each `read` by its index.
pub(super) fn stack(
    device: &CudaDevice,
    count: usize,
    shape: (usize, usize),
    read: impl Fn(usize) -> Result<Matrix, CheckpointError>,
) -> Result<Weights, LoadError> {
    Weights::of(device.machine(), count, shape.0, shape.1, |index, take| Ok(take(host(&read(index)?))?))
}

/// The format of a matrix.
pub(super) fn format_of(matrix: &Matrix) -> Stored {
    host(matrix).stored
}

/// A matrix as a device is given it.
fn host(matrix: &Matrix) -> HostMatrix<'_> {
    let (values, scales, stored) = match matrix.stored() {
        matrix::Stored::F32(values) => (bytes_of(values), &[][..], Stored::F32),
        matrix::Stored::Bf16(values) => (bytes_of(values), &[][..], Stored::Bf16),
        matrix::Stored::Fp8 { codes, scales } => (codes, scales, Stored::Fp8),
    };
    HostMatrix { rows: matrix.rows(), cols: matrix.cols(), stride: matrix.stride(), values, scales, stored }
}
