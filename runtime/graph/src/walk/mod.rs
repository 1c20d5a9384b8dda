//! Walks parsed JSON along the generated schema and reports every value that does not fit.
//!
//! It knows the subset of JSON Schema that `schema.rs` emits: `$ref`, `type`, `properties`, `required`,
//! `additionalProperties`, `items`, `minItems`, `minLength`, `minimum`, `maximum`, and `oneOf`/`anyOf` whose branches differ
//! in type, are constant words, or are stages told apart by `kind`.

mod describe;

use crate::diagnostic::Reporter;
use crate::kinds::KindRegistry;
use crate::repair::{Repair, Touched, fitting, meant as meant_pointer};
use crate::source::join;
use crate::words;
use describe::{describe, expected, named, one_of};
use jsonc_parser::ast::{Object, Value};
use serde_json::Value as Schema;

pub(crate) struct Walker<'a, 'p> {
    root: &'a Schema,
    registry: &'a KindRegistry,
    out: &'a mut Reporter<'p>,
    repairs: Vec<(String, Repair)>,
    touched: Touched,
}

impl<'a, 'p> Walker<'a, 'p> {
    pub(crate) fn new(root: &'a Schema, registry: &'a KindRegistry, out: &'a mut Reporter<'p>) -> Self {
        Self { root, registry, out, repairs: Vec::new(), touched: Touched::default() }
    }

    /// Reports every fault, and returns how each may be put right so that the rest can be judged.
    pub(crate) fn check(mut self, value: &Value<'_>) -> (Vec<(String, Repair)>, Touched) {
        self.visit(value, self.root, "");
        (self.repairs, self.touched)
    }

    fn repair(&mut self, pointer: &str, repair: Repair) {
        self.touched.add(pointer.to_owned());
        self.repairs.push((pointer.to_owned(), repair));
    }

    /// Puts a fitting value there.
    fn replace(&mut self, pointer: &str, schema: &Schema) {
        self.repair(pointer, Repair::Set(fitting(schema, self.root)));
    }

    fn resolve(&self, schema: &'a Schema) -> &'a Schema {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let name = reference.trim_start_matches("#/$defs/");
                self.resolve(&self.root["$defs"][name])
            }
            None => schema,
        }
    }

    fn visit(&mut self, value: &Value<'_>, schema: &'a Schema, pointer: &str) {
        if self.out.is_full() {
            return;
        }
        let schema = self.resolve(schema);
        let branches = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
        if let Some(branches) = branches {
            return self.choose(value, schema, branches, pointer);
        }
        match (schema["type"].as_str(), value) {
            (Some("object"), Value::Object(object)) => self.object(object, schema, pointer),
            (Some("array"), Value::Array(array)) => {
                if schema["minItems"].as_u64().is_some_and(|least| (array.elements.len() as u64) < least) {
                    self.out.error("empty-list", pointer, format!("{} is empty", named(pointer, "this list")));
                    self.repair(pointer, Repair::Keep);
                }
                for (index, element) in array.elements.iter().enumerate() {
                    self.visit(element, &schema["items"], &format!("{pointer}/{index}"));
                }
            }
            (Some("string"), Value::StringLit(text)) => self.text(&text.value, schema, pointer),
            (Some("integer"), Value::NumberLit(number)) => self.integer(number.value, schema, pointer),
            (Some("number"), Value::NumberLit(number)) => self.number(number.value, schema, pointer),
            (Some("boolean"), Value::BooleanLit(_)) => {}
            (Some(_), _) => self.wrong_type(value, schema, pointer),
            (None, _) => self.free(value, pointer),
        }
    }

    fn wrong_type(&mut self, value: &Value<'_>, schema: &'a Schema, pointer: &str) {
        let message =
            format!("{} is {}; expected {}", named(pointer, "this"), describe(value), expected(schema, self.root));
        let added = self.out.error("wrong-type", pointer, message);
        if matches!(value, Value::NullKeyword(_)) {
            added.with_help("an optional key is left out, never null");
        } else if matches!((value, schema["type"].as_str()), (Value::StringLit(_), Some("integer" | "number"))) {
            added.with_help("numbers stand without quotes");
        }
        self.replace(pointer, schema);
    }

    fn text(&mut self, text: &str, schema: &'a Schema, pointer: &str) {
        match schema["const"].as_str() {
            Some(word) if word != text => {
                let message = format!("{} is `{}`; expected `{word}`", named(pointer, "this"), words::short(text));
                self.out.error("unknown-word", pointer, message);
                self.replace(pointer, schema);
            }
            _ => {}
        }
        if schema["minLength"].as_u64().is_some_and(|least| (text.chars().count() as u64) < least) {
            let message = format!("{} is an empty text", named(pointer, "this"));
            self.out.error("empty-text", pointer, message);
            self.replace(pointer, schema);
        }
    }

    fn integer(&mut self, text: &str, schema: &'a Schema, pointer: &str) {
        let (least, most) = (schema["minimum"].as_i64().unwrap_or(0), schema["maximum"].as_u64());
        if text.contains(['.', 'e', 'E']) {
            return self.outside(text, schema, pointer, "not-an-integer");
        }
        let fits = match text.parse::<i128>() {
            Ok(value) => value >= i128::from(least) && most.is_none_or(|most| value <= i128::from(most)),
            Err(_) => false,
        };
        if !fits {
            self.outside(text, schema, pointer, "out-of-range");
        }
    }

    fn number(&mut self, text: &str, schema: &'a Schema, pointer: &str) {
        let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
        let fits = text.parse::<f64>().is_ok_and(|value| {
            value.is_finite() && least.is_none_or(|least| value >= least) && most.is_none_or(|most| value <= most)
        });
        if !fits {
            self.outside(text, schema, pointer, "out-of-range");
        }
    }

    fn outside(&mut self, text: &str, schema: &'a Schema, pointer: &str, code: &'static str) {
        let code = if pointer == "/version" { "wrong-version" } else { code };
        let message =
            format!("{} is {}; expected {}", named(pointer, "this"), words::short(text), expected(schema, self.root));
        let added = self.out.error(code, pointer, message);
        if code == "wrong-version" {
            added.with_help("this build reads version 1");
        }
        self.replace(pointer, schema);
    }

    /// Settings of a user's kind: any JSON, but numbers must be numbers.
    fn free(&mut self, value: &Value<'_>, pointer: &str) {
        match value {
            Value::NumberLit(number) if !number.value.parse::<f64>().is_ok_and(f64::is_finite) => {
                let message =
                    format!("{} is {}; expected a finite number", named(pointer, "this"), words::short(number.value));
                self.out.error("out-of-range", pointer, message);
                self.repair(pointer, Repair::Keep);
            }
            Value::Array(array) => {
                for (index, element) in array.elements.iter().enumerate() {
                    self.free(element, &format!("{pointer}/{index}"));
                }
            }
            Value::Object(object) => {
                for property in &object.properties {
                    self.free(&property.value, &join(pointer, property.name.as_str()));
                }
            }
            _ => {}
        }
    }

    fn choose(&mut self, value: &Value<'_>, schema: &'a Schema, branches: &'a [Schema], pointer: &str) {
        let resolved: Vec<&'a Schema> = branches.iter().map(|branch| self.resolve(branch)).collect();
        if resolved.iter().all(|branch| branch["const"].is_string()) {
            return self.word(value, &resolved, pointer);
        }
        let kind_of = |branch: &&Schema| branch["properties"]["kind"].is_object();
        if resolved.iter().any(kind_of) {
            return self.stage(value, &resolved, pointer);
        }
        let fitting = resolved.iter().find(|branch| match value {
            Value::Object(_) => branch["type"] == "object",
            Value::Array(_) => branch["type"] == "array",
            Value::StringLit(_) => branch["type"] == "string",
            _ => false,
        });
        match fitting {
            Some(branch) => self.visit(value, branch, pointer),
            None => self.wrong_type(value, schema, pointer),
        }
    }

    fn word(&mut self, value: &Value<'_>, branches: &[&'a Schema], pointer: &str) {
        let words: Vec<&str> = branches.iter().filter_map(|branch| branch["const"].as_str()).collect();
        match value {
            Value::StringLit(text) if words.contains(&&*text.value) => {}
            Value::StringLit(text) => {
                let given = words::short(&text.value);
                let message = format!("{} is `{given}`; expected {}", named(pointer, "this"), one_of(&words));
                let near = words::nearest(&text.value, words.iter().copied());
                let added = self.out.error("unknown-word", pointer, message);
                added.help = near.map(|word| format!("did you mean `{word}`?"));
                self.repair(pointer, Repair::Set(near.unwrap_or(words[0]).into()));
            }
            other => {
                let message = format!("{} is {}; expected {}", named(pointer, "this"), describe(other), one_of(&words));
                self.out.error("wrong-type", pointer, message);
                self.repair(pointer, Repair::Set(words[0].into()));
            }
        }
    }

    /// A stage, told apart by `kind`, or where it may stand the `layers` block.
    fn stage(&mut self, value: &Value<'_>, branches: &[&'a Schema], pointer: &str) {
        let Value::Object(object) = value else {
            let message = format!("a stage is an object with a `kind`; this is {}", describe(value));
            self.out.error("wrong-type", pointer, message);
            self.repair(pointer, Repair::Set(serde_json::json!({ "kind": "" })));
            return;
        };
        let Some(kind) = object.get("kind") else { return self.kindless(object, branches, pointer) };
        let at_kind = join(pointer, "kind");
        let Value::StringLit(name) = &kind.value else {
            let message = format!("`kind` is {}; expected the name of a kind", describe(&kind.value));
            self.out.error("wrong-type", at_kind.clone(), message);
            self.repair(&at_kind, Repair::Set("".into()));
            return;
        };
        let of_kind = |branch: &&&Schema| branch["properties"]["kind"]["const"] == *name.value;
        if let Some(branch) = branches.iter().find(of_kind) {
            return self.object(object, branch, pointer);
        }
        self.repair(&at_kind, Repair::Keep);
        match self.registry.get(&name.value) {
            Some(info) => {
                let message = format!("`{}` stands {}, not here", info.name(), info.place().describe());
                self.out
                    .error("misplaced-stage", at_kind, message)
                    .with_help(format!("move it {}", info.place().describe()));
                let schema = &self.root["$defs"][format!("stage_{}", info.name())];
                self.object(object, schema, pointer);
            }
            None => {
                let help = words::suggest(&name.value, self.registry.names());
                let message = format!("there is no kind of stage `{}`", words::short(&name.value));
                self.out.error("unknown-kind", at_kind, message).with_help(help);
            }
        }
    }

    fn kindless(&mut self, object: &Object<'_>, branches: &[&'a Schema], pointer: &str) {
        let block = branches.iter().find(|branch| branch["properties"]["layers"].is_object());
        match (object.get("layers"), block) {
            (Some(_), Some(block)) => self.object(object, block, pointer),
            (Some(_), None) => {
                let at = join(pointer, "layers");
                self.repair(pointer, Repair::Set(serde_json::json!({ "kind": "" })));
                self.out
                    .key_error("nested-layers", at, "a `layers` block stands inside another one")
                    .with_help("the one `layers` block is an element of `stages`");
            }
            (None, _) => {
                self.repair(pointer, Repair::Set(serde_json::json!({ "kind": "" })));
                let keys: Vec<&str> = object.properties.iter().map(|property| property.name.as_str()).collect();
                let near = keys.iter().find(|key| words::nearest(key, ["kind", "layers"]).is_some());
                let added = self.out.error("missing-key", pointer, "a stage lacks the key `kind`");
                match near {
                    Some(key) => added.with_help(format!("is `{}` meant to be `kind`?", words::short(key))),
                    None => added.with_help(format!("kinds: {}", words::list(&self.registry.names()))),
                };
            }
        }
    }

    fn object(&mut self, object: &Object<'_>, schema: &'a Schema, pointer: &str) {
        let properties = schema["properties"].as_object();
        let known: Vec<&str> = properties.map(|all| all.keys().map(String::as_str).collect()).unwrap_or_default();
        let mut seen: Vec<&str> = Vec::new();
        let mut meant: Vec<&str> = Vec::new();
        for property in &object.properties {
            let key = property.name.as_str();
            if seen.len() <= known.len() && seen.contains(&key) {
                continue;
            }
            let below = join(pointer, key);
            match (known.iter().find(|name| **name == key), &schema["additionalProperties"]) {
                (Some(name), _) => {
                    seen.push(name);
                    self.visit(&property.value, &schema["properties"][key], &below);
                }
                (None, Schema::Bool(false)) => meant.extend(self.unknown_key(key, &known, schema, &below)),
                (None, rest @ Schema::Object(_)) => self.visit(&property.value, rest, &below),
                (None, _) => self.free(&property.value, &below),
            }
            if self.out.is_full() {
                return;
            }
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Schema::as_str) {
            if seen.contains(&key) {
                continue;
            }
            if !meant.contains(&key) {
                self.missing_key(key, schema, pointer);
            }
            self.replace(&join(pointer, key), &schema["properties"][key]);
        }
    }

    /// Reports the key and returns the one that was probably meant.
    fn unknown_key(&mut self, key: &str, known: &[&'a str], schema: &Schema, pointer: &str) -> Option<&'a str> {
        let near = words::nearest(key, known.iter().copied());
        let kind = schema["properties"]["kind"]["const"].as_str();
        let shown = words::short(key);
        let message = match kind {
            Some(kind) => format!("`{kind}` takes no key `{shown}`"),
            None => format!("there is no key `{shown}` here"),
        };
        let help = match near {
            Some(word) => format!("did you mean `{word}`?"),
            None => self.owners(key).unwrap_or_else(|| format!("valid here: {}", words::list(known))),
        };
        self.out.key_error("unknown-key", pointer, message).with_help(help);
        self.repair(pointer, Repair::Remove);
        if let Some(word) = near {
            self.touched.add(meant_pointer(pointer, word));
        }
        near
    }

    /// Which kinds take a key that this one does not.
    fn owners(&self, key: &str) -> Option<String> {
        let takes = |info: &&dyn crate::kinds::StageKindInfo| info.keys().iter().any(|taken| taken.name == key);
        let owners: Vec<&str> = self.registry.iter().filter(takes).map(|info| info.name()).collect();
        (!owners.is_empty()).then(|| format!("`{key}` is a key of {}", words::list(&owners)))
    }

    fn missing_key(&mut self, key: &str, schema: &'a Schema, pointer: &str) {
        let subject = match schema["properties"]["kind"]["const"].as_str() {
            Some(kind) => format!("`{kind}`"),
            None => named(pointer, "the deployment"),
        };
        let wanted = &schema["properties"][key];
        let expected = expected(self.resolve(wanted), self.root);
        let help = match wanted["description"].as_str() {
            Some(doc) => format!("add `\"{key}\"`: {expected}. {doc}"),
            None => format!("add `\"{key}\"`: {expected}"),
        };
        self.out.error("missing-key", pointer, format!("{subject} lacks the key `{key}`")).with_help(help);
    }
}
