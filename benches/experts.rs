//! An expert FFN stage on one core, with Step-3's widths: rows gathered by expert, gate, up, SwiGLU, down, weighted sums.
//!
//! `cargo bench --bench experts`. The stage is the built-in one, called as a lane calls it, on rows that its experts share
//! evenly. Operations are those of the matrices; the ceiling is the core's rate of fused multiply-adds in the same run. Figures
//! and ceilings are the best of several rounds: on a machine that others use too, a median would show their work.

mod common;

use common::cpu_model;
use rally::engine::Widths;
use rally::engine::schedule::batch::DeviceBatch;
use rally::engine::stage::{Stage, TaskContext};
use rally::engine::values::Values;
use rally::graph::kinds::KindRegistry;
use rally::graph::model::{LayerKind, ModelShape, WeightFormat};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::{ResolvedStage, StageGraph};
use rally::kernels::ceiling::flops_per_second;
use rally::kernels::isa::Isa;
use rally::kernels::team::Team;
use rally::stages::checkpoint::RandomWeights;
use rally::stages::kinds::{BuildContext, StageRegistry};
use serde_json::json;
use std::collections::HashMap;
use std::time::Instant;

const EXPERTS: usize = 2;
const ROUNDS: usize = 7;
const MOST_ROWS: usize = 128;

/// Step-3's FFN; the shared expert is small here, so that the figure is the routed ones'.
fn shape() -> ModelShape {
    ModelShape {
        family: "step3".into(),
        hidden: 7168,
        vocab: 16,
        heads: 1,
        head_dim: 16,
        query_rank: 16,
        dense_width: 16,
        expert_width: 5120,
        shared_width: 64,
        experts: EXPERTS,
        top_k: 1,
        norm_expert_weight: false,
        layers: vec![LayerKind::Moe],
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_positions: 2048,
        tie_word_embeddings: true,
        eos_token_ids: Vec::new(),
        weight_format: WeightFormat::Bf16,
    }
}

fn spec() -> DeploymentSpec {
    let on = |kind: &str| json!({ "kind": kind, "on": "d" });
    serde_json::from_value(json!({
        "version": 1, "name": "experts", "model": "random", "devices": { "d": { "backend": "cpu" } },
        "stages": [
            on("embed"), { "layers": [on("mfa_attention"), on("router"), on("expert_ffn"), on("combine")] }, on("sampling"),
        ],
        "limits": { "sequences": 1, "rows_per_micro_batch": 8, "prefill_chunk": 8, "kv_tokens": 1024, "page_tokens": 64 },
        "schedule": { "policy": "sequential", "micro_batches": 1 },
    }))
    .expect("the graph above is well formed")
}

fn stage(stage: &ResolvedStage, shape: &ModelShape) -> Box<dyn Stage> {
    let weights = RandomWeights::new(7, WeightFormat::Bf16);
    let mut shared = HashMap::new();
    let mut context = BuildContext::standalone(stage, vec![0], shape, &weights, &mut shared);
    context.planner.rows_per_device = EXPERTS * MOST_ROWS;
    StageRegistry::builtin().build(&mut context).expect("the stage can be made")
}

/// `rows` rows for each expert.
fn values(shape: &ModelShape, rows: usize) -> Values {
    let mut values = Values::new(EXPERTS * rows, Widths { hidden: shape.hidden, top_k: 1 });
    values.rows = EXPERTS * rows;
    values.u.iter_mut().enumerate().for_each(|(index, u)| *u = (index % 17) as f32 * 0.1 - 0.8);
    values.expert_ids.iter_mut().enumerate().for_each(|(row, id)| *id = (row % EXPERTS) as u32);
    values.expert_weights.fill(1.0);
    values
}

fn main() {
    let shape = shape();
    let graph = StageGraph::build(&spec(), &shape, KindRegistry::shared()).expect("the graph above unrolls");
    let resolved = graph.stages.iter().find(|stage| stage.kind == "expert_ffn").expect("the graph has experts");
    let mut stage = stage(resolved, &shape);
    for isa in Isa::available().filter(|isa| *isa != Isa::Portable) {
        let team = Team::serial().with_isa(isa);
        for rows in [MOST_ROWS, 32, 16, 8, 4] {
            let mut values = values(&shape, rows);
            let (mut seconds, mut peak) = (f64::INFINITY, 0.0f64);
            for _ in 0..ROUNDS {
                peak = peak.max(flops_per_second(isa, 20));
                let began = Instant::now();
                run(&mut *stage, &mut values, &team);
                seconds = seconds.min(began.elapsed().as_secs_f64());
            }
            let width = shape.expert_width + shape.shared_width;
            let rate = (EXPERTS * rows * 6 * shape.hidden * width) as f64 / seconds;
            println!(
                "expert FFN, bf16, 7168 × 5120, {rows} rows an expert, one core, {isa:?}: {:.1} GFLOP/s = {:.0} % of FMA peak \
                 {:.1} on {}",
                rate * 1e-9,
                100.0 * rate / peak,
                peak * 1e-9,
                cpu_model(),
            );
        }
    }
}

fn run(stage: &mut dyn Stage, values: &mut Values, team: &Team) {
    let mut task = TaskContext {
        layer: 0,
        micro_batch: 0,
        batch: &DeviceBatch::default(),
        values,
        last_tokens: &mut [],
        samples: &mut Vec::new(),
        team,
    };
    stage.run(&mut task).expect("an FFN has nothing to refuse");
}
