//! Does ping-pong overlap? Two compute-bound lanes of about equal length, `sequential:2` against `ping_pong:2`, in pairs.
//!
//! `cargo bench --bench overlap`. The model has random weights and a dense FFN whose width is fitted so that both lanes are
//! equally busy; it fits the caches, because two cores double arithmetic but share memory bandwidth. The ceiling of the ratio is
//! what the run's own lane times allow: (attention + FFN) / max(attention, FFN). Beside it the overlap efficiency of both, the
//! bound of a run's own stage times over what it took, and the share of the work that was hidden.

use rally::engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally::engine::schedule::policy::Schedule;
use rally::engine::{Engine, RunReport};
use rally::graph::kinds::KindRegistry;
use rally::graph::model::{LayerKind, ModelShape, WeightFormat};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::StageGraph;
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::{AssembleOptions, assemble};
use rally::stages::kinds::StageRegistry;
use rally::trace::analysis::Overlap;
use rally::trace::{Analysis, Recording, Window};
use std::sync::Arc;
use std::time::Instant;

const SEQUENCES: usize = 64;
const TOKENS: usize = 24;
const PAIRS: usize = 9;

fn shape(dense_width: usize) -> ModelShape {
    ModelShape {
        family: "step3".into(),
        hidden: 256,
        vocab: 256,
        heads: 8,
        head_dim: 64,
        query_rank: 256,
        dense_width,
        expert_width: 64,
        shared_width: 64,
        experts: 4,
        top_k: 2,
        norm_expert_weight: false,
        layers: vec![LayerKind::Dense; 4],
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_positions: 2048,
        tie_word_embeddings: true,
        eos_token_ids: Vec::new(),
        weight_format: WeightFormat::Bf16,
    }
}

fn spec() -> DeploymentSpec {
    let text = r#"{
        "version": 1, "name": "overlap", "model": "random",
        "devices": { "attn": { "backend": "cpu", "cores": [0] }, "ffn": { "backend": "cpu", "cores": [1] } },
        "stages": [
            { "kind": "embed", "on": "attn" },
            { "layers": [
                { "kind": "mfa_attention", "on": "attn", "kv_dtype": "f32" },
                { "kind": "transfer", "id": "a2f", "from": "attn", "to": "ffn", "dtype": "bf16" },
                { "kind": "dense_ffn", "on": "ffn" },
                { "kind": "transfer", "id": "f2a", "from": "ffn", "to": "attn", "dtype": "bf16" },
                { "kind": "combine", "on": "attn" }
            ]},
            { "kind": "sampling", "on": "attn" }
        ],
        "limits": { "sequences": 64, "rows_per_micro_batch": 64, "prefill_chunk": 16, "kv_tokens": 8192, "page_tokens": 64 },
        "schedule": { "policy": "ping_pong", "micro_batches": 2 }
    }"#;
    serde_json::from_str(text).expect("the graph above is well formed")
}

/// A run.
struct Run {
    seconds: f64,
    report: RunReport,
    overlap: Overlap,
}

fn run(dense_width: usize, schedule: &str) -> Run {
    let (spec, shape) = (spec(), shape(dense_width));
    let weights = RandomWeights::new(7, WeightFormat::Bf16);
    let schedule = Schedule::parse(schedule, &spec.schedule).expect("a built-in schedule");
    let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("the graph above unrolls");
    let options = AssembleOptions { spans_per_lane: 1 << 16, probe: None };
    let parts = assemble(&spec, graph, &shape, &weights, &schedule, &StageRegistry::builtin(), options)
        .expect("the graph above can run");
    let plan = Arc::clone(&parts.plan);
    let engine = Engine::start(parts).expect("threads can be had");
    let request = |id: u64| SequenceRequest {
        id,
        prompt: Arc::from((0..16).map(|i| (i * 7 + id as u32) % 256).collect::<Vec<u32>>()),
        max_new_tokens: TOKENS,
        stop_token_ids: Arc::from([]),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    };
    let began = Instant::now();
    let report = engine.run_to_end((0..SEQUENCES as u64).map(request), |_| ()).expect("the run ends well");
    let seconds = began.elapsed().as_secs_f64();
    let recording = Recording::new(&plan, &report.lanes, &report.counters);
    let overlap = Analysis::of(&recording, Window::settled(&recording)).overlap;
    Run { seconds, report, overlap }
}

fn busy_s(report: &RunReport) -> [f64; 2] {
    [0, 1].map(|lane| report.lanes[lane].busy_ns as f64 / 1e9)
}

/// The dense width at which both lanes of a sequential run are equally busy.
fn balanced_width() -> usize {
    let mut width = 512;
    for _ in 0..4 {
        let [attention, ffn] = busy_s(&run(width, "sequential:2").report);
        width = ((width as f64 * attention / ffn / 16.0).round() as usize * 16).clamp(64, 8192);
    }
    width
}

fn main() {
    let width = balanced_width();
    let (mut ratios, mut ceilings) = (Vec::new(), Vec::new());
    // Efficiency and hidden share, of sequential and of ping-pong.
    let mut overlaps = [const { (Vec::new(), Vec::new()) }; 2];
    for pair in 0..PAIRS {
        // Which of the two comes first alternates, so that a drift of the machine's speed favours neither.
        let (first, second) =
            if pair % 2 == 0 { ("sequential:2", "ping_pong:2") } else { ("ping_pong:2", "sequential:2") };
        let (a, b) = (run(width, first), run(width, second));
        let (sequential, ping_pong) = if pair % 2 == 0 { (a, b) } else { (b, a) };
        let [attention, ffn] = busy_s(&sequential.report);
        ratios.push(sequential.seconds / ping_pong.seconds);
        ceilings.push((attention + ffn) / attention.max(ffn));
        for ((efficiencies, hidden), run) in overlaps.iter_mut().zip([&sequential, &ping_pong]) {
            efficiencies.push(run.overlap.efficiency);
            hidden.push(run.overlap.hidden_share);
        }
    }
    ratios.sort_by(f64::total_cmp);
    ceilings.sort_by(f64::total_cmp);
    let (ratio, ceiling) = (ratios[PAIRS / 2], ceilings[PAIRS / 2]);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("this CPU", |(_, name)| name);
    println!(
        "overlap sequential:2 / ping_pong:2 = {ratio:.2} (min {:.2}, max {:.2}, {PAIRS} pairs) on two cores of {cpu}; \
         ceiling {ceiling:.2}, ratio to it {:.2}; {SEQUENCES} sequences, dense width {width}",
        ratios[0],
        ratios[PAIRS - 1],
        ratio / ceiling,
    );
    for (schedule, (efficiencies, hidden)) in ["sequential:2", "ping_pong:2"].iter().zip(overlaps) {
        print_overlap(schedule, efficiencies, hidden);
    }
}

fn print_overlap(schedule: &str, mut efficiencies: Vec<f64>, mut hidden: Vec<f64>) {
    efficiencies.sort_by(f64::total_cmp);
    hidden.sort_by(f64::total_cmp);
    println!(
        "overlap efficiency of {schedule} = {:.2} (min {:.2}, max {:.2}, {PAIRS} runs); hidden share {:.2}; ceiling 1",
        efficiencies[PAIRS / 2],
        efficiencies[0],
        efficiencies[PAIRS - 1],
        hidden[PAIRS / 2],
    );
}
