//! Step-3 in f32 against the golden folders: logits, hidden states, greedy tokens, router ids, on one device, split,
//! and with the FFN in parts.

mod support;

use std::sync::Arc;
use support::{Ask, Golden, Layout, Notes, Places, exact, run, worst};

const TOLERANCE: f32 = 1e-3;

fn check(folder: &str, layout: &Layout) {
    let golden = Golden::open(folder);
    for case in &golden.cases {
        let asks: Vec<Ask> = case.sequences.iter().map(|s| Ask::greedy(&s.prompt, s.greedy.len())).collect();
        let notes = Arc::new(Notes::default());
        let answers = run(&exact(layout.spec()), &golden.folder, &asks, Some(notes.clone()));
        let (hidden, routing) = (notes.hidden.lock().expect("no panic"), notes.routing.lock().expect("no panic"));
        for (seq, (sequence, answer)) in case.sequences.iter().zip(&answers).enumerate() {
            let place = format!("{folder} case {} seq {seq}", case.id);
            assert_eq!(answer.tokens, sequence.greedy, "{place}: greedy tokens");
            for (i, want) in golden.rows(case.id, seq, "step_logits").iter().enumerate() {
                let off = worst(&answer.logits[i], want);
                assert!(off <= TOLERANCE, "{place}: logits row {i} is off by {off}");
            }
            let last = sequence.prompt.len() - 1;
            for (layer, want) in golden.rows(case.id, seq, "hidden").iter().enumerate() {
                let off = worst(&hidden[&(seq as u64, last)][layer], want);
                assert!(off <= TOLERANCE, "{place}: hidden row {layer} is off by {off}");
            }
            for (layer, tokens) in golden.router_ids(case.id, seq).iter().enumerate() {
                for (position, want) in tokens.iter().enumerate() {
                    let (got, _) = &routing[&(seq as u64, position)][layer];
                    assert_eq!(got, want, "{place}: experts of position {position}, MoE layer {layer}");
                }
            }
        }
    }
}

fn check_all(layout: &Layout) {
    for folder in ["step3-s", "step3-m", "step3-fp8", "step3-renorm"] {
        check(folder, layout);
    }
}

#[test]
fn one_device() {
    check_all(&Layout { split: false, rounds: false, micro_batches: 1, policy: "sequential", ..Layout::default() });
}

#[test]
fn ping_pong() {
    check_all(&Layout { a2f: "fp8_e4m3", f2a: "bf16", kv: "bf16", ..Layout::default() });
}

#[test]
fn experts_on_two_devices() {
    let places = Places { a: vec![2], f: vec![1, 1], expert: [2, 1, 1], dense: [1, 2], ..Places::default() };
    check_all(&Layout { places: Some(places), ..Layout::default() });
}

/// Five experts, and four and eight, do not go into three; nor does every dense width.
#[test]
fn uneven_experts_and_a_cut_dense_ffn() {
    let places = Places { a: vec![1, 1], f: vec![3], expert: [3, 1, 1], dense: [3, 1], ..Places::default() };
    check_all(&Layout { places: Some(places), ..Layout::default() });
}

/// The tiles of the fp8 checkpoint are as wide as its experts, which cannot be cut.
#[test]
fn tensor_shards_on_rails() {
    let places =
        Places { a: vec![2], f: vec![2, 2], expert: [2, 2, 1], dense: [2, 2], rail: true, ..Places::default() };
    for folder in ["step3-s", "step3-m", "step3-renorm"] {
        check(folder, &Layout { places: Some(places.clone()), ..Layout::default() });
    }
}
