//! Typed, range-checked look-up of keys in a configuration, bare or with a `text_config`.

use std::fmt::Display;
use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;

/// A key's dotted path and its value.
pub(super) type Found<'a> = (String, &'a Value);

/// The object (or the two objects) of a configuration.
pub(super) struct Fields<'a> {
    file: &'a Path,
    outer: &'a Map<String, Value>,
    text: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(root: &'a Value, file: &'a Path) -> Result<Self, ConfigError> {
        let not_object = |key: &str, value: &Value| ConfigError::Invalid {
            file: file.to_path_buf(),
            key: key.to_owned(),
            found: shorten(value),
            expected: "an object".to_owned(),
        };
        let Some(outer) = root.as_object() else { return Err(not_object("(the whole file)", root)) };
        let text = match outer.get("text_config") {
            None | Some(Value::Null) => None,
            Some(Value::Object(text)) => Some(text),
            Some(other) => return Err(not_object("text_config", other)),
        };
        Ok(Self { file, outer, text })
    }

    pub(super) fn is_nested(&self) -> bool {
        self.text.is_some()
    }

    /// Every stated `model_type`, with what it should be.
    pub(super) fn model_types(&self, outer_expected: &'static str) -> Vec<(String, &'a Value, &'static str)> {
        let outer = get(self.outer, "model_type").map(|value| ("model_type".to_owned(), value, outer_expected));
        let text = self.text.and_then(|text| get(text, "model_type"));
        let text = text.map(|value| ("text_config.model_type".to_owned(), value, "step3_text"));
        outer.into_iter().chain(text).collect()
    }

    pub(super) fn has_no_model_type(&self) -> bool {
        self.model_types("").is_empty()
    }

    /// Whether a stated architecture begins with `prefix` and continues with a part's name, not with a version.
    pub(super) fn names_architecture(&self, prefix: &str) -> bool {
        let lists = [Some(self.outer), self.text].into_iter().flatten().filter_map(|map| get(map, "architectures"));
        lists.filter_map(Value::as_array).flatten().filter_map(Value::as_str).any(|name| {
            name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("Text") || rest.starts_with("VL"))
        })
    }

    /// The value of a key of the text model; null counts as absent.
    pub(super) fn find(&self, key: &str) -> Option<Found<'a>> {
        get(self.text.unwrap_or(self.outer), key).map(|value| (self.path(key), value))
    }

    /// The value of a key that may stand in `text_config` or outside it.
    pub(super) fn find_shared(&self, key: &str) -> Result<Option<Found<'a>>, ConfigError> {
        let outer = get(self.outer, key).map(|value| (key.to_owned(), value));
        let Some(text) = self.text else { return Ok(outer) };
        let inner = get(text, key).map(|value| (self.path(key), value));
        match (outer, inner) {
            (Some((_, outer)), Some((_, inner))) if outer != inner => Err(ConfigError::Conflict {
                file: self.file.to_path_buf(),
                key: key.to_owned(),
                outer: shorten(outer),
                inner: shorten(inner),
            }),
            (outer, inner) => Ok(inner.or(outer)),
        }
    }

    pub(super) fn size(&self, key: &str, min: u64, max: u64) -> Result<usize, ConfigError> {
        let expected = format!("a whole number from {min} to {max}");
        let Some((key, value)) = self.find(key) else { return Err(self.missing(key, &expected)) };
        match value.as_u64().filter(|number| (min..=max).contains(number)).map(usize::try_from) {
            Some(Ok(number)) => Ok(number),
            _ => Err(self.invalid_at(&key, value, &expected)),
        }
    }

    pub(super) fn real(&self, key: &str, min: f64, max: f64) -> Result<f64, ConfigError> {
        match self.find(key) {
            Some((key, value)) => self.real_at(&key, value, min, max),
            None => Err(self.missing(key, &format!("a number from {min:e} to {max:e}"))),
        }
    }

    pub(super) fn real_at(&self, key: &str, value: &Value, min: f64, max: f64) -> Result<f64, ConfigError> {
        let number = value.as_f64().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| self.invalid_at(key, value, &format!("a number from {min:e} to {max:e}")))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.find(key).map(|found| self.flag_at(&found)).transpose()
    }

    pub(super) fn shared_flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.find_shared(key)?.map(|found| self.flag_at(&found)).transpose()
    }

    fn flag_at(&self, (key, value): &Found<'_>) -> Result<bool, ConfigError> {
        value.as_bool().ok_or_else(|| self.invalid_at(key, value, "true or false"))
    }

    pub(super) fn missing(&self, key: &str, expected: &str) -> ConfigError {
        self.missing_at(&self.path(key), expected)
    }

    pub(super) fn missing_at(&self, path: &str, expected: &str) -> ConfigError {
        ConfigError::Missing { file: self.file.to_path_buf(), key: path.to_owned(), expected: expected.to_owned() }
    }

    pub(super) fn invalid(&self, key: &str, found: impl Display, expected: &str) -> ConfigError {
        self.invalid_at(&self.path(key), found, expected)
    }

    pub(super) fn invalid_at(&self, path: &str, found: impl Display, expected: &str) -> ConfigError {
        ConfigError::Invalid {
            file: self.file.to_path_buf(),
            key: path.to_owned(),
            found: shorten(found),
            expected: expected.to_owned(),
        }
    }

    pub(super) fn unsupported(&self, path: &str, found: &Value, expected: &str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.to_path_buf(),
            key: path.to_owned(),
            found: shorten(found),
            expected: expected.to_owned(),
        }
    }

    fn path(&self, key: &str) -> String {
        if self.text.is_some() { format!("text_config.{key}") } else { key.to_owned() }
    }
}

fn get<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

/// A value as one short line.
fn shorten(value: impl Display) -> String {
    const LIMIT: usize = 80;
    let text = value.to_string();
    if text.chars().count() <= LIMIT {
        return text;
    }
    let mut short: String = text.chars().take(LIMIT).collect();
    short.push('…');
    short
}
