//! The rally command line, one file per command.

pub mod requests;

/// Parses the process arguments, runs the command, and returns the exit code: 0 success, 2 a user's mistake, 1 a failure of ours.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
