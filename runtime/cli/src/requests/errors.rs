//! What can be wrong with a request file.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Faults that are kept; a file that is no request file at all has one on every line.
const MAX_KEPT: usize = 100;

/// All faults of a request file, in order of lines.
#[derive(Debug)]
pub struct RequestErrors {
    file: PathBuf,
    errors: Vec<RequestError>,
    dropped: usize,
}

impl RequestErrors {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_path_buf(), errors: Vec::new(), dropped: 0 }
    }

    pub(super) fn push(&mut self, line: usize, column: Option<usize>, fault: RequestFault) {
        if self.errors.len() < MAX_KEPT {
            self.errors.push(RequestError { file: self.file.clone(), line, column, fault });
        } else {
            self.dropped += 1;
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// The faults, at most 100.
    pub fn errors(&self) -> &[RequestError] {
        &self.errors
    }

    /// How many further faults there are.
    pub fn dropped(&self) -> usize {
        self.dropped
    }
}

impl fmt::Display for RequestErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(formatter, "{newline}{error}")?;
        }
        if self.dropped > 0 {
            write!(formatter, "\n{}: and {} more", self.file.display(), self.dropped)?;
        }
        Ok(())
    }
}

impl std::error::Error for RequestErrors {}

/// One fault and its place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}:{line}{}: {fault}", file.display(), column.map(|column| format!(":{column}")).unwrap_or_default())]
pub struct RequestError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1, where the fault has one.
    pub column: Option<usize>,
    /// What is wrong.
    pub fault: RequestFault,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestFault {
    /// The file is too large.
    #[error("the file has {found} bytes; expected at most {limit}; split it")]
    FileTooLarge {
        /// Its bytes.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The line is too long.
    #[error("the line has {found} bytes; expected at most {limit}")]
    LineTooLong {
        /// Its bytes.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The line is not text.
    #[error("not valid UTF-8; expected UTF-8 text")]
    NotUtf8,
    /// The line nests too deeply.
    #[error("nested more than {limit} levels deep; expected a flat object")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// The line is not JSON.
    #[error("not valid JSON: {message}; expected one object a line")]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// The line is JSON, but not an object.
    #[error("{found}; expected an object such as {{\"prompt\": \"Once\"}}")]
    NotAnObject {
        /// What is there.
        found: String,
    },
    /// A key that requests do not have.
    #[error("unknown key `{key}`; {}", match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!("expected one of {}", super::KEYS.join(", ")),
    })]
    UnknownKey {
        /// The key.
        key: String,
        /// The nearest valid key, if one is near.
        nearest: Option<&'static str>,
    },
    /// A key that appears twice.
    #[error("`{key}` appears twice; expected it once")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A value of the wrong type or out of range.
    #[error("`{key}` is {found}; expected {expected}")]
    Invalid {
        /// The key.
        key: String,
        /// The value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// There is nothing to start from.
    #[error("no prompt; expected `prompt` or `prompt_token_ids`")]
    NoPrompt,
    /// There are two prompts.
    #[error("both `prompt` and `prompt_token_ids`; expected one of them")]
    TwoPrompts,
    /// Two requests have the same id.
    #[error("`id` is {id:?}, like the request in line {first_line}; expected another (7 and \"7\" count as one)")]
    DuplicateId {
        /// The id.
        id: String,
        /// Line of the first request with it.
        first_line: usize,
    },
    /// The file holds no request.
    #[error("no requests; expected one JSON object a line")]
    NoRequests,
}
