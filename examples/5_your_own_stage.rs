//! Step 5: a stage of your own. `residual_clamp` keeps the residual stream within a limit, after the FFN of every layer.
//!
//! A kind has two halves: what it needs (`StageKindInfo`: checked like a built-in one, a typo in its graph is a diagnostic) and
//! what it computes (`Stage`). The graph here is the repository's, with one stage added.
//!
//! `cargo run --release --example 5_your_own_stage`

mod common;
#[path = "common/prompt.rs"]
mod prompt;

use rally::engine::stage::{Stage, StageError, TaskContext};
use rally::engine::{Engine, RunEvent};
use rally::graph::kinds::{Key, KindRegistry, Role, StageKindInfo, Value};
use rally::stages::deployment::{AssembleOptions, Choices, Deployment};
use rally::stages::kinds::StageRegistry;

struct ClampInfo;

impl StageKindInfo for ClampInfo {
    fn name(&self) -> &str {
        "residual_clamp"
    }
    fn doc(&self) -> &str {
        "Keeps every value of the residual stream within ± `options.limit`."
    }
    fn role(&self) -> Role {
        Role::Rowwise
    }
    fn keys(&self) -> &[Key] {
        const KEYS: &[Key] = &[Key::required("on"), Key::optional("options")];
        KEYS
    }
    fn reads(&self) -> &[Value] {
        &[Value::X]
    }
    fn writes(&self) -> &[Value] {
        &[Value::X]
    }
}

struct Clamp {
    limit: f32,
}

impl Stage for Clamp {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let count = task.batch.rows * task.values.widths.hidden;
        task.values.x[..count].iter_mut().for_each(|x| *x = x.clamp(-self.limit, self.limit));
        Ok(())
    }
}

fn decode(limit: f64) -> anyhow::Result<String> {
    let mut kinds = KindRegistry::builtin();
    kinds.register(Box::new(ClampInfo));
    let mut stages = StageRegistry::builtin();
    stages.register(
        "residual_clamp",
        Box::new(|context| {
            let options = context.stage.spec.options.as_ref();
            let limit = options.and_then(|options| options.get("limit")?.as_f64()).unwrap_or(f64::INFINITY);
            Ok(Box::new(Clamp { limit: limit as f32 }))
        }),
    );

    let graph = std::fs::read_to_string(common::repository("graphs/tiny-ping-pong.json"))?;
    let combine = r#"{ "kind": "combine",       "on": "attn" }"#;
    let clamp = format!(r#"{{ "kind": "residual_clamp", "on": "attn", "options": {{ "limit": {limit} }} }}"#);
    anyhow::ensure!(graph.contains(combine), "the graph ends its layers with a combine");
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("clamped.json");
    std::fs::write(&path, graph.replace(combine, &format!("{combine}, {clamp}")))?;

    let model = common::repository("models/tiny-step3");
    let choices = Choices { kinds: Some(&kinds), model: Some(&model), ..Choices::default() };
    let deployment = Deployment::open(&path, &choices)?;
    let parts = deployment.assemble(&stages, AssembleOptions::default())?;
    let mut tokens = Vec::new();
    Engine::start(parts)?.run_to_end([prompt::request(&deployment, 0, "Once upon a time", 24)?], |event| {
        if let RunEvent::Token(token) = event {
            tokens.push(token.sample.token);
        }
    })?;
    let codec = deployment.codec.as_ref().ok_or_else(|| anyhow::anyhow!("the model has no tokenizer"))?;
    Ok(codec.decode(&tokens)?)
}

fn main() -> anyhow::Result<()> {
    let (free, tight) = (decode(1e6)?, decode(0.05)?);
    println!("limit 1000000: {free}\nlimit 0.05:    {tight}");
    anyhow::ensure!(free != tight, "a tight limit must show");
    Ok(())
}
