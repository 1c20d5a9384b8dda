//! Step 1: one stage by itself. The router of layer 1 of the tiny model chooses experts for two rows.
//!
//! `cargo run --release --example 1_one_stage`

mod common;

use rally::engine::Widths;
use rally::engine::exchange::Exchange;
use rally::engine::schedule::batch::DeviceBatch;
use rally::engine::stage::TaskContext;
use rally::engine::values::Values;
use rally::graph::stage_graph::ResolvedStage;
use rally::kernels::team::Team;
use rally::stages::checkpoint::Checkpoint;
use rally::stages::config::load_model_shape;
use rally::stages::kinds::{BuildContext, StageRegistry};

fn main() -> anyhow::Result<()> {
    let model = common::repository("models/tiny-step3");
    let shape = load_model_shape(&model)?;
    let weights = Checkpoint::open(&model)?;

    // A stage is made for the layers it runs in, and reads only their weights.
    let stage = ResolvedStage::standalone("router");
    let mut shared = Default::default();
    let mut context = BuildContext::standalone(&stage, vec![1], &shape, &weights, &mut shared);
    let mut router = StageRegistry::builtin().build(&mut context)?;

    // It works on values: here two rows of u.
    let mut values = Values::new(2, Widths { hidden: shape.hidden, top_k: shape.top_k });
    values.rows = 2;
    values.u.iter_mut().enumerate().for_each(|(i, u)| *u = (i as f32 * 0.37).sin());
    router.run(&mut TaskContext {
        layer: 1,
        micro_batch: 0,
        batch: &DeviceBatch::default(),
        values: &mut values,
        last_tokens: &mut [],
        samples: &mut Vec::new(),
        effort: 2,
        team: &Team::serial(),
        exchange: Exchange::ALONE,
    })?;

    for row in 0..2 {
        let chosen = row * shape.top_k..(row + 1) * shape.top_k;
        let (ids, weights) = (&values.expert_ids[chosen.clone()], &values.expert_weights[chosen]);
        println!("row {row}: experts {ids:?} with weights {weights:.3?}");
        anyhow::ensure!(weights.is_sorted_by(|a, b| a >= b), "best first");
    }
    Ok(())
}
