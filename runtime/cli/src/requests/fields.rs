//! Typed, range-checked look-up of a request's keys, collecting faults as it goes.

use std::collections::HashSet;

use jsonc_parser::ast::{Object, ObjectProp, Value};
use jsonc_parser::common::Ranged as _;

use super::{KEYS, Prompt, RequestFault, RequestId};

/// A fault and its byte offset in the line.
pub(super) type Fault = (Option<usize>, RequestFault);

const MAX_ID_BYTES: usize = 256;
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;

/// The properties of one request.
pub(super) struct Fields<'a> {
    object: &'a Object<'a>,
    faults: Vec<Fault>,
}

impl<'a> Fields<'a> {
    /// Notes unknown and repeated keys.
    pub(super) fn new(object: &'a Object<'a>) -> Self {
        let mut faults = Vec::new();
        let mut seen = HashSet::new();
        for property in &object.properties {
            let key = property.name.as_str();
            let fault = if !KEYS.contains(&key) {
                RequestFault::UnknownKey { key: shorten(key), nearest: nearest(key) }
            } else if !seen.insert(key) {
                RequestFault::DuplicateKey { key: key.to_owned() }
            } else {
                continue;
            };
            faults.push((Some(property.start()), fault));
        }
        Self { object, faults }
    }

    /// All faults found, in order of place.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        self.faults.sort_by_key(|(offset, _)| *offset);
        self.faults
    }

    pub(super) fn offset_of(&self, key: &str) -> Option<usize> {
        self.find(key).map(|property| property.value.start())
    }

    /// The request's name, `None` if it is wrong.
    pub(super) fn id(&mut self, index: usize) -> Option<RequestId> {
        let Some(value) = self.value("id") else { return Some(RequestId::from_index(index)) };
        let id = match value {
            // `__metadata__` cannot name a tensor in a file of logits.
            Value::StringLit(text) => Some(RequestId { text: text.value.to_string(), is_number: false })
                .filter(|id| (1..=MAX_ID_BYTES).contains(&id.text.len()) && id.text != "__metadata__"),
            Value::NumberLit(number) => {
                let signed = number.value.parse::<i64>().map(|number| number.to_string());
                let text = signed.or_else(|_| number.value.parse::<u64>().map(|number| number.to_string()));
                text.ok().map(|text| RequestId { text, is_number: true })
            }
            _ => None,
        };
        if id.is_none() {
            let expected = format!("a whole number, or text of 1 to {MAX_ID_BYTES} bytes other than \"__metadata__\"");
            self.invalid("id", value, &expected);
        }
        id
    }

    pub(super) fn prompt(&mut self) -> Prompt {
        let prompt = match (self.value("prompt"), self.value("prompt_token_ids")) {
            (None, None) => {
                self.faults.push((Some(self.object.start()), RequestFault::NoPrompt));
                None
            }
            (Some(_), Some(ids)) => {
                self.faults.push((Some(ids.start()), RequestFault::TwoPrompts));
                None
            }
            (Some(Value::StringLit(text)), None) if !text.value.is_empty() => Some(text.value.to_string()),
            (Some(value), None) => {
                self.invalid("prompt", value, "text that is not empty");
                None
            }
            (None, Some(value)) => return Prompt::TokenIds(self.token_ids(value)),
        };
        Prompt::Text(prompt.unwrap_or_default())
    }

    fn token_ids(&mut self, value: &Value<'_>) -> Vec<u32> {
        const EXPECTED: &str = "a token id, a whole number from 0 to 4294967295";
        let elements = match value {
            Value::Array(array) if !array.elements.is_empty() => &array.elements,
            _ => {
                self.invalid("prompt_token_ids", value, "a list of token ids that is not empty");
                return Vec::new();
            }
        };
        let mut ids = Vec::with_capacity(elements.len());
        for (position, element) in elements.iter().enumerate() {
            match element.as_number_lit().and_then(|number| number.value.parse().ok()) {
                Some(id) => ids.push(id),
                None => {
                    self.invalid(&format!("prompt_token_ids[{position}]"), element, EXPECTED);
                    break;
                }
            }
        }
        ids
    }

    pub(super) fn whole(&mut self, key: &str, min: u64, max: u64) -> Option<u64> {
        let value = self.value(key)?;
        let number = value.as_number_lit().and_then(|number| number.value.parse().ok());
        let number = number.filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.invalid(key, value, &format!("a whole number from {min} to {max}"));
        }
        number
    }

    pub(super) fn real(&mut self, key: &str, min: f64, max: f64) -> Option<f32> {
        let is_good = |number: f64| (min..=max).contains(&number);
        self.number(key, is_good, &format!("a number from {min} to {max}"))
    }

    pub(super) fn top_p(&mut self) -> Option<f32> {
        // A share so small that it is zero in f32 would leave no token.
        self.number("top_p", |number| number as f32 > 0.0 && number <= 1.0, "a number above 0 and at most 1")
    }

    fn number(&mut self, key: &str, is_good: impl Fn(f64) -> bool, expected: &str) -> Option<f32> {
        let value = self.value(key)?;
        let number = value.as_number_lit().and_then(|number| number.value.parse::<f64>().ok());
        let number = number.filter(|number| is_good(*number));
        if number.is_none() {
            self.invalid(key, value, expected);
        }
        number.map(|number| number as f32)
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.value(key)?;
        let flag = value.as_boolean_lit().map(|flag| flag.value);
        if flag.is_none() {
            self.invalid(key, value, "true or false");
        }
        flag
    }

    pub(super) fn stop(&mut self) -> Vec<String> {
        let expected = format!("a text, or a list of at most {MAX_STOPS} texts, each of 1 to {MAX_STOP_BYTES} bytes");
        let Some(value) = self.value("stop") else { return Vec::new() };
        let elements = match value {
            Value::Array(array) => array.elements.as_slice(),
            other => std::slice::from_ref(other),
        };
        if elements.len() > MAX_STOPS {
            self.invalid("stop", value, &expected);
            return Vec::new();
        }
        let mut stops = Vec::with_capacity(elements.len());
        for element in elements {
            let text = element.as_string_lit().map(|text| text.value.to_string());
            match text.filter(|text| (1..=MAX_STOP_BYTES).contains(&text.len())) {
                Some(text) => stops.push(text),
                None => self.invalid("stop", element, &expected),
            }
        }
        stops
    }

    /// The first property of this name; a repetition has been noted.
    fn find(&self, key: &str) -> Option<&'a ObjectProp<'a>> {
        self.object.properties.iter().find(|property| property.name.as_str() == key)
    }

    fn value(&self, key: &str) -> Option<&'a Value<'a>> {
        self.find(key).map(|property| &property.value)
    }

    fn invalid(&mut self, key: &str, value: &Value<'_>, expected: &str) {
        let fault =
            RequestFault::Invalid { key: key.to_owned(), found: describe(value), expected: expected.to_owned() };
        self.faults.push((Some(value.start()), fault));
    }
}

/// A value in a few words.
pub(super) fn describe(value: &Value<'_>) -> String {
    match value {
        Value::StringLit(text) => format!("{:?}", shorten(&text.value)),
        Value::NumberLit(number) => shorten(number.value),
        Value::BooleanLit(flag) => flag.value.to_string(),
        Value::NullKeyword(_) => "null".to_owned(),
        Value::Array(array) if array.elements.is_empty() => "an empty list".to_owned(),
        Value::Array(array) => format!("a list of {}", array.elements.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn shorten(text: &str) -> String {
    const LIMIT: usize = 60;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    text.chars().take(LIMIT).chain(['…']).collect()
}

/// The valid key that is at most a third of its letters away.
fn nearest(key: &str) -> Option<&'static str> {
    // Comparing takes time by the product of the lengths.
    if key.len() > 64 {
        return None;
    }
    let distances = KEYS.iter().map(|word| (strsim::damerau_levenshtein(key, word), *word));
    distances.min().filter(|(distance, word)| *distance <= (word.len() / 3).max(1)).map(|(_, word)| word)
}
