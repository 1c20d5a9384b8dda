//! The committed schema is the generated one, and the committed graphs fit it.

mod common;

use rally_graph::kinds::KindRegistry;
use rally_graph::schema::{deployment_schema, deployment_schema_text};

#[test]
fn the_committed_schema_is_up_to_date() {
    let text = deployment_schema_text(KindRegistry::shared());
    common::golden("graphs/schema/deployment.v1.schema.json", &text);
}

#[test]
fn every_committed_graph_fits_the_schema_and_has_no_fault_of_form() {
    let schema = deployment_schema(KindRegistry::shared());
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let mut seen = 0;
    for entry in std::fs::read_dir(common::repository("graphs")).expect("graphs/ is there").flatten() {
        if entry.path().extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read(entry.path()).expect("a graph can be read");
        let value: serde_json::Value = serde_json::from_slice(&text).expect("a graph is JSON");
        let faults: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert_eq!(faults, Vec::<String>::new(), "{}", entry.path().display());
        let parsed = rally_graph::parse::parse_graph(&text, KindRegistry::shared());
        assert_eq!(parsed.diagnostics, vec![], "{}", entry.path().display());
        // Nothing is lost between the file and the types.
        let spec = parsed.spec.expect("a graph without faults has a spec");
        assert_eq!(serde_json::to_value(spec).expect("a spec is JSON"), value, "{}", entry.path().display());
        seen += 1;
    }
    assert!(seen >= 4);
}

#[test]
fn the_schema_refuses_what_parsing_refuses() {
    let schema = deployment_schema(KindRegistry::shared());
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let edits = [
        ("\"version\": 1", "\"version\": 2"),
        ("\"micro_batches\": 3", "\"micro_batches\": 0"),
        ("\"kv_dtype\": \"bf16\"", "\"kv_type\": \"bf16\""),
        ("\"kind\": \"combine\"", "\"kind\": \"embed\""),
        ("\"on\": \"attn\", \"kv_dtype\"", "\"kv_dtype\""),
        ("\"cores\": [0]", "\"cores\": null"),
        ("\"cores\": [0]", "\"cores\": []"),
        ("\"sequences\": 64", "\"sequences\": -1"),
        ("\"tpot_ms\": 50", "\"tpot_ms\": 0"),
    ];
    for (from, to) in edits {
        let text = common::TINY.replacen(from, to, 1);
        assert_ne!(text, common::TINY, "{from}");
        let value: serde_json::Value = serde_json::from_str(&text).expect("the edit keeps it JSON");
        assert!(!validator.is_valid(&value), "{to} passes the schema");
        assert!(!common::check(text.as_bytes(), None).is_empty(), "{to} passes parsing");
    }
}
