//! `GET /openapi.json`: what may be asked, for machines.

use super::{App, Model, json_response};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

/// Written by hand; a test holds its keys against the parsers.
pub(crate) const OPENAPI: &str = include_str!("../../openapi.json");

pub(super) async fn openapi(State(app): State<Arc<App>>) -> Response {
    let mut document: Value = serde_json::from_str(OPENAPI).expect("a test reads it too");
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    if let Ok(service) = app.service() {
        narrow(&mut document["components"]["schemas"], &service.model);
    }
    json_response(StatusCode::OK, &document)
}

/// To what this model takes: who makes requests of the document, a client or a test, then makes such as are answered.
fn narrow(schemas: &mut Value, model: &Model) {
    schemas["TokenId"]["maximum"] = json!(model.vocab.saturating_sub(1));
    for name in ["CompletionRequest", "ChatRequest"] {
        let schema = &mut schemas[name];
        schema["example"]["model"] = json!(model.name);
        schema["properties"]["model"]["enum"] = json!([model.name]);
        for key in ["max_tokens", "max_completion_tokens"] {
            if let Some(tokens) = schema["properties"].get_mut(key) {
                tokens["maximum"] = json!(model.max_positions.saturating_sub(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OPENAPI, narrow};
    use crate::api::chat::{CHAT_KEYS, parse_chat};
    use crate::api::request::{COMMON_KEYS, COMPLETION_KEYS, parse_completion};
    use crate::http::Model;
    use serde_json::{Value, json};
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

    #[test]
    fn the_schema_says_what_this_model_takes() {
        let document: Value = serde_json::from_str(OPENAPI).expect("it is JSON");
        let mut schemas = document["components"]["schemas"].clone();
        let model = Model {
            name: "ours".into(),
            codec: None,
            vocab: 100,
            max_positions: 64,
            eos_token_ids: [].into(),
            template: None,
            slo_tpot_ms: None,
        };
        narrow(&mut schemas, &model);
        let chat = &schemas["ChatRequest"]["properties"];
        assert_eq!((&chat["model"]["enum"], &chat["max_completion_tokens"]["maximum"]), (&json!(["ours"]), &json!(63)));
        assert_eq!(schemas["TokenId"]["maximum"], 99);
        // A key that is not there is not made.
        assert!(schemas["CompletionRequest"]["properties"].get("max_completion_tokens").is_none());
    }
}
