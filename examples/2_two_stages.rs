//! Step 2: two stages on the same values. The router chooses, the expert FFN computes; nothing is copied between them.
//!
//! `cargo run --release --example 2_two_stages`

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
    let registry = StageRegistry::builtin();
    let mut shared = Default::default();

    let mut stages = Vec::new();
    for kind in ["router", "expert_ffn"] {
        let stage = ResolvedStage::standalone(kind);
        stages.push(registry.build(&mut BuildContext::standalone(&stage, vec![1], &shape, &weights, &mut shared))?);
    }

    let mut values = Values::new(4, Widths { hidden: shape.hidden, top_k: shape.top_k });
    values.rows = 4;
    values.u.iter_mut().enumerate().for_each(|(i, u)| *u = (i as f32 * 0.37).sin());
    for stage in &mut stages {
        stage.run(&mut TaskContext {
            layer: 1,
            micro_batch: 0,
            batch: &DeviceBatch::default(),
            values: &mut values,
            last_tokens: &mut [],
            samples: &mut Vec::new(),
            effort: 4,
            team: &Team::serial(),
            exchange: Exchange::ALONE,
        })?;
    }

    for (row, y) in values.y.chunks(shape.hidden).take(values.rows).enumerate() {
        let norm = y.iter().map(|value| value * value).sum::<f32>().sqrt();
        println!("row {row}: |y| = {norm:.4}");
        anyhow::ensure!(norm > 0.0, "the FFN wrote every row");
    }
    Ok(())
}
