//! What does it take to predict a deployment of thousands of accelerators? Step-3's 61 layers in 3 micro-batches, 1,000 steps that decode,
//! on servers of 8 H800, a sequence and micro-batch on each device that attends. Lanes that do the same are run once
//! (`runtime/schedule/src/virtual_lanes/fold.rs`); the step planner plans for every device and sequence.
//!
//! `cargo bench --bench scale [-- ATTENTION_SERVERS FFN_SERVERS SEQUENCES STEPS]`. One thread; each case in a process of its own, so
//! that its peak of memory is its own. CPU seconds of the whole: reading nothing, from the graph to the latencies of every request.

#[path = "../tests/support/many.rs"]
mod many;

use many::{Case, cpu_seconds, peak_bytes};
use rally::load::summary::Summary;
use std::process::Command;
use std::time::Instant;

/// Cases of a plain run: what grows from row to row is the number of servers, and in the last one that of sequences.
const CASES: [[usize; 4]; 5] =
    [[152, 6, 1, 1000], [303, 12, 1, 1000], [601, 24, 1, 1000], [1202, 48, 1, 1000], [1202, 48, 4, 1000]];

fn main() {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    if let [attention, ffn, sequences, steps] = given[..] {
        return one(Case { attention, ffn, sequences, prompt: 1, steps });
    }
    println!("accelerators  lanes run  sequences  steps   CPU s  wall s  peak MB  MB/1,000 lanes  ms/token");
    let program = std::env::current_exe().expect("this program");
    for case in CASES {
        let done = Command::new(&program).args(case.map(|number| number.to_string())).status();
        assert!(done.is_ok_and(|status| status.success()), "{case:?} failed");
    }
}

fn one(case: Case) {
    let begun = Instant::now();
    let (prediction, fold) = case.predict(true, false);
    let summary = Summary::of(&prediction.timings, prediction.duration_s, &[]);
    let json = summary.to_json();
    let tpot = json["median_tpot_ms"].as_f64().expect("tokens came");
    let peak = peak_bytes() as f64 / 1e6;
    println!(
        "{:12} {:10} {:10} {:6} {:7.1} {:7.1} {:8.0} {:15.0} {:9.2}",
        case.devices(),
        fold.classes(),
        prediction.timings.len(),
        case.steps,
        cpu_seconds(),
        begun.elapsed().as_secs_f64(),
        peak,
        peak / case.devices() as f64 * 1e3,
        tpot,
    );
}
