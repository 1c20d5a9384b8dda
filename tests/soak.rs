//! Ten thousand steps with trace ring, metrics and live figures on hold memory flat. A test of its own in a program of its
//! own: the count is of the whole process.

mod support;

use rally::engine::meter::RequestMeter;
use rally::engine::schedule::batch::{SequenceRequest, TokenDetail};
use rally::engine::{Engine, RunEvent};
use rally::graph::model::ModelShape;
use rally::metrics::{Exporter, Identity, MetricsServer};
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::AssembleOptions;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;
use support::{Ask, Layout, request, small_shape, start_with};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Sequences that decode at once; a new one follows each that ends, so the run is as full at its end as at its start.
const SEQUENCES: u64 = 8;
const TOKENS_EACH: usize = 100;
/// By then prompts are read, the ring has wrapped, and the first scrapes are over.
const WARM_STEPS: u64 = 2_000;
const STEPS: u64 = 10_000;
/// Memory is what is held at least during so many steps: at any one moment events may be queued and a scrape under way, and the
/// façade gives the room of samples back only every twenty scrapes or so.
const LOOK_STEPS: u64 = 2_500;
/// Between two scrapes.
const SCRAPE_EVERY: u64 = 100;
const SPANS_PER_LANE: usize = 4_096;

/// Bytes that the process holds.
fn held() -> f64 {
    let stats = ALLOCATOR.stats();
    // Growth and shrinkage of what was reallocated are in both.
    stats.bytes_allocated as f64 - stats.bytes_deallocated as f64
}

fn engine(shape: &ModelShape) -> Engine {
    let layout = Layout { policy: "ping_pong", micro_batches: 2, ..Layout::default() };
    let weights = RandomWeights::new(3, shape.weight_format);
    let options = AssembleOptions { learn: false, spans_per_lane: SPANS_PER_LANE, ..AssembleOptions::default() };
    start_with(&layout.spec(), shape, &weights, options)
}

fn sequence(id: u64) -> SequenceRequest {
    let detail = TokenDetail { logprobs: None, logits: false };
    SequenceRequest { detail, ..request(id, &Ask::greedy(&[id as u32 % 60; 8], TOKENS_EACH)) }
}

/// Length of the page.
fn scrape(server: &MetricsServer) -> usize {
    let mut stream = TcpStream::connect(server.address()).expect("the listener is there");
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("the listener reads");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("the listener answers");
    assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
    page.len()
}

#[test]
fn ten_thousand_steps_hold_memory_flat() {
    let exporter = Exporter::install(Identity::new("small")).expect("it is the only one");
    let server = MetricsServer::start(SocketAddr::from(([127, 0, 0, 1], 0)), &exporter).expect("a port can be had");
    let mut meter = RequestMeter::new(exporter.identity(), Some(0.05));
    let engine = engine(&small_shape());
    exporter.watch(engine.figures(), exporter.identity().clone());
    for id in 0..SEQUENCES {
        meter.submitted(id, 8, Instant::now());
    }
    engine.submit((0..SEQUENCES).map(sequence)).expect("the requests fit");
    let (mut next, mut tokens, mut scraped) = (SEQUENCES, 0u64, 0);
    let (mut warm, mut end) = (f64::INFINITY, f64::INFINITY);
    while tokens < STEPS * SEQUENCES {
        let event = engine.events().recv().expect("the run goes on");
        meter.event(&event);
        match event {
            RunEvent::Token(_) => tokens += 1,
            RunEvent::Finished(..) => {
                meter.submitted(next, 8, Instant::now());
                engine.submit([sequence(next)]).expect("the request fits");
                next += 1;
            }
            RunEvent::Failed(error) => panic!("{error}"),
            RunEvent::Admitted(..) => {}
        }
        if tokens > scraped && tokens.is_multiple_of(SCRAPE_EVERY * SEQUENCES) {
            scraped = tokens;
            scrape(&server);
            let _ = (meter.sample(), engine.figures().sample());
        }
        let steps = tokens / SEQUENCES;
        if (WARM_STEPS..WARM_STEPS + LOOK_STEPS).contains(&steps) {
            warm = warm.min(held());
        } else if steps >= STEPS - LOOK_STEPS {
            end = end.min(held());
        }
    }
    let change = end / warm - 1.0;
    println!("{warm:.0} bytes after {WARM_STEPS} steps, {end:.0} after {STEPS}: {:+.3} %", change * 100.0);
    assert!(change.abs() <= 0.01, "{warm} bytes after {WARM_STEPS} steps, {end} after {STEPS}");
    engine.close();
    while let Ok(event) = engine.events().recv() {
        meter.event(&event);
        if meter.sample().open == 0 {
            break;
        }
    }
    let report = engine.join();
    assert!(report.lanes.iter().all(|lane| lane.dropped_spans > 0), "the ring has wrapped");
}
