//! The output projection split over the devices of a group (Step-3 paper, section 6: eight slices, all else replicated).
//!
//! A device keeps a slice of the projection's columns: those of some query heads. Three parts: what its own rows' heads gave
//! goes to the devices that hold their columns; each multiplies the rows of all peers with its slice; the parts of a row's o
//! come back and are summed in order of the slices. So the split has an order of sums of its own, the same whatever rows meet.

use super::registry::BuildContext;
use rally_engine::exchange::ExchangeSize;
use rally_engine::stage::{StageError, TaskContext};
use rally_graph::shard::part;
use rally_kernels::activation::add_in_place;
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use std::ops::Range;

pub(super) struct Split {
    slices: usize,
    /// Which of them is here.
    index: usize,
    /// Columns of the whole projection.
    width: usize,
    hidden: usize,
    /// Most rows of one device.
    rows: usize,
    /// Rows of all peers in the columns of one slice, `[rows, width / slices]`.
    gathered: Vec<f32>,
    /// Their part of o, `[rows, hidden]`.
    partial: Vec<f32>,
}

impl Split {
    /// `None` where a device has the whole projection.
    pub(super) fn of(context: &BuildContext<'_>) -> Option<Self> {
        let slices = context.peers.len();
        let index = context.peers.iter().position(|peer| *peer == context.device)?;
        let (shape, rows) = (context.shape, context.attention_rows());
        let (width, hidden) = (shape.heads * shape.head_dim, shape.hidden);
        let gathered = vec![0.0; rows * slices * part(width, slices, 0).len()];
        Some(Self { slices, index, width, hidden, rows, gathered, partial: vec![0.0; rows * slices * hidden] })
    }

    /// Columns of the slice that is here.
    pub(super) fn columns(&self) -> Range<usize> {
        part(self.width, self.slices, self.index)
    }

    pub(super) fn exchanges(&self) -> Vec<ExchangeSize> {
        let size = |width| ExchangeSize { rows: self.rows, width, own: true, stays: false };
        vec![size(self.columns().len()), size(self.hidden)]
    }

    /// Each slice of `attended`, `[rows, width]`, to its device.
    pub(super) fn send_slices(&mut self, task: &TaskContext<'_>, attended: &[f32]) -> Result<(), StageError> {
        let rows = task.batch.rows;
        for peer in 0..self.slices {
            let columns = part(self.width, self.slices, peer);
            let slice = &mut self.gathered[..rows * columns.len()];
            let whole = attended.chunks_exact(self.width);
            for (target, row) in slice.chunks_exact_mut(columns.len()).zip(whole) {
                target.copy_from_slice(&row[columns.clone()]);
            }
            task.exchange.send(peer, slice)?;
        }
        Ok(())
    }

    /// The slice's product with the rows of all peers, back to them.
    pub(super) fn project(&mut self, task: &TaskContext<'_>, slice: &Matrix) -> Result<(), StageError> {
        let columns = slice.cols();
        let mut rows = 0;
        for peer in 0..self.slices {
            let arrived = task.exchange.rows_from(peer)?;
            let target = rows * columns..(rows + arrived) * columns;
            task.exchange.receive(peer, 0, &mut self.gathered[target])?;
            rows += arrived;
        }
        linear(task.team, &self.gathered[..rows * columns], rows, slice, &mut self.partial[..rows * self.hidden]);
        let mut first = 0;
        for peer in 0..self.slices {
            let end = first + task.exchange.rows_from(peer)?;
            task.exchange.send(peer, &self.partial[first * self.hidden..end * self.hidden])?;
            first = end;
        }
        Ok(())
    }

    /// o of the own rows, `[rows, hidden]`: the parts in order of the slices.
    pub(super) fn sum(&mut self, task: &TaskContext<'_>, o: &mut [f32]) -> Result<(), StageError> {
        let count = task.batch.rows * self.hidden;
        task.exchange.receive(0, 0, &mut o[..count])?;
        for peer in 1..self.slices {
            task.exchange.receive(peer, 0, &mut self.partial[..count])?;
            add_in_place(&mut o[..count], &self.partial[..count]);
        }
        Ok(())
    }
}
