//! `dense_ffn` and `expert_ffn` on a CUDA device. Rows are sorted by expert there, so no count comes to the host.

use super::super::ffn::{Share, SwiGlu};
use super::super::layers::Layers;
use super::super::registry::{BuildContext, BuildError};
use super::captured::{Captured, Which};
use super::copies::{self, Copies};
use super::device::CudaDevice;
use super::fault;
use super::grouped_ffn;
use super::load::{self, LoadError, Tensor};
use super::tensor_ffn::{self, TensorFfn};
use rally_cuda::CudaError;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{Answered, Holders, Routing, SharedAnswers, Sorted, Weights};
use rally_engine::exchange::ExchangeSize;
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
        let tensors: Vec<Tensor<'_>> = held.iter().map(|expert| Tensor { name, expert: Some(*expert) }).collect();
        load::stack(context, device, (rows, cols), &part, &tensors)
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
    /// None where the plain kernels are to do it; `held`: experts of each layer, `copied`: where all of them are, if some are on several
    /// devices.
    fn make(
        context: &BuildContext<'_>,
        device: &Arc<CudaDevice>,
        which: tensor_ffn::Which,
        share: &Share,
        (held, copied): (&[Vec<usize>], Option<&[ExpertPlacement]>),
    ) -> Result<Option<Box<dyn Stage>>, BuildError> {
        if !tensor_ffn::fits(context, device, which, share, (held, copied)).map_err(LoadError::on(device))? {
            return Ok(None);
        }
        let ffn = TensorFfn::load(context, device, which, share, (held, copied)).map_err(LoadError::on(device))?;
        let (captured, device) = (Captured::default(), Arc::clone(device));
        Ok(Some(Box::new(Self { captured, device, ffn, most: context.gathered_rows() })))
    }
}

impl Stage for OnTensorCores {
    fn exchanges(&self) -> Vec<ExchangeSize> {
        self.ffn.copies.iter().map(Copies::exchange).collect()
    }

    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, device, ffn, most } = self;
        let (part, is_copied) = (task.exchange.part(), ffn.is_copied(task.layer));
        if let Some(copies) = ffn.copies.as_mut().filter(|_| is_copied) {
            copies.begin(device, task)?;
        }
        let which = Which { form: part, ..Which::of(task) };
        let done = captured.run(device, which, (task.values.rows, *most), |rows| {
            ffn.enqueue(device, (which.layer, which.micro_batch), part, rows)
        });
        done.map_err(device.fault())?;
        ffn.copies.as_ref().filter(|_| is_copied).map_or(Ok(()), |copies| copies.end(device, task))
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
    if let Some(stage) = grouped_ffn::make(context, device, &share).map_err(LoadError::on(device))? {
        return Ok(stage);
    }
    if let Some(stage) = OnTensorCores::make(context, device, tensor_ffn::Which::Dense, &share, (&[], None))? {
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
    /// Where other devices hold some of the experts as well.
    holders: Option<Holders>,
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
    copies: Option<Copies>,
    hidden: usize,
}

struct Buffers {
    /// `[rows × top_k, inner width]`, then of the shared expert.
    inner: DeviceSlice<f32>,
    shared_inner: DeviceSlice<f32>,
    /// `[rows × top_k, hidden]`, by place in the routing: one, or where others read them one for each micro-batch.
    answers: Vec<DeviceSlice<f32>>,
    shared: DeviceSlice<f32>,
}

pub(super) fn build_expert(
    context: &mut BuildContext<'_>,
    device: &Arc<CudaDevice>,
) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let share = Share::of(context);
    let placed = |layer: &usize| ExpertPlacement::of(&context.stage.spec, *layer, shape.experts, share.counts.experts);
    let placed: Vec<ExpertPlacement> = context.layers.iter().map(placed).collect();
    let held: Vec<Vec<usize>> = placed.iter().map(|placed| placed.held_by(share.at.expert).to_vec()).collect();
    let are_copied = placed.iter().any(|placed| placed.copies() > 0);
    let copied = are_copied.then_some(&placed[..]);
    if let Some(stage) = OnTensorCores::make(context, device, tensor_ffn::Which::Experts, &share, (&held, copied))? {
        return Ok(stage);
    }
    let (mut sorted, mut of_layers): (Option<(Vec<usize>, Arc<Sorted>)>, _) = (None, held.iter().zip(&placed));
    let layers = Layers::make(context, |layer| {
        let (held, placed) = of_layers.next().expect("as many as layers");
        // Layers that place their experts alike, as nearly all do, share the buffers.
        let same = sorted.as_ref().filter(|(before, _)| before == held).map(|(_, sorted)| Arc::clone(sorted));
        let (rows, top_k) = (context.gathered_rows(), shape.top_k);
        let here = match same {
            Some(same) => same,
            // One expert more, whom nobody holds: rows that another device computes have it.
            None => {
                Arc::new(Sorted::new(device.machine(), rows, top_k, shape.experts + 1, held).map_err(fault(device))?)
            }
        };
        sorted = Some((held.to_vec(), Arc::clone(&here)));
        let holders = copies::holders(device, placed, share.at.expert).map_err(fault(device))?;
        load_moe(context, device, layer, &share, held, (here, holders)).map_err(LoadError::on(device))
    })?;
    let buffers = buffers(context, device, &share, are_copied).map_err(fault(device))?;
    let shards = (share.at.expert, share.counts.experts);
    let answered = |micro_batch: usize| {
        let answers = &buffers.answers[micro_batch];
        context.layers.iter().map(|_| Answered::Places(answers.clone())).collect()
    };
    let copies = are_copied.then(|| Copies::new(context, device, shards, answered));
    let copies = copies.transpose().map_err(fault(device))?;
    let kernels = Kernels { device: Arc::clone(device), layers, buffers, copies, hidden: shape.hidden };
    Ok(Box::new(ExpertFfn { captured: Captured::default(), kernels, most: context.gathered_rows() }))
}

fn load_moe(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    layer: usize,
    share: &Share,
    held: &[usize],
    (sorted, holders): (Arc<Sorted>, Option<Holders>),
) -> Result<MoeLayer, LoadError> {
    let shape = context.shape;
    let shared = || plain(context, device, (layer, "share_expert"), shape.shared_width, share);
    Ok(MoeLayer {
        experts: experts(context, device, layer, held, share)?,
        shared: share.has_shared().then(shared).transpose()?,
        sorted,
        holders,
    })
}

fn buffers(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    share: &Share,
    are_copied: bool,
) -> Result<Buffers, CudaError> {
    let (shape, rows) = (context.shape, context.gathered_rows());
    let shared_rows = if share.has_shared() { rows } else { 0 };
    Ok(Buffers {
        inner: device.buffer(rows * shape.top_k * share.inner(shape.expert_width).len())?,
        shared_inner: device.buffer(shared_rows * share.inner(shape.shared_width).len())?,
        answers: (0..if are_copied { context.planner.micro_batches } else { 1 })
            .map(|_| device.buffer(rows * shape.top_k * shape.hidden))
            .collect::<Result<_, _>>()?,
        shared: device.buffer(shared_rows * shape.hidden)?,
    })
}

impl Stage for ExpertFfn {
    fn exchanges(&self) -> Vec<ExchangeSize> {
        self.kernels.copies.iter().map(Copies::exchange).collect()
    }

    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, kernels, most } = self;
        let device = Arc::clone(&kernels.device);
        let (part, rows) = (task.exchange.part(), (task.values.rows, *most));
        let which = Which { form: part, ..Which::of(task) };
        let is_copied = kernels.layers.at(which.layer).holders.is_some();
        if let Some(copies) = kernels.copies.as_mut().filter(|_| is_copied) {
            copies.begin(&device, task)?;
        }
        let copied = kernels.copies.as_ref().zip(kernels.layers.at(which.layer).holders.as_ref());
        let done = captured.run(&device, which, rows, |rows| match (copied, part) {
            (None, _) => kernels.compute(which, rows, None).and_then(|()| kernels.sum(which, rows)),
            (Some(copied), 0) => kernels.take(which, rows, copied),
            (Some(copied), _) => kernels.settle(which, rows, copied),
        });
        done.map_err(device.fault())?;
        copied.map_or(Ok(()), |(copies, _)| copies.end(&device, task))
    }
}

impl Kernels {
    /// Of one micro-batch, whose answers others may read.
    fn answers(&self, micro_batch: usize) -> &DeviceSlice<f32> {
        self.buffers.answers.get(micro_batch).unwrap_or(&self.buffers.answers[0])
    }

    /// The experts' answers, to the rows of `taken` ids or of all.
    fn compute(&self, which: Which, rows: usize, taken: Option<&Routing>) -> Result<(), CudaError> {
        let layer = self.layers.at(which.layer);
        let (ops, values) = (self.device.ops(), self.device.values(which.micro_batch));
        let SwiGlu { gate, up, down } = &layer.experts;
        ops.sort_experts(taken.unwrap_or(&values.routing), rows, &layer.sorted)?;
        ops.experts_up(&values.u, &layer.sorted, rows, gate, up, &self.buffers.inner)?;
        ops.experts_down(&self.buffers.inner, &layer.sorted, rows, down, self.answers(which.micro_batch))
    }

    /// Those of the shared expert, if it is here.
    fn compute_shared(&self, which: Which, rows: usize) -> Result<Option<&DeviceSlice<f32>>, CudaError> {
        let (to, u) = (&self.buffers, &self.device.values(which.micro_batch).u);
        let Some(shared) = &self.layers.at(which.layer).shared else { return Ok(None) };
        self.device.ops().gated(u, rows, &shared.gate, &shared.up, &to.shared_inner)?;
        self.device.ops().matmul(&to.shared_inner, rows, &shared.down, &to.shared)?;
        Ok(Some(&to.shared))
    }

    /// A layer whose experts have no copies: y.
    fn sum(&self, which: Which, rows: usize) -> Result<(), CudaError> {
        let (layer, values) = (self.layers.at(which.layer), self.device.values(which.micro_batch));
        let (shared, answers) = (self.compute_shared(which, rows)?, self.answers(which.micro_batch));
        self.device.ops().sum_experts(&values.routing, &layer.sorted, answers, shared, rows, self.hidden, &values.y)
    }

    /// A layer whose experts have: which rows are taken here, and their answers.
    fn take(&self, which: Which, rows: usize, (copies, holders): (&Copies, &Holders)) -> Result<(), CudaError> {
        let here = copies.share(&self.device, which.micro_batch, rows, holders)?;
        self.compute(which, rows, Some(&here))
    }

    /// y of the experts at home here.
    fn settle(&self, which: Which, rows: usize, (copies, holders): (&Copies, &Holders)) -> Result<(), CudaError> {
        let shared = self.compute_shared(which, rows)?.map(SharedAnswers::Rows);
        copies.sum(&self.device, (which.layer, which.micro_batch), rows, holders, shared)
    }
}
