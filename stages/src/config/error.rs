//! What can be wrong with a `config.json`.

use std::path::PathBuf;

use thiserror::Error;

/// A `config.json` that cannot be read, or that describes a model rally cannot run.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be opened or read.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than any configuration.
    #[error("{}: larger than {limit} bytes, which no model configuration is", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file is not text.
    #[error("{}: byte {offset} is not valid UTF-8; a configuration is UTF-8 text", file.display())]
    NotUtf8 {
        /// The file.
        file: PathBuf,
        /// Offset of the first wrong byte.
        offset: usize,
    },
    /// The file is not JSON, or names a key twice.
    #[error("{}:{line}:{column}: not valid JSON: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser said.
        message: String,
    },
    /// A key that must be there is not.
    #[error("{}: `{key}` is missing; expected {expected}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// Dotted path of the key.
        key: String,
        /// What should be there.
        expected: String,
    },
    /// A value is of the wrong type or out of range.
    #[error("{}: `{key}` is {found}; expected {expected}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Dotted path of the key.
        key: String,
        /// The value in the file.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A legal value that would change the arithmetic in a way rally does not implement.
    #[error("{}: `{key}` is {found}, which rally does not support; expected {expected}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// Dotted path of the key.
        key: String,
        /// The value in the file.
        found: String,
        /// What rally supports.
        expected: String,
    },
    /// A key stands in `text_config` and outside it, with different values.
    #[error("{}: `{key}` is {outer} but `text_config.{key}` is {inner}; expected one value", file.display())]
    Conflict {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The value outside.
        outer: String,
        /// The value in `text_config`.
        inner: String,
    },
}
