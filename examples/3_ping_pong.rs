//! Step 3: a graph file, three prompts, three micro-batches that take turns on two lanes.
//!
//! `cargo run --release --example 3_ping_pong`

mod common;
#[path = "common/prompt.rs"]
mod prompt;

use rally::engine::{Engine, RunEvent};
use rally::stages::deployment::{AssembleOptions, Choices, Deployment};
use rally::stages::kinds::StageRegistry;

fn main() -> anyhow::Result<()> {
    let deployment = Deployment::open(&common::repository("graphs/tiny-ping-pong.json"), &Choices::default())?;
    let parts = deployment.assemble(&StageRegistry::builtin(), AssembleOptions::default())?;

    let prompts = ["Once upon a time", "Long ago, a", "There once was"];
    let mut requests = Vec::new();
    for (id, prompt) in prompts.iter().enumerate() {
        requests.push(prompt::request(&deployment, id as u64, prompt, 40)?);
    }
    let mut tokens = vec![Vec::new(); prompts.len()];
    let report = Engine::start(parts)?.run_to_end(requests, |event| {
        if let RunEvent::Token(token) = event {
            tokens[token.sample.sequence as usize].push(token.sample.token);
        }
    })?;

    let codec = deployment.codec.as_ref().ok_or_else(|| anyhow::anyhow!("the model has no tokenizer"))?;
    for (prompt, tokens) in prompts.iter().zip(&tokens) {
        println!("{prompt}{}\n", codec.decode(tokens)?);
    }
    for lane in &report.lanes {
        println!("lane {}: {} tasks, {:.0} % busy", lane.name, lane.tasks, lane.busy_share() * 100.0);
    }
    Ok(())
}
