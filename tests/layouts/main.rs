//! Any layout in one process: sharded, tensor-cut and copied FFNs, any number of devices a side, both routings.

mod drawn;
mod fixed;
mod order;
mod plan;
mod refused;
#[path = "../support/mod.rs"]
mod support;

use rally::stages::deployment::{Choices, Deployment, GraphError};
use serde_json::Value;
use support::{Answer, Layout, repository};

fn bits(answers: &[Answer]) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    let row = |row: &Vec<f32>| row.iter().map(|value| value.to_bits()).collect();
    answers.iter().map(|answer| (answer.tokens.clone(), answer.logits.iter().map(row).collect())).collect()
}

fn one_device() -> Layout {
    Layout { split: false, rounds: false, policy: "sequential", micro_batches: 1, ..Layout::default() }
}

/// Opens a graph as the command line does, on a golden model.
fn open(graph: &Value, folder: &str) -> Result<Deployment, GraphError> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), graph.to_string()).expect("the temporary file can be written");
    let model = repository("tests/golden").join(folder);
    Deployment::open(file.path(), &Choices { model: Some(&model), ..Choices::default() })
}

#[track_caller]
fn check_accepts(layout: &Layout, folder: &str) {
    if let Err(error) = open(&layout.json(), folder) {
        panic!("{error}\n{:#}", layout.json());
    }
}
