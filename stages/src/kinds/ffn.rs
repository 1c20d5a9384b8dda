//! `dense_ffn` and `expert_ffn`: u to y.
//!
//! Dense and shared: down(silu(gate u) ⊙ up u). Routed: Σ over a row's experts, in ascending expert id, of weight × expert(u);
//! the shared expert is added last. The order is fixed by ids alone, so a row's sum does not depend on the rows beside it.
//!
//! Sharded, a device computes a part of y: its experts (consecutive ids), its columns of the inner width, and the shared expert
//! only beside the first experts. Rows that none of its experts serves get zeros. Who receives the parts sums them.
//!
//! Where experts have copies (`placement`), a device first computes the rows it was given of experts whose home is elsewhere and
//! sends them there; then each home adds all terms of its experts in that same order. So copies change no bit.
//!
//! Weights of layer N: `mlp.{gate,up,down}_proj`, `moe.{gate,up,down}_proj` (stacked over experts, or one by one),
//! `share_expert.{gate,up,down}_proj`.

use super::layers::Layers;
use super::registry::{BuildContext, BuildError};
use super::spread::Spread;
use crate::checkpoint::{CheckpointError, Part};
use rally_engine::exchange::ExchangeSize;
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_engine::values::Values;
use rally_graph::placement::ExpertPlacement;
use rally_graph::shard::{ShardCounts, ShardPosition, part};
use rally_kernels::activation::{add_in_place, axpy, swiglu_in_place};
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::team::Team;
use std::ops::Range;

/// One SwiGLU block, as the device that multiplies with it holds weights.
pub(super) struct SwiGlu<M = Matrix> {
    pub(super) gate: M,
    pub(super) up: M,
    pub(super) down: M,
}

/// Intermediate rows, reused by every layer.
struct Scratch {
    gate: Vec<f32>,
    up: Vec<f32>,
    out: Vec<f32>,
}

impl Scratch {
    fn new(rows: usize, width: usize, hidden: usize) -> Self {
        Self { gate: vec![0.0; rows * width], up: vec![0.0; rows * width], out: vec![0.0; rows * hidden] }
    }
}

impl<M> SwiGlu<M> {
    /// A device's share of the inner width of a layer's block (`mlp`, `moe`, `share_expert`): rows of gate and up, columns of
    /// down. `read` gets a tensor's name, whole shape, and part.
    pub(super) fn load<E>(
        (layer, block): (usize, &str),
        hidden: usize,
        width: usize,
        share: &Share,
        read: impl Fn(&str, usize, usize, Part) -> Result<M, E>,
    ) -> Result<Self, E> {
        let inner = share.inner(width);
        let name = |projection| format!("model.layers.{layer}.{block}.{projection}_proj.weight");
        Ok(Self {
            gate: read(&name("gate"), width, hidden, Part::rows(inner.clone(), hidden))?,
            up: read(&name("up"), width, hidden, Part::rows(inner.clone(), hidden))?,
            down: read(&name("down"), hidden, width, Part::cols(hidden, inner))?,
        })
    }
}

impl SwiGlu {
    /// The dense FFN or the shared expert of a layer.
    fn plain(
        context: &BuildContext<'_>,
        block: (usize, &str),
        width: usize,
        share: &Share,
    ) -> Result<Self, CheckpointError> {
        let read = |name: &str, rows, cols, part| context.weights.matrix(name, rows, cols, part);
        Self::load(block, context.shape.hidden, width, share, read)
    }

    fn expert(context: &BuildContext<'_>, layer: usize, expert: usize, share: &Share) -> Result<Self, CheckpointError> {
        let shape = context.shape;
        Self::load((layer, "moe"), shape.hidden, shape.expert_width, share, |name, rows, cols, part| {
            context.weights.expert_matrix(name, expert, shape.experts, rows, cols, part)
        })
    }

    /// `out[rows, hidden]` from `u[rows, hidden]`.
    fn run(&self, team: &Team, u: &[f32], rows: usize, gate: &mut [f32], up: &mut [f32], out: &mut [f32]) {
        let inner = rows * self.gate.rows();
        linear(team, u, rows, &self.gate, &mut gate[..inner]);
        linear(team, u, rows, &self.up, &mut up[..inner]);
        swiglu_in_place(&mut gate[..inner], &up[..inner]);
        linear(team, &gate[..inner], rows, &self.down, &mut out[..rows * self.down.rows()]);
    }
}

struct DenseFfn {
    layers: Layers<SwiGlu>,
    scratch: Scratch,
}

/// What a device holds of its stage.
pub(super) struct Share {
    pub(super) counts: ShardCounts,
    pub(super) at: ShardPosition,
}

impl Share {
    pub(super) fn of(context: &BuildContext<'_>) -> Self {
        let counts = ShardCounts::of(context.stage.spec.shard.as_ref());
        let device = context.stage.devices.iter().position(|device| *device == context.device);
        Self { counts, at: counts.position(device.unwrap_or(0)) }
    }

    /// Of an inner width.
    pub(super) fn inner(&self, width: usize) -> Range<usize> {
        part(width, self.counts.tensor, self.at.tensor)
    }

    /// The shared expert goes with the first routed ones.
    pub(super) fn has_shared(&self) -> bool {
        self.at.expert == 0
    }
}

pub(super) fn build_dense(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let share = Share::of(context);
    let layers = Layers::make(context, |layer| SwiGlu::plain(context, (layer, "mlp"), shape.dense_width, &share))?;
    let scratch = Scratch::new(context.gathered_rows(), share.inner(shape.dense_width).len(), shape.hidden);
    Ok(Box::new(DenseFfn { layers, scratch }))
}

impl Stage for DenseFfn {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let (rows, hidden) = (task.values.rows, task.values.widths.hidden);
        let layer = self.layers.at(task.layer);
        let Values { u, y, .. } = &mut *task.values;
        layer.run(task.team, &u[..rows * hidden], rows, &mut self.scratch.gate, &mut self.scratch.up, y);
        Ok(())
    }
}

struct MoeLayer {
    placed: ExpertPlacement,
    /// Those that the shard holds, in ascending id.
    experts: Vec<SwiGlu>,
    /// On the first expert shard alone.
    shared: Option<SwiGlu>,
}

impl MoeLayer {
    fn load(context: &BuildContext<'_>, layer: usize, share: &Share) -> Result<Self, CheckpointError> {
        let shape = context.shape;
        let placed = ExpertPlacement::of(&context.stage.spec, layer, shape.experts, share.counts.experts);
        let expert = |id: &usize| SwiGlu::expert(context, layer, *id, share);
        let shared = || SwiGlu::plain(context, (layer, "share_expert"), shape.shared_width, share);
        Ok(Self {
            experts: placed.held_by(share.at.expert).iter().map(expert).collect::<Result<_, _>>()?,
            shared: share.has_shared().then(shared).transpose()?,
            placed,
        })
    }

    /// The experts that a shard holds, in ascending id.
    fn here(&self, shard: usize) -> impl Iterator<Item = (usize, &SwiGlu)> {
        self.placed.held_by(shard).iter().copied().zip(&self.experts)
    }
}

struct ExpertFfn {
    layers: Layers<MoeLayer>,
    work: ExpertWork,
    exchange: ExchangeSize,
}

/// Buffers of the work on one layer.
struct ExpertWork {
    /// Expert shard of this device.
    shard: usize,
    scratch: Scratch,
    /// Rows of one expert, gathered, `[rows, hidden]`.
    gathered: Vec<f32>,
    /// Row of each, and its place in the routing.
    members: Vec<(usize, usize)>,
    spread: Spread,
    /// What a row of the shared expert costs, in rows of a routed one.
    shared_cost: f64,
    /// By shard, rows taken of those that it sent.
    taken: Vec<usize>,
    /// Rows that experts worked on in the task at hand, the shared one at its cost.
    effort: usize,
}

pub(super) fn build_expert(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let share = Share::of(context);
    let layers = Layers::make(context, |layer| MoeLayer::load(context, layer, &share))?;
    let (rows, shards) = (context.gathered_rows(), share.counts.experts);
    let width = share.inner(shape.expert_width).len().max(share.inner(shape.shared_width).len());
    let lent = layers.iter().map(|layer| layer.placed.lent_at_once(shape.top_k)).max().unwrap_or(0);
    let work = ExpertWork {
        shard: share.at.expert,
        scratch: Scratch::new(rows, width, shape.hidden),
        gathered: vec![0.0; rows * shape.hidden],
        members: Vec::with_capacity(rows),
        spread: Spread::new(if lent > 0 { rows } else { 0 }, shape.top_k, shards),
        shared_cost: shape.shared_width as f64 / shape.expert_width as f64,
        taken: vec![0; shards],
        effort: 0,
    };
    let exchange = ExchangeSize { rows: rows * lent, width: shape.hidden, own: false, stays: false };
    Ok(Box::new(ExpertFfn { layers, work, exchange }))
}

impl Stage for ExpertFfn {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let layer = self.layers.at(task.layer);
        self.work.effort = 0;
        match (task.exchange.peers(), task.exchange.part()) {
            (0, _) => self.work.all(layer, task),
            (_, 0) => self.work.lend(layer, task),
            _ => self.work.settle(layer, task),
        }?;
        task.effort = self.work.effort;
        Ok(())
    }

    fn exchanges(&self) -> Vec<ExchangeSize> {
        vec![self.exchange]
    }
}

impl ExpertWork {
    /// A layer whose experts have no copies.
    fn all(&mut self, layer: &MoeLayer, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        task.values.y[..task.values.rows * task.values.widths.hidden].fill(0.0);
        for (id, expert) in layer.here(self.shard) {
            self.gather(task.values, id, |_, _| true);
            self.compute(expert, task);
            self.add(task.values);
        }
        self.add_shared(layer, task);
        Ok(())
    }

    /// The rows given to this device of experts whose home is elsewhere: in ascending id to each home, an expert's in row order.
    fn lend(&mut self, layer: &MoeLayer, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        self.level(layer, task.values);
        let (hidden, own) = (task.values.widths.hidden, self.shard);
        for (id, expert) in layer.here(own).filter(|(id, _)| layer.placed.home(*id) != own) {
            self.gather(task.values, id, |spread, place| spread.holder(place) == own);
            self.compute(expert, task);
            task.exchange.send(layer.placed.home(id), &self.scratch.out[..self.members.len() * hidden])?;
        }
        Ok(())
    }

    /// All terms of the experts at home here: those given to this device are computed now, the others have arrived.
    fn settle(&mut self, layer: &MoeLayer, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        self.level(layer, task.values);
        self.taken.fill(0);
        let (hidden, own) = (task.values.widths.hidden, self.shard);
        task.values.y[..task.values.rows * hidden].fill(0.0);
        for (id, expert) in layer.here(own).filter(|(id, _)| layer.placed.home(*id) == own) {
            self.gather(task.values, id, |spread, place| spread.holder(place) == own);
            self.compute(expert, task);
            self.add(task.values);
            self.gather(task.values, id, |spread, place| spread.holder(place) != own);
            for (index, (_, place)) in self.members.iter().enumerate() {
                let from = self.spread.holder(*place);
                let target = &mut self.scratch.out[index * hidden..(index + 1) * hidden];
                task.exchange.receive(from, self.taken[from], target)?;
                self.taken[from] += 1;
            }
            self.add(task.values);
        }
        self.add_shared(layer, task);
        Ok(())
    }

    fn level(&mut self, layer: &MoeLayer, values: &Values) {
        self.spread.level(&layer.placed, values, self.shared_rows(values.rows));
    }

    /// What the shared expert costs for so many rows, in rows of a routed one.
    fn shared_rows(&self, rows: usize) -> usize {
        (rows as f64 * self.shared_cost).round() as usize
    }

    /// Notes the rows that go to `expert` and that `wanted` takes, in row order. It gets the place in the routing.
    fn gather(&mut self, values: &Values, expert: usize, wanted: impl Fn(&Spread, usize) -> bool) {
        let top_k = values.widths.top_k;
        self.members.clear();
        for (row, chosen) in values.expert_ids[..values.rows * top_k].chunks_exact(top_k).enumerate() {
            let Some(place) = chosen.iter().position(|id| *id as usize == expert) else { continue };
            let place = row * top_k + place;
            if wanted(&self.spread, place) {
                self.members.push((row, place));
            }
        }
    }

    /// The expert's answers to the noted rows of u, into `scratch.out`.
    fn compute(&mut self, expert: &SwiGlu, task: &TaskContext<'_>) {
        let (count, hidden) = (self.members.len(), task.values.widths.hidden);
        self.effort += count;
        for (target, (row, _)) in self.gathered.chunks_exact_mut(hidden).zip(&self.members) {
            target.copy_from_slice(&task.values.u[row * hidden..(row + 1) * hidden]);
        }
        if count > 0 {
            let Scratch { gate, up, out } = &mut self.scratch;
            expert.run(task.team, &self.gathered[..count * hidden], count, gate, up, out);
        }
    }

    /// Weighs the answers in `scratch.out` and adds them to their rows' y.
    fn add(&self, values: &mut Values) {
        let hidden = values.widths.hidden;
        for (answer, (row, place)) in self.scratch.out.chunks_exact(hidden).zip(&self.members) {
            let weight = values.expert_weights[*place];
            axpy(weight, answer, &mut values.y[row * hidden..(row + 1) * hidden]);
        }
    }

    fn add_shared(&mut self, layer: &MoeLayer, task: &mut TaskContext<'_>) {
        let count = task.values.rows * task.values.widths.hidden;
        if let Some(shared) = &layer.shared {
            self.effort += self.shared_rows(task.values.rows);
            let Scratch { gate, up, out } = &mut self.scratch;
            shared.run(task.team, &task.values.u[..count], task.values.rows, gate, up, out);
            add_in_place(&mut task.values.y[..count], &out[..count]);
        }
    }
}
