//! An expert FFN stage on one core: rows gathered by expert, gate, up, SwiGLU, down, weighted sums.
//!
//! `cargo bench --bench experts`. The stage is the built-in one, called as a lane calls it. Each call gives all rows to one
//! expert, the next one in turn, so weights come from memory: 200 MB of them pass before an expert has its next turn. Operations
//! are those of the matrices; the ceiling is the core's rate of fused multiply-adds in the same run. Printed are the best call
//! and the median: on a machine that others use too, a median shows their work.

mod common;

use common::{cpu_model, median, sorted};
use rally::engine::Widths;
use rally::engine::exchange::Exchange;
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

const EXPERTS: usize = 32;
/// Calls of a case.
const CALLS: usize = 4 * EXPERTS;
const MOST_ROWS: usize = 128;

/// Real widths, small enough that a call is short; the shared expert is small, so that the figure is the routed ones'.
fn shape() -> ModelShape {
    ModelShape {
        family: "step3".into(),
        hidden: 2048,
        vocab: 16,
        heads: 1,
        head_dim: 16,
        query_rank: 16,
        dense_width: 16,
        expert_width: 512,
        shared_width: 16,
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
    context.planner.rows_per_device = MOST_ROWS;
    StageRegistry::builtin().build(&mut context).expect("the stage can be made")
}

fn values(shape: &ModelShape, rows: usize) -> Values {
    let mut values = Values::new(rows, Widths { hidden: shape.hidden, top_k: 1 });
    values.rows = rows;
    values.u.iter_mut().enumerate().for_each(|(index, u)| *u = (index % 17) as f32 * 0.1 - 0.8);
    values.expert_weights.fill(1.0);
    values
}

/// Seconds of each call, sorted, and the core's peak meanwhile.
fn measure(stage: &mut dyn Stage, values: &mut Values, team: &Team) -> (Vec<f64>, f64) {
    let mut peak = 0.0f64;
    let seconds = (0..CALLS).map(|call| {
        if call % EXPERTS == 0 {
            peak = peak.max(flops_per_second(team.isa(), 20));
        }
        values.expert_ids.fill((call % EXPERTS) as u32);
        let began = Instant::now();
        run(stage, values, team);
        began.elapsed().as_secs_f64()
    });
    (sorted(seconds), peak)
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
            let (seconds, peak) = measure(&mut *stage, &mut values, &team);
            let flops = (rows * 6 * shape.hidden * (shape.expert_width + shape.shared_width)) as f64;
            let (best, middle) = (flops / seconds[0], flops / median(&seconds));
            println!(
                "expert FFN, bf16, 2048 × 512, {rows} rows an expert, one core, {isa:?}: {:.1} GFLOP/s = {:.0} % of FMA peak \
                 {:.1} (median {:.1} = {:.0} %) on {}",
                best * 1e-9,
                100.0 * best / peak,
                peak * 1e-9,
                middle * 1e-9,
                100.0 * middle / peak,
                cpu_model(),
            );
        }
    }
}

fn run(stage: &mut dyn Stage, values: &mut Values, team: &Team) {
    let mut task = TaskContext {
        effort: values.rows,
        layer: 0,
        micro_batch: 0,
        batch: &DeviceBatch::default(),
        values,
        last_tokens: &mut [],
        samples: &mut Vec::new(),
        team,
        exchange: Exchange::ALONE,
    };
    stage.run(&mut task).expect("an FFN has nothing to refuse");
}
