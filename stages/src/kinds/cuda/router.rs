//! `router` on a CUDA device. The tokens of each expert are not counted there: the ids stay on the device.

use super::super::layers::Layers;
use super::super::registry::{BuildContext, BuildError};
use super::captured::{Captured, Which};
use super::device::CudaDevice;
use super::fault;
use super::load::{self, LoadError};
use rally_cuda::CudaError;
use rally_cuda::machine::write;
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
    /// What is chosen by instead, `[most, experts]` each, and how many of these there are now.
    chosen: Vec<DeviceSlice<f32>>,
    choices: usize,
}

/// Logit of the expert that a row is to choose first, and how much less the next ones have: all others have 0.
const FIRST: f32 = 8.0;
const NEXT_BY: f32 = 0.25;

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
        chosen: Vec::new(),
        choices: 0,
    }))
}

impl Router {
    fn try_choose(&mut self, choices: &[Vec<u32>]) -> Result<(), CudaError> {
        let mut logits = vec![0.0; self.most * self.experts];
        for (index, ids) in choices.iter().enumerate() {
            logits.fill(0.0);
            // Rows that pad a bucket choose what others do, so that no more experts are hit.
            let rows = ids.chunks_exact(self.top_k).cycle();
            for (row, ids) in logits.chunks_exact_mut(self.experts).zip(rows) {
                for (place, id) in ids.iter().enumerate() {
                    row[*id as usize] = FIRST - NEXT_BY * place as f32;
                }
            }
            if index == self.chosen.len() {
                self.chosen.push(self.device.buffer(logits.len())?);
            }
            write(self.device.machine(), &logits, &self.chosen[index])?;
        }
        self.choices = choices.len();
        Ok(())
    }
}

impl Stage for Router {
    fn choose(&mut self, choices: &[Vec<u32>]) -> Result<bool, StageError> {
        self.try_choose(choices).map_err(self.device.fault())?;
        Ok(true)
    }

    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let Self { captured, most, device, gates, experts, top_k, renormalises, logits, chosen, choices } = self;
        let gate = gates.at(task.layer);
        // The same kernels on other numbers, so what is timed is what a run does.
        let turn = (task.layer + task.micro_batch).checked_rem(*choices);
        let which = Which { form: turn.map_or(0, |turn| turn + 1), ..Which::of(task) };
        let routed_by = turn.map_or(&*logits, |turn| &chosen[turn]);
        let (ops, values) = (device.ops(), device.values(task.micro_batch));
        let routed = captured.run(device, which, (task.values.rows, *most), |rows| {
            ops.matmul(&values.u, rows, gate, logits)?;
            ops.route(routed_by, rows, *experts, *top_k, *renormalises, &values.routing)
        });
        routed.map_err(device.fault())
    }
}
