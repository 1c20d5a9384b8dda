//! Sampling: filters, determinism, distribution, and broken logits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod common;

use common::Random;
use rally_kernels::sampling::{SamplingError, SamplingParams, SamplingScratch, log_prob, sample, top_log_probs};

fn draw(logits: &[f32], params: SamplingParams, token_index: u64) -> u32 {
    sample(logits, &params, token_index, &mut SamplingScratch::new()).unwrap()
}

/// The tokens that 4,000 draws reach, with how often.
fn reached(logits: &[f32], params: SamplingParams) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    (0..4000).for_each(|index| counts[draw(logits, params, index) as usize] += 1);
    counts
}

fn tokens(counts: &[usize]) -> Vec<usize> {
    (0..counts.len()).filter(|&token| counts[token] > 0).collect()
}

const HOT: SamplingParams = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 9 };

#[test]
fn greedy_takes_the_lowest_of_equal_logits() {
    assert_eq!(draw(&[1.0, 3.0, 2.0, 3.0], SamplingParams::default(), 5), 1);
    assert_eq!(draw(&[-1.0], SamplingParams::default(), 0), 0);
}

#[test]
fn frequencies_follow_the_softmax() {
    let probabilities = [0.5f32, 0.25, 0.15, 0.1];
    let counts = reached(&probabilities.map(f32::ln), HOT);
    for (count, probability) in counts.iter().zip(probabilities) {
        assert!((*count as f32 / 4000.0 - probability).abs() < 0.03, "{count} for {probability}");
    }
    // Temperature 0.5 squares the odds.
    let counts = reached(&probabilities.map(f32::ln), SamplingParams { temperature: 0.5, ..HOT });
    assert!((counts[0] as f32 / counts[1] as f32 - 4.0).abs() < 0.8);
}

#[test]
fn filters_keep_what_their_definitions_say() {
    let logits = [0.5f32, 0.25, 0.15, 0.1].map(f32::ln);
    let keep = |params| tokens(&reached(&logits, params));
    assert_eq!(keep(HOT), [0, 1, 2, 3]);
    assert_eq!(keep(SamplingParams { top_k: 2, ..HOT }), [0, 1]);
    assert_eq!(keep(SamplingParams { top_p: 0.5, ..HOT }), [0]);
    assert_eq!(keep(SamplingParams { top_p: 0.51, ..HOT }), [0, 1]);
    assert_eq!(keep(SamplingParams { top_p: 0.0, ..HOT }), [0]);
    assert_eq!(keep(SamplingParams { min_p: 0.29, ..HOT }), [0, 1, 2]);
    assert_eq!(keep(SamplingParams { min_p: 1.0, ..HOT }), [0]);
    // Top-p counts the mass that top-k left: 0.5 of 0.75 is less than 0.7.
    assert_eq!(keep(SamplingParams { top_k: 2, top_p: 0.6, ..HOT }), [0]);
    assert_eq!(keep(SamplingParams { top_k: 2, top_p: 0.7, ..HOT }), [0, 1]);
    // Temperature comes first: halved, 0.25/0.5 counts as its square.
    assert_eq!(keep(SamplingParams { temperature: 0.5, min_p: 0.29, ..HOT }), [0]);
    // Logits equal to the k-th stay.
    assert_eq!(tokens(&reached(&[1.0, 2.0, 1.0, 0.0], SamplingParams { top_k: 2, ..HOT })), [0, 1, 2]);
}

#[test]
fn top_p_of_a_flat_vocabulary_keeps_its_share() {
    let logits = vec![0.0; 2000];
    let counts = reached(&logits, SamplingParams { top_p: 0.5, ..HOT });
    assert!(tokens(&counts).iter().all(|&token| token < 1000));
    assert!(counts[900..1000].iter().sum::<usize>() > 200);
}

#[test]
fn the_same_counter_draws_the_same_token() {
    let logits = Random::new(4).normals(1000);
    let mut scratch = SamplingScratch::new();
    let params = SamplingParams { top_k: 50, top_p: 0.9, ..HOT };
    let first: Vec<u32> = (0..64).map(|index| sample(&logits, &params, index, &mut scratch).unwrap()).collect();
    // Another order, another scratch.
    let again: Vec<u32> = (0..64).rev().map(|index| draw(&logits, params, index)).collect();
    assert_eq!(first, again.into_iter().rev().collect::<Vec<_>>());
    let other: Vec<u32> = (0..64).map(|index| draw(&logits, SamplingParams { seed: 10, ..params }, index)).collect();
    assert_ne!(first, other);
}

#[test]
fn broken_logits_are_an_error_at_any_temperature() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for params in [SamplingParams::default(), HOT] {
            let got = sample(&[0.0, bad, 1.0], &params, 0, &mut SamplingScratch::new());
            assert_eq!(got, Err(SamplingError::NonFiniteLogit { token: 1 }));
        }
    }
    let got = sample(&[], &HOT, 0, &mut SamplingScratch::new());
    assert_eq!(got, Err(SamplingError::NoLogits));
}

#[test]
fn log_probabilities_are_those_of_the_softmax() {
    let logits = [0.5f32, 0.2, 0.2, 0.1].map(|p| p.ln() + 700.0);
    assert!((log_prob(&logits, 0) - 0.5f32.ln()).abs() < 1e-4);
    let top = top_log_probs(&logits, 3);
    assert_eq!(top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(top.iter().all(|&(token, probability)| probability == log_prob(&logits, token)));
    assert_eq!(top_log_probs(&logits, 9).len(), 4);
    assert!(top_log_probs(&logits, 0).is_empty());
}
