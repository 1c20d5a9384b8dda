//! Limits that must agree with each other, and the model's source and weights rule.

use crate::diagnostic::Reporter;
use crate::resolve::Resolved;
use crate::spec::ModelSource;
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
    let page = u64::from(limits.page_tokens);
    if limits.kv_tokens < page {
        let message =
            format!("a KV cache of {} is less than one page of {page}", words::plural(limits.kv_tokens, "token"));
        out.error("kv-below-page", "/limits/kv_tokens", message)
            .with_help(format!("at least {page}, or smaller pages"));
    } else if limits.kv_tokens < sequences * page {
        let held = limits.kv_tokens / page;
        let message = format!("KV has {held} pages for {sequences} sequences, which take at least one each");
        out.warning("few-kv-pages", "/limits/kv_tokens", message)
            .with_help(format!("at least {}, or smaller pages", sequences * page));
    }
    weights_rule(resolved, out);
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
