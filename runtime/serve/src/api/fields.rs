//! Typed, range-checked look-up of a body's keys. `null` is the same as nothing, as clients send it.

use super::error::ApiError;
use serde_json::{Map, Value};

/// Most texts in `stop`, and bytes of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// The keys of one object.
pub(super) struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// # Errors
    /// A key is not among `known`.
    pub(super) fn new(map: &'a Map<String, Value>, known: &[&'static str]) -> Result<Self, ApiError> {
        match map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(ApiError::UnknownKey { param: shorten(key), nearest: nearest(key, known) }),
            None => Ok(Self(map)),
        }
    }

    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &'static str) -> Result<Option<&'a str>, ApiError> {
        self.typed(key, Value::as_str, "text")
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<Option<bool>, ApiError> {
        self.typed(key, Value::as_bool, "true or false")
    }

    pub(super) fn whole(&self, key: &'static str, min: u64, max: u64) -> Result<Option<u64>, ApiError> {
        let within = |value: &Value| {
            whole(value).and_then(|number| u64::try_from(number).ok()).filter(|number| (min..=max).contains(number))
        };
        self.typed(key, within, &format!("a whole number from {min} to {max}"))
    }

    /// Any 64-bit integer, as its bits.
    pub(super) fn seed(&self, key: &'static str) -> Result<Option<u64>, ApiError> {
        let bits = |value: &Value| whole(value).map(|number| number as u64);
        self.typed(key, bits, "a whole number of 64 bits")
    }

    pub(super) fn signed(&self, key: &'static str, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
        let within = |value: &Value| {
            whole(value).and_then(|number| i64::try_from(number).ok()).filter(|number| (min..=max).contains(number))
        };
        self.typed(key, within, &format!("a whole number from {min} to {max}"))
    }

    pub(super) fn real(&self, key: &'static str, min: f64, max: f64) -> Result<Option<f32>, ApiError> {
        let within = |value: &Value| value.as_f64().filter(|number| (min..=max).contains(number));
        Ok(self.typed(key, within, &format!("a number from {min} to {max}"))?.map(|number| number as f32))
    }

    pub(super) fn top_p(&self) -> Result<Option<f32>, ApiError> {
        // A share so small that it is zero in f32 would leave no token.
        let within = |value: &Value| value.as_f64().filter(|number| *number as f32 > 0.0 && *number <= 1.0);
        Ok(self.typed("top_p", within, "a number above 0 and at most 1")?.map(|number| number as f32))
    }

    /// `stop`: one text or several.
    pub(super) fn stop(&self) -> Result<Vec<String>, ApiError> {
        let expected = format!("a text, or at most {MAX_STOPS} texts, each of 1 to {MAX_STOP_BYTES} bytes");
        let stop = |value: &Value| {
            let text = value.as_str().filter(|text| (1..=MAX_STOP_BYTES).contains(&text.len()));
            text.map(str::to_owned)
        };
        let stops = |value: &Value| match value {
            Value::Array(values) if values.len() <= MAX_STOPS => values.iter().map(stop).collect(),
            other => stop(other).map(|stop| vec![stop]),
        };
        Ok(self.typed("stop", stops, &expected)?.unwrap_or_default())
    }

    /// A key that is understood, and that only its `neutral` values do nothing to.
    pub(super) fn neutral(
        &self,
        key: &'static str,
        neutral: &'static str,
        is_neutral: impl Fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.value(key) {
            Some(value) if !is_neutral(value) => Err(ApiError::Unsupported { param: key.into(), neutral }),
            _ => Ok(()),
        }
    }

    fn typed<T>(
        &self,
        key: &'static str,
        take: impl Fn(&'a Value) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| invalid(key, value, expected))
    }
}

/// A whole number, which may be written as `1.0`: to JSON they are the same.
fn whole(value: &Value) -> Option<i128> {
    let exact = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
    // Beyond 2⁵³ a fraction no longer says which whole number it is.
    let safe = |number: &f64| number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0;
    exact.or_else(|| value.as_f64().filter(safe).map(|number| number as i128))
}

/// `value` under `param` will not do.
pub(super) fn invalid(param: &str, value: &Value, expected: &str) -> ApiError {
    ApiError::Invalid { param: param.into(), found: describe(value), expected: expected.into() }
}

/// A value in a few words.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", shorten(text)),
        Value::Array(values) if values.is_empty() => "an empty list".into(),
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "an object".into(),
        other => shorten(&other.to_string()),
    }
}

fn shorten(text: &str) -> String {
    const LIMIT: usize = 60;
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The known key that is at most a third of its letters away.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    // Comparing takes time by the product of the lengths.
    if key.len() > 64 {
        return None;
    }
    let distances = known.iter().map(|word| (strsim::damerau_levenshtein(key, word), *word));
    distances.min().filter(|(distance, word)| *distance <= (word.len() / 3).max(1)).map(|(_, word)| word)
}
