//! Results of `rally run` and `rally bench` against their schema: every key is in it, and nothing is missing.

use serde_json::Value;
use std::path::Path;

/// The schema that is committed.
const SCHEMA: &str = "runtime/cli/schema/results.v1.schema.json";

/// Panics with all faults of `result`.
#[track_caller]
pub fn fits(result: &Value) {
    let text = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(SCHEMA)).expect("the schema is there");
    let schema: Value = serde_json::from_slice(&text).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let faults: Vec<String> = validator.iter_errors(result).map(|error| error.to_string()).collect();
    assert!(faults.is_empty(), "{SCHEMA} is broken:\n{}", faults.join("\n"));
}
