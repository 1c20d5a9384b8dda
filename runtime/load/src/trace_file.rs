//! Traces of real requests: the columns of the Azure LLM inference traces (CSV) and of the Mooncake traces (JSON lines).
//!
//! Prompts share prefixes in Mooncake's `hash_ids`; rally has no prefix cache, so they are not read. Rows may come in any
//! order; arrival times count from the earliest.

mod csv;
mod jsonl;
mod timestamp;

use crate::request::LoadRequest;
use std::io::{self, BufRead};

/// What of a trace is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceOptions {
    /// Arrival times are multiplied by this: 0.5 plays the trace twice as fast.
    pub time_scale: f64,
    /// At most so many requests, the earliest.
    pub most: Option<usize>,
    /// Only requests of the trace's first seconds, before scaling.
    pub within_s: Option<f64>,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self { time_scale: 1.0, most: None, within_s: None }
    }
}

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceFormat {
    /// `TIMESTAMP,ContextTokens,GeneratedTokens`.
    AzureCsv,
    /// `{"timestamp": ms, "input_length": n, "output_length": n}` a line.
    MooncakeJsonl,
}

impl TraceFormat {
    /// By a file name's ending.
    pub fn of_ending(ending: &str) -> Option<Self> {
        match ending {
            "csv" => Some(Self::AzureCsv),
            "jsonl" => Some(Self::MooncakeJsonl),
            _ => None,
        }
    }
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file ended badly.
    #[error("line {line}: cannot be read: {source}")]
    Unreadable {
        /// From 1.
        line: usize,
        /// What the system says.
        source: io::Error,
    },
    /// A header without a column.
    #[error(
        "line 1: no column `{column}`: expected the header `TIMESTAMP,ContextTokens,GeneratedTokens`, found `{found}`"
    )]
    NoColumn {
        /// The column.
        column: &'static str,
        /// The header.
        found: String,
    },
    /// A row that is none.
    #[error("line {line}: {message}")]
    Row {
        /// From 1.
        line: usize,
        /// What was expected and what was found.
        message: String,
    },
    /// No rows, or none within what was asked for.
    #[error("there are no requests in it{}", .0.map(|seconds| format!(" within its first {seconds} s")).unwrap_or_default())]
    Empty(Option<f64>),
}

/// A row in the file's own time, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    time_s: f64,
    prompt_tokens: usize,
    output_tokens: usize,
}

/// Reads a trace.
///
/// # Errors
/// [`TraceError`] with the line of the first row that is not in order: a row that was passed over in silence would make the load
/// lighter than the one that was asked for.
pub fn read(file: impl BufRead, format: TraceFormat, options: TraceOptions) -> Result<Vec<LoadRequest>, TraceError> {
    let mut rows = match format {
        TraceFormat::AzureCsv => csv::rows(file)?,
        TraceFormat::MooncakeJsonl => jsonl::rows(file)?,
    };
    rows.sort_by(|a, b| a.time_s.total_cmp(&b.time_s));
    let begin = rows.first().map_or(0.0, |row| row.time_s);
    let within = |row: &Row| options.within_s.is_none_or(|seconds| row.time_s - begin <= seconds);
    let request = |row: Row| LoadRequest {
        arrival_s: (row.time_s - begin) * options.time_scale,
        prompt_tokens: row.prompt_tokens,
        output_tokens: row.output_tokens,
    };
    let kept = rows.into_iter().filter(within).take(options.most.unwrap_or(usize::MAX));
    let requests: Vec<LoadRequest> = kept.map(request).collect();
    if requests.is_empty() { Err(TraceError::Empty(options.within_s)) } else { Ok(requests) }
}

/// The lines of a file, numbered from 1, those with nothing on them left out.
fn lines(file: impl BufRead) -> impl Iterator<Item = Result<(usize, String), TraceError>> {
    file.lines().enumerate().filter_map(|(index, line)| match line {
        Err(source) => Some(Err(TraceError::Unreadable { line: index + 1, source })),
        Ok(line) if line.trim().is_empty() => None,
        Ok(line) => Some(Ok((index + 1, line))),
    })
}

/// A number of tokens: a whole number from 1.
fn tokens(line: usize, column: &str, text: &str) -> Result<usize, TraceError> {
    let parsed = text.trim().parse::<u32>().ok().filter(|count| *count > 0);
    parsed.map(|count| count as usize).ok_or_else(|| TraceError::Row {
        line,
        message: format!("`{column}` is a number of tokens from 1 to {}, not `{}`", u32::MAX, excerpt(text)),
    })
}

/// What is shown of a cell: a line of a file that is no trace may be very long.
fn excerpt(text: &str) -> String {
    const MOST: usize = 60;
    let text = text.trim();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}
