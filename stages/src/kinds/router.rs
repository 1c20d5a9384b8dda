//! `router`: u to expert ids and weights.
//!
//! Softmax over all experts, the `top_k` most likely, divided by their sum only with `norm_expert_weight` (Step-3 paper,
//! section 2; the released weights have it false). Weights: `model.layers.N.moe.gate.weight` `[experts, hidden]`, never fp8.

use super::layers::Layers;
use super::registry::{BuildContext, BuildError};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::router::route;

struct Router {
    gates: Layers<Matrix>,
    experts: usize,
    top_k: usize,
    renormalise: bool,
    logits: Vec<f32>,
}

pub(super) fn build(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let gate = |layer| context.matrix(&format!("model.layers.{layer}.moe.gate.weight"), shape.experts, shape.hidden);
    let gates = Layers::make(context, gate)?;
    Ok(Box::new(Router {
        gates,
        experts: shape.experts,
        top_k: shape.top_k,
        renormalise: shape.norm_expert_weight,
        logits: vec![0.0; context.gathered_rows() * shape.experts],
    }))
}

impl Stage for Router {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let (rows, hidden) = (task.values.rows, task.values.widths.hidden);
        let gate = self.gates.at(task.layer);
        let logits = &mut self.logits[..rows * self.experts];
        linear(task.team, &task.values.u[..rows * hidden], rows, gate, logits);
        let chosen = rows * self.top_k;
        let (ids, weights) = (&mut task.values.expert_ids[..chosen], &mut task.values.expert_weights[..chosen]);
        route(logits, rows, self.experts, self.top_k, self.renormalise, ids, weights);
        Ok(())
    }

    fn routed_experts(&self) -> usize {
        self.experts
    }
}
