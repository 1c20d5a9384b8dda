//! Messages through the checkpoint's template.

use crate::http::{Serving, completion};
use serde_json::{Value, json};

/// The tiny model's template begins a story with what the user said last.
#[test]
fn messages_become_the_prompt_that_the_template_makes_of_them() {
    let server = Serving::start(&[]);
    let plain = server.complete(json!({ "prompt": "Once upon a time", "max_tokens": 30, "temperature": 0 }));
    let ask = |more: Value| {
        let mut body = completion(json!({
            "messages": [
                { "role": "system", "content": "Tell a story." },
                { "role": "user", "content": [{ "type": "text", "text": " Once upon" }, { "type": "text", "text": " a time " }] },
            ],
            "max_completion_tokens": 30, "temperature": 0,
        }));
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.post("/v1/chat/completions", &body)
    };
    let whole = ask(json!({ "logprobs": true, "top_logprobs": 2 })).json();
    assert_eq!((&whole["object"], &whole["usage"]), (&json!("chat.completion"), &plain["usage"]));
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], plain["choices"][0]["text"]);
    let tokens = choice["logprobs"]["content"].as_array().expect("a list");
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().expect("bytes"))
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(String::from_utf8(bytes).as_deref(), Ok(choice["message"]["content"].as_str().expect("text")));
    for token in tokens {
        let [first, second] = token["top_logprobs"].as_array().expect("a list").as_slice() else { panic!("{token}") };
        assert_eq!((&first["token"], &first["logprob"]), (&token["token"], &token["logprob"]));
        assert!(second["logprob"].as_f64() <= first["logprob"].as_f64());
    }

    let events = ask(json!({ "stream": true, "stream_options": { "include_usage": true } })).events();
    let (last, pieces) = events.split_last().expect("there are events");
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(pieces[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(pieces.iter().all(|piece| piece["object"] == "chat.completion.chunk"));
    assert!(pieces[1..].iter().all(|piece| piece["choices"][0]["delta"].get("role").is_none()));
    let text: String = pieces.iter().filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, choice["message"]["content"].as_str().expect("text"));
}

#[test]
fn what_no_message_may_be_is_refused() {
    let server = Serving::start(&[]);
    let user = json!([{ "role": "user", "content": "Nora" }]);
    for (body, param) in [
        (json!({}), json!("messages")),
        (json!({ "messages": [] }), json!("messages")),
        (json!({ "messages": "Nora" }), json!("messages")),
        (json!({ "messages": ["Nora"] }), json!("messages[0]")),
        (json!({ "messages": [{ "content": "Nora" }] }), json!("messages[0].role")),
        (json!({ "messages": [{ "role": "robot", "content": "Nora" }] }), json!("messages[0].role")),
        (json!({ "messages": [{ "role": "user", "content": 7 }] }), json!("messages[0].content")),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            json!("messages[0].content"),
        ),
        (json!({ "messages": user, "tools": [{}] }), json!("tools")),
        (json!({ "messages": user, "response_format": { "type": "json_object" } }), json!("response_format")),
        (json!({ "messages": user, "top_logprobs": 3 }), json!("top_logprobs")),
        (json!({ "messages": user, "prompt": "x" }), json!("prompt")),
    ] {
        let refused = server.post("/v1/chat/completions", &completion(body.clone()));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &param), "{body}");
    }
    let fine =
        server.post("/v1/chat/completions", &completion(json!({ "messages": user, "max_tokens": 2, "tools": [] })));
    assert_eq!(fine.json()["usage"]["completion_tokens"], 2);
}
