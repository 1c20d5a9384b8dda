//! What is there and what was expected, in words.

use crate::words;
use jsonc_parser::ast::Value;
use serde_json::Value as Schema;

/// What a schema admits, in words.
pub(super) fn expected(schema: &Schema, root: &Schema) -> String {
    let branches = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
    if let Some(branches) = branches {
        let words: Vec<&str> = branches.iter().filter_map(|branch| branch["const"].as_str()).collect();
        if words.len() == branches.len() {
            return one_of(&words);
        }
        let mut parts: Vec<String> = Vec::new();
        for branch in branches {
            let target = branch["$ref"].as_str().map(|name| &root["$defs"][name.trim_start_matches("#/$defs/")]);
            let text = expected(target.unwrap_or(branch), root);
            if !parts.contains(&text) {
                parts.push(text);
            }
        }
        return parts.join(" or ");
    }
    match schema["type"].as_str() {
        Some(name @ ("integer" | "number")) => {
            let article = if name == "integer" { "an integer" } else { "a number" };
            match (&schema["minimum"], &schema["maximum"]) {
                (Schema::Number(least), Schema::Number(most)) if least == most => least.to_string(),
                (Schema::Number(least), Schema::Number(most)) => format!("{article} from {least} to {most}"),
                (Schema::Number(least), _) => format!("{article} of at least {least}"),
                _ => article.to_owned(),
            }
        }
        Some("string") => "a text".into(),
        Some("array") => "a list".into(),
        Some("object") => "an object".into(),
        Some("boolean") => "true or false".into(),
        _ => "a value".into(),
    }
}

pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [only] => format!("`{only}`"),
        [rest @ .., last] => format!("{} or `{last}`", words::list(rest)),
        [] => "nothing".into(),
    }
}

/// The key a pointer ends in, quoted; list elements and the root get `otherwise`.
pub(super) fn named(pointer: &str, otherwise: &str) -> String {
    match pointer.rsplit('/').next() {
        Some(key) if !key.is_empty() && !key.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("`{}`", words::short(&key.replace("~1", "/").replace("~0", "~")))
        }
        _ => otherwise.to_owned(),
    }
}

pub(super) fn describe(value: &Value<'_>) -> String {
    match value {
        Value::StringLit(text) => format!("the text \"{}\"", words::short(&text.value)),
        Value::NumberLit(number) => format!("the number {}", words::short(number.value)),
        Value::BooleanLit(flag) => flag.value.to_string(),
        Value::Object(_) => "an object".into(),
        Value::Array(_) => "a list".into(),
        Value::NullKeyword(_) => "null".into(),
    }
}
