//! `embed`: token ids to the residual stream.
//!
//! Weights: `model.embed_tokens.weight` `[vocab, hidden]`.

use super::registry::{BuildContext, BuildError};
use rally_engine::schedule::batch::{GroupInput, RowGroup};
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_kernels::matrix::Matrix;
use std::sync::Arc;

struct Embed {
    table: Arc<Matrix>,
}

pub(super) fn build(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    let (vocab, hidden) = (context.shape.vocab, context.shape.hidden);
    Ok(Box::new(Embed { table: context.shared_matrix("model.embed_tokens.weight", vocab, hidden)? }))
}

/// The token of a group's row, given or sampled a moment ago.
pub(super) fn token(task: &TaskContext<'_>, group: &RowGroup, row: usize, vocab: usize) -> Result<u32, StageError> {
    let token = match group.input {
        GroupInput::Given => task.batch.token_ids[row],
        GroupInput::LastSampled => task.last_tokens[group.slot],
    };
    if token as usize >= vocab {
        return Err(StageError::UnknownToken { sequence: group.sequence, token, vocab });
    }
    Ok(token)
}

impl Stage for Embed {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let (vocab, hidden) = (self.table.rows(), self.table.cols());
        for group in &task.batch.groups {
            for row in group.row_range() {
                let token = token(task, group, row, vocab)?;
                self.table.row_into(token as usize, &mut task.values.x[row * hidden..(row + 1) * hidden]);
            }
        }
        Ok(())
    }
}
