//! `rally serve` of a graph with hosts: the answers of one process, and for streams a host that dies is a pause.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hosts.rs"]
mod hosts;
#[path = "support/http.rs"]
mod http;

use binary::{path_text, rally};
use hosts::{Deployment, Divided, Process};
use http::{PATIENCE, completion, post, reply};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

const STREAMS: usize = 6;

/// A server that answers until this is dropped.
struct Server {
    process: Process,
    address: String,
}

impl Server {
    fn start(command: Command) -> Self {
        let process = Process::start(command);
        let line = process.says("listening on ");
        let address = line.split_once("://").expect("it says where").1.to_owned();
        process.says("ready: ");
        Self { process, address }
    }

    fn across(deployment: &Deployment, more: &[&str]) -> Self {
        Self::start(deployment.command("serve", &[&["--listen", "127.0.0.1:0"], more].concat()))
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.write_all(request.as_bytes()).expect("the server reads");
        stream
    }

    fn get(&self, path: &str) -> http::Reply {
        reply(self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")))
    }

    /// Streams of so many tokens, which have begun.
    fn streams(&self, tokens: usize) -> Vec<Begun> {
        let sent: Vec<TcpStream> = (0..STREAMS).map(|index| self.send(&ask(index, tokens))).collect();
        sent.into_iter().map(Begun::wait).collect()
    }

    /// Its end after SIGTERM.
    fn ends_well(self) {
        binary::signal(self.process.id(), "-TERM");
        self.process.good_end();
    }
}

/// A stream whose first bytes have come.
struct Begun {
    first: Vec<u8>,
    rest: TcpStream,
}

impl Begun {
    fn wait(mut rest: TcpStream) -> Self {
        let mut first = Vec::new();
        while !first.windows(5).any(|bytes| bytes == b"data:") {
            let mut some = [0; 512];
            let read = rest.read(&mut some).expect("the server answers");
            assert!(read > 0, "{}", String::from_utf8_lossy(&first));
            first.extend_from_slice(&some[..read]);
        }
        Self { first, rest }
    }

    /// All of its text; it has a piece for each of its tokens.
    #[track_caller]
    fn text(self, tokens: usize) -> String {
        let events = reply(self.first.as_slice().chain(self.rest)).events();
        assert_eq!(events.len(), tokens, "pieces");
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect()
    }
}

/// Some are sampled.
fn ask(index: usize, tokens: usize) -> String {
    let prompt: Vec<usize> = (0..3 + index * 5).map(|i| 5 + (index * 131 + i * 17) % 4000).collect();
    let temperature = if index.is_multiple_of(2) { 0.0 } else { 0.8 };
    let body: Value = json!({
        "prompt": prompt, "max_tokens": tokens, "ignore_eos": true, "stream": true, "temperature": temperature, "seed": index,
    });
    post("/v1/completions", &completion(body).to_string(), "")
}

/// What one process answers.
fn alone(deployment: &Deployment, tokens: usize) -> Vec<String> {
    let server = Server::start(rally(&["serve", path_text(&deployment.alone), "--listen", "127.0.0.1:0"]));
    texts(server.streams(tokens), tokens)
}

#[track_caller]
fn texts(streams: Vec<Begun>, tokens: usize) -> Vec<String> {
    streams.into_iter().map(|stream| stream.text(tokens)).collect()
}

#[test]
fn a_server_on_hosts_answers_as_one_process_does_and_lets_them_go() {
    let deployment = Deployment::new(2, 2, Divided::Experts);
    let expected = alone(&deployment, 24);
    let _workers = deployment.workers();
    // The workers outlive the first server.
    for _ in 0..2 {
        let server = Server::across(&deployment, &[]);
        assert_eq!(texts(server.streams(24), 24), expected);
        server.ends_well();
    }
}

#[test]
fn a_replica_takes_over_and_a_host_that_comes_back_is_taken_in() {
    const TOKENS: usize = 400;
    let deployment = Deployment::new(1, 2, Divided::Replicas);
    let expected = alone(&deployment, TOKENS);
    let mut workers = deployment.workers();
    let server = Server::across(&deployment, &[]);
    let streams = server.streams(TOKENS);
    workers[1].kill();
    server.process.says("the run goes on without it");
    assert_eq!(texts(streams, TOKENS), expected);

    let streams = server.streams(TOKENS);
    workers[1] = deployment.worker("f1");
    server.process.says("host `f1` is back");
    assert_eq!(texts(streams, TOKENS), expected);
    server.ends_well();
}

#[test]
fn where_nobody_else_has_what_was_lost_streams_wait_and_so_does_what_comes() {
    const TOKENS: usize = 200;
    let deployment = Deployment::new(1, 2, Divided::Experts);
    let expected = alone(&deployment, TOKENS);
    let mut workers = deployment.workers();
    let server = Server::across(&deployment, &[]);
    let mut streams = server.streams(TOKENS);
    let leaves = Begun::wait(server.send(&ask(1, 2000)));
    workers[0].kill();
    server.process.says("the run waits for it");
    // One comes while it stands still, and one goes.
    let comes = server.send(&ask(0, TOKENS));
    drop(leaves);
    // Alive, and not ready.
    assert_eq!(server.get("/health").status, 200);
    let ready = server.get("/ready");
    assert!(ready.status == 503 && ready.body.contains("host `f0` is lost"), "{ready:?}");
    workers[0] = deployment.worker("f0");
    streams.push(Begun::wait(comes));
    let texts = texts(streams, TOKENS);
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(texts[..STREAMS], expected);
    assert_eq!(texts[STREAMS], expected[0]);
    // Whoever left is let go.
    let until = Instant::now() + PATIENCE;
    while !server
        .get("/metrics")
        .body
        .lines()
        .any(|line| line.starts_with("rally_num_requests_running") && line.ends_with(" 0"))
    {
        assert!(Instant::now() < until, "{}", server.get("/metrics").body);
        std::thread::sleep(Duration::from_millis(20));
    }
    server.ends_well();
}

#[test]
fn a_host_that_does_not_come_back_ends_the_server_and_clients_are_told() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let mut workers = deployment.workers();
    let server = Server::across(&deployment, &["--wait-hosts", "1"]);
    let stream = Begun::wait(server.send(&ask(0, 2000)));
    workers[0].kill();
    let mut rest = String::new();
    let _ = { stream.rest }.read_to_string(&mut rest);
    assert!(rest.contains("host `f0`") && rest.contains("missing after 1 s"), "{rest}");
    let (code, said) = server.process.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("host `f0`"), "{said}");
}

/// What cannot be kept to is refused before anyone waits.
#[test]
fn flags_that_make_no_sense_are_refused() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let refused = |mut command: Command| {
        let output = command.output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(2));
        hosts::stderr(&output)
    };
    deployment.edit(|graph| graph["slo"] = json!({ "tpot_ms": 50 }));
    let said = refused(deployment.command("serve", &["--listen", "127.0.0.1:0", "--hold-tpot"]));
    assert!(said.contains("--hold-tpot") && said.contains("other hosts"), "{said}");
    let said = refused(rally(&["serve", path_text(&deployment.alone), "--host", "a0"]));
    assert!(said.contains("this graph has no hosts"), "{said}");
    let said = refused(rally(&["serve", path_text(&deployment.graph)]));
    assert!(said.contains("--key-file"), "{said}");
}
