//! Files that a flag names, read whole. What is in them their readers know.

use crate::error::CliError;
use std::fmt::Display;
use std::path::Path;

/// What `parse` makes of the file that was named by `flag`; every mistake names both.
pub fn read_named<T, E: Display>(
    flag: &str,
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, CliError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| mistake(flag, path, &format!("cannot be read: {error}")))?;
    parse(&text).map_err(|error| mistake(flag, path, &error.to_string()))
}

/// What is wrong with the file that was named by `flag`.
pub fn mistake(flag: &str, path: &Path, what: &str) -> CliError {
    CliError::Mistake(format!("{flag} {}: {what}", path.display()))
}
