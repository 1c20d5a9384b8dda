//! Errors of the command line: what is printed, and which exit code follows.

use std::fmt::Display;
use std::process::ExitCode;

/// A command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The user's mistake, already explained on stderr (diagnostics of a graph, say). Exit code 2.
    #[error("")]
    Reported,
    /// The user's mistake: a file, an argument. Exit code 2.
    #[error("{0}")]
    Mistake(String),
    /// A failure of ours or of the machine: a full disk, a closed pipe, a bug. Exit code 1.
    #[error("{0}")]
    Failure(String),
    /// Ctrl-C, after what there was has been printed. Exit code 130, as shells expect.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// The exit code that says so.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Reported | Self::Mistake(_) => ExitCode::from(2),
            Self::Failure(_) => ExitCode::from(1),
            Self::Interrupted => ExitCode::from(130),
        }
    }
}

/// Says whose fault an error is.
pub trait Blame<T> {
    /// The user's mistake.
    fn or_mistake(self) -> Result<T, CliError>;
    /// A failure of ours.
    fn or_failure(self) -> Result<T, CliError>;
}

impl<T, E: Display> Blame<T> for Result<T, E> {
    fn or_mistake(self) -> Result<T, CliError> {
        self.map_err(|error| CliError::Mistake(error.to_string()))
    }

    fn or_failure(self) -> Result<T, CliError> {
        self.map_err(|error| CliError::Failure(error.to_string()))
    }
}
