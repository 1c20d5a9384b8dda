//! `sampling` on a CUDA device: final norm and head there; the chosen rows' logits come to the host, which chooses tokens.

use super::super::registry::{BuildContext, BuildError};
use super::super::sampling::{choose_all, head_name, most_samples};
use super::device::CudaDevice;
use super::fault;
use super::load::{self, LoadError};
use rally_cuda::CudaError;
use rally_cuda::machine::read;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::Weights;
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_kernels::sampling::SamplingScratch;
use std::sync::Arc;

struct Sampling {
    device: Arc<CudaDevice>,
    norm: DeviceSlice<f32>,
    head: Arc<Weights>,
    eps: f32,
    /// Last rows of the groups that sample, `[groups, hidden]`.
    rows: DeviceSlice<f32>,
    logits: DeviceSlice<f32>,
    host_logits: Vec<f32>,
    scratch: SamplingScratch,
}

pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let (name, vocab, hidden) = (head_name(shape), shape.vocab, shape.hidden);
    let head = || load::matrix(context, device, name, vocab, hidden);
    let head = device.shared(name, head).map_err(LoadError::on(device))?;
    let most = most_samples(context);
    Ok(Box::new(Sampling {
        norm: load::vector(context, device, "model.norm.weight", hidden).map_err(LoadError::on(device))?,
        head,
        eps: shape.rms_norm_eps,
        rows: device.buffer(most * hidden).map_err(fault(device))?,
        logits: device.buffer(most * vocab).map_err(fault(device))?,
        host_logits: vec![0.0; most * vocab],
        scratch: SamplingScratch::default(),
        device: Arc::clone(device),
    }))
}

impl Stage for Sampling {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let count = task.batch.groups.iter().filter(|group| group.sample.is_some()).count();
        if count == 0 {
            return Ok(());
        }
        self.logits(task, count).map_err(self.device.fault())?;
        choose_all(task, &self.host_logits, self.head.rows(), &mut self.scratch)
    }
}

impl Sampling {
    /// Of the first `count` rows that `embed` noted.
    fn logits(&mut self, task: &TaskContext<'_>, count: usize) -> Result<(), CudaError> {
        let (ops, values) = (self.device.ops(), self.device.values(task.micro_batch));
        ops.rms_norm(&values.x, Some(&values.sampled), count, &self.norm, self.eps, &self.rows)?;
        ops.matmul(&self.rows, count, &self.head, &self.logits)?;
        let wanted = count * self.head.rows();
        read(self.device.machine(), &self.logits.part(0, wanted), &mut self.host_logits[..wanted])
    }
}
