//! Drawn layouts: for a fixed sharding the same bits whatever else changes, copies of experts among it, and the one-device
//! result but for the order of sums.

use super::support::{Answer, Ask, Layout, Places, config, exact, layouts, repository, row_error, run};
use super::{bits, check_accepts, one_device};
use proptest::prelude::*;

/// Everything that must not change a bit, at its plainest: the sharding and the wires stay, one attention device (or group that
/// splits its output projection) broadcasts one sequence after the other, and every expert is at home only.
fn plainest(layout: &Layout) -> Layout {
    Layout {
        policy: "sequential",
        micro_batches: 1,
        prefill_chunk: 64,
        rows: 64,
        page_tokens: 64,
        sequences: 64,
        // A page for the longest: memory that nothing is kept in costs time as well.
        kv_tokens: 64 * layout.places.as_ref().map_or(1, |places| places.plainest().a.iter().sum()),
        places: layout.places.as_ref().map(Places::plainest),
        ..layout.clone()
    }
}

fn one_by_one(layout: &Layout, folder: &str, asks: &[Ask]) -> Vec<Answer> {
    let model = repository("tests/golden").join(folder);
    asks.iter().map(|ask| run(&layout.spec(), &model, std::slice::from_ref(ask), None).remove(0)).collect()
}

fn asks(vocab: u32) -> impl Strategy<Value = Vec<Ask>> {
    let ask = (prop::collection::vec(0..vocab, 1..24), 1usize..5, any::<bool>(), any::<u64>());
    prop::collection::vec(ask, 1..10).prop_map(|asks| {
        asks.into_iter()
            .map(|(prompt, tokens, greedy, seed)| {
                let mut ask = Ask::greedy(&prompt, tokens);
                ask.sampling.temperature = if greedy { 0.0 } else { 0.9 };
                ask.sampling.seed = seed;
                ask
            })
            .collect()
    })
}

prop_compose! {
    fn rounding_layouts(experts: usize)(layout in layouts(experts, 1024..1025), a2f in 0usize..3, f2a in 0usize..3, kv in 0usize..3) -> Layout {
        let dtype = |index: usize| ["f32", "bf16", "fp8_e4m3"][index];
        Layout { a2f: dtype(a2f), f2a: dtype(f2a), kv: dtype(kv), ..layout }
    }
}

// Seeds are fixed: another order of sums may decide a near tie between experts otherwise, once in some million rows.
proptest! {
    #![proptest_config(config(32, 3))]

    #[test]
    fn a_sharding_agrees_with_itself_and_nearly_with_one_device(layout in layouts(8, 1024..1025), asks in asks(512)) {
        check_accepts(&layout, "step3-s");
        let model = repository("tests/golden/step3-s");
        let got = run(&exact(layout.spec()), &model, &asks, None);
        prop_assert_eq!(bits(&got), bits(&one_by_one(&plainest(&layout), "step3-s", &asks)));
        let one = run(&one_device().spec(), &model, &asks, None);
        for (got, one) in got.iter().zip(&one) {
            prop_assert_eq!(&got.tokens, &one.tokens);
            for (got, one) in got.logits.iter().zip(&one.logits) {
                let error = row_error(got, one);
                prop_assert!(error <= 1e-5, "a row is off by {}", error);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(24, 4))]

    #[test]
    fn rounding_wires_agree_to_the_bit(layout in rounding_layouts(5), asks in asks(1003)) {
        check_accepts(&layout, "step3-m");
        let model = repository("tests/golden/step3-m");
        let got = run(&layout.spec(), &model, &asks, None);
        prop_assert_eq!(bits(&got), bits(&one_by_one(&plainest(&layout), "step3-m", &asks)));
    }
}
