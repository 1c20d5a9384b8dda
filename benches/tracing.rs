//! What does tracing cost? A span by itself, and whole runs with spans kept and without.
//!
//! `cargo bench --bench tracing`. Two bars: 50 ns a span when on, and decoding at most 2 % slower. A span by itself is what a lane
//! does for it, in a loop: the look at the clock (which figures need as well, so it is there when tracing is off), what the gap
//! before it was, and the store into a ring that is larger than the caches.
//!
//! Runs are compared by the CPU time of the process, which other users of the machine do not add to: one lane, which waits for
//! nobody, with the tiny model and one row a micro-batch, so that a span weighs as much as it ever does. Each pair (on, off) has a
//! control beside it (off, off): what the control differs by, the machine does, and no figure is better than that. Where machines
//! are noisier than the bar, the share that keeping spans must have is the better figure: what a span costs more when on, by itself,
//! of the time between two of them in these runs.

mod common;

use common::{cpu_model, median, request, sorted};
use rally::engine::Engine;
use rally::engine::clock::RunClock;
use rally::engine::schedule::span::{Gap, Ring, Span};
use rally::stages::deployment::{AssembleOptions, Choices, Deployment};
use rally::stages::kinds::StageRegistry;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

const SPANS: u64 = 1 << 20;
const ROUNDS: usize = 15;
/// Spans that a lane keeps, as `rally run --trace` has it.
const KEPT: usize = 1 << 18;
const PAIRS: usize = 45;
const SEQUENCES: u64 = 3;
/// A run takes some tenths of a second: pairs are close together, and there are many.
const TOKENS: usize = 300;
const SPAN_BAR_NS: f64 = 50.0;
const RUN_BAR: f64 = 1.02;

/// Nanoseconds of a span in a ring of this capacity, medians of rounds.
fn span_ns(capacity: usize) -> Vec<f64> {
    let clock = RunClock::start();
    let mut ring = Ring::new(capacity);
    let mut round = || {
        let (mut gap, mut last_ns, began) = (Gap::default(), 0, Instant::now());
        for step in 0..SPANS {
            gap.ready(last_ns);
            let end_ns = clock.now_ns();
            ring.push(gap.end(Span { step, rows: 1, effort: 1, start_ns: last_ns, end_ns, ..Span::default() }));
            last_ns = end_ns;
        }
        began.elapsed().as_nanos() as f64 / SPANS as f64
    };
    // The first round fills the ring.
    round();
    let rounds = sorted((0..ROUNDS).map(|_| round()));
    black_box(ring.into_parts());
    rounds
}

/// Nanoseconds of a look at the clock.
fn clock_ns() -> Vec<f64> {
    let clock = RunClock::start();
    sorted((0..ROUNDS).map(|_| {
        let began = Instant::now();
        (0..SPANS).for_each(|_| {
            black_box(clock.now_ns());
        });
        began.elapsed().as_nanos() as f64 / SPANS as f64
    }))
}

/// CPU time of the process so far, all its threads together, in microseconds.
fn cpu_us() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// CPU time of a run in microseconds, and its spans.
fn run(deployment: &Deployment, spans_per_lane: usize) -> (f64, u64) {
    let options = AssembleOptions { learn: false, spans_per_lane, ..AssembleOptions::default() };
    let parts = deployment.assemble(&StageRegistry::builtin(), options).expect("the graph can run");
    let engine = Engine::start(parts).expect("threads can be had");
    let before = cpu_us();
    let requests = (0..SEQUENCES).map(|id| request(id, 3, 60, TOKENS));
    let report = engine.run_to_end(requests, |_| ()).expect("the run ends well");
    (cpu_us() - before, report.lanes.iter().map(|lane| lane.tasks).sum())
}

fn verdict(figure: f64, bar: f64) -> &'static str {
    if figure <= bar { "within" } else { "ABOVE" }
}

fn quartiles(sorted: &[f64]) -> (f64, f64) {
    (sorted[sorted.len() / 4], sorted[sorted.len() - 1 - sorted.len() / 4])
}

fn main() {
    println!("on {}", cpu_model());
    let clock = median(&clock_ns());
    let mut span = [0.0; 2];
    for (index, (what, capacity)) in [("on", KEPT), ("off", 0)].into_iter().enumerate() {
        let rounds = span_ns(capacity);
        span[index] = median(&rounds);
        let (ns, (low, high)) = (median(&rounds), quartiles(&rounds));
        let bar =
            if capacity > 0 { format!("; bar {SPAN_BAR_NS}: {}", verdict(ns, SPAN_BAR_NS)) } else { String::new() };
        println!(
            "a span, tracing {what}: {ns:.1} ns (quartiles {low:.1} and {high:.1}, {ROUNDS} rounds of {SPANS}), \
             of which the clock, read either way, {clock:.1}{bar}"
        );
    }

    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/one-device.json");
    let deployment = Deployment::open(&graph, &Choices::default()).expect("the graph has no faults");
    let (mut ratios, mut controls, mut spans, mut off_us) = (Vec::new(), Vec::new(), 0, 0.0);
    for pair in 0..PAIRS {
        // All six orders of on, off and the control take turns, so that a drift of the machine favours none.
        let mut used = [0.0; 3];
        let mut order = [0, 1, 2];
        order.rotate_left(pair % 3);
        if pair % 2 == 1 {
            order.swap(1, 2);
        }
        for which in order {
            (used[which], spans) = run(&deployment, if which == 0 { KEPT } else { 0 });
        }
        let [on, off, control] = used;
        ratios.push(on / off);
        controls.push(control / off);
        off_us += off;
    }
    let a_task_us = off_us / PAIRS as f64 / spans as f64;
    let share = (span[0] - span[1]) / (a_task_us * 1e3);
    println!(
        "to keep a span: {:.1} ns, {:.3} % of {a_task_us:.2} us from one to the next; bar {:.0} %: {}",
        span[0] - span[1],
        share * 100.0,
        (RUN_BAR - 1.0) * 100.0,
        verdict(share, RUN_BAR - 1.0),
    );
    println!("runs of {spans} spans, {a_task_us:.2} us of CPU time each, {PAIRS} pairs, CPU time of the process:");
    for (what, ratios, bar) in [("on / off", ratios, Some(RUN_BAR)), ("off / off, the control", controls, None)] {
        let ratios = sorted(ratios);
        let (ratio, (low, high)) = (median(&ratios), quartiles(&ratios));
        let bar = bar.map_or_else(String::new, |bar| format!("; bar {bar}: {}", verdict(ratio, bar)));
        println!("  {what} = {ratio:.4} (quartiles {low:.4} and {high:.4}){bar}");
    }
}
