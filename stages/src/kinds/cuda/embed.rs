//! `embed` on a CUDA device. First stage of a step, it also brings the batch descriptor over, which the step's other stages read.

use super::super::embed::token;
use super::super::registry::{BuildContext, BuildError};
use super::device::CudaDevice;
use super::load::{self, LoadError};
use rally_cuda::machine::write;
use rally_cuda::ops::Weights;
use rally_engine::stage::{Stage, StageError, TaskContext};
use std::sync::Arc;

struct Embed {
    device: Arc<CudaDevice>,
    table: Arc<Weights>,
    rows: usize,
    /// Token ids, positions, first pages and sampled rows, `rows` places each, then page numbers.
    descriptor: Vec<i32>,
}

pub(super) fn build(context: &mut BuildContext<'_>, device: &Arc<CudaDevice>) -> Result<Box<dyn Stage>, BuildError> {
    let (name, vocab, hidden) = ("model.embed_tokens.weight", context.shape.vocab, context.shape.hidden);
    let load = || load::matrix(context, device, name, vocab, hidden);
    let table = device.shared(name, load).map_err(LoadError::on(device))?;
    // The device's values have room for as many.
    let rows = device.values(0).tokens.len();
    let pages = context.planner.pages_per_device as usize;
    let descriptor = Vec::with_capacity(rows * 4 + pages);
    Ok(Box::new(Embed { device: Arc::clone(device), table, rows, descriptor }))
}

impl Embed {
    fn describe(&mut self, task: &TaskContext<'_>) -> Result<(), StageError> {
        self.descriptor.clear();
        self.descriptor.resize(self.rows * 4, 0);
        let (tokens, rest) = self.descriptor.split_at_mut(self.rows);
        let (positions, rest) = rest.split_at_mut(self.rows);
        let (first, sampled) = rest.split_at_mut(self.rows);
        let (vocab, mut samples) = (self.table.rows(), 0);
        for group in &task.batch.groups {
            for (index, row) in group.row_range().enumerate() {
                tokens[row] = token(task, group, row, vocab)? as i32;
                positions[row] = (group.first_position + index) as i32;
                first[row] = group.pages.start as i32;
            }
            if group.sample.is_some() {
                sampled[samples] = (group.first_row + group.rows - 1) as i32;
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
