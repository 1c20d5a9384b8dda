//! Short requests of every kind, one after the other on many connections, each answer held to its form.
// Each test and benchmark uses its own part of this file.
#![allow(dead_code)]

use super::clients::{Client, request};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What became of them.
#[derive(Debug, Default)]
pub struct Soaked {
    /// Streams that ended with `[DONE]`.
    pub streams: usize,
    /// Whole answers.
    pub whole: usize,
    /// Of both, tokens.
    pub tokens: u64,
    /// What was wrong, the first few.
    pub faults: Vec<String>,
}

/// A body, and where it goes: completions and chats, streamed or whole, of one or several choices.
fn body(index: usize) -> (&'static str, Value) {
    let prompts = ["Nora", "Once upon a time", "The penguin said", "Long ago, a"];
    let mut body = json!({
        "model": "tiny-step3", "max_tokens": 1 + index % 5, "seed": index, "stream": index.is_multiple_of(2), "ignore_eos": true,
        "n": if index % 16 == 3 { 2 } else { 1 },
    });
    if index.is_multiple_of(2) {
        body["stream_options"] = json!({ "include_usage": true });
    }
    let prompt = prompts[index / 2 % prompts.len()];
    if index.is_multiple_of(7) {
        body["messages"] = json!([{ "role": "user", "content": prompt }]);
        return ("/v1/chat/completions", body);
    }
    body["prompt"] = json!(prompt);
    body["logprobs"] = json!(if index.is_multiple_of(11) { Some(2) } else { None });
    ("/v1/completions", body)
}

/// Has `requests` answered over `connections`; `on_answer` is told how many have been.
pub async fn soak(
    server: SocketAddr,
    requests: usize,
    connections: usize,
    on_answer: impl Fn(usize) + Send + Sync + 'static,
) -> Soaked {
    let (next, on_answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(on_answer));
    let answered = Arc::new(AtomicUsize::new(0));
    let worker = |_| {
        let (next, answered, on_answer) = (Arc::clone(&next), Arc::clone(&answered), Arc::clone(&on_answer));
        tokio::spawn(async move {
            let mut soaked = Soaked::default();
            let mut client = None;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= requests {
                    return soaked;
                }
                if let Err(fault) = one(&mut client, server, index, &mut soaked).await {
                    soaked.faults.push(format!("request {index}: {fault}"));
                    client = None;
                }
                on_answer(answered.fetch_add(1, Ordering::Relaxed) + 1);
            }
        })
    };
    let workers: Vec<_> = (0..connections).map(worker).collect();
    let mut all = Soaked::default();
    for worker in workers {
        let one = worker.await.expect("a client does not panic");
        all.streams += one.streams;
        all.whole += one.whole;
        all.tokens += one.tokens;
        all.faults.extend(one.faults);
    }
    all
}

async fn one(client: &mut Option<Client>, server: SocketAddr, index: usize, soaked: &mut Soaked) -> Result<(), String> {
    let (path, body) = body(index);
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(server).await.map_err(|error| error.to_string())?),
    };
    let mut text = Vec::new();
    let asked = client.ask(&request(path, &body.to_string()), |piece| text.extend_from_slice(piece)).await;
    let status = asked.map_err(|error| error.to_string())?;
    let text = String::from_utf8(text).map_err(|error| error.to_string())?;
    let wrong = || format!("{status}: {text}");
    if status != 200 {
        return Err(wrong());
    }
    let wanted = body["max_tokens"].as_u64().unwrap_or(0) * body["n"].as_u64().unwrap_or(0);
    let last = if body["stream"] == true {
        let events = text.strip_suffix("data: [DONE]\n\n").ok_or_else(wrong)?;
        soaked.streams += 1;
        events.trim_end().rsplit("\n\n").next().and_then(|event| event.strip_prefix("data: ")).unwrap_or_default()
    } else {
        soaked.whole += 1;
        &text
    };
    // Neither an error nor a token too few or too many.
    let last: Value = serde_json::from_str(last).map_err(|error| format!("{error}: {text}"))?;
    if last["usage"]["completion_tokens"] != wanted {
        return Err(wrong());
    }
    soaked.tokens += wanted;
    Ok(())
}

/// Memory that a process has, in kB.
pub fn memory_kb(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux tells");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}
