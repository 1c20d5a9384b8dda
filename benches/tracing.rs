//! What does tracing cost? The same run with spans kept and without, in pairs.
//!
//! `cargo bench --bench tracing`. The tiny model on two lanes, one row a micro-batch: tasks of microseconds and less, so that a span
//! weighs as much as it ever does. The bar is 1.02. Quartiles far apart mean that others use the machine: then compare the best.

use rally::engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally::engine::{Engine, RunReport};
use rally::stages::deployment::{AssembleOptions, Choices, Deployment};
use rally::stages::kinds::StageRegistry;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const PAIRS: usize = 61;
const TOKENS: usize = 120;
const SEQUENCES: u64 = 3;

/// Seconds from submission to the last token, and what the lanes left.
fn run(deployment: &Deployment, spans_per_lane: usize) -> (f64, RunReport) {
    let options = AssembleOptions { learn: false, spans_per_lane, ..AssembleOptions::default() };
    let parts = deployment.assemble(&StageRegistry::builtin(), options).expect("the graph can run");
    let engine = Engine::start(parts).expect("threads can be had");
    let request = |id| SequenceRequest {
        id,
        prompt: Arc::from([1, 2, 3]),
        max_new_tokens: TOKENS,
        stop_token_ids: Arc::from([]),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    };
    let began = Instant::now();
    let report = engine.run_to_end((0..SEQUENCES).map(request), |_| ()).expect("the run ends well");
    (began.elapsed().as_secs_f64(), report)
}

fn main() {
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs/tiny-ping-pong.json");
    let deployment = Deployment::open(&graph, &Choices::default()).expect("the graph has no faults");
    let (mut ratios, mut spans, mut best) = (Vec::new(), 0, [f64::INFINITY; 2]);
    for pair in 0..PAIRS {
        // Which of the two comes first alternates, so that a drift of the machine's speed favours neither.
        let traced_first = pair % 2 == 0;
        let kept = |first: bool| if first == traced_first { 1 << 18 } else { 0 };
        let (a, b) = (run(&deployment, kept(true)), run(&deployment, kept(false)));
        let (on, off) = if traced_first { (a, b) } else { (b, a) };
        ratios.push(on.0 / off.0);
        best = [best[0].min(on.0), best[1].min(off.0)];
        spans = on.1.lanes.iter().map(|lane| lane.spans.len()).sum();
    }
    ratios.sort_by(f64::total_cmp);
    let quarter = PAIRS / 4;
    println!(
        "tracing on / off = {:.3} (quartiles {:.3} and {:.3}, {PAIRS} pairs of {spans} spans), best on / best off = {:.3}; bar 1.02",
        ratios[PAIRS / 2],
        ratios[quarter],
        ratios[PAIRS - 1 - quarter],
        best[0] / best[1],
    );
}
