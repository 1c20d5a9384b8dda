//! The journal of a run: its requests, the tokens they have and how they ended, so that another process can go on where this one was
//! killed, with the same tokens.
//!
//! It knows files and records. What is done with them is `rally run`'s business.

mod file;
pub mod record;

pub use file::{Journal, JournalError, SyncPolicy};

use crate::error::{Blame, CliError};
use rally_stages::deployment::Deployment;
use rally_transport::handshake::Hash;
use record::{Origin, OutputPlace};

/// Keys of a graph that no token depends on: where things are, what they are called, and in which order lanes work.
const NO_TOKEN_DEPENDS_ON: [&str; 6] = ["$schema", "name", "model", "hosts", "schedule", "slo"];

/// What a run of `deployment` is of, with so many requests.
pub fn origin(deployment: &Deployment, requests: usize) -> Result<Origin, CliError> {
    let mut spec = serde_json::to_value(&deployment.spec).or_failure()?;
    for key in NO_TOKEN_DEPENDS_ON {
        spec.as_object_mut().map(|spec| spec.remove(key));
    }
    Ok(Origin {
        version: env!("CARGO_PKG_VERSION").into(),
        graph_name: deployment.spec.name.clone(),
        graph: Hash::of(&[spec.to_string().as_bytes()]),
        model: Hash::of(&[&deployment.weights_fingerprint().or_mistake()?]),
        requests,
        stdout: stdout_file(),
    })
}

/// The regular file that stdout is, if it is one: then what was printed is what is in it.
#[cfg(unix)]
pub fn stdout_file() -> Option<OutputPlace> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;
    let stdout = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned().ok()?);
    let metadata = stdout.metadata().ok().filter(|metadata| metadata.is_file())?;
    Some(OutputPlace { device: metadata.dev(), inode: metadata.ino(), bytes: metadata.len() })
}

/// The regular file that stdout is, if it is one: not known on this system.
#[cfg(not(unix))]
pub fn stdout_file() -> Option<OutputPlace> {
    None
}

impl From<JournalError> for CliError {
    fn from(error: JournalError) -> Self {
        if error.is_mistake() { Self::Mistake(error.to_string()) } else { Self::Failure(error.to_string()) }
    }
}
