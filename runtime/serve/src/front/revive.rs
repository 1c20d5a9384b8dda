//! Whoever sets a run going again that does not go on as it is.

use crossbeam::channel::Receiver;
use rally_engine::{Engine, EngineError};

/// Why a run does not go on as it is.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Why {
    /// It failed.
    #[error(transparent)]
    Failed(EngineError),
    /// The host of this index was away, and answers again.
    #[error("host {0} is back")]
    Returned(usize),
}

/// Makes the next engine of a run, with all that the planner of the one before had.
pub trait Revive: Send {
    /// Gets the index of a host for which the run is to be broken off. Asked for once an engine.
    fn breaks(&mut self) -> Receiver<usize>;

    /// Sets the run going again. Takes as long as it takes.
    ///
    /// # Errors
    /// It cannot go on: why.
    fn revive(&mut self, engine: Engine, why: Why) -> Result<Engine, String>;
}
