//! The body of a chat request: what a completion has, and messages in place of prompts.

use super::error::ApiError;
use super::fields::{Fields, describe, invalid};
use super::request::{COMMON_KEYS, Common, common, object};
use serde::Serialize;
use serde_json::{Map, Value};

pub(crate) const CHAT_KEYS: &[&str] = &[
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "response_format",
    "modalities",
    "reasoning_effort",
    "verbosity",
];
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// A request to `/v1/chat/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// What it shares with others.
    pub common: Common,
    /// At least one.
    pub messages: Vec<Message>,
}

/// One message, as templates see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// Text; of several parts, all of them.
    pub content: String,
    /// Who speaks, if several have the same role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Parses the body of `/v1/chat/completions`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse_chat(body: &[u8]) -> Result<ChatRequest, ApiError> {
    let map = object(body)?;
    let fields = Fields::new(&map, &[COMMON_KEYS, CHAT_KEYS].concat())?;
    let mut common = common(&fields, logprobs(&fields)?)?;
    if let Some(tokens) = fields.whole("max_completion_tokens", 1, 1 << 24)? {
        // The newer name; clients that send both mean the same.
        common.max_tokens = Some(tokens as usize);
    }
    refuse_what_is_not_there(&fields)?;
    let messages = fields.value("messages").ok_or(ApiError::Missing("messages"))?;
    let list = messages.as_array().filter(|list| !list.is_empty());
    let list = list.ok_or_else(|| invalid("messages", messages, "a list of messages that is not empty"))?;
    let messages = list.iter().enumerate().map(message).collect::<Result<_, _>>()?;
    Ok(ChatRequest { common, messages })
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    match fields.whole("top_logprobs", 0, 20)? {
        Some(count) if wanted => Ok(Some(count as u32)),
        Some(count) if count > 0 => Err(ApiError::Invalid {
            param: "top_logprobs".into(),
            found: "given without `logprobs`".into(),
            expected: "it only beside `\"logprobs\": true`".into(),
        }),
        _ => Ok(wanted.then_some(0)),
    }
}

fn refuse_what_is_not_there(fields: &Fields<'_>) -> Result<(), ApiError> {
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    let is_text = |value: &Value| value.get("type").and_then(Value::as_str) == Some("text");
    fields.neutral("tools", "[]", is_empty)?;
    fields.neutral("functions", "[]", is_empty)?;
    fields.neutral("tool_choice", "\"none\"", |value| matches!(value.as_str(), Some("none" | "auto")))?;
    fields.neutral("function_call", "\"none\"", |value| matches!(value.as_str(), Some("none" | "auto")))?;
    fields.neutral("parallel_tool_calls", "true", Value::is_boolean)?;
    fields.neutral("response_format", "{\"type\": \"text\"}", is_text)?;
    fields.neutral("modalities", "[\"text\"]", |value| value == &serde_json::json!(["text"]))?;
    fields.neutral("reasoning_effort", "nothing", |_| false)?;
    fields.neutral("verbosity", "nothing", |_| false)
}

fn message((index, value): (usize, &Value)) -> Result<Message, ApiError> {
    let at = |key: &str| format!("messages[{index}]{key}");
    let Value::Object(map) = value else { return Err(invalid(&at(""), value, "an object")) };
    let role = map.get("role").unwrap_or(&Value::Null);
    let known = ROLES.into_iter().find(|known| role.as_str() == Some(known));
    let role = known.ok_or_else(|| invalid(&at(".role"), role, "system, developer, user, assistant or tool"))?;
    let name = match map.get("name") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name.clone()),
        Some(other) => return Err(invalid(&at(".name"), other, "text")),
    };
    if let Some(key) = map.keys().find(|key| !matches!(key.as_str(), "role" | "content" | "name" | "refusal")) {
        // What an assistant said with tools cannot be shown to a model that is told of none.
        if !map[key].is_null() && map[key] != Value::Array(Vec::new()) {
            return Err(ApiError::Unsupported { param: at(&format!(".{key:.40}")), neutral: "nothing" });
        }
    }
    Ok(Message { role, content: content(map, &at)?, name })
}

fn content(map: &Map<String, Value>, at: &dyn Fn(&str) -> String) -> Result<String, ApiError> {
    let wrong = |value: &Value| invalid(&at(".content"), value, "text, or a list of parts of type `text`");
    match map.get("content") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(parts @ Value::Array(list)) => {
            let part = |part: &Value| {
                let text = part.get("text").and_then(Value::as_str);
                text.filter(|_| part.get("type").and_then(Value::as_str) == Some("text")).map(str::to_owned)
            };
            list.iter().map(part).collect::<Option<String>>().ok_or_else(|| ApiError::Invalid {
                param: at(".content"),
                found: describe(parts),
                expected: "text, or a list of parts of type `text`".into(),
            })
        }
        other => Err(wrong(other.unwrap_or(&Value::Null))),
    }
}
