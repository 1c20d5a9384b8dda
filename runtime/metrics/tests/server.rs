//! The listener against clients that behave and clients that do not.

use rally_metrics::{Exporter, Exposition, Health, Identity, MetricsServer, ServerError, Source, names};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A process has one exporter, and the tests of this file are one process.
fn exporter() -> &'static Exporter {
    static EXPORTER: OnceLock<Exporter> = OnceLock::new();
    EXPORTER.get_or_init(|| {
        let exporter = Exporter::install(Identity::new("toy")).expect("it is the only one");
        names::GENERATION_TOKENS.handle(exporter.identity(), &[]).add(7);
        names::INTER_TOKEN_LATENCY.handle(exporter.identity(), &[]).record(0.05);
        exporter.watch(Arc::new(HalfFull), exporter.identity().clone());
        exporter
    })
}

struct HalfFull;

impl Source for HalfFull {
    fn write(&self, page: &mut Exposition<'_>) {
        page.gauge(&names::KV_CACHE_USAGE, |samples| samples.push(&[], 0.5));
    }
}

fn serve() -> MetricsServer {
    MetricsServer::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), exporter()).expect("a free port can be had")
}

/// Sends `request` as it is and returns all that comes back.
fn send(server: &MetricsServer, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address()).expect("the listener is there");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
    stream.write_all(request).expect("the listener reads");
    let mut answer = String::new();
    // Closed while bytes of ours lie unread, a connection ends in a reset; what was answered before it counts.
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn get(server: &MetricsServer, path: &str) -> String {
    send(server, format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes())
}

#[test]
fn a_scrape_has_what_was_counted_and_what_is_read_at_the_moment() {
    let server = serve();
    let answer = get(&server, "/metrics");
    let (head, page) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", page.len())), "{head}");
    for line in [
        "rally_generation_tokens_total{model_name=\"toy\",engine=\"0\"} 7",
        "rally_inter_token_latency_seconds_bucket{model_name=\"toy\",engine=\"0\",le=\"0.04\"} 0",
        "rally_inter_token_latency_seconds_bucket{model_name=\"toy\",engine=\"0\",le=\"0.05\"} 1",
        "# TYPE rally_kv_cache_usage_perc gauge",
        "rally_kv_cache_usage_perc{model_name=\"toy\",engine=\"0\"} 0.5",
    ] {
        assert!(page.lines().any(|found| found == line), "`{line}` is not in\n{page}");
    }
    assert!(send(&server, b"HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"), "HEAD has no body");
}

#[test]
fn health_says_whether_there_is_something_to_serve() {
    let server = serve();
    exporter().set_health(Health::Starting);
    assert!(get(&server, "/health").starts_with("HTTP/1.1 503 "));
    exporter().set_health(Health::Serving);
    assert!(get(&server, "/health").starts_with("HTTP/1.1 200 "));
    exporter().set_health(Health::Failed);
    let answer = get(&server, "/health");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\nfailed\n"), "{answer}");
}

#[test]
fn what_it_does_not_know_it_refuses_by_name() {
    let server = serve();
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n".to_owned(), "405"),
        ("metrics please\r\n\r\n".to_owned(), "400"),
        ("GET /metrics HTTP/2\r\n\r\n".to_owned(), "400"),
        ("\r\n\r\n".to_owned(), "400"),
        (format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(10_000)), "431"),
    ] {
        let answer = send(&server, request.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{:?}: {answer}",
            &request[..request.len().min(40)]
        );
    }
    assert!(send(&server, &[0xff, 0xfe, b'\r', b'\n', b'\r', b'\n']).starts_with("HTTP/1.1 400 "));
}

/// Clients that connect and say nothing must not keep others out for longer than their deadline, nor the end of the run.
#[test]
fn silent_clients_hold_up_neither_scrapes_nor_the_end() {
    let server = serve();
    let silent: Vec<TcpStream> =
        (0..5).map(|_| TcpStream::connect(server.address()).expect("the listener is there")).collect();
    let began = Instant::now();
    assert!(get(&server, "/metrics").starts_with("HTTP/1.1 200 "));
    drop(server);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    drop(silent);
}

#[test]
fn connections_beyond_the_bound_are_closed_and_places_come_back() {
    let server = serve();
    let mut silent: Vec<TcpStream> =
        (0..8).map(|_| TcpStream::connect(server.address()).expect("the listener is there")).collect();
    assert_eq!(get(&server, "/metrics"), "", "the ninth is closed without an answer");
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
        let mut rest = Vec::new();
        // The deadline is theirs to find out: the listener closes them.
        assert_eq!(stream.read_to_end(&mut rest).unwrap_or(0), 0);
    }
    let until = Instant::now() + Duration::from_secs(20);
    while !get(&server, "/metrics").starts_with("HTTP/1.1 200 ") {
        assert!(Instant::now() < until, "no place came back");
        std::thread::yield_now();
    }
}

#[test]
fn a_port_in_use_is_named() {
    let server = serve();
    let second = MetricsServer::start(server.address(), exporter());
    let error = second.err().expect("the port is taken");
    assert!(matches!(error, ServerError::InUse { address } if address == server.address()), "{error}");
    assert!(error.to_string().contains("port 0"), "{error}");
}
