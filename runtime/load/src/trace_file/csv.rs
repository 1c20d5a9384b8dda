//! Rows of an Azure LLM inference trace.

use super::timestamp::seconds;
use super::{Row, TraceError, excerpt, lines, tokens};
use std::io::BufRead;

const TIMESTAMP: &str = "TIMESTAMP";
const CONTEXT: &str = "ContextTokens";
const GENERATED: &str = "GeneratedTokens";

/// Where the columns are.
struct Columns {
    time: usize,
    prompt: usize,
    output: usize,
}

impl Columns {
    fn of(header: &str) -> Result<Self, TraceError> {
        let header = header.trim_start_matches('\u{feff}');
        let place = |column: &'static str| {
            let found = header.split(',').position(|name| name.trim().eq_ignore_ascii_case(column));
            found.ok_or_else(|| TraceError::NoColumn { column, found: excerpt(header) })
        };
        Ok(Self { time: place(TIMESTAMP)?, prompt: place(CONTEXT)?, output: place(GENERATED)? })
    }
}

/// Every row; the first line is the header.
pub(super) fn rows(file: impl BufRead) -> Result<Vec<Row>, TraceError> {
    let mut lines = lines(file);
    let (_, header) = lines.next().unwrap_or(Err(TraceError::Empty(None)))?;
    let columns = Columns::of(&header)?;
    let width = header.split(',').count();
    lines
        .map(|line| {
            let (line, text) = line?;
            let cells: Vec<&str> = text.split(',').collect();
            let fault = |message: String| TraceError::Row { line, message };
            if cells.len() != width {
                let text = excerpt(&text);
                return Err(fault(format!("{width} columns are expected, and there are {}: `{text}`", cells.len())));
            }
            let time = cells[columns.time];
            let time_s = seconds(time).ok_or_else(|| {
                let expected = "a time such as `2023-11-16 18:17:03.9799600`, or seconds";
                fault(format!("`{TIMESTAMP}` is {expected}, not `{}`", excerpt(time)))
            })?;
            let prompt_tokens = tokens(line, CONTEXT, cells[columns.prompt])?;
            let output_tokens = tokens(line, GENERATED, cells[columns.output])?;
            Ok(Row { time_s, prompt_tokens, output_tokens })
        })
        .collect()
}
