//! `dense_ffn` and `expert_ffn`: u to y.
//!
//! Dense and shared: down(silu(gate u) ⊙ up u). Routed: Σ over a row's experts, in ascending expert id, of weight × expert(u);
//! the shared expert is added last. The order is fixed by ids alone, so a row's sum does not depend on the rows beside it.
//!
//! Sharded, a device computes a part of y: its experts (consecutive ids), its columns of the inner width, and the shared expert
//! only beside the first experts. Rows that none of its experts serves get zeros. Who receives the parts sums them.
//!
//! Weights of layer N: `mlp.{gate,up,down}_proj`, `moe.{gate,up,down}_proj` (stacked over experts, or one by one),
//! `share_expert.{gate,up,down}_proj`.

use super::registry::{BuildContext, BuildError};
use crate::checkpoint::{CheckpointError, Part};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_engine::values::Values;
use rally_graph::shard::{ShardCounts, ShardPosition, part};
use rally_kernels::activation::{add_in_place, axpy, swiglu_in_place};
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::team::Team;
use std::ops::Range;

/// One SwiGLU block.
struct SwiGlu {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
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

impl SwiGlu {
    /// Columns `inner` of the inner width of a block: rows of gate and up, columns of down. `read` gets name, whole shape, part.
    fn load(
        hidden: usize,
        width: usize,
        inner: Range<usize>,
        read: impl Fn(&str, usize, usize, Part) -> Result<Matrix, CheckpointError>,
    ) -> Result<Self, CheckpointError> {
        Ok(Self {
            gate: read("gate", width, hidden, Part::rows(inner.clone(), hidden))?,
            up: read("up", width, hidden, Part::rows(inner.clone(), hidden))?,
            down: read("down", hidden, width, Part::cols(hidden, inner))?,
        })
    }

    /// The dense FFN `mlp` or the shared expert of a layer.
    fn load_plain(
        context: &BuildContext<'_>,
        prefix: &str,
        width: usize,
        inner: Range<usize>,
    ) -> Result<Self, CheckpointError> {
        Self::load(context.shape.hidden, width, inner, |name, rows, cols, part| {
            context.weights.matrix(&format!("{prefix}.{name}_proj.weight"), rows, cols, part)
        })
    }

    fn load_expert(
        context: &BuildContext<'_>,
        layer: usize,
        expert: usize,
        inner: Range<usize>,
    ) -> Result<Self, CheckpointError> {
        let shape = context.shape;
        Self::load(shape.hidden, shape.expert_width, inner, |name, rows, cols, part| {
            let name = format!("model.layers.{layer}.moe.{name}_proj.weight");
            context.weights.expert_matrix(&name, expert, shape.experts, rows, cols, part)
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
    layers: Vec<Option<SwiGlu>>,
    scratch: Scratch,
}

/// What a device holds of its stage.
struct Share {
    counts: ShardCounts,
    at: ShardPosition,
}

impl Share {
    fn of(context: &BuildContext<'_>) -> Self {
        let counts = ShardCounts::of(context.stage.spec.shard.as_ref());
        let device = context.stage.devices.iter().position(|device| *device == context.device);
        Self { counts, at: counts.position(device.unwrap_or(0)) }
    }

    /// Of an inner width.
    fn inner(&self, width: usize) -> Range<usize> {
        part(width, self.counts.tensor, self.at.tensor)
    }

    fn experts(&self, experts: usize) -> Range<usize> {
        part(experts, self.counts.experts, self.at.expert)
    }

    /// The shared expert goes with the first routed ones.
    fn has_shared(&self) -> bool {
        self.at.expert == 0
    }
}

pub(super) fn build_dense(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let inner = Share::of(context).inner(shape.dense_width);
    let mut layers: Vec<Option<SwiGlu>> = shape.layers.iter().map(|_| None).collect();
    for layer in &context.layers {
        let prefix = format!("model.layers.{layer}.mlp");
        layers[*layer] = Some(SwiGlu::load_plain(context, &prefix, shape.dense_width, inner.clone())?);
    }
    let scratch = Scratch::new(context.gathered_rows(), inner.len(), shape.hidden);
    Ok(Box::new(DenseFfn { layers, scratch }))
}

impl Stage for DenseFfn {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let (rows, hidden) = (task.values.rows, task.values.widths.hidden);
        let layer = self.layers[task.layer].as_ref().expect("a stage only runs in layers it was made for");
        let Values { u, y, .. } = &mut *task.values;
        layer.run(task.team, &u[..rows * hidden], rows, &mut self.scratch.gate, &mut self.scratch.up, y);
        Ok(())
    }
}

struct MoeLayer {
    /// Id of the first expert here.
    first: usize,
    experts: Vec<SwiGlu>,
    /// On the first expert shard alone.
    shared: Option<SwiGlu>,
}

impl MoeLayer {
    fn load(context: &BuildContext<'_>, layer: usize, share: &Share) -> Result<Self, CheckpointError> {
        let shape = context.shape;
        let ids = share.experts(shape.experts);
        let inner = share.inner(shape.expert_width);
        let load = |expert| SwiGlu::load_expert(context, layer, expert, inner.clone());
        let shared = || {
            let prefix = format!("model.layers.{layer}.share_expert");
            SwiGlu::load_plain(context, &prefix, shape.shared_width, share.inner(shape.shared_width))
        };
        Ok(Self {
            first: ids.start,
            experts: ids.map(load).collect::<Result<_, _>>()?,
            shared: share.has_shared().then(shared).transpose()?,
        })
    }
}

struct ExpertFfn {
    layers: Vec<Option<MoeLayer>>,
    scratch: Scratch,
    /// Rows of one expert, gathered, `[rows, hidden]`.
    gathered: Vec<f32>,
    /// Row and weight of each.
    members: Vec<(usize, f32)>,
}

pub(super) fn build_expert(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let share = Share::of(context);
    let mut layers: Vec<Option<MoeLayer>> = shape.layers.iter().map(|_| None).collect();
    for layer in &context.layers {
        layers[*layer] = Some(MoeLayer::load(context, *layer, &share)?);
    }
    let rows = context.gathered_rows();
    let width = share.inner(shape.expert_width).len().max(share.inner(shape.shared_width).len());
    Ok(Box::new(ExpertFfn {
        layers,
        scratch: Scratch::new(rows, width, shape.hidden),
        gathered: vec![0.0; rows * shape.hidden],
        members: Vec::with_capacity(rows),
    }))
}

impl Stage for ExpertFfn {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let (rows, hidden) = (task.values.rows, task.values.widths.hidden);
        let layer = self.layers[task.layer].as_ref().expect("a stage only runs in layers it was made for");
        task.values.y[..rows * hidden].fill(0.0);
        let Scratch { gate, up, out } = &mut self.scratch;
        for (index, expert) in layer.experts.iter().enumerate() {
            let id = layer.first + index;
            gather(task.values, id as u32, &mut self.members, &mut self.gathered);
            let count = self.members.len();
            if count == 0 {
                continue;
            }
            expert.run(task.team, &self.gathered[..count * hidden], count, gate, up, out);
            for (answer, (row, weight)) in out.chunks_exact(hidden).zip(&self.members) {
                axpy(*weight, answer, &mut task.values.y[row * hidden..(row + 1) * hidden]);
            }
        }
        if let Some(shared) = &layer.shared {
            shared.run(task.team, &task.values.u[..rows * hidden], rows, gate, up, out);
            add_in_place(&mut task.values.y[..rows * hidden], &out[..rows * hidden]);
        }
        Ok(())
    }
}

/// Copies the rows of `values.u` that go to `expert`, in row order.
fn gather(values: &Values, expert: u32, members: &mut Vec<(usize, f32)>, gathered: &mut [f32]) {
    let (hidden, top_k) = (values.widths.hidden, values.widths.top_k);
    members.clear();
    for row in 0..values.rows {
        let chosen = row * top_k..(row + 1) * top_k;
        if let Some(place) = values.expert_ids[chosen.clone()].iter().position(|id| *id == expert) {
            let target = members.len() * hidden;
            gathered[target..target + hidden].copy_from_slice(&values.u[row * hidden..(row + 1) * hidden]);
            members.push((row, values.expert_weights[chosen.start + place]));
        }
    }
}
