//! A user's own kind is parsed, checked and counted like a built-in one.

mod common;

use rally_graph::hardware::Machine;
use rally_graph::kinds::{Key, KindRegistry, Role, StageKindInfo, Value, WeightPart};
use rally_graph::memory::device_memory;
use rally_graph::parse::parse_graph;
use rally_graph::repair::Touched;
use rally_graph::validate::{Validation, validate};

/// Scales u by a vector.
struct Gain;

impl StageKindInfo for Gain {
    fn name(&self) -> &str {
        "gain"
    }
    fn doc(&self) -> &str {
        "Scales u by a vector."
    }
    fn role(&self) -> Role {
        Role::Rowwise
    }
    fn keys(&self) -> &[Key] {
        const KEYS: &[Key] = &[Key::required("on"), Key::optional("options")];
        KEYS
    }
    fn reads(&self) -> &[Value] {
        &[Value::U]
    }
    fn writes(&self) -> &[Value] {
        &[Value::U]
    }
    fn weights_bytes(&self, part: &WeightPart<'_>) -> u64 {
        4 * part.shape.hidden as u64
    }
}

fn codes(stage: &str) -> Vec<String> {
    let mut registry = KindRegistry::builtin();
    registry.register(Box::new(Gain));
    let graph = common::TINY.replace("{ \"kind\": \"router\",", &format!("{stage}, {{ \"kind\": \"router\","));
    let parsed = parse_graph(graph.as_bytes(), &registry);
    let Some(spec) = &parsed.spec else {
        return parsed.diagnostics.iter().map(|d| format!("{} {}", d.code, d.pointer)).collect();
    };
    let (shape, touched) = (common::tiny(), Touched::default());
    let positions = &parsed.positions;
    let machine = Machine::default();
    let found =
        validate(&Validation { spec, positions, registry: &registry, shape: Some(&shape), machine, touched: &touched });
    let plain = device_memory(spec, &shape, &KindRegistry::builtin(), machine)[0].weights_bytes;
    let with = device_memory(spec, &shape, &registry, machine)[0].weights_bytes;
    if found.is_empty() {
        assert_eq!(with - plain, 6 * 4 * 256, "one vector a layer");
    }
    found.iter().map(|d| format!("{} {}", d.code, d.pointer)).collect()
}

#[test]
fn it_takes_options_and_follows_the_dataflow() {
    assert_eq!(codes(r#"{ "kind": "gain", "on": "attn", "options": { "any": ["thing", 1] } }"#), Vec::<String>::new());
    assert_eq!(codes(r#"{ "kind": "gain", "on": "ffn" }"#), ["missing-transfer /stages/1/layers/1/on"]);
    assert_eq!(codes(r#"{ "kind": "gain", "on": "attn", "dtype": "bf16" }"#), ["unknown-key /stages/1/layers/1/dtype"]);
    assert_eq!(
        codes(r#"{ "kind": "gain", "on": "attn", "options": { "x": 1e999 } }"#),
        ["out-of-range /stages/1/layers/1/options/x"]
    );
    assert_eq!(codes(r#"{ "kind": "gian", "on": "attn" }"#), ["unknown-kind /stages/1/layers/1/kind"]);
}
