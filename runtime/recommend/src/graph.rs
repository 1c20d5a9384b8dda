//! A recommended layout as a graph file.

use crate::pipeline::{Outcome, Workload};
use rally_cost::{Dtype, Hardware};
use serde_json::{Value, json};

/// The deployment of `outcome` in the order of `policy`, for the model whose `config.json` is at `config`, relative to where the file will be.
pub fn deployment(
    workload: &Workload,
    (on_attention, on_ffn): (&Hardware, &Hardware),
    outcome: &Outcome,
    policy: &str,
    config: &str,
    tpot_ms: f64,
) -> Value {
    let layout = &outcome.layout;
    let groups =
        |letter: char, count: u32| -> Vec<String> { (0..count).map(|index| format!("{letter}{index}")).collect() };
    let (attention, ffn) = (groups('a', layout.attention), groups('f', layout.ffn));
    let group = |name: &String, on: &Hardware| {
        let name_of = on.aliases.last().cloned().unwrap_or_else(|| on.name.to_lowercase());
        let mut device = json!({"backend": "cuda", "host": name, "hardware": name_of});
        if layout.devices > 1 {
            device["count"] = json!(layout.devices);
            device["fabric"] = json!("nvlink");
        }
        (name.clone(), device)
    };
    let devices: serde_json::Map<String, Value> = attention
        .iter()
        .map(|name| group(name, on_attention))
        .chain(ffn.iter().map(|name| group(name, on_ffn)))
        .collect();
    let hosts: serde_json::Map<String, Value> = (attention.iter().chain(&ffn).enumerate())
        .map(|(index, name)| {
            (name.clone(), json!({"address": format!("10.0.{}.{}:7000", index / 250, index % 250 + 1)}))
        })
        .collect();
    let (experts, replicas) = if layout.replicas { (1, layout.ffn) } else { (layout.ffn, 1) };
    let kv = if workload.model.kv_dtypes.full == Dtype::Bf16 { "bf16" } else { "fp8_e4m3" };
    let wire = if layout.wire == Dtype::Bf16 { "bf16" } else { "fp8_e4m3" };
    let routing = if layout.devices > 1 { "rail" } else { "broadcast" };
    let transfer = |id: &str, from: &[String], to: &[String], dtype: &str| json!({"kind": "transfer", "id": id, "from": from, "to": to, "dtype": dtype, "routing": routing, "transport": "nixl"});
    let mut mfa = json!({"kind": "mfa_attention", "on": attention, "kv_dtype": kv});
    if layout.o_proj > 1 {
        mfa["shard"] = json!({"o_proj": layout.o_proj});
    }
    let longest = workload.contexts.iter().map(|(tokens, _)| *tokens).max().unwrap_or(1);
    let rows = (outcome.batch / f64::from(layout.micro_batches)).round();
    // A sequence's chunk stays on one attention device.
    let chunk = (rows as u64 / u64::from(layout.attention * layout.devices)).clamp(1, 128);
    json!({
        "version": 1,
        "name": format!("{}-{}", workload.model.name.to_lowercase(), layout.name().to_lowercase()),
        "model": {"config": config, "weights": "random:7"},
        "compute": "fp8_per_token",
        "hosts": hosts,
        "devices": devices,
        "stages": [
            {"kind": "embed", "on": attention},
            {"layers": [
                mfa,
                {"kind": "router", "on": attention, "on_layers": "moe"},
                transfer("a2f", &attention, &ffn, wire),
                {"kind": "expert_ffn", "on": ffn, "on_layers": "moe",
                 "shard": {"experts": experts, "tensor": layout.devices, "replicas": replicas}},
                {"kind": "dense_ffn", "on": ffn, "on_layers": "dense", "shard": {"tensor": layout.devices, "replicas": layout.ffn}},
                transfer("f2a", &ffn, &attention, "bf16"),
                {"kind": "combine", "on": attention},
            ]},
            {"kind": "sampling", "on": attention},
        ],
        "limits": {"sequences": outcome.batch as u64, "rows_per_micro_batch": rows as u64, "prefill_chunk": chunk,
                   "kv_tokens": outcome.batch as u64 * longest, "page_tokens": 64},
        "schedule": {"policy": policy, "micro_batches": layout.micro_batches},
        "slo": {"tpot_ms": tpot_ms},
    })
}
