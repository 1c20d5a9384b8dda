//! Weights from a checkpoint to a device, one matrix at a time.

use super::super::registry::{BuildContext, BuildError};
use super::device::CudaDevice;
use super::fault;
use crate::checkpoint::{CheckpointError, Part, Rule};
use rally_cuda::CudaError;
use rally_cuda::memory::{DeviceSlice, bytes_of};
use rally_cuda::ops::{Drawn, DrawnPart, HostMatrix, Stored, Weights};
use rally_graph::model::WeightFormat;
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
    let whole = (rows, cols);
    stack(context, device, whole, &part, &[Tensor { name, expert: None }])
}

/// One matrix, or one of a stack of experts'.
pub(super) struct Tensor<'a> {
    pub(super) name: &'a str,
    pub(super) expert: Option<usize>,
}

/// The part `part` of some matrices `[rows, cols]`: made by the device itself where they follow from a rule, brought over one at a time
/// otherwise.
pub(super) fn stack(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    (rows, cols): (usize, usize),
    part: &Part,
    tensors: &[Tensor<'_>],
) -> Result<Weights, LoadError> {
    let (weights, experts) = (context.weights, context.shape.experts);
    let rule = |tensor: &Tensor<'_>| {
        weights.rule(tensor.name, tensor.expert.map(|expert| (expert, experts)), (rows, cols), part)
    };
    let rules: Option<Vec<Rule>> = tensors.iter().map(rule).collect::<Result<_, _>>()?;
    if let Some(rules) = rules.filter(|rules| !rules.is_empty()) {
        let drawn: Vec<Drawn> = rules.into_iter().map(Drawn::from).collect();
        let (first_row, first_col) = (part.rows.start, part.cols.start);
        let (rows, whole_cols) = (part.rows.len(), cols);
        let part = DrawnPart { whole_cols, first_row, first_col, rows, cols: part.cols.len() };
        return Ok(device.ops().draw(&drawn, part)?);
    }
    let read = |tensor: &Tensor<'_>| match tensor.expert {
        Some(expert) => weights.expert_matrix(tensor.name, expert, experts, rows, cols, part.clone()),
        None => weights.matrix(tensor.name, rows, cols, part.clone()),
    };
    Weights::of(device.machine(), tensors.len(), part.rows.len(), part.cols.len(), |index, take| {
        Ok(take(host(&read(&tensors[index])?))?)
    })
}

impl From<Rule> for Drawn {
    fn from(Rule { format, stream, scale_stream, bound, scale }: Rule) -> Self {
        let stored = match format {
            WeightFormat::F32 => Stored::F32,
            WeightFormat::Bf16 => Stored::Bf16,
            WeightFormat::Fp8Block => Stored::Fp8,
        };
        Self { stream, scale_stream, bound, scale, stored }
    }
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
