//! What clients may not do, and that it costs others nothing.

use crate::http::{self, PATIENCE, Reply, Serving, completion, reply};
use crate::soak::memory_kb;
use serde_json::json;
use std::io::{Read, Write};
use std::time::Instant;

/// Another client's request goes through while `what` goes on.
#[track_caller]
fn others_are_served(server: &Serving) {
    let answer = server.complete(json!({ "prompt": "Nora", "max_tokens": 3, "temperature": 0 }));
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[test]
fn heads_that_trickle_are_cut_off() {
    let server = Serving::start(&["--request-seconds", "1"]);
    let mut slow: Vec<_> = (0..40).map(|_| server.connect()).collect();
    let begun = Instant::now();
    let mut cut_off = 0;
    for byte in http::post("/v1/completions", "{}", &"x-more: 1\r\n".repeat(50)).bytes().cycle() {
        let before = slow.len();
        // Those that were cut off refuse more.
        slow.retain_mut(|stream| stream.write_all(&[byte]).is_ok() && !closed(stream));
        cut_off += before - slow.len();
        if slow.is_empty() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{} still trickle", slow.len());
        others_are_served(&server);
    }
    assert_eq!(cut_off, 40);
    // What they are told, where they read it.
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n").expect("the server reads");
    let late = reply(stream);
    assert_eq!((late.status, late.json()["error"]["type"].as_str()), (408, Some("invalid_request_error")));
    let mut stream = server.connect();
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"model\"";
    stream.write_all(head.as_bytes()).expect("the server reads");
    let late = reply(stream);
    assert_eq!((late.status, late.json()["error"]["type"].as_str()), (408, Some("invalid_request_error")));
    // A connection on which nothing was asked is closed without a word.
    let mut idle = Vec::new();
    server.connect().read_to_end(&mut idle).expect("the server closes it");
    assert!(idle.is_empty());
}

/// Whether the other side has closed, without waiting.
fn closed(stream: &mut std::net::TcpStream) -> bool {
    stream.set_nonblocking(true).expect("it can be set");
    let closed = matches!(stream.read(&mut [0; 1]), Ok(0)) || stream.take_error().ok().flatten().is_some();
    stream.set_nonblocking(false).expect("it can be set");
    closed
}

#[test]
fn heads_that_are_too_long_are_refused() {
    let server = Serving::start(&[]);
    let lines = |count: usize, length: usize| {
        let lines: String = (0..count).map(|line| format!("x-{line}: {}\r\n", "y".repeat(length))).collect();
        server.raw(http::post("/v1/completions", "{}", &lines).as_bytes()).status
    };
    assert_eq!(lines(40, 10), 400, "these are still fine");
    assert_eq!(lines(500, 10), 431);
    assert_eq!(lines(10, 20_000), 431);
    let path = "/".repeat(100_000);
    let status = server.raw(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).status;
    assert!([414, 431].contains(&status), "{status}");
    others_are_served(&server);
}

#[test]
fn bodies_that_are_too_long_are_refused() {
    let server = Serving::start(&[]);
    others_are_served(&server);
    let before = memory_kb(server.pid());
    let body = vec![b' '; 100_000_000];
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = server.connect();
    stream.write_all(head.as_bytes()).expect("the server reads");
    for part in body.chunks(1 << 20) {
        stream.write_all(part).expect("the server reads on, to answer");
    }
    assert_eq!(reply(stream).status, 413);
    others_are_served(&server);
    let after = memory_kb(server.pid());
    assert!(after < before + 50_000, "{before} kB before, {after} kB after: the body was not kept");

    let ids = vec!["7"; 1_000_000].join(",");
    let million = format!("{{\"model\":\"tiny-step3\",\"prompt\":[{ids}]}}");
    let refused = server.raw(http::post("/v1/completions", &million, "").as_bytes());
    let error = &refused.json()["error"];
    assert_eq!((refused.status, error["code"].as_str()), (400, Some("context_length_exceeded")), "{error}");
    let words = format!("{{\"model\":\"tiny-step3\",\"prompt\":\"{}\"}}", "word ".repeat(800_000));
    let refused = server.raw(http::post("/v1/completions", &words, "").as_bytes());
    let error = &refused.json()["error"];
    assert_eq!((refused.status, error["code"].as_str()), (400, Some("context_length_exceeded")), "{error}");
    others_are_served(&server);
}

#[test]
fn connections_beyond_the_most_are_turned_away() {
    let server = Serving::start(&["--max-connections", "3"]);
    let mut held: Vec<_> = (0..3).map(|_| server.connect()).collect();
    let refused = loop {
        // The server may not have accepted all of them yet.
        let mut stream = server.connect();
        if stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").is_ok() {
            let mut answer = String::new();
            if stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 503") {
                break reply(answer.as_bytes());
            }
        }
    };
    assert_eq!(refused.json()["error"]["code"], "too_many_connections");
    assert_eq!(refused.header("retry-after"), Some("1"));
    held.clear();
    server.until("places come back", |server| {
        let mut answer = String::new();
        let mut stream = server.connect();
        let sent = stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        sent.and_then(|()| stream.read_to_string(&mut answer)).is_ok() && answer.starts_with("HTTP/1.1 200")
    });
}

#[test]
fn who_waits_too_long_or_comes_too_late_is_told_when_to_come_again() {
    let server = Serving::start(&["--max-waiting", "16", "--max-wait-seconds", "5"]);
    let long = |n: usize| completion(json!({ "prompt": "Nora", "max_tokens": 1900, "ignore_eos": true, "n": n }));
    // 64 are decoded at once. Some may count as waiting for a moment when they run already: eight more have room beside them.
    let mut held = Vec::new();
    for running in (8..=64).step_by(8).map(f64::from) {
        held.push(server.send("/v1/completions", &long(8)));
        server.until("they are decoded", |server| server.metric("rally_num_requests_running") == running);
    }
    let waits: Vec<_> = (0..2).map(|_| server.send("/v1/completions", &long(8))).collect();
    server.until("all of them wait", |server| server.metric("rally_num_requests_waiting") >= 16.0);
    let busy = |reply: &Reply| {
        let after = reply.header("retry-after").and_then(|text| text.parse::<u64>().ok());
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")));
        assert!(after.is_some_and(|seconds| (1..=60).contains(&seconds)), "{reply:?}");
    };
    busy(&server.post("/v1/completions", &long(9)));
    waits.into_iter().for_each(|stream| busy(&reply(stream)));
}

/// Where nobody else may wait, a client that has many requests waiting gives way to one that has none.
#[test]
fn a_client_that_asks_for_little_is_not_shut_out_by_one_that_asks_for_much() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, "much\nlittle\n").expect("it can be written");
    let server = Serving::start(&["--api-keys", crate::binary::path_text(&file), "--max-waiting", "16"]);
    let send = |key: &str, tokens: usize, n: usize| {
        let body = completion(json!({ "prompt": "Nora", "max_tokens": tokens, "ignore_eos": true, "n": n }));
        let request = http::post("/v1/completions", &body.to_string(), &format!("Authorization: Bearer {key}\r\n"));
        let mut stream = server.connect();
        stream.write_all(request.as_bytes()).expect("the server reads");
        stream
    };
    let mut held = Vec::new();
    for running in (8..=64).step_by(8).map(f64::from) {
        held.push(send("much", 1900, 8));
        server.until("they are decoded", |server| server.metric("rally_num_requests_running") == running);
    }
    let mut waits = Vec::new();
    for waiting in (4..=16).step_by(4).map(f64::from) {
        // One after the other, or another one would be the youngest.
        waits.push(send("much", 1900, 4));
        server.until("all of them wait", |server| server.metric("rally_num_requests_waiting") >= waiting);
    }
    assert_eq!(reply(send("much", 1, 1)).status, 429, "nobody makes room for itself");
    let little = send("little", 2, 1);
    // The youngest of them, as a whole.
    let refused = reply(waits.pop().expect("there are four"));
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (429, Some("rate_limit_exceeded")));
    // Places come free.
    drop(held);
    assert_eq!(reply(little).json()["usage"]["completion_tokens"], 2);
}

#[test]
fn keys_are_wanted_where_there_are_some() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, "# ours\nsk-one\nsk-two\n").expect("it can be written");
    let mut server = Serving::start(&["--api-keys", crate::binary::path_text(&file)]);
    let body = completion(json!({ "prompt": "Nora", "max_tokens": 1 })).to_string();
    let with = |lines: &str| server.raw(http::post("/v1/completions", &body, lines).as_bytes());
    for key in ["sk-one", "sk-two"] {
        assert_eq!(with(&format!("Authorization: Bearer {key}\r\n")).status, 200);
    }
    for wrong in
        ["", "Authorization: Bearer sk-three\r\n", "Authorization: Bearer \r\n", "Authorization: Basic sk-one\r\n"]
    {
        let refused = with(wrong);
        assert_eq!(
            (refused.status, refused.json()["error"]["code"].as_str()),
            (401, Some("invalid_api_key")),
            "{wrong}"
        );
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    }
    assert_eq!((server.get("/v1/models").status, server.get("/health").status), (401, 200));
    server.signal("-TERM");
    let mut said = String::new();
    while !said.ends_with("stopped\n") {
        said.push_str(&format!("{}\n", server.line()));
    }
    assert!(!said.contains("sk-"), "{said}");
    std::fs::write(&file, "# none\n").expect("it can be written");
    crate::binary::refused(&["serve", http::GRAPH, "--api-keys", crate::binary::path_text(&file)], "has no API key");
}
