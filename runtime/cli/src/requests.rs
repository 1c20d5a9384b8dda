//! Request files: one JSON object a line.
//!
//! Owns the keys of a request, their ranges and defaults, and the reporting of every fault of a file at once with line
//! and column. Knows no model; [`check_against`] compares what was parsed with one.

mod errors;
mod fields;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use jsonc_parser::ast;
use jsonc_parser::{CollectOptions, ParseOptions};
use rally_graph::model::ModelShape;
use serde::{Serialize, Serializer};

pub use errors::{RequestError, RequestErrors, RequestFault};
use fields::{Fault, Fields};

/// Largest request file.
const MAX_FILE_BYTES: usize = 512 << 20;

/// Longest line: a prompt of a million ids takes some seven megabytes.
const MAX_LINE_BYTES: usize = 16 << 20;

/// Deepest nesting that is parsed; a request needs two levels. Keeps the parser's recursion within any stack.
const MAX_DEPTH: usize = 32;

/// Tokens generated where a request sets no `max_tokens`: a paragraph or two.
pub const DEFAULT_MAX_TOKENS: usize = 128;

/// The keys of a request.
pub const KEYS: [&str; 12] = [
    "id",
    "prompt",
    "prompt_token_ids",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop",
    "ignore_eos",
    "logprobs",
];

/// A request's name: text or a whole number, unique in its file. Written back as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    text: String,
    is_number: bool,
}

impl RequestId {
    /// The name of a request that has none: its index in the file, from 0, blank lines not counted.
    pub fn from_index(index: usize) -> Self {
        Self { text: index.to_string(), is_number: true }
    }

    /// A number or a text.
    pub fn new(text: String, is_number: bool) -> Self {
        Self { text, is_number }
    }

    /// Whether it was a number.
    pub fn is_number(&self) -> bool {
        self.is_number
    }

    /// The id as text, `7` for the number 7.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.is_number, self.text.parse::<i64>(), self.text.parse::<u64>()) {
            (true, Ok(number), _) => serializer.serialize_i64(number),
            (true, _, Ok(number)) => serializer.serialize_u64(number),
            _ => serializer.serialize_str(&self.text),
        }
    }
}

/// What a request starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, to be encoded by the checkpoint's tokenizer. Not empty.
    Text(String),
    /// Token ids. Not empty.
    TokenIds(Vec<u32>),
}

/// One request, every value within its range.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestSpec {
    /// `id`; the request's index if there is none.
    pub id: RequestId,
    /// `prompt` or `prompt_token_ids`.
    pub prompt: Prompt,
    /// `max_tokens`, at least 1; [`DEFAULT_MAX_TOKENS`] unless set.
    pub max_tokens: usize,
    /// `temperature`, 0 to 100; 0 (the default) always takes the likeliest token.
    pub temperature: f32,
    /// `top_k`: sample among the k likeliest; 0 (the default) among all.
    pub top_k: usize,
    /// `top_p`, above 0 and at most 1 (the default): sample among the likeliest that have this share together.
    pub top_p: f32,
    /// `min_p`, 0 (the default) to 1: sample among those at least this likely, relative to the likeliest.
    pub min_p: f32,
    /// `seed`, if set.
    pub seed: Option<u64>,
    /// `stop`: texts that end the answer, none of them empty.
    pub stop: Vec<String>,
    /// `ignore_eos`: go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// `logprobs`, if set: report this many likeliest tokens with each token, 0 to 20.
    pub logprobs: Option<usize>,
    /// Line of the file, from 1.
    pub line: usize,
}

/// Parses a request file; `path` is only used to name the file in errors. Blank lines and a byte order mark are fine.
///
/// # Errors
/// [`RequestErrors`] with every fault of every line.
pub fn parse_requests(bytes: &[u8], path: &Path) -> Result<Vec<RequestSpec>, RequestErrors> {
    let mut errors = RequestErrors::new(path);
    if bytes.len() > MAX_FILE_BYTES {
        errors.push(1, None, RequestFault::FileTooLarge { found: bytes.len(), limit: MAX_FILE_BYTES });
        return Err(errors);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut requests: Vec<RequestSpec> = Vec::new();
    let mut line_of_id: HashMap<String, usize> = HashMap::new();
    let mut index = 0;
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line_number = number + 1;
        let parsed = parse_line(line, line_number, index, &mut errors);
        index += 1;
        let Some(Parsed { id: Some(id), id_column, request }) = parsed else { continue };
        if let Some(first_line) = line_of_id.get(id.as_str()) {
            let fault = RequestFault::DuplicateId { id: id.to_string(), first_line: *first_line };
            errors.push(line_number, id_column, fault);
        }
        line_of_id.entry(id.to_string()).or_insert(line_number);
        requests.extend(request);
    }
    if index == 0 {
        errors.push(1, None, RequestFault::NoRequests);
    }
    if errors.is_empty() { Ok(requests) } else { Err(errors) }
}

/// Checks that requests fit a model: token ids within its vocabulary, and prompts that leave room for a token.
///
/// # Errors
/// [`RequestErrors`] with every fault of every request.
pub fn check_against(requests: &[RequestSpec], shape: &ModelShape, path: &Path) -> Result<(), RequestErrors> {
    let mut errors = RequestErrors::new(path);
    for request in requests {
        let Prompt::TokenIds(ids) = &request.prompt else { continue };
        if let Some(position) = ids.iter().position(|id| *id as usize >= shape.vocab) {
            let (key, found) = (format!("prompt_token_ids[{position}]"), ids[position].to_string());
            let expected = format!("a token id below {}, the model's vocabulary", shape.vocab);
            errors.push(request.line, None, RequestFault::Invalid { key, found, expected });
        }
        if ids.len() >= shape.max_positions {
            let (key, found) = ("prompt_token_ids".to_owned(), format!("{} tokens long", ids.len()));
            let expected = format!("fewer than {} tokens, the model's context", shape.max_positions);
            errors.push(request.line, None, RequestFault::Invalid { key, found, expected });
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What one line holds.
struct Parsed {
    /// The request's name, unless that is wrong.
    id: Option<RequestId>,
    id_column: Option<usize>,
    /// The request, unless something is wrong.
    request: Option<RequestSpec>,
}

/// Parses one line; reports its faults.
fn parse_line(line: &[u8], line_number: usize, index: usize, errors: &mut RequestErrors) -> Option<Parsed> {
    let text = match check_text(line) {
        Ok(text) => text,
        Err((column, fault)) => {
            errors.push(line_number, column, fault);
            return None;
        }
    };
    let object = match parse_object(text) {
        Ok(object) => object,
        Err((offset, fault)) => {
            errors.push(line_number, offset.map(|offset| column(text, offset)), fault);
            return None;
        }
    };
    let mut fields = Fields::new(&object);
    let id = fields.id(index);
    let request = RequestSpec {
        id: id.clone().unwrap_or_else(|| RequestId::from_index(index)),
        prompt: fields.prompt(),
        max_tokens: fields.whole("max_tokens", 1, 1 << 24).map_or(DEFAULT_MAX_TOKENS, |number| number as usize),
        temperature: fields.real("temperature", 0.0, 100.0).unwrap_or(0.0),
        top_k: fields.whole("top_k", 0, i32::MAX as u64).unwrap_or(0) as usize,
        top_p: fields.top_p().unwrap_or(1.0),
        min_p: fields.real("min_p", 0.0, 1.0).unwrap_or(0.0),
        seed: fields.whole("seed", 0, u64::MAX),
        stop: fields.stop(),
        ignore_eos: fields.flag("ignore_eos").unwrap_or(false),
        logprobs: fields.whole("logprobs", 0, 20).map(|number| number as usize),
        line: line_number,
    };
    let id_column = fields.offset_of("id").map(|offset| column(text, offset));
    let faults = fields.into_faults();
    let is_good = faults.is_empty();
    for (offset, fault) in faults {
        errors.push(line_number, offset.map(|offset| column(text, offset)), fault);
    }
    Some(Parsed { id, id_column, request: is_good.then_some(request) })
}

/// Checks length and encoding of a line; a fault comes with its column.
fn check_text(line: &[u8]) -> Result<&str, (Option<usize>, RequestFault)> {
    if line.len() > MAX_LINE_BYTES {
        return Err((None, RequestFault::LineTooLong { found: line.len(), limit: MAX_LINE_BYTES }));
    }
    std::str::from_utf8(line).map_err(|error| {
        let valid = String::from_utf8_lossy(&line[..error.valid_up_to()]);
        (Some(valid.chars().count() + 1), RequestFault::NotUtf8)
    })
}

/// Parses a line as one JSON object; a fault comes with its byte offset in the line.
fn parse_object(text: &str) -> Result<ast::Object<'_>, Fault> {
    if let Some(offset) = too_deep(text) {
        return Err((Some(offset), RequestFault::TooDeep { limit: MAX_DEPTH }));
    }
    // serde_json decides what JSON is; the second parser knows where things are.
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message).to_owned();
        return Err((Some(error.column().saturating_sub(1)), RequestFault::Syntax { message }));
    }
    let options = ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let parsed = jsonc_parser::parse_to_ast(text, &CollectOptions::default(), &options)
        .map_err(|error| (Some(error.range().start), RequestFault::Syntax { message: error.kind().to_string() }))?;
    match parsed.value {
        Some(ast::Value::Object(object)) => Ok(object),
        Some(other) => Err((Some(0), RequestFault::NotAnObject { found: fields::describe(&other) })),
        None => Err((Some(0), RequestFault::NotAnObject { found: "nothing".to_owned() })),
    }
}

/// Offset of the first bracket that opens more than [`MAX_DEPTH`] levels.
fn too_deep(text: &str) -> Option<usize> {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(offset);
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    None
}

/// The column, from 1 and in characters, of a byte offset.
fn column(text: &str, offset: usize) -> usize {
    text.char_indices().take_while(|(start, _)| *start < offset).count() + 1
}
