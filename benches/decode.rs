//! Batch-1 decoding of a model larger than every cache: does it stream its weights as fast as the memory gives them?
//!
//! `cargo bench --bench decode`. 1.3 GB of random bf16 weights, undivided, one sequence, through the real engine. The time of
//! a token is that between two events of the run, so scheduling, attention, norms and sampling are in it; the bytes are those of
//! the matrices that a token multiplies with. Beside the median token stands the sum of each task's best time over the tokens: the
//! same on a quiet machine, and on one that others use too the nearest to it. The ceiling is what one core reads from the same
//! kind of memory in the same run, the best of 16 MiB pieces.
//! Two cores in one stage's team are printed for information: they share the memory's bandwidth.

mod common;

use common::{cpu_model, median, request, sorted};
use rally::engine::schedule::policy::Schedule;
use rally::engine::{Engine, RunEvent};
use rally::graph::kinds::KindRegistry;
use rally::graph::model::{LayerKind, ModelShape, WeightFormat};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::StageGraph;
use rally::kernels::ceiling::ReadCeiling;
use rally::kernels::isa::Isa;
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::{AssembleOptions, assemble};
use rally::stages::kinds::StageRegistry;
use serde_json::json;
use std::collections::HashMap;
use std::time::Instant;

const TOKENS: usize = 24;
const PROMPT_TOKENS: u32 = 8;
/// Several times the caches of the machines this runs on; pieces of it are read.
const CEILING_BYTES: usize = 256 << 20;

fn shape() -> ModelShape {
    ModelShape {
        family: "step3".into(),
        hidden: 2048,
        vocab: 8192,
        heads: 16,
        head_dim: 128,
        query_rank: 1024,
        dense_width: 8192,
        expert_width: 64,
        shared_width: 64,
        experts: 4,
        top_k: 2,
        norm_expert_weight: false,
        layers: vec![LayerKind::Dense; 12],
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_positions: 2048,
        tie_word_embeddings: true,
        eos_token_ids: Vec::new(),
        weight_format: WeightFormat::Bf16,
    }
}

/// Bytes of bf16 weights that one token is multiplied with: all matrices, the head included (an embedding is one row of it).
fn bytes_per_token(shape: &ModelShape) -> f64 {
    let (hidden, query) = (shape.hidden, shape.heads * shape.head_dim);
    let attention = (hidden + query) * shape.query_rank + 2 * hidden * shape.head_dim + hidden * query;
    let layer = attention + 3 * hidden * shape.dense_width;
    2.0 * (shape.layers.len() * layer + shape.vocab * hidden) as f64
}

/// Seconds of each decoded token on the cores `cores`, sorted, and the sum of the tasks' best.
fn token_times(cores: &[u32]) -> (Vec<f64>, f64) {
    let spec: DeploymentSpec = serde_json::from_value(json!({
        "version": 1, "name": "decode", "model": "random", "devices": { "d": { "backend": "cpu", "cores": cores } },
        "stages": [
            { "kind": "embed", "on": "d" },
            { "layers": [
                { "kind": "mfa_attention", "on": "d" }, { "kind": "dense_ffn", "on": "d" }, { "kind": "combine", "on": "d" },
            ]},
            { "kind": "sampling", "on": "d" },
        ],
        "limits": { "sequences": 1, "rows_per_micro_batch": 8, "prefill_chunk": 8, "kv_tokens": 1024, "page_tokens": 64 },
        "schedule": { "policy": "sequential", "micro_batches": 1 },
    }))
    .expect("the graph above is well formed");
    let shape = shape();
    let weights = RandomWeights::parse("random:7", WeightFormat::Bf16).expect("a seed");
    let schedule = Schedule::from_spec(&spec.schedule).expect("a built-in schedule");
    let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("the graph above unrolls");
    let options = AssembleOptions { learn: false, spans_per_lane: 1 << 16, ..AssembleOptions::default() };
    let parts = assemble(&spec, graph, &shape, &weights, &schedule, &StageRegistry::builtin(), options);
    let engine = Engine::start(parts.expect("the graph above can run")).expect("threads can be had");
    let mut at: Vec<Instant> = Vec::with_capacity(TOKENS);
    let requests = [request(0, PROMPT_TOKENS, shape.vocab as u32, TOKENS)];
    let report = engine.run_to_end(requests, |event| {
        if let RunEvent::Token(token) = event {
            at.push(token.at);
        }
    });
    let report = report.expect("the run ends well");
    // Step 0 reads the prompt.
    let mut best: HashMap<u32, u64> = HashMap::new();
    for span in report.lanes[0].spans.iter().filter(|span| span.step > 0) {
        let time = best.entry(span.position).or_insert(u64::MAX);
        *time = (*time).min(span.end_ns - span.start_ns);
    }
    let times = sorted(at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()));
    (times, best.values().sum::<u64>() as f64 * 1e-9)
}

fn main() {
    let bytes = bytes_per_token(&shape());
    let memory = ReadCeiling::new(CEILING_BYTES);
    let read = || memory.bytes_per_second(Isa::detect(), 3);
    for cores in [&[0][..], &[0, 1]] {
        let before = read();
        let (times, best) = token_times(cores);
        let ceiling = before.max(read());
        let (rate, best) = (bytes / median(&times), bytes / best);
        println!(
            "decode, batch 1, {:.2} GB of bf16 weights a token, {} core{}: median {:.1} ms, {:.1} GB/s = {:.0} % of one core's \
             read bandwidth {:.1} GB/s (best of each task {:.1} GB/s = {:.0} %) on {}",
            bytes * 1e-9,
            cores.len(),
            if cores.len() == 1 { "" } else { "s" },
            median(&times) * 1e3,
            rate * 1e-9,
            100.0 * rate / ceiling,
            ceiling * 1e-9,
            best * 1e-9,
            100.0 * best / ceiling,
            cpu_model(),
        );
    }
}
