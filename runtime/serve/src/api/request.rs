//! The body of a completion request: keys, ranges, defaults.
//!
//! Keys are OpenAI's, with those that vLLM adds (`top_k`, `min_p`, `ignore_eos`, `priority`). What cannot be done is refused,
//! never ignored; keys that only describe a client (`user`, `metadata`, …) change nothing anywhere and are let through.

use super::error::ApiError;
use super::fields::{Fields, describe, invalid};
use serde_json::{Map, Value};

/// Tokens of a completion that says nothing about them, as with OpenAI.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most answers to one request: prompts times `n`.
pub const MOST_CHOICES: usize = 128;

/// Of every kind of request.
pub(crate) const COMMON_KEYS: &[&str] = &[
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "n",
    "stream",
    "stream_options",
    "logprobs",
    "ignore_eos",
    "priority",
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "min_tokens",
    "stop_token_ids",
    "use_beam_search",
    "length_penalty",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
];
pub(crate) const COMPLETION_KEYS: &[&str] = &["prompt", "best_of", "echo", "suffix"];

/// What an answer starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, to be encoded. Not empty.
    Text(String),
    /// Token ids. Not empty.
    TokenIds(Vec<u32>),
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamMode {
    /// A last event tells the usage.
    pub include_usage: bool,
}

/// What requests of every kind say, every value within its range.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// The model's name.
    pub model: String,
    /// Answers to each prompt, at least 1.
    pub n: usize,
    /// Most tokens of an answer, at least 1; `None`: as many as there is room for.
    pub max_tokens: Option<usize>,
    /// 0 always takes the likeliest token; 1 unless set.
    pub temperature: f32,
    /// Sample among the likeliest tokens that have this share together.
    pub top_p: f32,
    /// Sample among the k likeliest; 0: all.
    pub top_k: u32,
    /// Sample among those at least this likely, relative to the likeliest.
    pub min_p: f32,
    /// Of the random numbers; drawn if not given.
    pub seed: Option<u64>,
    /// Texts that end an answer, none of them empty.
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Report the chosen token's log probability, and that of so many of the likeliest.
    pub logprobs: Option<u32>,
    /// Present if events are to be sent while tokens come.
    pub stream: Option<StreamMode>,
    /// Lower is served earlier, as with vLLM.
    pub priority: i32,
}

/// A request to `/v1/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// What it shares with others.
    pub common: Common,
    /// At least one.
    pub prompts: Vec<Prompt>,
}

/// Parses the body of `/v1/completions`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse_completion(body: &[u8]) -> Result<CompletionRequest, ApiError> {
    let map = object(body)?;
    let fields = Fields::new(&map, &[COMMON_KEYS, COMPLETION_KEYS].concat())?;
    let logprobs = fields.whole("logprobs", 0, 20)?.map(|count| count as u32);
    let mut common = common(&fields, logprobs)?;
    common.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
    let n = common.n;
    fields.neutral("best_of", "the same as `n`", |value| value.as_u64() == Some(n as u64))?;
    fields.neutral("echo", "false", |value| value == &Value::Bool(false))?;
    fields.neutral("suffix", "an empty text", |value| value.as_str() == Some(""))?;
    let prompts = prompts(fields.value("prompt").ok_or(ApiError::Missing("prompt"))?)?;
    if prompts.len() * common.n > MOST_CHOICES {
        let expected = format!("at most {MOST_CHOICES} answers in all");
        let found = format!("{} for each of {} prompts", common.n, prompts.len());
        return Err(ApiError::Invalid { param: "n".into(), found, expected });
    }
    Ok(CompletionRequest { common, prompts })
}

/// The body as an object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body).map_err(|error| ApiError::NotJson(error.to_string()))? {
        Value::Object(map) => Ok(map),
        other => Err(ApiError::NotAnObject { found: describe(&other) }),
    }
}

pub(super) fn common(fields: &Fields<'_>, logprobs: Option<u32>) -> Result<Common, ApiError> {
    let is_zero = |value: &Value| value.as_f64() == Some(0.0);
    fields.neutral("frequency_penalty", "0", is_zero)?;
    fields.neutral("presence_penalty", "0", is_zero)?;
    fields.neutral("repetition_penalty", "1", |value| value.as_f64() == Some(1.0))?;
    fields.neutral("logit_bias", "{}", |value| value.as_object().is_some_and(Map::is_empty))?;
    refuse_what_vllm_has(fields)?;
    Ok(Common {
        model: fields.text("model")?.ok_or(ApiError::Missing("model"))?.to_owned(),
        n: fields.whole("n", 1, MOST_CHOICES as u64)?.unwrap_or(1) as usize,
        max_tokens: fields.whole("max_tokens", 1, 1 << 24)?.map(|tokens| tokens as usize),
        temperature: fields.real("temperature", 0.0, 100.0)?.unwrap_or(1.0),
        top_p: fields.top_p()?.unwrap_or(1.0),
        top_k: top_k(fields)?,
        min_p: fields.real("min_p", 0.0, 1.0)?.unwrap_or(0.0),
        seed: fields.seed("seed")?,
        stop: fields.stop()?,
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        logprobs,
        stream: stream(fields)?,
        priority: fields.signed("priority", -1000, 1000)?.unwrap_or(0) as i32,
    })
}

/// Sampling parameters that clients of vLLM write out although they change nothing.
fn refuse_what_vllm_has(fields: &Fields<'_>) -> Result<(), ApiError> {
    let ignores_eos = fields.flag("ignore_eos")?.unwrap_or(false) && fields.value("stop").is_none();
    let most = fields.whole("max_tokens", 1, 1 << 24)?;
    // Nothing ends such an answer early, so that it has at least as many tokens as at most.
    let always = |value: &Value| {
        value.as_u64().is_some_and(|least| least == 0 || ignores_eos && most.is_some_and(|most| least <= most))
    };
    fields.neutral("min_tokens", "0, or at most `max_tokens` beside `ignore_eos`", always)?;
    fields.neutral("stop_token_ids", "[]", |value| value.as_array().is_some_and(Vec::is_empty))?;
    fields.neutral("length_penalty", "1", |value| value.as_f64() == Some(1.0))?;
    for (key, neutral) in [
        ("use_beam_search", false),
        ("skip_special_tokens", true),
        ("spaces_between_special_tokens", true),
        ("include_stop_str_in_output", false),
    ] {
        fields.neutral(key, if neutral { "true" } else { "false" }, |value| value == &Value::Bool(neutral))?;
    }
    Ok(())
}

/// vLLM's clients write -1 for all.
fn top_k(fields: &Fields<'_>) -> Result<u32, ApiError> {
    let number = fields.signed("top_k", -1, i64::from(i32::MAX))?.unwrap_or(0);
    Ok(number.max(0) as u32)
}

fn stream(fields: &Fields<'_>) -> Result<Option<StreamMode>, ApiError> {
    let streams = fields.flag("stream")?.unwrap_or(false);
    let mut mode = StreamMode { include_usage: false };
    match fields.value("stream_options") {
        None => {}
        Some(Value::Object(_)) if !streams => {
            let found = "given without `stream`".into();
            let expected = "it only beside `\"stream\": true`".into();
            return Err(ApiError::Invalid { param: "stream_options".into(), found, expected });
        }
        Some(Value::Object(map)) => {
            let options = Fields::new(map, &["include_usage", "include_obfuscation"])?;
            mode.include_usage = options.flag("include_usage")?.unwrap_or(false);
            options.neutral("include_obfuscation", "false", |value| value == &Value::Bool(false))?;
        }
        Some(other) => return Err(invalid("stream_options", other, "an object")),
    }
    Ok(streams.then_some(mode))
}

/// A text, several, a list of token ids, or several such lists.
fn prompts(value: &Value) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a text or a list of token ids that is not empty, or a list of these";
    let wrong = || invalid("prompt", value, expected);
    let prompts = match value {
        Value::Array(values) if values.first().is_some_and(Value::is_number) => vec![token_ids(values)?],
        Value::Array(values) if values.len() > MOST_CHOICES => {
            return Err(invalid("prompt", value, &format!("at most {MOST_CHOICES} prompts")));
        }
        Value::Array(values) => values.iter().map(prompt).collect::<Result<_, _>>()?,
        one => vec![prompt(one)?],
    };
    if prompts.is_empty() { Err(wrong()) } else { Ok(prompts) }
}

fn prompt(value: &Value) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(Prompt::Text(text.clone())),
        Value::Array(values) if !values.is_empty() => token_ids(values),
        other => Err(invalid("prompt", other, "a text or a list of token ids that is not empty")),
    }
}

fn token_ids(values: &[Value]) -> Result<Prompt, ApiError> {
    let id = |(position, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| invalid(&format!("prompt[{position}]"), value, "a token id"))
    };
    values.iter().enumerate().map(id).collect::<Result<_, _>>().map(Prompt::TokenIds)
}
