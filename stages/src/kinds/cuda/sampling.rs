//! `sampling` on a CUDA device: final norm, head and the choice of tokens there. Tokens come to the host, log probabilities where a
//! request asked for them, and whole rows of logits only where it asked for those.

use super::super::registry::{BuildContext, BuildError};
use super::super::sampling::{head_name, most_samples};
use super::captured::{Captured, Which};
use super::device::CudaDevice;
use super::embed::reported;
use super::fault;
use super::load::{self, LoadError};
use super::products::{Matrix, Rows};
use rally_cuda::CudaError;
use rally_cuda::machine::read;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::ops::{Chosen, REPORTED_AT_MOST};
use rally_engine::schedule::batch::{RowGroup, SampleSpec};
use rally_engine::stage::{Sample, Stage, StageError, TaskContext};
use rally_kernels::sampling::{log_prob, top_log_probs};
use std::sync::Arc;

struct Sampling {
    captured: Captured,
    most: usize,
    device: Arc<CudaDevice>,
    norm: DeviceSlice<f32>,
    head: Matrix,
    vocab: usize,
    eps: f32,
    /// Last rows of the groups that sample, `[groups, hidden]`.
    rows: DeviceSlice<f32>,
    /// The same, towards the head.
    inputs: Rows,
    logits: DeviceSlice<f32>,
    chosen: Chosen,
    /// What the host is told of it.
    tokens: Vec<i32>,
    odds: Vec<f32>,
    likely: Vec<i32>,
}

pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let (name, vocab, hidden) = (head_name(shape), shape.vocab, shape.hidden);
    let head = || load::matrix(context, device, name, vocab, hidden);
    let head = device.shared(name, head).map_err(LoadError::on(device))?;
    let head = Matrix::one(device, head).map_err(fault(device))?;
    let most = most_samples(context);
    let rows = device.buffer(most * hidden).map_err(fault(device))?;
    let inputs = Rows::towards(device, &head, most, || Ok(rows.clone())).map_err(fault(device))?;
    Ok(Box::new(Sampling {
        captured: Captured::default(),
        most,
        norm: load::vector(context, device, "model.norm.weight", hidden).map_err(LoadError::on(device))?,
        head,
        vocab,
        eps: shape.rms_norm_eps,
        rows,
        inputs,
        logits: device.buffer(most * vocab).map_err(fault(device))?,
        chosen: Chosen::new(device.machine(), most, vocab).map_err(fault(device))?,
        tokens: vec![0; most * 2],
        odds: vec![0.0; most * (REPORTED_AT_MOST + 1)],
        likely: vec![0; most * REPORTED_AT_MOST],
        device: Arc::clone(device),
    }))
}

/// Groups that sample.
fn sampled<'a>(task: &TaskContext<'a>) -> impl Iterator<Item = (&'a RowGroup, &'a SampleSpec)> + use<'a> {
    task.batch.groups.iter().filter_map(|group| Some((group, group.sample.as_ref()?)))
}

impl Stage for Sampling {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let count = sampled(task).count();
        if count == 0 {
            return Ok(());
        }
        self.choose(task, count).map_err(self.device.fault())?;
        for (row, (group, spec)) in sampled(task).enumerate() {
            let sample = self.sample(row, group, spec)?;
            task.last_tokens[group.slot] = sample.token;
            task.samples.push(sample);
        }
        Ok(())
    }
}

impl Sampling {
    /// Of the first `count` rows that `embed` noted.
    fn choose(&mut self, task: &TaskContext<'_>, count: usize) -> Result<(), CudaError> {
        let reports = sampled(task).any(|(_, spec)| reported(spec).is_some());
        let which = Which { layer: 0, micro_batch: task.micro_batch, form: usize::from(reports) };
        let Self { captured, most, device, norm, head, vocab, eps, rows, inputs, logits, chosen, .. } = self;
        let (ops, values) = (device.ops(), device.values(task.micro_batch));
        captured.run(device, which, (count, *most), |count| {
            ops.rms_norm(&values.x, Some(&values.sampled), count, norm, *eps, rows)?;
            inputs.take(device, rows, count)?;
            inputs.times(device, count, head, logits)?;
            ops.sample(logits, count, *vocab, &values.choices, reports, chosen)
        })?;
        let machine = self.device.machine();
        read(machine, &self.chosen.tokens.part(0, count * 2), &mut self.tokens[..count * 2])?;
        if reports {
            let (odds, likely) = (count * (REPORTED_AT_MOST + 1), count * REPORTED_AT_MOST);
            read(machine, &self.chosen.odds.part(0, odds), &mut self.odds[..odds])?;
            read(machine, &self.chosen.likely.part(0, likely), &mut self.likely[..likely])?;
        }
        Ok(())
    }

    /// What the device chose for the `row`-th group that samples.
    fn sample(&self, row: usize, group: &RowGroup, spec: &SampleSpec) -> Result<Sample, StageError> {
        let (token, broken) = (self.tokens[row * 2] as u32, self.tokens[row * 2 + 1]);
        if let Ok(token) = usize::try_from(broken) {
            return Err(StageError::NonFiniteLogits { sequence: group.sequence, token });
        }
        let by_host = spec.detail.logprobs.filter(|_| reported(spec).is_none());
        let mut logits = None;
        if spec.detail.logits || by_host.is_some() {
            let vocab = self.vocab;
            let mut whole = vec![0.0; vocab];
            let there = self.logits.part(row * vocab, vocab);
            read(self.device.machine(), &there, &mut whole).map_err(self.device.fault())?;
            logits = Some(whole);
        }
        let logprobs = match (by_host, &logits) {
            (Some(most), Some(logits)) => Some((log_prob(logits, token), top_log_probs(logits, most as usize))),
            _ => reported(spec).map(|most| self.reported(row, most)),
        };
        Ok(Sample { sequence: group.sequence, token, logprobs, logits: logits.filter(|_| spec.detail.logits) })
    }

    /// Log probabilities as the device reported them.
    fn reported(&self, row: usize, most: usize) -> (f32, Vec<(u32, f32)>) {
        let odds = &self.odds[row * (REPORTED_AT_MOST + 1)..];
        let likely = &self.likely[row * REPORTED_AT_MOST..][..most];
        let known = likely.iter().zip(&odds[1..]).take_while(|(token, _)| **token >= 0);
        (odds[0], known.map(|(token, odds)| (*token as u32, *odds)).collect())
    }
}
