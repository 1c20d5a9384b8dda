//! Continuous batching on a real model: whoever is preempted, when and how often, tokens and logits are to the bit those of a run
//! alone; and a sequence that is cancelled has told a beginning of them.

mod support;

use proptest::prelude::*;
use rally::engine::stage::Probe;
use rally::engine::{Engine, RunEvent};
use rally::stages::checkpoint::Checkpoint;
use rally::stages::config::load_model_shape;
use rally::stages::deployment::AssembleOptions;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Answer, Ask, Layout, Preempter, bits, config, policies, repository, request, run, start_with};

/// Runs `asks`, which arrive a few at a time; returns answers and the number of preemptions.
fn batched(layout: &Layout, folder: &str, asks: &[Ask], one_in: u64, seed: u64, learn: bool) -> (Vec<Answer>, u64) {
    let model = repository("tests/golden").join(folder);
    let shape = load_model_shape(&model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(&model).expect("the model's weights are there");
    let preempter = Arc::new(Preempter { one_in, seed, ..Preempter::default() });
    let probe = Arc::clone(&preempter) as Arc<dyn Probe>;
    let options = AssembleOptions { learn, probe: Some(probe), ..AssembleOptions::default() };
    let engine = start_with(&layout.spec(), &shape, &weights, options);
    let handle = engine.handle();
    preempter.handle.set(handle.clone()).ok().expect("set once");
    let all_pages = handle.free_pages();
    let answers = feed(&engine, asks);
    engine.close();
    assert_eq!(engine.join().costs.is_some(), learn);
    assert_eq!(handle.free_pages(), all_pages, "every page is back");
    (answers, handle.preemptions())
}

fn feed(engine: &Engine, asks: &[Ask]) -> Vec<Answer> {
    let mut answers = vec![Answer::default(); asks.len()];
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut submitted, mut done) = (0, 0);
    while done < asks.len() {
        // At any step, and more than there are places.
        while submitted < asks.len() && submitted < 4 + 2 * done {
            engine.submit([request(submitted as u64, &asks[submitted])]).expect("each fits alone");
            submitted += 1;
        }
        match engine.events().recv_deadline(deadline).expect("no hang") {
            RunEvent::Admitted(..) => {}
            RunEvent::Token(report) => {
                let answer = &mut answers[report.sample.sequence as usize];
                assert_eq!(report.index as usize, answer.tokens.len(), "each token is told once");
                answer.tokens.push(report.sample.token);
                answer.logits.push(report.sample.logits.expect("logits were asked for"));
            }
            RunEvent::Finished(id, reason, _) => {
                answers[id as usize].finish = Some(reason);
                done += 1;
            }
            RunEvent::Failed(error) => panic!("{error}"),
        }
    }
    answers
}

/// Every sequence by itself, one device, one lane.
fn alone(layout: &Layout, folder: &str, asks: &[Ask]) -> Vec<Answer> {
    let plain = Layout { split: false, policy: "sequential", ..Layout::default() };
    let plain = Layout { micro_batches: 1, rounds: layout.rounds, ..plain };
    let plain = Layout { a2f: layout.a2f, f2a: layout.f2a, kv: layout.kv, ..plain };
    let model = repository("tests/golden").join(folder);
    asks.iter().map(|ask| run(&plain.spec(), &model, std::slice::from_ref(ask), None).remove(0)).collect()
}

fn asks(vocab: u32) -> impl Strategy<Value = Vec<Ask>> {
    let ask = (prop::collection::vec(0..vocab, 1..30), 1usize..24, any::<bool>(), any::<u64>());
    let ask = ask.prop_map(|(prompt, tokens, greedy, seed)| {
        let mut ask = Ask::greedy(&prompt, tokens);
        ask.sampling.temperature = if greedy { 0.0 } else { 0.9 };
        ask.sampling.seed = seed;
        ask
    });
    prop::collection::vec(ask, 2..14)
}

prop_compose! {
    /// The longest sequence keeps 51 tokens; a device has little more, in whole pages.
    fn tight_layouts()(
        split: bool, attention in 1usize..5, policy in policies(), micro_batches in 1usize..7, prefill_chunk in 1usize..33,
        rows in 3usize..40, page_tokens in 1usize..17, sequences in 3usize..13, spare in 0usize..60,
    ) -> Layout {
        let pages = (51 + spare).div_ceil(page_tokens);
        let kv_tokens = pages * page_tokens * if split { attention } else { 1 };
        Layout {
            split, attention, policy, micro_batches, prefill_chunk, rows, page_tokens, sequences, kv_tokens,
            ..Layout::default()
        }
    }
}

proptest! {
    #![proptest_config(config(60, 2))]

    /// With costs that are learned as well: which rows share a batch is then a matter of timing.
    #[test]
    fn preempted_sequences_agree_to_the_bit(
        layout in tight_layouts(), asks in asks(512), one_in in 2u64..40, seed: u64, learn: bool,
    ) {
        let layout = Layout { rounds: layout.split, ..layout };
        let (got, _) = batched(&layout, "step3-s", &asks, one_in, seed, learn);
        prop_assert_eq!(bits(&got), bits(&alone(&layout, "step3-s", &asks)));
    }

    /// What was read from a rounded KV cache is read again as it was rounded.
    #[test]
    fn rounding_layouts_too(
        layout in tight_layouts(), asks in asks(1003), one_in in 2u64..40, seed: u64, learn: bool,
        kv in 1usize..3, wire in 0usize..3,
    ) {
        let dtype = |index: usize| ["f32", "bf16", "fp8_e4m3"][index];
        let layout = Layout { rounds: true, a2f: dtype(wire), f2a: "bf16", kv: dtype(kv), ..layout };
        let (got, _) = batched(&layout, "step3-m", &asks, one_in, seed, learn);
        prop_assert_eq!(bits(&got), bits(&alone(&layout, "step3-m", &asks)));
    }
}

/// A certain case beside the random ones: nobody asks, there are just too few pages, and it happens.
#[test]
fn too_few_pages_preempt_and_change_nothing() {
    let asks: Vec<Ask> = (0..8).map(|id| Ask::greedy(&[id * 7 + 1, 5, 3], 40)).collect();
    let layout = Layout { page_tokens: 4, kv_tokens: 48, sequences: 8, ..Layout::default() };
    let (got, preemptions) = batched(&layout, "step3-s", &asks, u64::MAX, 0, false);
    assert!(preemptions >= 4, "{preemptions}");
    assert_eq!(bits(&got), bits(&alone(&layout, "step3-s", &asks)));
}
