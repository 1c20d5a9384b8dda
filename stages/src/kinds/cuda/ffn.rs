//! `dense_ffn` and `expert_ffn` on a CUDA device. Rows are sorted by expert there, so no count comes to the host.

use super::super::ffn::{Share, SwiGlu};
use super::super::layers::Layers;
use super::super::registry::{BuildContext, BuildError};
use super::captured::{Captured, Which};
use super::device::CudaDevice;
use super::load::{self, LoadError};
use super::{fault, refused};
use rally_cuda::CudaError;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{Sorted, Weights};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_graph::placement::ExpertPlacement;
use std::sync::Arc;

/// One block, or as many as there are experts.
type Block = SwiGlu<Weights>;

/// The dense FFN or the shared expert of a layer.
fn plain(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    block: (usize, &str),
    width: usize,
    share: &Share,
) -> Result<Block, LoadError> {
    SwiGlu::load(block, context.shape.hidden, width, share, |name, rows, cols, part| {
        load::matrix_part(context, device, name, rows, cols, part)
    })
}

/// The experts that the device holds of a layer.
fn experts(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    layer: usize,
    held: &[usize],
    share: &Share,
) -> Result<Block, LoadError> {
    let shape = context.shape;
    SwiGlu::load((layer, "moe"), shape.hidden, shape.expert_width, share, |name, rows, cols, part| {
        load::matrices(device, held, (part.rows.len(), part.cols.len()), |expert| {
            context.weights.expert_matrix(name, expert, shape.experts, rows, cols, part.clone())
        })
    })
}

struct DenseFfn {
    captured: Captured,
    device: Arc<CudaDevice>,
    layers: Layers<Block>,
    inner: DeviceSlice<f32>,
    most: usize,
}

pub(super) fn build_dense(
    context: &mut BuildContext<'_>,
    device: &Arc<CudaDevice>,
) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let share = Share::of(context);
    let block = |layer| plain(context, device, (layer, "mlp"), shape.dense_width, &share);
    let layers = Layers::make(context, block).map_err(LoadError::on(device))?;
    let most = context.gathered_rows();
    let inner = device.buffer(most * share.inner(shape.dense_width).len()).map_err(fault(device))?;
    Ok(Box::new(DenseFfn { captured: Captured::default(), device: Arc::clone(device), layers, inner, most }))
}

impl Stage for DenseFfn {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, device, layers, inner, most } = self;
        let layer = layers.at(task.layer);
        let which = Which::of(task);
        let (ops, values) = (device.ops(), device.values(task.micro_batch));
        let done = captured.run(device, which, (task.values.rows, *most), |rows| {
            ops.gated(&values.u, rows, &layer.gate, &layer.up, inner)?;
            ops.matmul(inner, rows, &layer.down, &values.y)
        });
        done.map_err(device.fault())
    }
}

struct MoeLayer {
    experts: Block,
    /// On the first expert shard alone.
    shared: Option<Block>,
    sorted: Arc<Sorted>,
}

struct ExpertFfn {
    captured: Captured,
    kernels: Kernels,
    most: usize,
}

struct Kernels {
    device: Arc<CudaDevice>,
    layers: Layers<MoeLayer>,
    buffers: Buffers,
    hidden: usize,
}

struct Buffers {
    /// `[rows × top_k, inner width]`, then of the shared expert.
    inner: DeviceSlice<f32>,
    shared_inner: DeviceSlice<f32>,
    /// `[rows × top_k, hidden]`, by place in the routing.
    answers: DeviceSlice<f32>,
    shared: DeviceSlice<f32>,
}

pub(super) fn build_expert(
    context: &mut BuildContext<'_>,
    device: &Arc<CudaDevice>,
) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let share = Share::of(context);
    let mut sorted: Option<(Vec<usize>, Arc<Sorted>)> = None;
    let layers = Layers::make(context, |layer| {
        let placed = ExpertPlacement::of(&context.stage.spec, layer, shape.experts, share.counts.experts);
        if placed.lent_at_once(shape.top_k) > 0 {
            return Err(refused(device, "experts with copies run on CPU devices alone: place each once".into()));
        }
        let held = placed.held_by(share.at.expert);
        // Layers that place their experts alike, as nearly all do, share the buffers.
        let same = sorted.as_ref().filter(|(before, _)| before == held).map(|(_, sorted)| Arc::clone(sorted));
        let (rows, top_k) = (context.gathered_rows(), shape.top_k);
        let here = match same {
            Some(same) => same,
            None => Arc::new(Sorted::new(device.machine(), rows, top_k, shape.experts, held).map_err(fault(device))?),
        };
        sorted = Some((held.to_vec(), Arc::clone(&here)));
        load_moe(context, device, layer, &share, held, here).map_err(LoadError::on(device))
    })?;
    let buffers = buffers(context, device, &share).map_err(fault(device))?;
    let kernels = Kernels { device: Arc::clone(device), layers, buffers, hidden: shape.hidden };
    Ok(Box::new(ExpertFfn { captured: Captured::default(), kernels, most: context.gathered_rows() }))
}

fn load_moe(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    layer: usize,
    share: &Share,
    held: &[usize],
    sorted: Arc<Sorted>,
) -> Result<MoeLayer, LoadError> {
    let shape = context.shape;
    let shared = || plain(context, device, (layer, "share_expert"), shape.shared_width, share);
    Ok(MoeLayer {
        experts: experts(context, device, layer, held, share)?,
        shared: share.has_shared().then(shared).transpose()?,
        sorted,
    })
}

fn buffers(context: &BuildContext<'_>, device: &CudaDevice, share: &Share) -> Result<Buffers, CudaError> {
    let (shape, rows) = (context.shape, context.gathered_rows());
    let shared_rows = if share.has_shared() { rows } else { 0 };
    Ok(Buffers {
        inner: device.buffer(rows * shape.top_k * share.inner(shape.expert_width).len())?,
        shared_inner: device.buffer(shared_rows * share.inner(shape.shared_width).len())?,
        answers: device.buffer(rows * shape.top_k * shape.hidden)?,
        shared: device.buffer(shared_rows * shape.hidden)?,
    })
}

impl Stage for ExpertFfn {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, kernels, most } = self;
        let which = Which::of(task);
        let rows = (task.values.rows, *most);
        let done = captured.run(&kernels.device, which, rows, |rows| kernels.enqueue(which, rows));
        done.map_err(kernels.device.fault())
    }
}

impl Kernels {
    fn enqueue(&self, which: Which, rows: usize) -> Result<(), CudaError> {
        let layer = self.layers.at(which.layer);
        let (ops, values, to) = (self.device.ops(), self.device.values(which.micro_batch), &self.buffers);
        let hidden = self.hidden;
        let SwiGlu { gate, up, down } = &layer.experts;
        ops.sort_experts(&values.routing, rows, &layer.sorted)?;
        ops.experts_up(&values.u, &layer.sorted, rows, gate, up, &to.inner)?;
        ops.experts_down(&to.inner, &layer.sorted, rows, down, &to.answers)?;
        if let Some(shared) = &layer.shared {
            ops.gated(&values.u, rows, &shared.gate, &shared.up, &to.shared_inner)?;
            ops.matmul(&to.shared_inner, rows, &shared.down, &to.shared)?;
        }
        let shared = layer.shared.as_ref().map(|_| &to.shared);
        ops.sum_experts(&values.routing, &layer.sorted, &to.answers, shared, rows, hidden, &values.y)
    }
}
