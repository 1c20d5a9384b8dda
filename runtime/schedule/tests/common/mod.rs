//! A toy deployment that the tests of policies and virtual lanes share: attention on `a`, FFN on `f`, any number of either.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use rally_graph::kinds::KindRegistry;
use rally_graph::model::{LayerKind, ModelShape};
use rally_graph::order::CustomOrder;
use rally_graph::plan::TaskTable;
use rally_graph::spec::DeploymentSpec;
use rally_graph::stage_graph::StageGraph;
use rally_schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_schedule::planner::PlannerConfig;
use rally_schedule::virtual_lanes::Arrival;

/// A model of `layers` layers, the first dense and the others MoE.
pub fn shape(layers: usize) -> ModelShape {
    ModelShape::toy((0..layers).map(|layer| if layer == 0 { LayerKind::Dense } else { LayerKind::Moe }).collect())
}

/// The deployment.
pub fn spec(attention: usize, ffn: usize) -> DeploymentSpec {
    serde_json::from_value(serde_json::json!({
        "version": 1, "name": "toy", "model": "none",
        "devices": { "a": { "backend": "cpu", "count": attention }, "f": { "backend": "cpu", "count": ffn } },
        "stages": [
            { "kind": "embed", "on": "a" },
            { "layers": [
                { "kind": "mfa_attention", "on": "a" },
                { "kind": "router", "on": "a", "on_layers": "moe" },
                { "kind": "transfer", "id": "a2f", "from": "a", "to": "f" },
                { "kind": "expert_ffn", "on": "f", "on_layers": "moe" },
                { "kind": "dense_ffn", "on": "f", "on_layers": "dense" },
                { "kind": "transfer", "id": "f2a", "from": "f", "to": "a" },
                { "kind": "combine", "on": "a" },
            ]},
            { "kind": "sampling", "on": "a" },
        ],
        "limits": { "sequences": 8, "rows_per_micro_batch": 8, "prefill_chunk": 4, "kv_tokens": 512, "page_tokens": 8 },
        "schedule": { "policy": "ping_pong", "micro_batches": 3 },
    }))
    .expect("the toy graph is well formed")
}

/// Its tasks.
pub fn table(attention: usize, ffn: usize, layers: usize) -> TaskTable {
    let graph = StageGraph::build(&spec(attention, ffn), &shape(layers), KindRegistry::shared());
    TaskTable::new(&graph.expect("the toy graph unrolls"))
}

/// Patterns as a graph file writes them.
pub fn order(patterns: &[(&str, &str)]) -> CustomOrder {
    let turns = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    patterns.iter().map(|(key, text)| ((*key).to_owned(), turns(text))).collect()
}

/// Ping-pong as a person would write it as a custom order.
pub fn ping_pong_by_hand(micro_batches: usize) -> CustomOrder {
    let each = |text: &dyn Fn(usize) -> String| (0..micro_batches).map(text).collect::<Vec<_>>().join(" ");
    let attention = each(&|m| format!("combine:{m} mfa_attention:{m} router:{m}"));
    let ffn = each(&|m| format!("expert_ffn:{m} dense_ffn:{m}"));
    order(&[("a", &attention), ("f", &ffn)])
}

/// A planner with room for everything that these tests ask.
pub fn planner(micro_batches: usize, devices: usize) -> PlannerConfig {
    PlannerConfig {
        micro_batches,
        devices,
        sequences: 16,
        sequences_per_device: 16,
        rows_per_device: 16,
        rows_per_micro_batch: 16 * devices,
        prefill_chunk: 4,
        pages_per_device: 1 << 12,
        page_tokens: 8,
        max_positions: 1 << 16,
    }
}

/// A request for `tokens` tokens after a prompt of `prompt`; token 7 stops it.
pub fn request(id: u64, prompt: usize, tokens: usize) -> SequenceRequest {
    SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: vec![1; prompt].into(),
        max_new_tokens: tokens,
        stop_token_ids: vec![7].into(),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}

/// The same, as arrivals at the start.
pub fn at_once(count: u64, prompt: usize, tokens: usize) -> Vec<Arrival> {
    (0..count).map(|id| Arrival { at_ns: 0, request: request(id, prompt, tokens) }).collect()
}
