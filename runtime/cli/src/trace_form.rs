//! The forms of a trace file, by the ending of its name.

use crate::error::CliError;
use rally_trace::html::PageText;
use rally_trace::{Recording, chrome, html};
use std::io::{self, Write};
use std::path::Path;

/// What a trace is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceForm {
    /// Chrome trace events.
    Json,
    /// A page of its own.
    Html,
}

impl TraceForm {
    /// The form that the ending of `path` asks for.
    pub fn of(path: &Path) -> Result<Self, CliError> {
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        match ending.as_ref().and_then(|ending| ending.to_str()) {
            Some("json") => Ok(Self::Json),
            Some("html") => Ok(Self::Html),
            _ => Err(CliError::Mistake(format!(
                "--trace {}: give it a name that ends in .json or .html",
                path.display()
            ))),
        }
    }

    /// Writes what was recorded; only a page has room for `words`.
    pub fn write(self, recording: &Recording<'_>, words: &PageText, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Json => chrome::write(out, recording),
            Self::Html => html::write(out, recording, words),
        }
    }
}
