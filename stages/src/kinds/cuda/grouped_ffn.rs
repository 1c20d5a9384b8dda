//! `dense_ffn` whose rows have a scale each 128 elements before both of its products, of any width: two products, SwiGLU, one product.

use super::super::ffn::{Share, SwiGlu};
use super::super::layers::Layers;
use super::super::registry::BuildContext;
use super::captured::{Captured, Which};
use super::device::CudaDevice;
use super::load::{self, LoadError};
use super::products::unlike;
use super::tensor_ffn;
use rally_cuda::CudaError;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::Stored;
use rally_cuda::tensor::{Narrowed, TensorMatrix};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_graph::model::FP8_TILE;
use std::sync::Arc;

struct GroupedFfn {
    captured: Captured,
    kernels: Kernels,
    most: usize,
}

struct Kernels {
    device: Arc<CudaDevice>,
    layers: Layers<SwiGlu<TensorMatrix>>,
    rows: Narrowed,
    /// `[most, inner width]`.
    gate: DeviceSlice<f32>,
    up: DeviceSlice<f32>,
    inner: Narrowed,
}

/// None where the graph or the weights say otherwise.
pub(super) fn make(
    context: &BuildContext<'_>,
    device: &Arc<CudaDevice>,
    share: &Share,
) -> Result<Option<Box<dyn Stage>>, LoadError> {
    let (Some(tensor), false) = (device.tensor(), context.layers.is_empty()) else { return Ok(None) };
    let (hidden, width, most) = (context.shape.hidden, context.shape.dense_width, context.gathered_rows());
    let inner = share.inner(width).len();
    let whole = |width: usize| width > 0 && width.is_multiple_of(FP8_TILE);
    if !(whole(hidden) && whole(inner)) {
        return Ok(None);
    }
    let stored = tensor_ffn::stored(context, tensor_ffn::Which::Dense, share, &[])?;
    // Rows that are too wide for the other kernels come here as well.
    if !(tensor.groups(stored) || stored == Stored::Fp8 && tensor.takes(stored) && !Narrowed::takes(inner)) {
        return Ok(None);
    }
    let layers = Layers::make(context, |layer| {
        SwiGlu::load(
            (layer, "mlp"),
            hidden,
            width,
            share,
            |name, rows, cols, part| -> Result<TensorMatrix, LoadError> {
                let weights = load::matrix_part(context, device, name, rows, cols, part)?;
                let matrix =
                    TensorMatrix::on(device.machine(), &weights)?.filter(|matrix| matrix.stored() == Stored::Fp8);
                Ok(matrix.ok_or_else(unlike)?)
            },
        )
    })?;
    let kernels = Kernels {
        layers,
        rows: Narrowed::grouped_on(device.machine(), most, hidden)?,
        gate: device.buffer(most * inner)?,
        up: device.buffer(most * inner)?,
        inner: Narrowed::grouped_on(device.machine(), most, inner)?,
        device: Arc::clone(device),
    };
    Ok(Some(Box::new(GroupedFfn { captured: Captured::default(), kernels, most })))
}

impl Stage for GroupedFfn {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, kernels, most } = self;
        let (which, rows) = (Which::of(task), (task.values.rows, *most));
        let done = captured.run(&kernels.device, which, rows, |rows| kernels.enqueue(which, rows));
        done.map_err(kernels.device.fault())
    }
}

impl Kernels {
    /// u to y.
    fn enqueue(&self, which: Which, rows: usize) -> Result<(), CudaError> {
        let SwiGlu { gate, up, down } = self.layers.at(which.layer);
        let (tensor, values) = (self.device.tensor_ops(), self.device.values(which.micro_batch));
        tensor.narrow(&values.u, rows, None, None, &self.rows)?;
        tensor.project(&self.rows, rows, gate, &self.gate, false)?;
        tensor.project(&self.rows, rows, up, &self.up, false)?;
        tensor.narrow_gated(&self.gate, &self.up, rows, &self.inner)?;
        tensor.project(&self.inner, rows, down, &values.y, false)
    }
}
