//! Results are bit-identical whatever the schedule, the layout, the company and the chunks; and where a wire or the KV cache
//! rounds, they equal, to the bit, a one-device run that rounds at the same places.

mod support;

use proptest::prelude::*;
use rally::graph::model::ModelShape;
use rally::stages::checkpoint::RandomWeights;
use support::{
    Answer, Ask, Golden, Layout, answers, config, exact, policies, repository, row_error, run, small_shape, start,
};

/// Every sequence by itself, one device, one lane, whole prompts: the plainest run there is.
fn alone(layout: &Layout, folder: &str, asks: &[Ask]) -> Vec<Answer> {
    let plain = Layout {
        split: false,
        policy: "sequential",
        micro_batches: 1,
        prefill_chunk: 64,
        rows: 64,
        page_tokens: 64,
        cores: Vec::new(),
        sequences: 64,
        kv_tokens: 16384,
        ..layout.clone()
    };
    let model = repository("tests/golden").join(folder);
    asks.iter().map(|ask| run(&plain.spec(), &model, std::slice::from_ref(ask), None).remove(0)).collect()
}

fn bits(answers: &[Answer]) -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    let row = |row: &Vec<f32>| row.iter().map(|value| value.to_bits()).collect();
    answers.iter().map(|answer| (answer.tokens.clone(), answer.logits.iter().map(row).collect())).collect()
}

fn asks(vocab: u32) -> impl Strategy<Value = Vec<Ask>> {
    let ask = (prop::collection::vec(0..vocab, 1..40), 1usize..6, any::<bool>(), any::<u64>());
    prop::collection::vec(ask, 1..17).prop_map(|asks| {
        asks.into_iter()
            .map(|(prompt, tokens, greedy, seed)| {
                let mut ask = Ask::greedy(&prompt, tokens);
                ask.sampling.temperature = if greedy { 0.0 } else { 0.9 };
                ask.sampling.top_p = 0.95;
                ask.sampling.seed = seed;
                ask
            })
            .collect()
    })
}

prop_compose! {
    fn layouts()(
        split: bool, attention in 1usize..5, rounds: bool, router_on_ffn: bool, policy in policies(), micro_batches in 1usize..7,
        prefill_chunk in 1usize..33, rows in 16usize..65, page_tokens in 1usize..80, threads in 1u32..3,
        sequences in 1usize..17, kv_tokens_per_device in 64usize..1024,
    ) -> Layout {
        let cores = if threads == 1 { vec![] } else { vec![0, 1] };
        let router_on_ffn = router_on_ffn && split;
        Layout {
            split, attention, rounds, router_on_ffn, policy, micro_batches, prefill_chunk, rows, page_tokens, cores, sequences,
            kv_tokens: kv_tokens_per_device.next_multiple_of(page_tokens) * attention,
            ..Layout::default()
        }
    }
}

prop_compose! {
    fn rounding_layouts()(
        layout in layouts(), a2f in 0usize..3, f2a in 0usize..3, kv in 0usize..3,
    ) -> Layout {
        let dtype = |index: usize| ["f32", "bf16", "fp8_e4m3"][index];
        // Without a transfer nothing rounds: the one-device run must have the edges as well.
        Layout { rounds: true, a2f: dtype(a2f), f2a: dtype(f2a), kv: dtype(kv), ..layout }
    }
}

proptest! {
    #![proptest_config(config(40, 1))]

    #[test]
    fn exact_runs_agree_to_the_bit(layout in layouts(), asks in asks(512)) {
        let model = repository("tests/golden/step3-s");
        let got = run(&exact(layout.spec()), &model, &asks, None);
        let plain = Layout { router_on_ffn: false, rounds: false, ..layout };
        prop_assert_eq!(bits(&got), bits(&alone(&plain, "step3-s", &asks)));
    }

    #[test]
    fn rounding_runs_agree_to_the_bit(layout in rounding_layouts(), asks in asks(1003)) {
        let model = repository("tests/golden/step3-m");
        let got = run(&layout.spec(), &model, &asks, None);
        prop_assert_eq!(bits(&got), bits(&alone(&layout, "step3-m", &asks)));
    }
}

/// The golden models are so small that their products stay on one thread, whatever the team. Here every projection of a step
/// with several rows, and attention over the longest prompt, is past the size from which work is split (2^20 multiply-adds).
#[test]
fn two_threads_agree_with_one_to_the_bit() {
    let shape = ModelShape {
        hidden: 512,
        vocab: 2048,
        heads: 32,
        head_dim: 64,
        query_rank: 512,
        dense_width: 2048,
        expert_width: 1024,
        shared_width: 1024,
        ..small_shape()
    };
    let weights = RandomWeights::new(7, shape.weight_format);
    let prompt = |id: u32, length: u32| (0..length).map(|i| (i * 31 + id * 7) % 2048).collect::<Vec<u32>>();
    let mut asks: Vec<Ask> = (0..7).map(|id| Ask::greedy(&prompt(id, 3 + 5 * id), 4)).collect();
    asks.push(Ask::greedy(&prompt(9, 300), 4));
    let got = |split: bool, cores: &[u32]| {
        let layout = Layout { split, rounds: split, micro_batches: 2, cores: cores.to_vec(), ..Layout::default() };
        bits(&answers(start(&layout.spec(), &shape, &weights, None), &asks))
    };
    let one = got(false, &[]);
    assert_eq!(one.iter().map(|(tokens, _)| tokens.len()).sum::<usize>(), 32);
    assert_eq!(got(false, &[0, 1]), one);
    assert_eq!(got(true, &[0, 1]), one);
}

/// Row errors of `step_logits` and the share of equal argmaxes, fed with the golden tokens rather than our own.
struct Spread {
    errors: Vec<f64>,
    equal: f64,
}

impl Spread {
    fn measure(layout: &Layout) -> Self {
        let (mut errors, mut equal, mut count) = (Vec::new(), 0.0, 0.0);
        for folder in ["step3-s", "step3-m", "step3-fp8", "step3-renorm"] {
            let golden = Golden::open(folder);
            for case in &golden.cases {
                for (seq, sequence) in case.sequences.iter().enumerate() {
                    let fed = |i: usize| [&sequence.prompt[..], &sequence.greedy[..i]].concat();
                    let asks: Vec<Ask> = (0..sequence.greedy.len()).map(|i| Ask::greedy(&fed(i), 1)).collect();
                    let answers = run(&layout.spec(), &golden.folder, &asks, None);
                    for (i, want) in golden.rows(case.id, seq, "step_logits").iter().enumerate() {
                        errors.push(row_error(&answers[i].logits[0], want));
                        equal += f64::from(u8::from(answers[i].tokens[0] == sequence.greedy[i]));
                        count += 1.0;
                    }
                }
            }
        }
        errors.sort_by(f64::total_cmp);
        Self { errors, equal: equal / count }
    }

    fn quantile(&self, share: f64) -> f64 {
        self.errors[((self.errors.len() - 1) as f64 * share) as usize]
    }

    #[track_caller]
    fn check(&self, median: f64, ninetieth: f64, equal: f64) {
        let got = (self.quantile(0.5), self.quantile(0.9), self.equal);
        println!("median {:.4}, 90th percentile {:.4}, argmax equal {:.3}", got.0, got.1, got.2);
        assert!(got.0 <= median && got.1 <= ninetieth && got.2 >= equal, "measured {got:?}");
    }
}

#[test]
fn bf16_wires_and_kv_stay_near_the_golden_logits() {
    let layout = Layout { a2f: "bf16", f2a: "bf16", kv: "bf16", ..Layout::default() };
    Spread::measure(&layout).check(0.05, 0.12, 0.85);
}

#[test]
fn fp8_wires_stay_near_the_golden_logits() {
    Spread::measure(&Layout { a2f: "fp8_e4m3", f2a: "bf16", ..Layout::default() }).check(0.20, 0.40, 0.65);
}

#[test]
fn fp8_kv_stays_near_the_golden_logits() {
    Spread::measure(&Layout { kv: "fp8_e4m3", ..Layout::default() }).check(0.20, 0.40, 0.65);
}
