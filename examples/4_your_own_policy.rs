//! Step 4: a policy of your own. It serves micro-batches in pairs: two rotate while the others wait, layer by layer.
//!
//! A wrong policy cannot hang a run: the plan is proved first. Any right one gives the same tokens, which this example checks.
//!
//! `cargo run --release --example 4_your_own_policy`

mod common;
#[path = "common/prompt.rs"]
mod prompt;

use rally::engine::schedule::policy::{Policy, Schedule};
use rally::engine::{Engine, RunEvent};
use rally::graph::plan::{TaskTable, Turn};
use rally::stages::deployment::{AssembleOptions, Choices, Deployment};
use rally::stages::kinds::StageRegistry;

/// Ping-pong inside a pair of micro-batches, pairs one after the other.
struct Pairs;

impl Policy for Pairs {
    fn name(&self) -> String {
        "pairs".into()
    }

    fn orders(&self, table: &TaskTable, micro_batches: usize) -> Vec<Vec<Turn>> {
        let mut orders = Vec::new();
        for lane in 0..table.lanes.len() {
            // A segment is what a lane can do for one micro-batch without waiting for another lane.
            let segments = table.segments(lane);
            let mut order = Vec::new();
            for pair in (0..micro_batches).collect::<Vec<_>>().chunks(2) {
                for segment in &segments {
                    for micro_batch in pair {
                        let turn = |task: &usize| Turn { task: *task, micro_batch: *micro_batch, behind: false };
                        order.extend(segment.iter().map(turn));
                    }
                }
            }
            orders.push(order);
        }
        orders
    }
}

fn decode(deployment: &Deployment) -> anyhow::Result<Vec<Vec<u32>>> {
    let parts = deployment.assemble(&StageRegistry::builtin(), AssembleOptions::default())?;
    let mut requests = Vec::new();
    for id in 0..4 {
        requests.push(prompt::request(deployment, id, ["Once", "Long ago", "There once was", "Mia"][id as usize], 24)?);
    }
    let mut tokens = vec![Vec::new(); 4];
    Engine::start(parts)?.run_to_end(requests, |event| {
        if let RunEvent::Token(token) = event {
            tokens[token.sample.sequence as usize].push(token.sample.token);
        }
    })?;
    Ok(tokens)
}

fn main() -> anyhow::Result<()> {
    let mut deployment = Deployment::open(&common::repository("graphs/tiny-ping-pong.json"), &Choices::default())?;
    let built_in = decode(&deployment)?;
    deployment.schedule = Schedule { policy: Box::new(Pairs), micro_batches: 4, label: "pairs:4".into() };
    let own = decode(&deployment)?;
    anyhow::ensure!(own == built_in, "a schedule must not change tokens");
    println!("pairs:4 and ping_pong:3 give the same {} tokens", own.iter().map(Vec::len).sum::<usize>());
    Ok(())
}
