//! Bodies of completion and chat requests of any bytes: requests within their ranges, or a refusal in OpenAI's form.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rally_serve::api::chat::parse_chat;
use rally_serve::api::error::ApiError;
use rally_serve::api::request::{Common, MOST_CHOICES, Prompt, parse_completion};

fuzz_target!(|bytes: &[u8]| {
    match parse_completion(bytes) {
        Ok(request) => {
            within(&request.common);
            assert!(request.common.max_tokens.is_some() && !request.prompts.is_empty());
            assert!(request.prompts.len() * request.common.n <= MOST_CHOICES);
            assert!(request.prompts.iter().all(|prompt| match prompt {
                Prompt::Text(text) => !text.is_empty(),
                Prompt::TokenIds(ids) => !ids.is_empty(),
            }));
        }
        Err(error) => refused(&error),
    }
    match parse_chat(bytes) {
        Ok(request) => {
            within(&request.common);
            assert!(!request.messages.is_empty());
        }
        Err(error) => refused(&error),
    }
});

fn within(common: &Common) {
    assert!((1..=MOST_CHOICES).contains(&common.n) && common.max_tokens != Some(0));
    assert!((0.0..=100.0).contains(&common.temperature) && common.top_p > 0.0 && common.top_p <= 1.0);
    assert!((0.0..=1.0).contains(&common.min_p) && common.logprobs.is_none_or(|count| count <= 20));
    assert!(common.stop.iter().all(|stop| !stop.is_empty()));
}

fn refused(error: &ApiError) {
    assert_eq!(error.status(), 400, "{error}");
    let json = error.to_json();
    assert!(json["error"]["message"].as_str().is_some_and(|message| !message.is_empty() && message.len() < 2000));
}
