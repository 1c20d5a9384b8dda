//! A spec with its faulty values put right somehow, so that the rules about everything else can still be checked.
//!
//! A file with a wrong number in `limits` may also name a device that does not exist; both are told at once. What was put
//! right is remembered, and rules that would read it stay silent.

use crate::source::join;
use jsonc_parser::ast;
use serde_json::{Map, Value, json};

/// How one fault is put right.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Repair {
    /// Takes the key out.
    Remove,
    /// Puts a value there that fits.
    Set(Value),
    /// Leaves it as it is.
    Keep,
}

/// Pointers of values that are not as the file has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pointers: Vec<String>,
}

impl Touched {
    pub(crate) fn add(&mut self, pointer: String) {
        // What a device's other keys mean depends on these two.
        if let Some(device) = pointer.strip_suffix("/backend").or(pointer.strip_suffix("/count")) {
            self.pointers.push(device.to_owned());
        }
        self.pointers.push(pointer);
    }

    /// Whether anything at or below `section` was put right.
    pub(crate) fn reaches(&self, section: &str) -> bool {
        self.pointers.iter().any(|pointer| within(pointer, section))
    }

    /// Whether `pointer` is, or is inside, a value that was put right.
    pub fn covers(&self, pointer: &str) -> bool {
        self.pointers.iter().any(|touched| within(pointer, touched))
    }

    /// Whether a stage's shards were put right.
    pub(crate) fn reaches_shards(&self) -> bool {
        self.pointers.iter().any(|pointer| {
            pointer.starts_with("/stages") && (pointer.contains("/shard") || pointer.contains("/placement"))
        })
    }

    /// Whether stages, what joins them, or the devices they run on were put right.
    pub(crate) fn reaches_flow(&self) -> bool {
        const JOINS: [&str; 7] = ["kind", "on", "from", "to", "after", "on_layers", "layers"];
        let is_index = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
        let joins = |pointer: &String| {
            let parts: Vec<&str> = pointer.split('/').skip(1).collect();
            match parts.as_slice() {
                ["devices", rest @ ..] => rest.len() < 2,
                ["stages", index, "layers", inner, key, ..] if is_index(index) && is_index(inner) => {
                    JOINS.contains(key)
                }
                ["stages", index, "layers", ..] if is_index(index) => true,
                ["stages", _, key, ..] => JOINS.contains(key),
                ["stages", ..] => true,
                _ => false,
            }
        };
        self.pointers.iter().any(joins)
    }
}

fn within(pointer: &str, section: &str) -> bool {
    pointer.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The parsed text as plain JSON. Of a key written twice the first value counts; a number that no float holds is 0.
pub(crate) fn to_json(value: &ast::Value<'_>) -> Value {
    match value {
        ast::Value::StringLit(text) => json!(text.value),
        ast::Value::NumberLit(number) => serde_json::from_str(number.value).unwrap_or(json!(0)),
        ast::Value::BooleanLit(flag) => json!(flag.value),
        ast::Value::NullKeyword(_) => Value::Null,
        ast::Value::Array(array) => array.elements.iter().map(to_json).collect(),
        ast::Value::Object(object) => {
            let mut map = Map::new();
            for property in &object.properties {
                if !map.contains_key(property.name.as_str()) {
                    map.insert(property.name.as_str().to_owned(), to_json(&property.value));
                }
            }
            Value::Object(map)
        }
    }
}

/// Puts right what `repairs` say, innermost first, so that a removed or replaced value takes its inner faults along.
pub(crate) fn apply(root: &mut Value, repairs: &[(String, Repair)]) {
    for (pointer, repair) in repairs.iter().rev() {
        let Some((parent, key)) = pointer.rsplit_once('/') else {
            continue;
        };
        let key = key.replace("~1", "/").replace("~0", "~");
        match (root.pointer_mut(parent), repair) {
            (Some(Value::Object(map)), Repair::Remove) => {
                map.shift_remove(&key);
            }
            (Some(Value::Object(map)), Repair::Set(value)) => {
                map.insert(key, value.clone());
            }
            (Some(Value::Array(items)), Repair::Set(value)) => {
                if let Some(item) = key.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                    *item = value.clone();
                }
            }
            _ => {}
        }
    }
}

/// A value that fits a schema: the least number, the first word, what is required.
pub(crate) fn fitting(schema: &Value, root: &Value) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return fitting(&root["$defs"][reference.trim_start_matches("#/$defs/")], root);
    }
    if let Some(branches) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        return branches.first().map_or(Value::Null, |branch| fitting(branch, root));
    }
    if !schema["const"].is_null() {
        return schema["const"].clone();
    }
    match schema["type"].as_str() {
        Some("integer" | "number") => match &schema["minimum"] {
            Value::Null => json!(0),
            least => least.clone(),
        },
        Some("string") => json!("-"),
        Some("boolean") => json!(false),
        Some("array") => json!([]),
        Some("object") => {
            let mut map = Map::new();
            for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                map.insert(key.to_owned(), fitting(&schema["properties"][key], root));
            }
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

/// The pointer of a key that an unknown one was meant to be.
pub(crate) fn meant(pointer: &str, key: &str) -> String {
    join(pointer.rsplit_once('/').map_or("", |(parent, _)| parent), key)
}
