//! Refusals: what is said, under which status, in OpenAI's error form.

use serde_json::{Value, json};

/// Why a request gets no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body is no JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// The body is JSON, but no object.
    #[error("the body is {found}; expected an object")]
    NotAnObject {
        /// What it is.
        found: String,
    },
    /// A value out of its range, or of another type.
    #[error("`{param}` is {found}; expected {expected}")]
    Invalid {
        /// Its key.
        param: String,
        /// What was given.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A key that means nothing.
    #[error("unrecognized request argument `{param}`{}", nearest.map(|word| format!("; did you mean `{word}`?")).unwrap_or_default())]
    UnknownKey {
        /// The key.
        param: String,
        /// The nearest that does.
        nearest: Option<&'static str>,
    },
    /// A known key with a value that would have to change something, and cannot.
    #[error("`{param}` is not supported here: leave it out, or give {neutral}")]
    Unsupported {
        /// Its key.
        param: String,
        /// The value that changes nothing.
        neutral: &'static str,
    },
    /// A key that must be there.
    #[error("you must provide `{0}`")]
    Missing(&'static str),
    /// Another model's name.
    #[error("the model `{asked}` does not exist; this server has `{served}`")]
    NoSuchModel {
        /// What was asked for.
        asked: String,
        /// What there is.
        served: String,
    },
    /// Prompt and answer are longer than the model's longest sequence.
    #[error(
        "this model's maximum context length is {context} tokens; the prompt has {} and `max_tokens` is {max_tokens}",
        prompt.map_or("too many".into(), |tokens| tokens.to_string())
    )]
    TooLong {
        /// Tokens of the prompt, where they were counted.
        prompt: Option<usize>,
        /// Tokens asked for.
        max_tokens: usize,
        /// Longest sequence.
        context: usize,
    },
    /// A request that can never run in this deployment.
    #[error("{0}")]
    NeverFits(String),
    /// The text cannot be encoded, or there is no tokenizer.
    #[error("{0}")]
    Text(String),
    /// The body is longer than it may be.
    #[error("the body is longer than {limit} bytes, the most that this server takes")]
    BodyTooLarge {
        /// The most.
        limit: usize,
    },
    /// The body did not come in time.
    #[error("the body did not arrive within {seconds} s")]
    BodyTooSlow {
        /// The limit.
        seconds: u64,
    },
    /// The request's head did not come in time.
    #[error("the request's head did not arrive within {seconds} s")]
    HeadTooSlow {
        /// The limit.
        seconds: u64,
    },
    /// All places for connections are taken.
    #[error("there are too many connections")]
    TooManyConnections,
    /// The connection broke in the middle of the body.
    #[error("the body ended early")]
    BodyBroken,
    /// Not JSON by its own account.
    #[error("`Content-Type` is `{0}`; expected `application/json`")]
    NotJsonType(String),
    /// No key, or a wrong one.
    #[error("{}", if *.given { "incorrect API key provided" } else { "you did not provide an API key: send `Authorization: Bearer KEY`" })]
    Unauthorized {
        /// Whether there was one.
        given: bool,
    },
    /// Nothing is served there.
    #[error("there is nothing at `{0}`")]
    NoSuchPath(String),
    /// Something is, but not with this method.
    #[error("`{method}` is not allowed here; expected {allowed}")]
    WrongMethod {
        /// What was used.
        method: String,
        /// What would do.
        allowed: &'static str,
    },
    /// More requests than there are places.
    #[error("{reason}; try again in {retry_after_s} s")]
    Busy {
        /// Which limit was met.
        reason: &'static str,
        /// When it may be better.
        retry_after_s: u64,
    },
    /// The deployment takes no requests: it loads, drains, or has failed.
    #[error("{0}")]
    NotReady(String),
}

impl ApiError {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Unauthorized { .. } => 401,
            Self::NoSuchModel { .. } | Self::NoSuchPath(_) => 404,
            Self::WrongMethod { .. } => 405,
            Self::BodyTooSlow { .. } | Self::HeadTooSlow { .. } => 408,
            Self::BodyTooLarge { .. } => 413,
            Self::NotJsonType(_) => 415,
            Self::Busy { .. } => 429,
            Self::NotReady(_) | Self::TooManyConnections => 503,
            _ => 400,
        }
    }

    /// Seconds after which another try makes sense, for the header.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Busy { retry_after_s, .. } => Some(*retry_after_s),
            Self::NotReady(_) | Self::TooManyConnections => Some(1),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            429 => "rate_limit_error",
            503 => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unauthorized { .. } => "invalid_api_key",
            Self::NoSuchModel { .. } => "model_not_found",
            Self::TooLong { .. } => "context_length_exceeded",
            Self::Busy { .. } => "rate_limit_exceeded",
            Self::Unsupported { .. } => "unsupported_parameter",
            Self::UnknownKey { .. } => "unknown_parameter",
            Self::NotReady(_) => "not_ready",
            Self::TooManyConnections => "too_many_connections",
            _ => return None,
        })
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } | Self::UnknownKey { param, .. } | Self::Unsupported { param, .. } => {
                Some(param)
            }
            Self::Missing(param) => Some(param),
            Self::NoSuchModel { .. } => Some("model"),
            _ => None,
        }
    }

    /// The body, `{"error": {"message", "type", "param", "code"}}`.
    pub fn to_json(&self) -> Value {
        json!({ "error": {
            "message": self.to_string(),
            "type": self.kind(),
            "param": self.param(),
            "code": self.code(),
        } })
    }
}
