//! The JSON schema of a graph file, generated from the types of [`crate::spec`] and the registered kinds.
//!
//! The committed copy in `graphs/schema/` is for editors; parsing reads ranges, words and required keys off the same value.

use crate::kinds::{KindRegistry, Place, StageKindInfo};
use crate::spec::DeploymentSpec;
use serde_json::{Map, Value, json};

/// Address of the schema's version.
pub const SCHEMA_ID: &str = "deployment.v1.schema.json";

/// The schema of a graph file whose stages are of the kinds in `registry`.
pub fn deployment_schema(registry: &KindRegistry) -> Value {
    let generated = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let mut schema = generated.into_root_schema_for::<DeploymentSpec>().to_value();
    refuse_null(&mut schema);
    let stage = schema["$defs"]["StageSpec"].take();
    let mut outside = vec![json!({ "$ref": "#/$defs/LayersBlock" })];
    let mut inside = Vec::new();
    let mut definitions = schema["$defs"].as_object().cloned().unwrap_or_default();
    for kind in registry.iter() {
        let name = format!("stage_{}", kind.name());
        let reference = json!({ "$ref": format!("#/$defs/{name}") });
        definitions.insert(name, stage_schema(kind, &stage, &definitions));
        match kind.place() {
            Place::Layers => inside.push(reference),
            Place::Before | Place::After => outside.push(reference),
        }
    }
    definitions.remove("StageSpec");
    definitions.remove("ShardSpec");
    definitions["StageEntry"] = json!({
        "description": "A stage outside the layers, or the one block that repeats for every layer.",
        "oneOf": outside,
    });
    definitions["LayersBlock"]["properties"]["layers"]["items"] = json!({ "oneOf": inside });
    schema["$defs"] = Value::Object(definitions);
    schema["title"] = json!("rally deployment");
    if let Some(object) = schema.as_object_mut() {
        object.shift_insert(1, "$id".into(), json!(SCHEMA_ID));
    }
    schema
}

/// The schema as it is committed: indented, with a newline at the end.
pub fn deployment_schema_text(registry: &KindRegistry) -> String {
    let mut text = format!("{:#}", deployment_schema(registry));
    text.push('\n');
    text
}

/// One kind: `kind` fixed, and of the keys of `StageSpec` only those it takes.
fn stage_schema(kind: &dyn StageKindInfo, stage: &Value, definitions: &Map<String, Value>) -> Value {
    let all = &stage["properties"];
    let mut properties = Map::new();
    properties.insert("kind".into(), json!({ "description": kind.doc(), "type": "string", "const": kind.name() }));
    properties.insert("id".into(), all["id"].clone());
    let mut required = vec!["kind"];
    for key in kind.keys() {
        let mut schema = all[key.name].clone();
        if schema.is_null() {
            continue;
        }
        if !key.inner.is_empty() {
            schema = shard_schema(&schema, key.inner, definitions);
        }
        properties.insert(key.name.into(), schema);
        if key.required {
            required.push(key.name);
        }
    }
    if kind.place() == Place::Layers {
        properties.insert("on_layers".into(), all["on_layers"].clone());
        properties.insert("after".into(), all["after"].clone());
    }
    json!({
        "description": kind.doc(),
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "required": required,
    })
}

fn shard_schema(shard: &Value, inner: &[&str], definitions: &Map<String, Value>) -> Value {
    let all = &definitions["ShardSpec"]["properties"];
    let properties: Map<String, Value> = inner.iter().map(|name| ((*name).to_owned(), all[*name].clone())).collect();
    json!({
        "description": shard["description"],
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

/// An optional key is left out, never null: drops `null` from types and from alternatives.
fn refuse_null(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(refuse_null),
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    object["type"] = only.clone();
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                if let [only] = choices.as_slice() {
                    let reference = only["$ref"].clone();
                    object.remove("anyOf");
                    object.insert("$ref".into(), reference);
                }
            }
            object.retain(|key, value| !(key == "default" && value.is_null()));
            object.values_mut().for_each(refuse_null);
        }
        _ => {}
    }
}
