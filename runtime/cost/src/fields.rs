//! Typed, range-checked look-up of keys in a spec, with errors that name file and key.

use crate::SpecError;
use rally_graph::words;
use serde_json::{Map, Value};
use std::path::Path;

/// An object in a spec file, and where it stands.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    file: &'a Path,
    /// Dotted path with a dot behind it; empty for the file itself.
    prefix: String,
    map: &'a Map<String, Value>,
}

/// Parses a file's text.
pub(crate) fn parse(text: &str, file: &Path) -> Result<Value, SpecError> {
    serde_json::from_str(text.strip_prefix('\u{feff}').unwrap_or(text)).map_err(|error| SpecError::Syntax {
        file: file.into(),
        line: error.line(),
        column: error.column(),
        message: error.to_string(),
    })
}

impl<'a> Fields<'a> {
    pub(crate) fn new(value: &'a Value, file: &'a Path) -> Result<Self, SpecError> {
        Self::at(value, file, "the whole file".into(), String::new())
    }

    fn at(value: &'a Value, file: &'a Path, key: String, prefix: String) -> Result<Self, SpecError> {
        match value.as_object() {
            Some(map) => Ok(Self { file, prefix, map }),
            None => {
                Err(SpecError::Invalid { file: file.into(), key, found: shown(value), expected: "an object".into() })
            }
        }
    }

    /// The keys, in the file's order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// Refuses keys other than `valid`.
    pub(crate) fn only(&self, valid: &[&str]) -> Result<(), SpecError> {
        match self.keys().find(|key| !valid.contains(key)) {
            None => Ok(()),
            Some(key) => Err(SpecError::UnknownKey {
                file: self.file.into(),
                key: self.path(key),
                help: words::suggest(key, valid.iter().copied()),
            }),
        }
    }

    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{}", self.prefix, words::printable(&words::short(key)))
    }

    /// A value; null counts as absent.
    pub(crate) fn find(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn get(&self, key: &str, remedy: &str) -> Result<&'a Value, SpecError> {
        self.find(key).ok_or_else(|| self.missing(key, remedy))
    }

    pub(crate) fn missing(&self, key: &str, remedy: &str) -> SpecError {
        SpecError::Missing { file: self.file.into(), key: self.path(key), remedy: remedy.into() }
    }

    pub(crate) fn invalid(&self, key: &str, value: &Value, expected: impl Into<String>) -> SpecError {
        SpecError::Invalid {
            file: self.file.into(),
            key: self.path(key),
            found: shown(value),
            expected: expected.into(),
        }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, SpecError> {
        self.find(key)
            .map(|value| Self::at(value, self.file, self.path(key), format!("{}.", self.path(key))))
            .transpose()
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, SpecError> {
        self.find(key).map(|value| value.as_str().ok_or_else(|| self.invalid(key, value, "a text"))).transpose()
    }

    /// A whole number of at least `least`, absent allowed.
    pub(crate) fn size_if(&self, key: &str, least: u64) -> Result<Option<u64>, SpecError> {
        // Past this no product of a model's sizes is exact in an f64.
        const MOST: u64 = 1 << 32;
        let Some(value) = self.find(key) else { return Ok(None) };
        match value.as_u64().filter(|size| (least..=MOST).contains(size)) {
            Some(size) => Ok(Some(size)),
            None => Err(self.invalid(key, value, format!("a whole number from {least} to {MOST}"))),
        }
    }

    /// A whole number of at least 1.
    pub(crate) fn size(&self, key: &str) -> Result<u64, SpecError> {
        self.size_if(key, 1)?.ok_or_else(|| self.missing(key, "this kind of model cannot be counted without it"))
    }

    /// A list of whole numbers, absent allowed.
    pub(crate) fn sizes_if(&self, key: &str) -> Result<Option<Vec<u64>>, SpecError> {
        let Some(value) = self.find(key) else { return Ok(None) };
        let numbers: Option<Vec<u64>> =
            value.as_array().and_then(|values| values.iter().map(Value::as_u64).collect::<Option<_>>());
        numbers.map(Some).ok_or_else(|| self.invalid(key, value, "a list of whole numbers"))
    }
}

/// A value, short enough for a message.
fn shown(value: &Value) -> String {
    words::printable(&words::short(&value.to_string()))
}
