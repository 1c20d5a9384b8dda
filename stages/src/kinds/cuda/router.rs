//! `router` on a CUDA device. The tokens of each expert are not counted there: the ids stay on the device.

use super::super::layers::Layers;
use super::super::registry::{BuildContext, BuildError};
use super::captured::{Captured, Which};
use super::device::CudaDevice;
use super::fault;
use super::load::{self, LoadError};
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::Weights;
use rally_engine::stage::{Stage, StageError, TaskContext};
use std::sync::Arc;

struct Router {
    captured: Captured,
    most: usize,
    device: Arc<CudaDevice>,
    gates: Layers<Weights>,
    experts: usize,
    top_k: usize,
    renormalises: bool,
    logits: DeviceSlice<f32>,
}

pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let gates = Layers::make(context, |layer| {
        let name = format!("model.layers.{layer}.moe.gate.weight");
        load::matrix(context, device, &name, shape.experts, shape.hidden)
    });
    let gates = gates.map_err(LoadError::on(device))?;
    Ok(Box::new(Router {
        captured: Captured::default(),
        most: context.gathered_rows(),
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
        let Self { captured, most, device, gates, experts, top_k, renormalises, logits } = self;
        let gate = gates.at(task.layer);
        let which = Which::of(task);
        let (ops, values) = (device.ops(), device.values(task.micro_batch));
        let routed = captured.run(device, which, (task.values.rows, *most), |rows| {
            ops.matmul(&values.u, rows, gate, logits)?;
            ops.route(logits, rows, *experts, *top_k, *renormalises, &values.routing)
        });
        routed.map_err(device.fault())
    }
}
