//! `dense_ffn` and `expert_ffn`: u to y.
//!
//! Dense and shared: down(silu(gate u) ⊙ up u). Routed: Σ over a row's experts, in ascending expert id, of weight × expert(u);
//! the shared expert is added last. The order is fixed by ids alone, so a row's sum does not depend on the rows beside it.
//!
//! Weights of layer N: `mlp.{gate,up,down}_proj`, `moe.{gate,up,down}_proj` (stacked over experts, or one by one),
//! `share_expert.{gate,up,down}_proj`.

use super::registry::{BuildContext, BuildError};
use crate::checkpoint::{CheckpointError, Part};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_engine::values::Values;
use rally_kernels::activation::{add_in_place, axpy, swiglu_in_place};
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::team::Team;

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
    fn load(context: &BuildContext<'_>, prefix: &str, width: usize) -> Result<Self, CheckpointError> {
        let hidden = context.shape.hidden;
        Ok(Self {
            gate: context.matrix(&format!("{prefix}.gate_proj.weight"), width, hidden)?,
            up: context.matrix(&format!("{prefix}.up_proj.weight"), width, hidden)?,
            down: context.matrix(&format!("{prefix}.down_proj.weight"), hidden, width)?,
        })
    }

    fn load_expert(context: &BuildContext<'_>, layer: usize, expert: usize) -> Result<Self, CheckpointError> {
        let shape = context.shape;
        let (hidden, width) = (shape.hidden, shape.expert_width);
        let read = |name: &str, rows: usize, cols: usize| {
            let name = format!("model.layers.{layer}.moe.{name}_proj.weight");
            context.weights.expert_matrix(&name, expert, shape.experts, rows, cols, Part::all(rows, cols))
        };
        Ok(Self {
            gate: read("gate", width, hidden)?,
            up: read("up", width, hidden)?,
            down: read("down", hidden, width)?,
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

/// One device does the whole FFN for now: a graph that shards it is refused here, not run wrongly.
fn refuse_shards(context: &BuildContext<'_>) -> Result<(), BuildError> {
    if context.stage.devices.len() > 1 {
        let what = format!("stage `{}` on {} devices (a sharded FFN)", context.stage.id, context.stage.devices.len());
        return Err(BuildError::NotRunnable { what });
    }
    Ok(())
}

pub(super) fn build_dense(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    refuse_shards(context)?;
    let shape = context.shape;
    let mut layers: Vec<Option<SwiGlu>> = shape.layers.iter().map(|_| None).collect();
    for layer in &context.layers {
        layers[*layer] = Some(SwiGlu::load(context, &format!("model.layers.{layer}.mlp"), shape.dense_width)?);
    }
    let scratch = Scratch::new(context.gathered_rows(), shape.dense_width, shape.hidden);
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
    experts: Vec<SwiGlu>,
    shared: SwiGlu,
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
    refuse_shards(context)?;
    let shape = context.shape;
    let mut layers: Vec<Option<MoeLayer>> = shape.layers.iter().map(|_| None).collect();
    for layer in &context.layers {
        let experts: Result<Vec<_>, _> =
            (0..shape.experts).map(|expert| SwiGlu::load_expert(context, *layer, expert)).collect();
        let shared = SwiGlu::load(context, &format!("model.layers.{layer}.share_expert"), shape.shared_width)?;
        layers[*layer] = Some(MoeLayer { experts: experts?, shared });
    }
    let rows = context.gathered_rows();
    let width = shape.expert_width.max(shape.shared_width);
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
        for (id, expert) in layer.experts.iter().enumerate() {
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
        layer.shared.run(task.team, &task.values.u[..rows * hidden], rows, gate, up, out);
        add_in_place(&mut task.values.y[..rows * hidden], &out[..rows * hidden]);
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
