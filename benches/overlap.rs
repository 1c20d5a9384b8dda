//! Does ping-pong overlap? Two compute-bound lanes of about equal length, `sequential:2` against `ping_pong:2`, in pairs.
//!
//! `cargo bench --bench overlap`. The model has random weights and a dense FFN whose width is fitted so that both lanes are
//! equally busy; it fits the caches, because two cores double arithmetic but share memory bandwidth.
//!
//! Two bounds, both from the run's own stage times, filling and draining included: the same plan on virtual lanes, where each
//! stage takes what it took in the mean (by rows) and waiting and waking cost nothing. The bound of the ratio runs both orders
//! on the sequential run's times. The bound of ping-pong alone is on its own times; sequential's handing over, which flatters the ratio,
//! is not in it. Beside them what `rally bench` would say: overlap efficiency and the share of the work that was hidden.

mod common;

use common::{cpu_model, median, request, sorted};
use rally::engine::schedule::batch::SequenceRequest;
use rally::engine::schedule::costs::StageCosts;
use rally::engine::schedule::planner::PlannerConfig;
use rally::engine::schedule::policy::Schedule;
use rally::engine::schedule::virtual_lanes::{Arrival, VirtualRun, VirtualTask};
use rally::engine::{Engine, RunReport};
use rally::graph::kinds::KindRegistry;
use rally::graph::model::{LayerKind, ModelShape, WeightFormat};
use rally::graph::plan::{Plan, TaskRole};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::{DeviceIndex, StageGraph};
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::{AssembleOptions, assemble};
use rally::stages::kinds::StageRegistry;
use rally::trace::analysis::Overlap;
use rally::trace::{Analysis, Recording, Window};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

const SEQUENCES: usize = 64;
const TOKENS: usize = 24;
const PAIRS: usize = 9;
/// More than a run has.
const SPANS: usize = 1 << 16;
const PROMPT_TOKENS: u32 = 16;
const VOCAB: u32 = 256;

fn shape(dense_width: usize) -> ModelShape {
    ModelShape {
        family: "step3".into(),
        hidden: 256,
        vocab: 256,
        heads: 8,
        head_dim: 64,
        query_rank: 256,
        dense_width,
        max_positions: 2048,
        tie_word_embeddings: true,
        weight_format: WeightFormat::Bf16,
        ..ModelShape::toy(vec![LayerKind::Dense; 4])
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

/// A run, and what it takes to repeat it on virtual lanes.
struct Run {
    wall_s: f64,
    report: RunReport,
    plan: Arc<Plan>,
    planner: PlannerConfig,
    attention: Vec<DeviceIndex>,
    overlap: Overlap,
}

fn run(dense_width: usize, schedule: &str) -> Run {
    let (spec, shape) = (spec(), shape(dense_width));
    let weights = RandomWeights::new(7, WeightFormat::Bf16);
    let schedule = Schedule::parse(schedule, &spec.schedule).expect("a built-in schedule");
    let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("the graph above unrolls");
    let options = AssembleOptions { learn: false, spans_per_lane: SPANS, ..AssembleOptions::default() };
    let parts = assemble(&spec, graph, &shape, &weights, &schedule, &StageRegistry::builtin(), options)
        .expect("the graph above can run");
    let (plan, planner, attention) = (Arc::clone(&parts.plan), parts.planner, parts.attention.clone());
    let engine = Engine::start(parts).expect("threads can be had");
    let began = Instant::now();
    let report = engine.run_to_end(requests(), |_| ()).expect("the run ends well");
    let wall_s = began.elapsed().as_secs_f64();
    let recording = Recording::new(&plan, &report.lanes, &report.counters);
    let overlap = Analysis::of(&recording, Window::settled(&recording)).overlap;
    Run { wall_s, report, plan, planner, attention, overlap }
}

fn requests() -> impl Iterator<Item = SequenceRequest> {
    (0..SEQUENCES as u64).map(|id| request(id, PROMPT_TOKENS, VOCAB, TOKENS))
}

impl Run {
    fn busy_s(&self) -> [f64; 2] {
        [0, 1].map(|lane| self.report.lanes[lane].busy_ns as f64 / 1e9)
    }

    /// What each stage took in the mean, by rows.
    fn stage_times(&self) -> StageCosts {
        let table = &self.plan.table;
        let mut sums: HashMap<(&str, &str, u32), (TaskRole, f64, f64)> = HashMap::new();
        for (lane, report) in self.plan.lanes.iter().zip(&self.report.lanes) {
            for span in &report.spans {
                let task = &table.tasks[lane.tasks[span.position as usize].task];
                let (stage, role) = (&table.stages[task.stage], task.role);
                let part = if role == TaskRole::Send { "send" } else { "other" };
                let sum = sums.entry((&stage.id, part, span.rows)).or_insert((role, 0.0, 0.0));
                (sum.1, sum.2) = (sum.1 + (span.end_ns - span.start_ns) as f64 * 1e-9, sum.2 + 1.0);
            }
        }
        let mut costs = StageCosts::assumed();
        for ((stage, _, rows), (role, seconds, count)) in sums {
            costs.set(stage, role, rows as usize, seconds / count);
        }
        costs
    }

    /// Seconds that this run's plan takes on virtual lanes where stages take `costs`.
    fn bound_s(&self, costs: &StageCosts) -> f64 {
        // By id instead of by kind: both transfers are of one kind.
        let mut table = self.plan.table.clone();
        table.stages.iter_mut().for_each(|stage| stage.kind.clone_from(&stage.id));
        let virtual_run = VirtualRun {
            plan: &self.plan,
            planner: self.planner,
            attention: &self.attention,
            costs: &|task: &VirtualTask<'_>| costs.task_ns(&table, task.task, task.load.rows),
            token: &|_, _| 0,
        };
        let arrivals = requests().map(|request| Arrival { at_ns: 0, request }).collect();
        virtual_run.run(arrivals).expect("the requests fit").wall_ns as f64 / 1e9
    }
}

/// The dense width at which both lanes of a sequential run are equally busy.
fn balanced_width() -> usize {
    let mut width = 512;
    for _ in 0..4 {
        let [attention, ffn] = run(width, "sequential:2").busy_s();
        width = ((width as f64 * attention / ffn / 16.0).round() as usize * 16).clamp(64, 8192);
    }
    width
}

fn main() {
    let width = balanced_width();
    let (mut ratios, mut of_bound, mut of_own_bound) = (Vec::new(), Vec::new(), Vec::new());
    // Efficiency and hidden share, of sequential and of ping-pong.
    let mut overlaps = [const { (Vec::new(), Vec::new()) }; 2];
    for pair in 0..PAIRS {
        // Which of the two comes first alternates, so that a drift of the machine's speed favours neither.
        let (first, second) =
            if pair % 2 == 0 { ("sequential:2", "ping_pong:2") } else { ("ping_pong:2", "sequential:2") };
        let (a, b) = (run(width, first), run(width, second));
        let (sequential, ping_pong) = if pair % 2 == 0 { (a, b) } else { (b, a) };
        let ratio = sequential.wall_s / ping_pong.wall_s;
        let times = sequential.stage_times();
        ratios.push(ratio);
        of_bound.push(ratio / (sequential.bound_s(&times) / ping_pong.bound_s(&times)));
        for ((efficiencies, hidden), run) in overlaps.iter_mut().zip([&sequential, &ping_pong]) {
            efficiencies.push(run.overlap.efficiency);
            hidden.push(run.overlap.hidden_share);
        }
        of_own_bound.push(ping_pong.bound_s(&ping_pong.stage_times()) / ping_pong.wall_s);
    }
    let [ratios, of_bound, of_own_bound] = [ratios, of_bound, of_own_bound].map(sorted);
    println!(
        "overlap, sequential:2 / ping_pong:2 = {:.2} (min {:.2}, max {:.2}, {PAIRS} pairs) on two cores of {}; of the bound of \
         the sequential run's stage times: {:.2}; ping_pong:2 at {:.2} (min {:.2}) of the bound of its own; {SEQUENCES} \
         sequences, dense width {width}",
        median(&ratios),
        ratios[0],
        ratios[PAIRS - 1],
        cpu_model(),
        median(&of_bound),
        median(&of_own_bound),
        of_own_bound[0],
    );
    for (schedule, (efficiencies, hidden)) in ["sequential:2", "ping_pong:2"].iter().zip(overlaps) {
        let (efficiencies, hidden) = (sorted(efficiencies), sorted(hidden));
        println!(
            "overlap efficiency of {schedule} = {:.2} (min {:.2}, max {:.2}, {PAIRS} runs); hidden share {:.2}; ceiling 1",
            median(&efficiencies),
            efficiencies[0],
            efficiencies[PAIRS - 1],
            median(&hidden),
        );
    }
}
