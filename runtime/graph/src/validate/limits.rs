//! Limits that must agree with each other, and the model's source and weights rule.

use crate::diagnostic::Reporter;
use crate::memory::pages_per_device;
use crate::resolve::Resolved;
use crate::spec::{Limits, ModelSource};
use crate::words;

pub(super) fn check(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    let (limits, micro_batches) = (&resolved.spec.limits, u64::from(resolved.spec.schedule.micro_batches));
    let attention = (resolved.attention_devices().len() as u64).max(1);
    let (sequences, rows) = (u64::from(limits.sequences), u64::from(limits.rows_per_micro_batch));
    if rows * micro_batches < sequences {
        let least = sequences.div_ceil(micro_batches.max(1));
        let message = format!(
            "{sequences} sequences need a row each in every step, but {} of {rows} rows hold {}",
            words::plural(micro_batches, "micro-batch"),
            rows * micro_batches
        );
        out.error("too-few-rows", "/limits/rows_per_micro_batch", message)
            .with_help(format!("at least {least} rows, or fewer sequences"));
    }
    if micro_batches > sequences {
        let message = format!("{micro_batches} micro-batches share {sequences} sequences: some are always empty");
        out.warning("empty-micro-batches", "/schedule/micro_batches", message);
    }
    let (chunk, share) = (u64::from(limits.prefill_chunk), rows.div_ceil(attention));
    if chunk > rows {
        let message = format!("a prefill chunk of {chunk} does not fit into {rows} rows");
        out.error("chunk-too-long", "/limits/prefill_chunk", message).with_help(format!("at most {rows}"));
    } else if chunk > share {
        let message =
            format!("a sequence's chunk stays on one attention device, and each has {share} of the {rows} rows");
        out.warning("chunk-too-long", "/limits/prefill_chunk", message).with_help(format!("at most {share}"));
    }
    kv_pages(limits, attention, out);
    weights_rule(resolved, out);
}

/// The tokens make at least a page for each attention device, and better one for each sequence.
fn kv_pages(limits: &Limits, attention: u64, out: &mut Reporter<'_>) {
    let (page, sequences) = (u64::from(limits.page_tokens), u64::from(limits.sequences));
    let held = pages_per_device(limits, attention as usize) * attention;
    if held == 0 {
        let tokens = words::plural(limits.kv_tokens, "token");
        let pages = match attention {
            1 => format!("one page of {page}"),
            _ => format!("a page of {page} for each of {attention} attention devices"),
        };
        out.error("kv-below-page", "/limits/kv_tokens", format!("a KV cache of {tokens} is less than {pages}"))
            .with_help(format!("at least {}, or smaller pages", page * attention));
    } else if held < sequences {
        let message = format!("KV has {held} pages for {sequences} sequences, which take at least one each");
        out.warning("few-kv-pages", "/limits/kv_tokens", message)
            .with_help(format!("at least {}, or smaller pages", sequences.next_multiple_of(attention) * page));
    }
}

fn weights_rule(resolved: &Resolved<'_>, out: &mut Reporter<'_>) {
    match &resolved.spec.model {
        ModelSource::Folder(path) if path.is_empty() => {
            out.error("empty-text", "/model", "`model` is an empty text").with_help("name a folder with `config.json`");
        }
        ModelSource::Folder(_) => {}
        ModelSource::Config(source) => {
            let seed = source.weights.strip_prefix("random:").and_then(|seed| seed.parse::<u64>().ok());
            if seed.is_none() {
                let message = format!("`{}` makes no weights; expected `random:SEED`", words::short(&source.weights));
                out.error("bad-weights", "/model/weights", message).with_help("such as `\"random:7\"`");
            }
        }
    }
}
