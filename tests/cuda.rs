//! Deployments with CUDA devices: golden folders, mixed graphs, transfers, refusals. Without a card the processor stands in for one,
//! with the same kernels compiled as C; `RALLY_CUDA=card` runs the same tests on a card.
#![cfg(feature = "cuda")]

mod support;

use rally::graph::spec::DeploymentSpec;
use rally::stages::checkpoint::Checkpoint;
use rally::stages::config::load_model_shape;
use rally::stages::deployment::{AssembleOptions, Machines};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use support::{
    Answer, Ask, Golden, Layout, Notes, Places, answers, bits, exact, repository, row_error, start_with, worst,
};

/// Stands in unless a card is asked for.
fn machines() -> Machines {
    if std::env::var("RALLY_CUDA").as_deref() == Ok("card") { Machines::Cards } else { Machines::StandIn }
}

/// The layout's graph with the devices whose names begin with one of `sides` on CUDA.
fn on_cuda(layout: &Layout, sides: &[&str]) -> DeploymentSpec {
    let mut json = layout.json();
    for (name, device) in json["devices"].as_object_mut().expect("devices by name") {
        if sides.iter().any(|side| name.starts_with(side)) {
            let device = device.as_object_mut().expect("a device is an object");
            device.insert("backend".into(), json!("cuda"));
            device.remove("cores");
        }
    }
    serde_json::from_value(json).expect("generated graphs are well formed")
}

fn run(spec: &DeploymentSpec, model: &Path, asks: &[Ask], probe: Option<Arc<Notes>>) -> Vec<Answer> {
    let shape = load_model_shape(model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(model).expect("the model's weights are there");
    let probe = probe.map(|notes| notes as _);
    let options = AssembleOptions { probe, machines: machines(), ..AssembleOptions::default() };
    answers(start_with(spec, &shape, &weights, options), asks)
}

fn one_device() -> Layout {
    Layout { split: false, rounds: false, micro_batches: 1, policy: "sequential", ..Layout::default() }
}

/// f32 within 1e-3 of the golden folder, greedy tokens and experts equal.
fn check(folder: &str, spec: &DeploymentSpec) {
    let golden = Golden::open(folder);
    for case in &golden.cases {
        let asks: Vec<Ask> = case.sequences.iter().map(|s| Ask::greedy(&s.prompt, s.greedy.len())).collect();
        let notes = Arc::new(Notes::default());
        let got = run(spec, &golden.folder, &asks, Some(notes.clone()));
        let (hidden, routing) = (notes.hidden.lock().expect("no panic"), notes.routing.lock().expect("no panic"));
        for (seq, (sequence, answer)) in case.sequences.iter().zip(&got).enumerate() {
            let place = format!("{folder} case {} seq {seq}", case.id);
            assert_eq!(answer.tokens, sequence.greedy, "{place}: greedy tokens");
            for (i, want) in golden.rows(case.id, seq, "step_logits").iter().enumerate() {
                let off = worst(&answer.logits[i], want);
                assert!(off <= 1e-3, "{place}: logits row {i} is off by {off}");
            }
            let last = sequence.prompt.len() - 1;
            for (layer, want) in golden.rows(case.id, seq, "hidden").iter().enumerate() {
                let off = worst(&hidden[&(seq as u64, last)][layer], want);
                assert!(off <= 1e-3, "{place}: hidden row {layer} is off by {off}");
            }
            for (layer, tokens) in golden.router_ids(case.id, seq).iter().enumerate() {
                for (position, want) in tokens.iter().enumerate() {
                    assert_eq!(&routing[&(seq as u64, position)][layer].0, want, "{place}: position {position}");
                }
            }
        }
    }
}

#[test]
fn golden_folders_on_one_device() {
    let spec = on_cuda(&one_device(), &["a"]);
    for folder in ["step3-s", "step3-m", "step3-fp8", "step3-renorm"] {
        check(folder, &spec);
    }
}

#[test]
fn golden_folders_split() {
    let spec = on_cuda(&Layout::default(), &["a", "f"]);
    for folder in ["step3-m", "step3-renorm"] {
        check(folder, &spec);
    }
}
