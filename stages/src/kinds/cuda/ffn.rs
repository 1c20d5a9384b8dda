//! `dense_ffn` and `expert_ffn` on a CUDA device. Rows are sorted by expert there, so no count comes to the host.

use super::super::ffn::Share;
use super::super::registry::{BuildContext, BuildError};
use super::device::CudaDevice;
use super::load::{self, LoadError};
use super::{fault, refused};
use crate::checkpoint::Part;
use rally_cuda::CudaError;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{Sorted, Weights};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_graph::placement::ExpertPlacement;
use std::ops::Range;
use std::sync::Arc;

/// One SwiGLU block, or as many as there are experts.
struct SwiGlu {
    gate: Weights,
    up: Weights,
    down: Weights,
}

impl SwiGlu {
    /// Columns `inner` of the inner width of a block: rows of gate and up, columns of down. `read` gets name, whole shape, part,
    /// and the part's own shape.
    fn load(
        hidden: usize,
        width: usize,
        inner: &Range<usize>,
        read: impl Fn(&str, (usize, usize), &dyn Fn() -> Part, (usize, usize)) -> Result<Weights, LoadError>,
    ) -> Result<Self, LoadError> {
        let (rows, cols) = (|| Part::rows(inner.clone(), hidden), || Part::cols(hidden, inner.clone()));
        Ok(Self {
            gate: read("gate", (width, hidden), &rows, (inner.len(), hidden))?,
            up: read("up", (width, hidden), &rows, (inner.len(), hidden))?,
            down: read("down", (hidden, width), &cols, (hidden, inner.len()))?,
        })
    }

    fn plain(
        context: &BuildContext<'_>,
        device: &CudaDevice,
        prefix: &str,
        width: usize,
        inner: &Range<usize>,
    ) -> Result<Self, LoadError> {
        Self::load(context.shape.hidden, width, inner, |name, (rows, cols), part, _| {
            load::matrix(context, device, &format!("{prefix}.{name}_proj.weight"), rows, cols, part())
        })
    }

    fn experts(
        context: &BuildContext<'_>,
        device: &CudaDevice,
        layer: usize,
        held: &[usize],
        inner: &Range<usize>,
    ) -> Result<Self, LoadError> {
        let shape = context.shape;
        Self::load(shape.hidden, shape.expert_width, inner, |name, (rows, cols), part, own| {
            let name = format!("model.layers.{layer}.moe.{name}_proj.weight");
            load::matrices(device, held, own, |expert| {
                context.weights.expert_matrix(&name, expert, shape.experts, rows, cols, part())
            })
        })
    }
}

struct DenseFfn {
    device: Arc<CudaDevice>,
    layers: Vec<Option<SwiGlu>>,
    inner: DeviceSlice<f32>,
}

pub(super) fn build_dense(
    context: &mut BuildContext<'_>,
    device: &Arc<CudaDevice>,
) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let inner = Share::of(context).inner(shape.dense_width);
    let mut layers: Vec<Option<SwiGlu>> = shape.layers.iter().map(|_| None).collect();
    for layer in &context.layers {
        let prefix = format!("model.layers.{layer}.mlp");
        let block = SwiGlu::plain(context, device, &prefix, shape.dense_width, &inner);
        layers[*layer] = Some(block.map_err(LoadError::on(device))?);
    }
    let inner = device.buffer(context.gathered_rows() * inner.len()).map_err(fault(device))?;
    Ok(Box::new(DenseFfn { device: Arc::clone(device), layers, inner }))
}

impl Stage for DenseFfn {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let layer = self.layers[task.layer].as_ref().expect("a stage only runs in layers it was made for");
        let (ops, values, rows) = (self.device.ops(), self.device.values(task.micro_batch), task.values.rows);
        let done = ops
            .gated(&values.u, rows, &layer.gate, &layer.up, &self.inner)
            .and_then(|()| ops.matmul(&self.inner, rows, &layer.down, &values.y));
        done.map_err(self.device.fault())
    }
}

struct MoeLayer {
    experts: SwiGlu,
    /// On the first expert shard alone.
    shared: Option<SwiGlu>,
    sorted: Arc<Sorted>,
}

struct ExpertFfn {
    device: Arc<CudaDevice>,
    layers: Vec<Option<MoeLayer>>,
    buffers: Buffers,
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
    let mut layers: Vec<Option<MoeLayer>> = shape.layers.iter().map(|_| None).collect();
    let mut sorted: Option<(Vec<usize>, Arc<Sorted>)> = None;
    for layer in &context.layers {
        let placed = ExpertPlacement::of(&context.stage.spec, *layer, shape.experts, share.counts.experts);
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
        layers[*layer] = Some(load_moe(context, device, *layer, &share, held, here).map_err(LoadError::on(device))?);
    }
    let buffers = buffers(context, device, &share).map_err(fault(device))?;
    Ok(Box::new(ExpertFfn { device: Arc::clone(device), layers, buffers }))
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
    let shared = || {
        let prefix = format!("model.layers.{layer}.share_expert");
        SwiGlu::plain(context, device, &prefix, shape.shared_width, &share.inner(shape.shared_width))
    };
    Ok(MoeLayer {
        experts: SwiGlu::experts(context, device, layer, held, &share.inner(shape.expert_width))?,
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
        self.enqueue(task).map_err(self.device.fault())
    }
}

impl ExpertFfn {
    fn enqueue(&self, task: &TaskContext<'_>) -> Result<(), CudaError> {
        let layer = self.layers[task.layer].as_ref().expect("a stage only runs in layers it was made for");
        let (ops, values, to) = (self.device.ops(), self.device.values(task.micro_batch), &self.buffers);
        let (rows, hidden) = (task.values.rows, task.values.widths.hidden);
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
