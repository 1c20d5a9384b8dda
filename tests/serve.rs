//! `rally serve` over sockets: answers, streams, refusals, clients that leave, the end.

#[path = "support/binary.rs"]
mod binary;
#[path = "serve/chat.rs"]
mod chat;
#[path = "support/clients.rs"]
mod clients;
#[path = "support/http.rs"]
mod http;
#[path = "serve/limits.rs"]
mod limits;
#[path = "serve/reuse.rs"]
mod reuse;
#[path = "support/soak.rs"]
mod soak;
#[path = "serve/tls.rs"]
mod tls;

use http::{MODEL, Reply, Serving, completion, reply};
use serde_json::{Value, json};
use std::io::{Read, Write};

const PROMPTS: [&str; 4] = ["Once upon a time", "Long ago, a", "Nora", "The penguin said \"é"];

/// What `rally run` says to the same prompts.
fn as_run(tokens: usize) -> Vec<Value> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.jsonl");
    let tokens = tokens.to_string();
    let mut arguments = vec!["run", http::GRAPH, "--max-tokens", &tokens, "--out", binary::path_text(&out)];
    arguments.extend(PROMPTS.iter().flat_map(|prompt| ["--prompt", prompt]));
    binary::good(&arguments);
    let text = std::fs::read_to_string(&out).expect("results were written");
    text.lines().map(|line| serde_json::from_str(line).expect("results are JSON")).collect()
}

fn streamed_text(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect()
}

#[test]
fn greedy_answers_are_those_of_run_whole_streamed_and_in_company() {
    let expected = as_run(24);
    let server = Serving::start(&[]);
    let ask = |prompt: &str, stream: bool| {
        completion(json!({ "prompt": prompt, "max_tokens": 24, "temperature": 0, "stream": stream }))
    };
    // All are under way at once.
    let open: Vec<_> = PROMPTS
        .iter()
        .flat_map(|prompt| [false, true].map(|stream| server.send("/v1/completions", &ask(prompt, stream))))
        .collect();
    let replies: Vec<Reply> = open.into_iter().map(reply).collect();
    for (expected, replies) in expected.iter().zip(replies.chunks(2)) {
        let whole = &replies[0].json()["choices"][0];
        let events = replies[1].events();
        assert_eq!((&whole["text"], &whole["finish_reason"]), (&expected["text"], &expected["finish_reason"]));
        assert_eq!(streamed_text(&events), expected["text"], "{events:#?}");
        let last = events.last().expect("there are events");
        assert_eq!(last["choices"][0]["finish_reason"], expected["finish_reason"]);
        // The end may come by itself, after the last token.
        let tokens = expected["completion_tokens"].as_u64().expect("a number") as usize;
        assert!((tokens..=tokens + 1).contains(&events.len()), "{} events for {tokens} tokens", events.len());
    }
    let together = server.complete(json!({ "prompt": PROMPTS, "max_tokens": 24, "temperature": 0 }));
    let texts: Vec<&Value> = expected.iter().map(|expected| &expected["text"]).collect();
    let choices = together["choices"].as_array().expect("a list");
    assert_eq!(choices.iter().map(|choice| &choice["text"]).collect::<Vec<_>>(), texts);
    server.until_empty();
}

#[test]
fn answers_have_the_forms_that_clients_know() {
    let server = Serving::start(&[]);
    let body = json!({ "prompt": "Nora", "max_tokens": 5, "temperature": 0, "logprobs": 2 });
    let whole = server.complete(body.clone());
    assert!(whole["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")), "{whole}");
    assert_eq!((&whole["object"], &whole["model"]), (&json!("text_completion"), &json!(MODEL)));
    assert_eq!(whole["usage"]["completion_tokens"], 5);
    let usage = &whole["usage"];
    let sum = usage["prompt_tokens"].as_u64().expect("a number") + 5;
    assert_eq!(usage["total_tokens"], sum);
    let logprobs = &whole["choices"][0]["logprobs"];
    let tokens: String = logprobs["tokens"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(tokens, whole["choices"][0]["text"].as_str().expect("text"));
    for (place, top) in logprobs["top_logprobs"].as_array().expect("a list").iter().enumerate() {
        let token = logprobs["tokens"][place].as_str().expect("text");
        assert_eq!(top.as_object().map(serde_json::Map::len), Some(2), "{top}");
        assert_eq!(top[token], logprobs["token_logprobs"][place], "the likeliest is chosen");
    }
    assert_eq!(logprobs["text_offset"][0], 0);

    let mut body = completion(body);
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let reply = server.post("/v1/completions", &body);
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")), "{reply:?}");
    let events = reply.events();
    let (last, pieces) = events.split_last().expect("there are events");
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    let mut offsets = Vec::new();
    for piece in pieces {
        assert_eq!((&piece["usage"], &piece["id"]), (&Value::Null, &last["id"]));
        let of_piece = piece["choices"][0]["logprobs"]["text_offset"].as_array().expect("a list");
        assert_eq!(of_piece.len(), 1, "the end comes with the last token: {piece}");
        offsets.extend(of_piece.iter().cloned());
    }
    assert_eq!(&offsets, logprobs["text_offset"].as_array().expect("a list"));
    assert_eq!(streamed_text(pieces), whole["choices"][0]["text"].as_str().expect("text"));
}

/// However the server's threads fall, a stream has a piece for each token, and the last tells why it is the last.
#[test]
fn a_stream_has_as_many_pieces_as_tokens() {
    let server = Serving::start(&[]);
    let ask = completion(json!({ "prompt": "Nora", "max_tokens": 12, "ignore_eos": true, "stream": true }));
    for _ in 0..40 {
        let events = server.post("/v1/completions", &ask).events();
        let ends: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
        assert_eq!(ends.len(), 12, "{events:#?}");
        assert!(ends[..11].iter().all(|end| end.is_null()) && ends[11] == "length", "{ends:?}");
    }
}

#[test]
fn seeds_choices_and_stops() {
    let server = Serving::start(&[]);
    let sampled = |seed: u64, n: usize| {
        let body = json!({ "prompt": "Once upon a time", "max_tokens": 24, "seed": seed, "n": n });
        let answer = server.complete(body);
        let choices = answer["choices"].as_array().expect("a list").iter();
        choices.map(|choice| choice["text"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    let three = sampled(7, 3);
    assert_eq!(three, sampled(7, 3), "a seed is all that chance hangs on");
    assert_eq!(three[0], sampled(7, 1)[0]);
    assert!(three[0] != three[1] && three[1] != three[2], "{three:?}");
    assert_ne!(three, sampled(8, 3));
    let free =
        |_| server.complete(json!({ "prompt": "Once upon a time", "max_tokens": 24 }))["choices"][0]["text"].clone();
    assert_ne!(free(0), free(1), "without a seed answers differ");

    let plain = server.complete(json!({ "prompt": "Nora", "max_tokens": 40, "temperature": 0 }));
    let text = plain["choices"][0]["text"].as_str().expect("text");
    let stop: String = text.chars().skip(20).take(9).collect();
    let stopped = server.complete(json!({ "prompt": "Nora", "max_tokens": 40, "temperature": 0, "stop": [stop] }));
    let choice = &stopped["choices"][0];
    assert_eq!(choice["text"], text[..text.find(&stop).expect("it is from there")], "up to `{stop}`");
    assert_eq!(choice["finish_reason"], "stop");
    assert!(stopped["usage"]["completion_tokens"].as_u64() < Some(40));
    server.until_empty();
}

#[test]
fn what_cannot_be_answered_is_refused_in_openais_form() {
    let server = Serving::start(&["--max-body-bytes", "20000"]);
    let long = vec![json!(5); 2048];
    let cases = [
        (json!({ "prompt": "x", "model": "gpt-5" }), 404, json!("model_not_found"), json!("model")),
        (json!({ "prompt": "x", "model": null }), 400, json!(null), json!("model")),
        (completion(json!({})), 400, json!(null), json!("prompt")),
        (completion(json!({ "prompt": "" })), 400, json!(null), json!("prompt")),
        (completion(json!({ "prompt": [] })), 400, json!(null), json!("prompt")),
        (completion(json!({ "prompt": [4096] })), 400, json!(null), json!("prompt[0]")),
        (completion(json!({ "prompt": [1, "x"] })), 400, json!(null), json!("prompt[1]")),
        (completion(json!({ "prompt": {} })), 400, json!(null), json!("prompt")),
        (completion(json!({ "prompt": long })), 400, json!("context_length_exceeded"), json!(null)),
        (completion(json!({ "prompt": "x", "max_tokens": 2048 })), 400, json!("context_length_exceeded"), json!(null)),
        (completion(json!({ "prompt": "x", "max_tokens": 0 })), 400, json!(null), json!("max_tokens")),
        (completion(json!({ "prompt": "x", "temperature": -1 })), 400, json!(null), json!("temperature")),
        (completion(json!({ "prompt": "x", "temperature": "hot" })), 400, json!(null), json!("temperature")),
        (completion(json!({ "prompt": "x", "top_p": 0 })), 400, json!(null), json!("top_p")),
        (completion(json!({ "prompt": "x", "n": 129 })), 400, json!(null), json!("n")),
        (completion(json!({ "prompt": ["x", "y"], "n": 100 })), 400, json!(null), json!("n")),
        (completion(json!({ "prompt": "x", "stop": [""] })), 400, json!(null), json!("stop")),
        (completion(json!({ "prompt": "x", "echo": true })), 400, json!("unsupported_parameter"), json!("echo")),
        (
            completion(json!({ "prompt": "x", "logit_bias": { "5": 1 } })),
            400,
            json!("unsupported_parameter"),
            json!("logit_bias"),
        ),
        (completion(json!({ "prompt": "x", "temprature": 1 })), 400, json!("unknown_parameter"), json!("temprature")),
        (completion(json!({ "prompt": "x", "stream_options": {} })), 400, json!(null), json!("stream_options")),
    ];
    for (body, status, code, param) in cases {
        let reply = server.post("/v1/completions", &body);
        let error = &reply.json()["error"];
        assert_eq!((reply.status, &error["code"], &error["param"]), (status, &code, &param), "{body}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{error}");
    }
    let misspelt = server.post("/v1/completions", &completion(json!({ "prompt": "x", "temprature": 1 })));
    assert!(misspelt.body.contains("did you mean `temperature`?"), "{misspelt:?}");
    for (bytes, status) in [
        (http::post("/v1/completions", "{", ""), 400),
        (http::post("/v1/completions", "", ""), 400),
        (http::post("/v1/completions", "[1]", ""), 400),
        (http::post("/v1/completions", &"[".repeat(10_000), ""), 400),
        (http::post("/v1/completions", &"x".repeat(20_001), ""), 413),
        (http::post("/v1/completions", "{}", "").replace("application/json", "text/plain"), 415),
        (http::post("/v1/nothing", "{}", ""), 404),
        (http::post("/v1/models", "{}", ""), 405),
        ("GET /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into(), 405),
        ("GARBAGE\r\n\r\n".into(), 400),
    ] {
        let reply = server.raw(bytes.as_bytes());
        assert_eq!(reply.status, status, "{:.80}: {reply:?}", bytes);
    }
    assert_eq!(server.complete(json!({ "prompt": "x", "max_tokens": 2 }))["usage"]["completion_tokens"], 2);
}

#[test]
fn what_clients_send_beside_the_point_is_let_through() {
    let server = Serving::start(&[]);
    let body = json!({
        "prompt": "Nora", "max_tokens": 3, "stream": true, "stream_options": { "include_usage": true }, "top_k": -1, "user": "me",
        "best_of": 1, "frequency_penalty": 0.0, "logit_bias": {}, "suffix": null, "echo": false, "ignore_eos": true,
        "min_tokens": 3, "stop_token_ids": [], "use_beam_search": false, "length_penalty": 1.0, "skip_special_tokens": true,
        "spaces_between_special_tokens": true, "include_stop_str_in_output": false,
    });
    let events = server.post("/v1/completions", &completion(body)).events();
    assert_eq!(events.last().expect("events")["usage"]["completion_tokens"], 3);
    for (key, value) in
        [("min_tokens", json!(4)), ("stop_token_ids", json!([7])), ("skip_special_tokens", json!(false))]
    {
        let refused =
            server.post("/v1/completions", &completion(json!({ "prompt": "Nora", "max_tokens": 3, key: value })));
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["code"], &error["param"]),
            (400, &json!("unsupported_parameter"), &json!(key))
        );
    }
}

/// Both forms in which `vllm bench serve` asks, with the samplers that its flags add, and what it reads of the answers: the first
/// choice's text of every event that has choices, and the usage of one that has none. Chunks are split at empty lines, and stripped.
#[test]
fn requests_as_vllm_bench_serve_writes_them() {
    let server = Serving::start(&[]);
    let completions = json!({
        "model": MODEL, "prompt": "Nora", "repetition_penalty": 1.0, "max_tokens": 9, "logprobs": null, "stream": true,
        "stream_options": { "include_usage": true }, "ignore_eos": true, "temperature": 0.0,
    });
    let chat = json!({
        "model": MODEL, "messages": [{ "role": "user", "content": [{ "type": "text", "text": "Nora" }] }],
        "max_completion_tokens": 9, "stream": true, "stream_options": { "include_usage": true }, "ignore_eos": true, "temperature": 0.0,
    });
    let flags = json!({
        "top_p": 0.9, "top_k": 40, "min_p": 0.05, "temperature": 0.7, "frequency_penalty": 0.0, "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
    });
    let ids = json!({ "prompt": [5, 6, 7, 8] });
    for (path, body, more) in [
        ("/v1/completions", &completions, json!({})),
        ("/v1/completions", &completions, flags.clone()),
        ("/v1/completions", &completions, ids),
        ("/v1/completions", &completions, json!({ "logprobs": 1 })),
        ("/v1/chat/completions", &chat, json!({})),
        ("/v1/chat/completions", &chat, flags),
    ] {
        let mut body = body.clone();
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let more = "x-request-id: bench-0badcafe-1\r\nAuthorization: Bearer none\r\n";
        let answer = server.raw(http::post(path, &body.to_string(), more).as_bytes());
        let (mut pieces, mut usage) = (0, None);
        for event in answer.events() {
            if event["choices"].as_array().is_some_and(|choices| !choices.is_empty()) {
                let choice = &event["choices"][0];
                let text = if path.contains("chat") { &choice["delta"]["content"] } else { &choice["text"] };
                assert!(text.is_string(), "{event}");
                pieces += 1;
            } else {
                usage = event["usage"]["completion_tokens"].as_u64();
            }
        }
        assert!((9..=10).contains(&pieces) && usage == Some(9), "{body}: {answer:?}");
    }
}

/// Small here; `cargo bench --bench serving -- soak` is the whole of it.
#[test]
fn two_thousand_short_requests_at_256_connections_lose_nothing_and_keep_nothing() {
    let server = Serving::start(&[]);
    let soak = |requests| {
        let address = server.address.parse().expect("an address");
        clients::on_this_thread(soak::soak(address, requests, 256, |_| ()))
    };
    // Pools and caches are reached for the first time.
    let warm = soak(500);
    server.until_empty();
    let before = soak::memory_kb(server.pid());
    let soaked = soak(2000);
    server.until_empty();
    let after = soak::memory_kb(server.pid());
    assert!(
        warm.faults.is_empty() && soaked.faults.is_empty(),
        "{:?} {:?}",
        warm.faults.first(),
        soaked.faults.first()
    );
    assert_eq!((soaked.streams, soaked.whole), (1000, 1000));
    // A leak of 8 kB a request would show.
    assert!(after < before + 16_000, "{before} kB before, {after} kB after");
}

#[test]
fn what_is_asked_beside_completions() {
    let server = Serving::start(&["--served-model-name", "tiny"]);
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
    assert_eq!(server.get("/ready").json(), json!({ "status": "ready" }));
    assert_eq!(server.get("/version").json(), json!({ "version": env!("CARGO_PKG_VERSION") }));
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(models["data"][0]["max_model_len"], 2048);
    assert_eq!(server.get("/v1/models/tiny").json(), models["data"][0]);
    assert_eq!(server.get("/v1/models/other").status, 404);
    assert_eq!(server.post("/v1/completions", &completion(json!({ "prompt": "x" }))).status, 404);
    let page = server.get("/metrics").body;
    assert!(page.contains("rally_num_requests_running{model_name=\"tiny\",engine=\"0\"}"), "{page}");
}

/// Whoever hangs up, at whatever point, leaves nothing behind.
#[test]
fn clients_that_leave_give_every_page_back() {
    let server = Serving::start(&["--max-waiting", "4096"]);
    let body = completion(json!({ "prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": true, "n": 2 }));
    let streams = completion(json!({ "prompt": "Nora", "max_tokens": 1500, "ignore_eos": true, "stream": true }));
    let mut held = Vec::new();
    for round in 0..1000 {
        let text = if round % 2 == 0 { &body } else { &streams }.to_string();
        let request = http::post("/v1/completions", &text, "");
        let mut stream = server.connect();
        // Some leave in the middle of their own request.
        let sent = if round % 5 == 0 { request.len() * round / 1000 } else { request.len() };
        stream.write_all(&request.as_bytes()[..sent]).expect("the server reads");
        // Only those that are streamed, and among the first, who need not wait for a place.
        if round % 2 == 1 && round < 30 && sent == request.len() {
            let mut some = vec![0; 1 + round * 8];
            stream.read_exact(&mut some).expect("the server answers");
        }
        held.push(stream);
        if round % 3 == 0 {
            held.remove(round % held.len());
        }
    }
    // Else nothing would be shown; those that wait are counted where they wait.
    let [running, waiting] = ["running", "waiting"].map(|what| server.metric(&format!("rally_num_requests_{what}")));
    assert!(running > 10.0 && waiting > 100.0, "{running} run, {waiting} wait");
    drop(held);
    server.until_empty();
    assert_eq!(server.complete(json!({ "prompt": "x", "max_tokens": 2 }))["usage"]["completion_tokens"], 2);
}

#[test]
fn a_signal_lets_answers_end_and_refuses_new_ones() {
    let mut server = Serving::start(&["--drain-seconds", "600"]);
    let ask = completion(json!({ "prompt": "Nora", "max_tokens": 400, "ignore_eos": true, "stream": true, "n": 4 }));
    let mut stream = server.send("/v1/completions", &ask);
    let mut first = [0; 16];
    stream.read_exact(&mut first).expect("the answer has begun");
    server.signal("-TERM");
    assert!(server.line().starts_with("stopping: "));
    let refused = server.post("/v1/completions", &ask);
    // The answer may have ended, and the server with it, before anyone could ask.
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("not_ready")));
    assert_eq!(server.get("/ready").status, 503);
    assert_eq!(server.get("/health").status, 200);
    let rest = reply(first.as_slice().chain(stream));
    let events = rest.events();
    let ends = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "length").count();
    // An end may come by itself, after the last token.
    assert!((4 * 400..=4 * 400 + 4).contains(&events.len()) && ends == 4, "{} events, {ends} ends", events.len());
    assert!(server.ended().success());
}

#[test]
fn a_drain_has_an_end() {
    let ask = completion(json!({ "prompt": "Nora", "max_tokens": 2000, "ignore_eos": true, "stream": true, "n": 8 }));
    let mut server = Serving::start(&["--drain-seconds", "0"]);
    let mut stream = server.send("/v1/completions", &ask);
    let mut first = [0; 16];
    stream.read_exact(&mut first).expect("the answer has begun");
    server.signal("-TERM");
    let events = reply(first.as_slice().chain(stream)).events();
    let last = events.last().expect("there are events");
    assert_eq!(last["error"]["code"], "not_ready", "cut off, and told so: {last}");
    assert!(server.ended().success());
}

#[test]
fn a_second_signal_stops_at_once() {
    let ask = completion(json!({ "prompt": "Nora", "max_tokens": 2000, "ignore_eos": true, "stream": true, "n": 8 }));
    let mut server = Serving::start(&["--drain-seconds", "600"]);
    let mut stream = server.send("/v1/completions", &ask);
    let mut first = [0; 16];
    stream.read_exact(&mut first).expect("the answer has begun");
    server.signal("-TERM");
    assert!(server.line().starts_with("stopping: "));
    // One that comes at once is taken for the same, so it is sent until it is another.
    let status = loop {
        match server.has_ended() {
            Some(status) => break status,
            None => server.signal("-TERM"),
        }
    };
    assert_eq!(status.code(), Some(130));
    let mut rest = String::new();
    // Cut off: a reset is an end as well.
    let _ = stream.read_to_string(&mut rest);
    assert!(!rest.contains("[DONE]"), "it did not wait for answers");
}
