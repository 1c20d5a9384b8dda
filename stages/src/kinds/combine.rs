//! `combine`: x += y. The sum over FFN devices is formed where their answers arrive.

use super::registry::{BuildContext, BuildError};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_kernels::activation::add_in_place;

struct Combine;

pub(super) fn build(_context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    Ok(Box::new(Combine))
}

impl Stage for Combine {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let count = task.batch.rows * task.values.widths.hidden;
        add_in_place(&mut task.values.x[..count], &task.values.y[..count]);
        Ok(())
    }
}
