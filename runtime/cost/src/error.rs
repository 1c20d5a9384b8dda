//! What is wrong with a spec: each error names the file and the key, and says what to do.

use std::path::PathBuf;

/// A spec of a model or an accelerator that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// No such file, or not readable.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not JSON.
    #[error("{}:{line}:{column}: not valid JSON: {message}", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that is needed is not there.
    #[error("{}: `{key}` is missing: {remedy}", file.display())]
    Missing {
        /// Which file.
        file: PathBuf,
        /// Dotted path of the key.
        key: String,
        /// What to write.
        remedy: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{}: `{key}` is {found}; expected {expected}", file.display())]
    Invalid {
        /// Which file.
        file: PathBuf,
        /// Dotted path of the key.
        key: String,
        /// The value, shortened.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A key that means nothing here.
    #[error("{}: there is no key `{key}`: {help}", file.display())]
    UnknownKey {
        /// Which file.
        file: PathBuf,
        /// Dotted path of the key.
        key: String,
        /// The nearest valid key.
        help: String,
    },
    /// A name that is neither in the library nor a file's.
    #[error("there is no {what} `{name}`: {help}; or give a file (`….json`)")]
    UnknownName {
        /// `model` or `hardware`.
        what: &'static str,
        /// As given.
        name: String,
        /// The nearest known one.
        help: String,
    },
}
