//! Products of rows with weights: on tensor cores, or by the plain kernels. Owns the choice: what the graph's `compute` lets rows be
//! rounded to, how weights are stored, and whether card and shapes are what `rally_cuda::tensor` takes.

use super::device::CudaDevice;
use rally_cuda::CudaError;
use rally_cuda::machine::Machine;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{Stored, Weights};
use rally_cuda::tensor::{Narrowed, Norm, TensorMatrix, TensorOps};
use rally_graph::spec::ComputeDtype;
use std::sync::Arc;

/// A device's tensor cores, where the graph asks for them.
pub(super) struct TensorCores {
    compute: ComputeDtype,
    /// None where memory is only counted.
    ops: Option<TensorOps>,
}

impl TensorCores {
    /// None where rows stay f32, or the card is not Hopper's.
    pub(super) fn of(machine: &dyn Machine, compute: ComputeDtype) -> Result<Option<Self>, CudaError> {
        if compute == ComputeDtype::F32 || machine.mfa_ctas() == 0 {
            return Ok(None);
        }
        Ok(Some(Self { compute, ops: TensorOps::on(machine)? }))
    }

    pub(super) fn ops(&self) -> &TensorOps {
        self.ops.as_ref().expect("work is enqueued on cards alone, not where memory is counted")
    }

    /// Whether rows towards such weights have a scale each 128 elements.
    pub(super) fn groups(&self, stored: Stored) -> bool {
        self.compute == ComputeDtype::Fp8 && stored == Stored::Fp8
    }

    /// Rows towards such weights: how they are narrowed follows from what the graph says.
    pub(super) fn rows(
        &self,
        machine: &dyn Machine,
        most: usize,
        width: usize,
        stored: Stored,
    ) -> Result<Narrowed, CudaError> {
        match self.groups(stored) {
            true => Narrowed::grouped_on(machine, most, width),
            false => Narrowed::on(machine, most, width, stored),
        }
    }

    /// Whether rows may be narrowed to what weights are stored in.
    pub(super) fn takes(&self, stored: Stored) -> bool {
        takes(self.compute, stored)
    }
}

fn takes(compute: ComputeDtype, stored: Stored) -> bool {
    match stored {
        Stored::F32 => false,
        Stored::Bf16 => compute != ComputeDtype::F32,
        Stored::Fp8 => matches!(compute, ComputeDtype::Fp8 | ComputeDtype::Fp8PerToken),
    }
}

/// A matrix as those kernels read it that multiply with it.
pub(super) enum Matrix {
    Plain(Arc<Weights>),
    Tensor(Box<TensorMatrix>),
}

impl Matrix {
    /// Matrices that the same rows are multiplied with: all on tensor cores, or none.
    pub(super) fn all<const N: usize>(device: &CudaDevice, weights: [Arc<Weights>; N]) -> Result<[Self; N], CudaError> {
        let mut described = Vec::with_capacity(N);
        if let Some(tensor) = device.tensor() {
            let may = |weights: &Weights| tensor.takes(weights.stored()) && Narrowed::takes(weights.cols());
            for weights in weights.iter().take_while(|weights| may(weights)) {
                described.extend(TensorMatrix::on(device.machine(), weights)?);
            }
        }
        let alike = described.windows(2).all(|pair| pair[0].stored() == pair[1].stored());
        match <[TensorMatrix; N]>::try_from(described) {
            Ok(all) if alike => Ok(all.map(|matrix| Self::Tensor(Box::new(matrix)))),
            _ => Ok(weights.map(Self::Plain)),
        }
    }

    /// One alone.
    pub(super) fn one(device: &CudaDevice, weights: Arc<Weights>) -> Result<Self, CudaError> {
        Self::all(device, [weights]).map(|[matrix]| matrix)
    }
}

/// Rows on their way into products.
pub(super) enum Rows {
    /// f32.
    Plain(DeviceSlice<f32>),
    /// In the format of the weights.
    Narrow(Box<Narrowed>),
}

impl Rows {
    /// For at most `most` rows that are multiplied with `matrix`. `plain` is where they stay f32, if they do.
    pub(super) fn towards(
        device: &CudaDevice,
        matrix: &Matrix,
        most: usize,
        plain: impl FnOnce() -> Result<DeviceSlice<f32>, CudaError>,
    ) -> Result<Self, CudaError> {
        match matrix {
            Matrix::Plain(_) => plain().map(Self::Plain),
            Matrix::Tensor(matrix) => {
                let tensor = device.tensor().ok_or_else(unlike)?;
                let narrowed = tensor.rows(device.machine(), most, matrix.cols(), matrix.stored())?;
                Ok(Self::Narrow(Box::new(narrowed)))
            }
        }
    }

    /// Rows of x, normed.
    pub(super) fn norm(
        &self,
        device: &CudaDevice,
        x: &DeviceSlice<f32>,
        rows: usize,
        weight: &DeviceSlice<f32>,
        eps: f32,
    ) -> Result<(), CudaError> {
        match self {
            Self::Plain(to) => device.ops().rms_norm(x, None, rows, weight, eps, to),
            Self::Narrow(to) => device.tensor_ops().narrow(x, rows, Some(Norm { weight, eps, normed: None }), None, to),
        }
    }

    /// Rows of x, normed, in f32 to `to`, by the faster of the kernels; what is here is lost.
    pub(super) fn norm_to(
        &self,
        device: &CudaDevice,
        x: &DeviceSlice<f32>,
        rows: usize,
        (weight, eps): (&DeviceSlice<f32>, f32),
        to: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        match self {
            Self::Plain(_) => device.ops().rms_norm(x, None, rows, weight, eps, to),
            Self::Narrow(beside) => {
                device.tensor_ops().narrow(x, rows, Some(Norm { weight, eps, normed: Some(to) }), None, beside)
            }
        }
    }

    /// Rows of x as they are; where they stay f32, x is what they are kept in.
    pub(super) fn take(&self, device: &CudaDevice, x: &DeviceSlice<f32>, rows: usize) -> Result<(), CudaError> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Narrow(to) => device.tensor_ops().narrow(x, rows, None, None, to),
        }
    }

    /// `y = rows · Wᵀ`; `matrix` is the one these rows were made for, or one like it.
    pub(super) fn times(
        &self,
        device: &CudaDevice,
        rows: usize,
        matrix: &Matrix,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        match (self, matrix) {
            (Self::Plain(x), Matrix::Plain(weights)) => device.ops().matmul(x, rows, weights, y),
            (Self::Narrow(x), Matrix::Tensor(matrix)) => device.tensor_ops().project(x, rows, matrix, y, false),
            _ => Err(unlike()),
        }
    }

    /// The same with several matrices that came from one call of [`Matrix::all`], each with its own y.
    pub(super) fn times_all<const N: usize>(
        &self,
        device: &CudaDevice,
        rows: usize,
        of: [(&Matrix, &DeviceSlice<f32>); N],
    ) -> Result<(), CudaError> {
        let Self::Narrow(x) = self else {
            return of.into_iter().try_for_each(|(matrix, y)| self.times(device, rows, matrix, y));
        };
        let mut tensor = Vec::with_capacity(N);
        for (matrix, y) in of {
            let Matrix::Tensor(matrix) = matrix else { return Err(unlike()) };
            tensor.push((&**matrix, y));
        }
        device.tensor_ops().project_all(x, rows, &tensor, false)
    }

    /// `y += rows · Wᵀ`, by way of `between` where the kernel does not add.
    pub(super) fn times_added(
        &self,
        device: &CudaDevice,
        rows: usize,
        matrix: &Matrix,
        (y, width): (&DeviceSlice<f32>, usize),
        between: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        match (self, matrix) {
            (Self::Narrow(x), Matrix::Tensor(matrix)) => device.tensor_ops().project(x, rows, matrix, y, true),
            _ => {
                self.times(device, rows, matrix, between)?;
                device.ops().add(y, between, rows, width)
            }
        }
    }
}

/// Layers whose weights are stored differently: rows are narrowed to one format.
pub(super) fn unlike() -> CudaError {
    let problem = "matrices of one kind are stored in different formats: set `\"compute\": \"f32\"`".into();
    CudaError::Shape { operation: "product", problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_narrowed_no_further_than_the_graph_says_and_the_weights_are() {
        use ComputeDtype::{Bf16, F32, Fp8, Fp8PerToken};
        let formats = [Stored::F32, Stored::Bf16, Stored::Fp8];
        let taken = |compute| formats.map(|stored| takes(compute, stored));
        assert_eq!(taken(F32), [false, false, false]);
        assert_eq!(taken(Bf16), [false, true, false]);
        assert_eq!(taken(Fp8), [false, true, true]);
        assert_eq!(taken(Fp8PerToken), [false, true, true]);
    }
}
