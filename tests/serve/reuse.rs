//! Prefix reuse through HTTP: what was said before is not read again; the answer is the same, and usage and metrics tell.

use crate::http::{Serving, completion};
use serde_json::{Value, json};

const PAGE_TOKENS: u64 = 64;

fn cached(answer: &Value) -> Option<u64> {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
}

#[test]
fn a_prompt_that_was_read_is_not_read_again() {
    let story = "Once upon a time there was a penguin who lived on the ice. ".repeat(12);
    let body = json!({ "prompt": story, "max_tokens": 8, "temperature": 0, "logprobs": 2 });
    let plain = Serving::start(&["--no-prefix-reuse"]);
    let wanted = plain.complete(body.clone());
    assert_eq!((cached(&wanted), cached(&plain.complete(body.clone()))), (Some(0), Some(0)));
    assert_eq!(plain.metric("rally_prefix_cache_queries_total"), 0.0);

    let server = Serving::start(&[]);
    let first = server.complete(body.clone());
    let again = server.complete(body.clone());
    let tokens = first["usage"]["prompt_tokens"].as_u64().expect("a number");
    let pages = (tokens - 1) / PAGE_TOKENS * PAGE_TOKENS;
    assert!(pages >= 2 * PAGE_TOKENS, "{tokens} tokens are too few to say anything");
    assert_eq!((cached(&first), cached(&again)), (Some(0), Some(pages)));
    assert_eq!((&first["choices"], &again["choices"]), (&wanted["choices"], &wanted["choices"]));

    let mut streamed = completion(body);
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    streamed["n"] = json!(2);
    let events = server.post("/v1/completions", &streamed).events();
    let last = events.last().expect("there are events");
    assert_eq!((cached(last), last["usage"]["prompt_tokens"].as_u64()), (Some(pages), Some(tokens)), "once a prompt");

    assert_eq!(server.metric("rally_prefix_cache_queries_total"), (4 * tokens) as f64);
    assert_eq!(server.metric("rally_prefix_cache_hits_total"), (3 * pages) as f64);
    server.until_empty();
}
