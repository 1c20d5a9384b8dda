//! `router` on a CUDA device. The tokens of each expert are not counted there: the ids stay on the device.

use super::super::registry::{BuildContext, BuildError};
use super::device::CudaDevice;
use super::fault;
use super::load::{self, LoadError};
use crate::checkpoint::Part;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::Weights;
use rally_engine::stage::{Stage, StageError, TaskContext};
use std::sync::Arc;

struct Router {
    device: Arc<CudaDevice>,
    gates: Vec<Option<Weights>>,
    experts: usize,
    top_k: usize,
    renormalises: bool,
    logits: DeviceSlice<f32>,
}

pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let mut gates: Vec<Option<Weights>> = shape.layers.iter().map(|_| None).collect();
    for layer in &context.layers {
        let (name, rows, cols) = (format!("model.layers.{layer}.moe.gate.weight"), shape.experts, shape.hidden);
        let gate = load::matrix(context, device, &name, rows, cols, Part::all(rows, cols));
        gates[*layer] = Some(gate.map_err(LoadError::on(device))?);
    }
    Ok(Box::new(Router {
        gates,
        experts: shape.experts,
        top_k: shape.top_k,
        renormalises: shape.norm_expert_weight,
        logits: device.buffer(context.gathered_rows() * shape.experts).map_err(fault(device))?,
        device: Arc::clone(device),
    }))
}

impl Stage for Router {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let gate = self.gates[task.layer].as_ref().expect("a stage only runs in layers it was made for");
        let (ops, values, rows) = (self.device.ops(), self.device.values(task.micro_batch), task.values.rows);
        let routed = ops
            .matmul(&values.u, rows, gate, &self.logits)
            .and_then(|()| ops.route(&self.logits, rows, self.experts, self.top_k, self.renormalises, &values.routing));
        routed.map_err(self.device.fault())
    }
}
