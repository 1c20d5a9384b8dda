//! Step-3 in f32 against the golden folders: logits, hidden states, greedy tokens, router ids, on one device and split.

mod support;

use std::sync::Arc;
use support::{Ask, Golden, Layout, Notes, exact, run, worst};

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
