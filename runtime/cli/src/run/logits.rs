//! `--logits F.safetensors`: one f32 tensor `[generated, vocab]` per request, named by its id.
//!
//! Rows are kept in memory until the run has ended, because a safetensors file begins with the sizes of all its tensors. They
//! are written from where they are: the file is never in memory a second time.

use super::collect::Collector;
use super::decode::Job;
use crate::error::CliError;
use rally_graph::model::ModelShape;
use serde_json::{Map, Value, json};
use std::io::{self, Write};

/// Says with numbers what would otherwise end in the middle of a run, when memory runs out.
pub fn refuse_too_many(jobs: &[Job], shape: &ModelShape, memory_bytes: Option<u64>) -> Result<(), CliError> {
    let most = |job: &Job| {
        let positions = shape.max_positions.saturating_sub(job.sequence.prompt.len());
        job.sequence.max_new_tokens.min(positions) as u64
    };
    let rows = jobs.iter().map(most).fold(0, u64::saturating_add);
    let bytes = rows.saturating_mul(shape.vocab as u64 * 4);
    match memory_bytes {
        Some(memory) if bytes > memory => Err(CliError::Mistake(format!(
            "--logits: up to {rows} tokens with {} logits each take {:.1} GB, and this machine has {:.1} GB: \
             lower `max_tokens`, or give fewer requests",
            shape.vocab,
            bytes as f64 / 1e9,
            memory as f64 / 1e9
        ))),
        _ => Ok(()),
    }
}

/// Writes the file: eight bytes of header length, the header, the rows of one request after the other.
pub fn write(out: &mut dyn Write, collectors: &[Collector], jobs: &[Job], vocab: usize) -> io::Result<()> {
    let mut tensors = Map::new();
    let mut offset = 0;
    for (collector, job) in collectors.iter().zip(jobs) {
        let end = offset + collector.logits.len() * size_of::<f32>();
        let tensor = json!({ "dtype": "F32", "shape": [collector.tokens(), vocab], "data_offsets": [offset, end] });
        tensors.insert(job.id.as_str().to_owned(), tensor);
        offset = end;
    }
    let mut header = Value::Object(tensors).to_string();
    // Readers map the file, and want numbers where numbers may stand.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    collectors.iter().flat_map(|collector| &collector.logits).try_for_each(|logit| out.write_all(&logit.to_le_bytes()))
}
