//! `embed` on a CUDA device. First stage of a step, it also brings the batch descriptor over, which the step's other stages read.

use super::super::embed::token;
use super::super::registry::{BuildContext, BuildError};
use super::device::{CudaDevice, DESCRIBED};
use super::load::{self, LoadError};
use rally_cuda::machine::write;
use rally_cuda::ops::{Choice, REPORTED_AT_MOST, Weights};
use rally_engine::schedule::batch::{SampleSpec, SamplingParams};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_kernels::sampling::uniform;
use std::sync::Arc;

struct Embed {
    device: Arc<CudaDevice>,
    table: Arc<Weights>,
    rows: usize,
    /// KV pages of the device, the number of the one that is nobody's.
    pages: usize,
    /// Token ids, positions, first pages, sampled rows and how they are sampled, `rows` places each, then page numbers.
    descriptor: Vec<i32>,
}

pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    let (name, vocab, hidden) = ("model.embed_tokens.weight", context.shape.vocab, context.shape.hidden);
    let load = || load::matrix(context, device, name, vocab, hidden);
    let table = device.shared(name, load).map_err(LoadError::on(device))?;
    // The device's values have room for as many.
    let rows = device.values(0).tokens.len();
    let pages = context.planner.pages_per_device as usize;
    let descriptor = Vec::with_capacity(rows * DESCRIBED + pages);
    Ok(Box::new(Embed { device: Arc::clone(device), table, rows, pages, descriptor }))
}

/// As a device is told.
fn choice(spec: &SampleSpec) -> Choice {
    let SamplingParams { temperature, top_k, top_p, min_p, seed } = spec.params;
    Choice {
        uniform: uniform(seed, spec.token_index),
        temperature,
        top_p,
        min_p,
        top_k: i32::try_from(top_k).unwrap_or(i32::MAX),
        reported: reported(spec).map_or(-1, |most| most as i32),
        unused: 0,
    }
}

/// How many likely tokens the device reports for a row; none that it has no room for: those the host finds in the logits.
pub(super) fn reported(spec: &SampleSpec) -> Option<usize> {
    spec.detail.logprobs.map(|most| most as usize).filter(|most| *most <= REPORTED_AT_MOST)
}

impl Embed {
    fn describe(&mut self, task: &TaskContext<'_>) -> Result<(), StageError> {
        self.descriptor.clear();
        self.descriptor.resize(self.rows * DESCRIBED, 0);
        let (tokens, rest) = self.descriptor.split_at_mut(self.rows);
        let (positions, rest) = rest.split_at_mut(self.rows);
        let (first, rest) = rest.split_at_mut(self.rows);
        let (sampled, choices) = rest.split_at_mut(self.rows);
        let mut choices = choices.chunks_exact_mut(DESCRIBED - 4);
        // Where rows that pad find a page.
        first.fill(self.pages as i32);
        let (vocab, mut samples) = (self.table.rows(), 0);
        for group in &task.batch.groups {
            for (index, row) in group.row_range().enumerate() {
                tokens[row] = token(task, group, row, vocab)? as i32;
                positions[row] = (group.first_position + index) as i32;
                first[row] = group.pages.start as i32;
            }
            if let (Some(spec), Some(words)) = (&group.sample, choices.next()) {
                sampled[samples] = (group.first_row + group.rows - 1) as i32;
                words.copy_from_slice(&choice(spec).words());
                samples += 1;
            }
        }
        self.descriptor.extend(task.batch.pages.iter().map(|page| *page as i32));
        Ok(())
    }
}

impl Stage for Embed {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        self.describe(task)?;
        let values = self.device.values(task.micro_batch);
        let there = values.descriptor.part(0, self.descriptor.len());
        write(self.device.machine(), &self.descriptor, &there).map_err(self.device.fault())?;
        let embedded = self.device.ops().embed(&self.table, &values.tokens, task.batch.rows, &values.x);
        embedded.map_err(self.device.fault())
    }
}
