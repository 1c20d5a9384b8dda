//! FFNs on tensor cores: rows to slots sorted by expert, narrowed, the two grouped products, and the sum of a row's answers. The shared
//! expert is one more behind those that are held; a dense FFN is a shared expert alone.

use super::super::ffn::{Share, SwiGlu};
use super::super::layers::Layers;
use super::super::registry::BuildContext;
use super::copies::{self, Copies};
use super::device::CudaDevice;
use super::load::{self, LoadError, Tensor};
use super::products::unlike;
use crate::checkpoint::Part;
use rally_cuda::CudaError;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{Answered, Holders, Routing, SharedAnswers, Stored, Weights};
use rally_cuda::tensor::{Narrowed, Slots, TensorMatrix};
use rally_graph::model::FP8_TILE;
use rally_graph::placement::ExpertPlacement;
use std::sync::Arc;

/// Weight rows that a product of the second kind takes at once.
const DOWN_ROWS: usize = 256;

/// A layer's FFN.
pub(super) struct Block {
    weights: SwiGlu<TensorMatrix>,
    /// One, or where others read answers by them one for each micro-batch.
    slots: Vec<Arc<Slots>>,
    /// Where other devices hold some of the experts as well.
    holders: Option<Holders>,
}

/// All layers of a stage, and what they share.
pub(super) struct TensorFfn {
    layers: Layers<Block>,
    /// What a dense FFN is routed by: nobody.
    nobody: Option<Routing>,
    rows: Narrowed,
    inner: Narrowed,
    /// As `slots`.
    answers: Vec<DeviceSlice<u16>>,
    pub(super) copies: Option<Copies>,
    hidden: usize,
}

/// Which FFN.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Dense,
    Experts,
}

/// Slots that layers share which hold the same experts, as nearly all do.
#[derive(Default)]
struct SameSlots(Option<(Vec<usize>, Vec<Arc<Slots>>)>);

impl SameSlots {
    fn of(
        &mut self,
        held: &[usize],
        count: usize,
        make: impl Fn() -> Result<Slots, CudaError>,
    ) -> Result<Vec<Arc<Slots>>, CudaError> {
        if let Some((before, slots)) = &self.0
            && before == held
        {
            return Ok(slots.clone());
        }
        let slots: Vec<_> = (0..count).map(|_| make().map(Arc::new)).collect::<Result<_, _>>()?;
        self.0 = Some((held.to_vec(), slots.clone()));
        Ok(slots)
    }
}

/// Whether tensor cores take these FFNs, of which the device has the part `share`; `held`: experts of each layer; `copied`: where they are,
/// if some have copies, whose holders read each other's answers and so are all of one mind.
pub(super) fn fits(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    which: Which,
    share: &Share,
    (held, copied): (&[Vec<usize>], Option<&[ExpertPlacement]>),
) -> Result<bool, LoadError> {
    let (Some(tensor), false) = (device.tensor(), context.layers.is_empty()) else { return Ok(false) };
    let shape = context.shape;
    let width = width(context, which);
    let inner = share.inner(width);
    // The shared expert lies behind the others, so it is of their shape.
    let has_shared = share.has_shared() || copied.is_some();
    let alike = which == Which::Dense || !has_shared || shape.shared_width == shape.expert_width;
    let holds = |placed: &ExpertPlacement| (0..share.counts.experts).all(|shard| !placed.held_by(shard).is_empty());
    let most_held = held.iter().map(Vec::len).max().unwrap_or(0);
    let sorts = which == Which::Dense
        || (Slots::takes(shape.top_k, most_held + 1) && held.iter().all(|held| !held.is_empty()))
            && copied.is_none_or(|placed| placed.iter().all(holds));
    let takes = Narrowed::takes(inner.len()) && Narrowed::takes(shape.hidden) && shape.hidden.is_multiple_of(DOWN_ROWS);
    Ok(alike && sorts && takes && tensor.takes(stored(context, which, share, held)?))
}

/// The format of the first layer's weights, of which there is one.
pub(super) fn stored(
    context: &BuildContext<'_>,
    which: Which,
    share: &Share,
    held: &[Vec<usize>],
) -> Result<Stored, LoadError> {
    let (shape, layer, width) = (context.shape, context.layers[0], width(context, which));
    let inner = share.inner(width);
    let few = Part::rows(inner.start..inner.start + FP8_TILE, shape.hidden);
    let name = format!("model.layers.{layer}.{}.gate_proj.weight", block(which));
    let matrix = match which {
        Which::Dense => context.weights.matrix(&name, width, shape.hidden, few)?,
        Which::Experts => context.weights.expert_matrix(&name, held[0][0], shape.experts, width, shape.hidden, few)?,
    };
    Ok(load::format_of(&matrix))
}

fn width(context: &BuildContext<'_>, which: Which) -> usize {
    match which {
        Which::Dense => context.shape.dense_width,
        Which::Experts => context.shape.expert_width,
    }
}

fn block(which: Which) -> &'static str {
    match which {
        Which::Dense => "mlp",
        Which::Experts => "moe",
    }
}

impl TensorFfn {
    /// Of what [`fits`]; `held` as there. `copied`: where each layer's experts are, if some are on several devices.
    pub(super) fn load(
        context: &BuildContext<'_>,
        device: &Arc<CudaDevice>,
        which: Which,
        share: &Share,
        (held, copied): (&[Vec<usize>], Option<&[ExpertPlacement]>),
    ) -> Result<Self, LoadError> {
        let kept = if copied.is_some() { context.planner.micro_batches } else { 1 };
        let mut placed = copied.unwrap_or_default().iter();
        let (shape, rows, machine) = (context.shape, context.gathered_rows(), device.machine());
        let (mut same, mut of_layers) = (SameSlots::default(), held.iter());
        let layers = Layers::make(context, |layer| -> Result<Block, LoadError> {
            let none = Vec::new();
            let held = of_layers.next().unwrap_or(&none);
            let (routing, shares) = match which {
                Which::Dense => ((rows, 1, 1), true),
                // One expert more, whom nobody holds: rows that another device computes have it.
                Which::Experts => ((rows, shape.top_k, shape.experts + 1), share.has_shared()),
            };
            let slots = same.of(held, kept, || {
                let slots = Slots::on(machine, routing, held, shares)?;
                // Rows that pad may have no slots yet.
                machine.fill(&slots.slot_of().as_bytes(), 0xff)?;
                Ok(slots)
            })?;
            let holders = placed.next().map(|placed| copies::holders(device, placed, share.at.expert));
            let read = |name: &str, rows, cols, part: Part| -> Result<TensorMatrix, LoadError> {
                let weights = stacked(context, device, which, (name, rows, cols), &part, (held, shares))?;
                Ok(TensorMatrix::on(machine, &weights)?.ok_or_else(unlike)?)
            };
            let weights = SwiGlu::load((layer, block(which)), shape.hidden, width(context, which), share, read)?;
            Ok(Block { weights, slots, holders: holders.transpose()?.flatten() })
        })?;
        let first = layers.iter().next().ok_or_else(unlike)?;
        let (inner, stored) = (first.weights.gate.rows(), first.weights.gate.stored());
        let alike = |layer: &Block| layer.weights.gate.stored() == stored && layer.weights.down.stored() == stored;
        if !layers.iter().all(alike) {
            return Err(unlike().into());
        }
        let slots = layers.iter().map(|layer| layer.slots[0].capacity_for(rows)).max().unwrap_or(0);
        let nobody = || -> Result<Routing, CudaError> {
            Ok(Routing { ids: device.copied(&vec![0; rows])?, weights: device.copied(&vec![0.0; rows])? })
        };
        let inner = Narrowed::on(machine, slots, inner, stored)?;
        let answers = (0..kept).map(|_| device.buffer(inner.slots() * shape.hidden));
        let answers: Vec<DeviceSlice<u16>> = answers.collect::<Result<_, _>>()?;
        let answered = |micro_batch: usize| {
            let of = |layer: &Block| layer.slots[micro_batch].slot_of().clone();
            layers.iter().map(|layer| Answered::Slots(answers[micro_batch].clone(), of(layer))).collect()
        };
        let shards = (share.at.expert, share.counts.experts);
        let copies = copied.map(|_| Copies::new(context, device, shards, answered)).transpose()?;
        Ok(Self {
            nobody: (which == Which::Dense).then(nobody).transpose()?,
            rows: Narrowed::on(machine, rows, shape.hidden, stored)?,
            answers,
            copies,
            inner,
            layers,
            hidden: shape.hidden,
        })
    }

    /// Whether others hold experts of a layer, too.
    pub(super) fn is_copied(&self, layer: usize) -> bool {
        self.layers.at(layer).holders.is_some()
    }

    /// u to y of a micro-batch; of a layer with copies, the first part of it or the second.
    pub(super) fn enqueue(
        &self,
        device: &CudaDevice,
        (layer, micro_batch): (usize, usize),
        part: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        let Block { weights: SwiGlu { gate, up, down }, slots, holders } = self.layers.at(layer);
        let (tensor, values) = (device.tensor_ops(), device.values(micro_batch));
        let kept = if slots.len() > 1 { micro_batch } else { 0 };
        let (slots, answers) = (&slots[kept], &self.answers[kept]);
        let copied = self.copies.as_ref().zip(holders.as_ref());
        if let Some((copies, holders)) = copied
            && part > 0
        {
            let shared = slots.has_shared().then_some(SharedAnswers::Slots(slots));
            return copies.sum(device, (layer, micro_batch), rows, holders, shared);
        }
        let here = copied.map(|(copies, holders)| copies.share(device, micro_batch, rows, holders)).transpose()?;
        tensor.place(here.as_ref().or(self.nobody.as_ref()).unwrap_or(&values.routing), rows, slots)?;
        tensor.narrow(&values.u, rows, None, Some(slots), &self.rows)?;
        tensor.up(&self.rows, slots, gate, up, &self.inner)?;
        tensor.down(&self.inner, slots, down, answers)?;
        if copied.is_some() { Ok(()) } else { tensor.sum(slots, rows, self.hidden, answers, &values.y) }
    }
}

/// The matrices `name` of the experts held, and behind them the shared one's if there is one.
fn stacked(
    context: &BuildContext<'_>,
    device: &CudaDevice,
    which: Which,
    (name, rows, cols): (&str, usize, usize),
    part: &Part,
    (held, shares): (&[usize], bool),
) -> Result<Weights, LoadError> {
    let shared = match which {
        Which::Dense => name.to_owned(),
        Which::Experts => name.replace(".moe.", ".share_expert."),
    };
    let mut tensors: Vec<Tensor<'_>> = held.iter().map(|expert| Tensor { name, expert: Some(*expert) }).collect();
    tensors.extend(shares.then_some(Tensor { name: &shared, expert: None }));
    load::stack(context, device, (rows, cols), part, &tensors)
}
