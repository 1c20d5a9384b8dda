//! `dense_ffn` and `expert_ffn` on a CUDA device. Rows are sorted by expert there, so no count comes to the host.

use super::super::ffn::{Share, SwiGlu};
use super::super::layers::Layers;
use super::super::registry::{BuildContext, BuildError};
use super::captured::{Captured, Which};
use super::device::CudaDevice;
use super::load::{self, LoadError};
use super::tensor_ffn::{self, TensorFfn};
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
        load::stack(device, held.len(), (part.rows.len(), part.cols.len()), |index| {
            context.weights.expert_matrix(name, held[index], shape.experts, rows, cols, part.clone())
        })
    })
}

/// On tensor cores, either FFN.
struct OnTensorCores {
    captured: Captured,
    device: Arc<CudaDevice>,
    ffn: TensorFfn,
    most: usize,
}

impl OnTensorCores {
    /// None where the plain kernels are to do it; `held`: experts of each layer.
    fn make(
        context: &BuildContext<'_>,
        device: &Arc<CudaDevice>,
        which: tensor_ffn::Which,
        share: &Share,
        held: &[Vec<usize>],
    ) -> Result<Option<Box<dyn Stage>>, BuildError> {
        if !tensor_ffn::fits(context, device, which, share, held).map_err(LoadError::on(device))? {
            return Ok(None);
        }
        let ffn = TensorFfn::load(context, device, which, share, held).map_err(LoadError::on(device))?;
        let (captured, device) = (Captured::default(), Arc::clone(device));
        Ok(Some(Box::new(Self { captured, device, ffn, most: context.gathered_rows() })))
    }
}

impl Stage for OnTensorCores {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, device, ffn, most } = self;
        let which = Which::of(task);
        let done = captured.run(device, which, (task.values.rows, *most), |rows| {
            ffn.enqueue(device, which.layer, which.micro_batch, rows)
        });
        done.map_err(device.fault())
    }
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
    if let Some(stage) = OnTensorCores::make(context, device, tensor_ffn::Which::Dense, &share, &[])? {
        return Ok(stage);
    }
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
    let held = held(context, device, &share)?;
    if let Some(stage) = OnTensorCores::make(context, device, tensor_ffn::Which::Experts, &share, &held)? {
        return Ok(stage);
    }
    let (mut sorted, mut of_layers): (Option<(Vec<usize>, Arc<Sorted>)>, _) = (None, held.iter());
    let layers = Layers::make(context, |layer| {
        let held = of_layers.next().expect("as many as layers");
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

/// The experts that the device holds in each of its layers.
fn held(context: &BuildContext<'_>, device: &CudaDevice, share: &Share) -> Result<Vec<Vec<usize>>, BuildError> {
    let of_layer = |layer: &usize| {
        let experts = context.shape.experts;
        let placed = ExpertPlacement::of(&context.stage.spec, *layer, experts, share.counts.experts);
        if placed.lent_at_once(context.shape.top_k) > 0 {
            return Err(refused(device, "experts with copies run on CPU devices alone: place each once".into()));
        }
        Ok(placed.held_by(share.at.expert).to_vec())
    };
    context.layers.iter().map(of_layer).collect()
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
