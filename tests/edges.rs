//! Sizes and moments at the edge: the longest prompt, pages and batches of one, an end at once, a cancellation half way.

mod support;

use rally::engine::RunEvent;
use rally::engine::schedule::planner::{FinishReason, SubmitError};
use rally::graph::model::ModelShape;
use rally::stages::checkpoint::RandomWeights;
use std::time::Duration;
use support::{Answer, Ask, Layout, answers, request, small_shape, start};

fn weights() -> RandomWeights {
    RandomWeights::new(3, small_shape().weight_format)
}

fn run(layout: &Layout, shape: &ModelShape, asks: &[Ask]) -> Vec<Answer> {
    answers(start(&layout.spec(), shape, &weights(), None), asks)
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 13 + 5) % 64).collect()
}

/// One row, one token a page, one sequence: micro-batches are mostly empty, prompts far longer than a step.
fn narrow() -> Layout {
    Layout {
        micro_batches: 6,
        prefill_chunk: 1,
        rows: 1,
        page_tokens: 1,
        sequences: 1,
        kv_tokens: 600,
        ..Layout::default()
    }
}

#[test]
fn the_longest_prompt_gets_its_one_token() {
    let shape = ModelShape { max_positions: 100, ..small_shape() };
    let asks = [Ask::greedy(&prompt(99), 50), Ask::greedy(&prompt(97), 50), Ask::greedy(&prompt(1), 3)];
    let wide = run(&Layout::default(), &shape, &asks);
    assert_eq!(wide.iter().map(|answer| answer.tokens.len()).collect::<Vec<_>>(), [1, 3, 3]);
    assert!(wide.iter().all(|answer| answer.finish == Some(FinishReason::Length)));
    assert_eq!(run(&narrow(), &shape, &asks), wide);
}

/// 191 tokens of KV are two pages of 64, as the memory table counts them, not three: the limit holds to the token.
#[test]
fn kv_holds_the_whole_pages_of_its_limit() {
    let layout = Layout { kv_tokens: 191, page_tokens: 64, ..Layout::default() };
    let got = run(&layout, &small_shape(), &[Ask::greedy(&prompt(120), 9)]);
    assert_eq!(got[0].tokens.len(), 9);
    let engine = start(&layout.spec(), &small_shape(), &weights(), None);
    let refused = engine.submit([request(0, &Ask::greedy(&prompt(120), 10))]);
    assert_eq!(refused, Err(SubmitError::NeverFits { tokens: 129, capacity: 128 }));
}

#[test]
fn a_stop_token_may_be_the_first() {
    let plain = run(&Layout::default(), &small_shape(), &[Ask::greedy(&prompt(7), 9)]);
    let mut stopped = Ask::greedy(&prompt(7), 9);
    stopped.stop_token_ids = vec![plain[0].tokens[0]];
    for layout in [Layout::default(), narrow()] {
        let got = run(&layout, &small_shape(), &[stopped.clone(), Ask::greedy(&prompt(7), 9)]);
        assert_eq!(got[0].tokens, plain[0].tokens[..1]);
        assert_eq!(got[0].finish, Some(FinishReason::Stop));
        assert_eq!(got[1], plain[0], "the sequence that takes over its pages");
    }
}

#[test]
fn a_seed_decides_and_a_large_top_k_keeps_all() {
    let ask = |seed: u64, top_k: u32| {
        let mut ask = Ask::greedy(&prompt(5), 12);
        (ask.sampling.temperature, ask.sampling.seed, ask.sampling.top_k) = (1.5, seed, top_k);
        ask
    };
    let got = run(&Layout::default(), &small_shape(), &[ask(1, 0), ask(1, 0), ask(1, u32::MAX), ask(u64::MAX, 0)]);
    assert_eq!(got[0], got[1]);
    assert_eq!(got[0], got[2]);
    assert_ne!(got[0].tokens, got[3].tokens);
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let ask = |most: u32| Ask { logprobs: Some(most), ..Ask::greedy(&prompt(5), 4) };
    let got = run(&Layout::default(), &small_shape(), &[ask(0), ask(3), ask(1000)]);
    for (answer, most) in got.iter().zip([0, 3, 64]) {
        assert_eq!(answer.logprobs.len(), 4);
        for (i, (logprob, top)) in answer.logprobs.iter().enumerate() {
            let total: f64 = answer.logits[i].iter().map(|logit| f64::from(*logit).exp()).sum();
            let want = |token: u32| f64::from(answer.logits[i][token as usize]) - total.ln();
            assert!((f64::from(*logprob) - want(answer.tokens[i])).abs() < 1e-5);
            assert_eq!(top.len(), most);
            assert!(top.iter().all(|(token, got)| (f64::from(*got) - want(*token)).abs() < 1e-5));
            assert!(top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            assert!(top.first().is_none_or(|best| best.0 == answer.tokens[i]), "greedy takes the best");
        }
    }
}

/// Whoever is cancelled in the middle of a prompt leaves pages that others may have, and no other trace.
#[test]
fn a_prompt_is_cancelled_half_way() {
    let layout = Layout { kv_tokens: 400, sequences: 2, ..narrow() };
    let short = Ask::greedy(&prompt(30), 8);
    let want = run(&Layout::default(), &small_shape(), std::slice::from_ref(&short)).remove(0);
    let engine = start(&layout.spec(), &small_shape(), &weights(), None);
    // The second needs the first one's pages.
    engine.submit([request(0, &Ask::greedy(&prompt(380), 1)), request(1, &short)]).expect("both fit, one by one");
    let (mut finished, mut got) = (Vec::new(), Vec::new());
    while finished.len() < 2 {
        match engine.events().recv_timeout(Duration::from_secs(20)).expect("no hang") {
            RunEvent::Admitted(0, ..) => engine.handle().cancel(0),
            RunEvent::Admitted(..) => {}
            RunEvent::Token(report) => got.push((report.sample.sequence, report.sample.token)),
            RunEvent::Finished(id, reason, _) => finished.push((id, reason)),
            RunEvent::Failed(error) => panic!("{error}"),
        }
    }
    assert_eq!(finished, [(0, FinishReason::Cancelled), (1, FinishReason::Length)]);
    assert_eq!(got, want.tokens.iter().map(|token| (1, *token)).collect::<Vec<_>>());
    engine.close();
    engine.join();
}
