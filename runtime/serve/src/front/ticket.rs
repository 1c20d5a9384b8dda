//! A sequence's updates, held by whoever asked for it.

use super::Shared;
use crate::api::error::ApiError;
use rally_engine::TokenReport;
use rally_engine::schedule::batch::SequenceId;
use rally_engine::schedule::planner::FinishReason;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc::UnboundedReceiver;

/// What happens to a sequence.
#[derive(Debug)]
pub(crate) enum Update {
    /// It is being decoded; so many tokens of its prompt were cached.
    Admitted(usize),
    /// A token.
    Token(TokenReport),
    /// It has ended; nothing follows.
    Finished(FinishReason),
    /// It never will; nothing follows.
    Refused(ApiError),
}

/// Dropped before the end, it cancels the sequence.
pub(crate) struct Ticket {
    id: SequenceId,
    updates: UnboundedReceiver<Update>,
    shared: Arc<Shared>,
}

impl Ticket {
    pub(super) fn new(id: SequenceId, updates: UnboundedReceiver<Update>, shared: Arc<Shared>) -> Self {
        Self { id, updates, shared }
    }

    /// Waits until the sequence is decoded. Returns how many tokens of its prompt were cached.
    ///
    /// # Errors
    /// It will not be.
    pub(crate) async fn admitted(&mut self) -> Result<usize, ApiError> {
        match self.updates.recv().await {
            Some(Update::Admitted(cached)) => Ok(cached),
            Some(Update::Token(_)) => Ok(0),
            Some(Update::Refused(error)) => Err(error),
            Some(Update::Finished(_)) | None => Err(stopping()),
        }
    }

    /// What happens next.
    pub(crate) fn poll_update(&mut self, context: &mut Context<'_>) -> Poll<Update> {
        self.updates.poll_recv(context).map(|update| update.unwrap_or_else(|| Update::Refused(stopping())))
    }

    /// A stop string is complete: the sequence is over, and counts as stopped.
    pub(crate) fn stopped(&self) {
        self.let_go(true);
    }

    fn let_go(&self, stopped: bool) {
        let planner = self.shared.state().let_go(self.id, stopped);
        if let Some(planner) = planner {
            planner.cancel(self.id);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.let_go(false);
    }
}

/// Why a sequence is cut off.
pub(crate) fn stopping() -> ApiError {
    ApiError::NotReady("the server is stopping".into())
}
