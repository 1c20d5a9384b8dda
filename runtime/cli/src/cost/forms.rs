//! The answer for programs: JSON and CSV. Keys of both are a contract.

use super::study::{Accelerator, Costed, Study};
use rally_cost::sizing::ideal_batch;
use serde_json::{Map, Value, json};

/// One object.
pub fn json(study: &Study) -> Value {
    let models: Vec<Value> = study.models.iter().map(|costed| model(study, costed)).collect();
    json!({
        "context": study.context,
        "models": models,
        "min_sparsity": by_name(study, |_, on| json!(on.min_sparsity)),
        "sized_for": {"model": study.subject, "tpot_ms": study.tpot_ms, "stages": study.stages},
        "hardware": by_name(study, |_, on| json!({
            "dtype": on.dtype.name(),
            "peak_flops": on.peak_flops,
            "usd_per_hour": on.usd_per_hour,
            "usd_per_flop": on.unit.usd_per_flop,
            "usd_per_byte": on.unit.usd_per_byte,
            "flops_per_byte": on.flops_per_byte(),
            "ideal_dense_batch": on.dense_batch,
            "feasibility": feasibility(on),
        })),
    })
}

/// Something of each accelerator, given its index too.
fn by_name(study: &Study, of: impl Fn(usize, &Accelerator) -> Value) -> Map<String, Value> {
    study.accelerators.iter().enumerate().map(|(index, on)| (on.hardware.name.clone(), of(index, on))).collect()
}

fn model(study: &Study, costed: &Costed) -> Value {
    let usd = |index: usize| json!({"attention": costed.usd[index].attention, "ffn": costed.usd[index].ffn});
    let sparsity = costed.model.sparsity();
    let (cost, pair, (alone_on, alone)) = (costed.cost, costed.pair, costed.alone());
    json!({
        "name": costed.model.name,
        "kv_bytes": cost.kv_bytes,
        "attention_flops": cost.attention_flops,
        "linear_flops": cost.linear_flops,
        "ffn_flops": cost.ffn_flops,
        "usd_per_mtok": by_name(study, |index, _| usd(index)),
        "afd": {
            "attention_on": study.name(pair.attention_on),
            "ffn_on": study.name(pair.ffn_on),
            "usd_per_mtok": pair.usd_per_mtok,
        },
        "alone": {"on": study.name(alone_on), "usd_per_mtok": alone},
        "arithmetic_intensity": cost.arithmetic_intensity(),
        "parameters": costed.model.parameters(),
        "active_parameters": costed.model.active_parameters(),
        "sparsity": sparsity,
        "ideal_ffn_batch": by_name(study, |_, on| json!(ideal_batch(on.dense_batch, sparsity))),
    })
}

fn feasibility(on: &Accelerator) -> Value {
    let feasibility = on.feasibility;
    json!({
        "slot_us": feasibility.slot_s * 1e6,
        "slot_bytes": feasibility.slot_bytes,
        "attention_weight_bytes": feasibility.attention_weight_bytes,
        "kv_bytes": feasibility.kv_bytes,
        "context_tokens": feasibility.context_tokens,
        "sequences": feasibility.sequences,
        "ffn_weight_bytes": feasibility.ffn_weight_bytes,
        "ffn_servers": feasibility.ffn_servers,
        "ffn_devices": feasibility.ffn_devices,
    })
}

/// A line for each model and accelerator.
pub fn csv(study: &Study) -> String {
    let mut lines = "model,context,kv_bytes,attention_flops,linear_flops,ffn_flops,hardware,attention_usd_per_mtok,\
                     ffn_usd_per_mtok,afd_attention_on,afd_ffn_on,afd_usd_per_mtok\n"
        .to_owned();
    for costed in &study.models {
        let (cost, pair) = (costed.cost, costed.pair);
        for (on, usd) in study.accelerators.iter().zip(&costed.usd) {
            let cells = [
                quoted(&costed.model.name),
                study.context.to_string(),
                cost.kv_bytes.to_string(),
                cost.attention_flops.to_string(),
                cost.linear_flops.to_string(),
                cost.ffn_flops.to_string(),
                quoted(&on.hardware.name),
                usd.attention.to_string(),
                usd.ffn.to_string(),
                quoted(study.name(pair.attention_on)),
                quoted(study.name(pair.ffn_on)),
                pair.usd_per_mtok.to_string(),
            ];
            lines.push_str(&format!("{}\n", cells.join(",")));
        }
    }
    lines
}

/// A name as RFC 4180 wants it.
fn quoted(name: &str) -> String {
    match name.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", name.replace('"', "\"\"")),
        false => name.to_owned(),
    }
}
