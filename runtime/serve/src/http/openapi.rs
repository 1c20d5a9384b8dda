//! `GET /openapi.json`: what may be asked, for machines.

use super::json_text;
use axum::http::StatusCode;
use axum::response::Response;

/// Written by hand; a test holds its keys against the parsers.
pub(crate) const OPENAPI: &str = include_str!("../../openapi.json");

pub(super) async fn openapi() -> Response {
    json_text(StatusCode::OK, OPENAPI.replace("\"0.0.0\"", concat!("\"", env!("CARGO_PKG_VERSION"), "\"")))
}

#[cfg(test)]
mod tests {
    use super::OPENAPI;
    use crate::api::chat::{CHAT_KEYS, parse_chat};
    use crate::api::request::{COMMON_KEYS, COMPLETION_KEYS, parse_completion};
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn the_schema_has_the_keys_that_are_read() {
        let document: Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        for (name, own) in [("CompletionRequest", COMPLETION_KEYS), ("ChatRequest", CHAT_KEYS)] {
            let schema = &document["components"]["schemas"][name];
            let written: BTreeSet<&str> =
                schema["properties"].as_object().expect("properties").keys().map(String::as_str).collect();
            let read: BTreeSet<&str> = COMMON_KEYS.iter().chain(own).copied().collect();
            assert_eq!(written, read, "{name}");
            assert_eq!(schema["additionalProperties"], false);
            let example = schema["example"].to_string();
            let parsed = if name == "ChatRequest" {
                parse_chat(example.as_bytes()).map(|request| request.common)
            } else {
                parse_completion(example.as_bytes()).map(|request| request.common)
            };
            assert!(parsed.is_ok(), "{name}: {parsed:?}");
        }
    }
}
