//! The kernels of a stage, captured once for each layer, micro-batch and bucket of rows, and replayed: one launch for many.
//!
//! Rows are padded to a bucket, so that a step with a row more or less finds the same graph. What pads are rows like any other, of
//! token 0 on a page that nobody else has; no row depends on another, so the rows that count have the bits they would have alone.

use super::device::CudaDevice;
use rally_cuda::CudaError;
use rally_cuda::machine::Replay;
use rally_engine::stage::TaskContext;
use std::collections::HashMap;

/// Graphs that a stage keeps: beyond these, what is new is launched kernel by kernel.
const KEPT: usize = 4096;

/// Which graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Which {
    pub(super) layer: usize,
    pub(super) micro_batch: usize,
    /// Which of several forms that a stage has, if it has.
    pub(super) form: usize,
}

/// A stage's graphs.
#[derive(Debug, Default)]
pub(super) struct Captured {
    /// Absent: seen once. What comes once only is not worth a capture.
    graphs: HashMap<(Which, usize), Option<Box<dyn Replay>>>,
    /// Something cannot be captured.
    is_off: bool,
}

impl Which {
    /// A stage's only form, for this task.
    pub(super) fn of(task: &TaskContext<'_>) -> Self {
        Self { layer: task.layer, micro_batch: task.micro_batch, form: 0 }
    }
}

impl Captured {
    /// Enqueues what `enqueue` does for `rows` rows, or for so many that pad them, at most `most`.
    pub(super) fn run(
        &mut self,
        device: &CudaDevice,
        which: Which,
        (rows, most): (usize, usize),
        enqueue: impl Fn(usize) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if self.is_off || !device.captures() {
            return enqueue(rows);
        }
        let rows = bucket(rows).min(most);
        let full = self.graphs.len() >= KEPT;
        match self.graphs.get_mut(&(which, rows)) {
            Some(Some(graph)) => graph.launch(),
            None if full => enqueue(rows),
            None => {
                self.graphs.insert((which, rows), None);
                enqueue(rows)
            }
            Some(seen) => match device.machine().capture(&mut || enqueue(rows)) {
                Ok(graph) => seen.insert(graph).launch(),
                Err(error) => {
                    tracing::warn!(%error, "a stage's kernels cannot be captured: they are launched one by one");
                    self.is_off = true;
                    enqueue(rows)
                }
            },
        }
    }
}

/// The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, …: at most half of the rows pad.
fn bucket(rows: usize) -> usize {
    let power = rows.next_power_of_two();
    let between = power / 4 * 3;
    if rows <= between { between } else { power }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_are_few_and_hold_their_rows() {
        let buckets: Vec<usize> = (1..=24).map(bucket).collect();
        let want = [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16, 16, 24, 24, 24, 24, 24, 24, 24, 24];
        assert_eq!(buckets, want);
        assert!((1..5000).all(|rows| bucket(rows) >= rows && bucket(rows) * 2 <= rows * 3));
    }
}
