//! Rows of a Mooncake trace.

use super::{Row, TraceError, lines, tokens};
use serde_json::{Map, Value};
use std::io::BufRead;

/// Every row. Keys beside the three are not read.
pub(super) fn rows(file: impl BufRead) -> Result<Vec<Row>, TraceError> {
    lines(file)
        .map(|line| {
            let (line, text) = line?;
            let fault = |message: String| TraceError::Row { line, message };
            let row: Map<String, Value> =
                serde_json::from_str(&text).map_err(|error| fault(format!("no JSON object: {error}")))?;
            let value = |key: &str| row.get(key).ok_or_else(|| fault(format!("no key `{key}`")));
            let time = value("timestamp")?;
            let milliseconds = time.as_f64().filter(|ms| *ms >= 0.0);
            let milliseconds = milliseconds
                .ok_or_else(|| fault(format!("`timestamp` is a number of milliseconds from 0, not `{time}`")))?;
            let count = |key: &str| tokens(line, key, &value(key)?.to_string());
            let (prompt_tokens, output_tokens) = (count("input_length")?, count("output_length")?);
            Ok(Row { time_s: milliseconds / 1e3, prompt_tokens, output_tokens })
        })
        .collect()
}
