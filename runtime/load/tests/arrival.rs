//! Arrival processes, synthetic lengths and prompts: what a seed fixes, and what the mean and the spread are.

use proptest::prelude::*;
use rally_load::arrival::ArrivalProcess;
use rally_load::prompt::PromptPool;
use rally_load::synthetic::RandomLengths;

fn gaps(process: ArrivalProcess, count: usize, seed: u64) -> Vec<f64> {
    process.times(count, seed).windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn mean_and_cv(samples: &[f64]) -> (f64, f64) {
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / samples.len() as f64;
    (mean, variance.sqrt() / mean)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn times_ascend_from_zero_and_a_seed_fixes_them(
        seed in any::<u64>(), rate in 0.01f64..1e4, burstiness in 0.1f64..20.0, count in 1usize..500,
    ) {
        let process = ArrivalProcess { rate, burstiness };
        let times = process.times(count, seed);
        prop_assert_eq!(times.len(), count);
        prop_assert_eq!(times[0], 0.0);
        prop_assert!(times.windows(2).all(|pair| pair[0] <= pair[1] && pair[1].is_finite()));
        prop_assert_eq!(&times, &process.times(count, seed));
        // A longer load begins with the shorter one.
        prop_assert_eq!(&process.times(count + 10, seed)[..count], &times[..]);
        if count > 1 {
            prop_assert_ne!(times, process.times(count, seed ^ 1));
        }
    }

    #[test]
    fn lengths_stay_in_their_range(
        seed in any::<u64>(), input_len in 1usize..5000, output_len in 1usize..5000, range_ratio in 0.0f64..0.99,
    ) {
        let lengths = RandomLengths { input_len, output_len, range_ratio };
        let requests = lengths.requests(50, seed);
        prop_assert_eq!(&requests, &lengths.requests(50, seed));
        for (length, mean) in requests.iter().flat_map(|r| [(r.prompt_tokens, input_len), (r.output_tokens, output_len)]) {
            let mean = mean as f64;
            prop_assert!(length >= 1 && length as f64 >= (mean * (1.0 - range_ratio)).floor());
            prop_assert!(length as f64 <= (mean * (1.0 + range_ratio)).ceil());
        }
    }
}

/// The mean gap is 1 / rate, and the gaps' coefficient of variation 1 / √burstiness.
#[test]
fn rate_and_burstiness_are_met() {
    for seed in 0..10 {
        for (rate, burstiness) in [(0.1, 0.25), (2.0, 0.7), (2.0, 1.0), (500.0, 4.0), (1e4, 20.0)] {
            let gaps = gaps(ArrivalProcess { rate, burstiness }, 4001, seed);
            let (mean, cv) = mean_and_cv(&gaps);
            let error = 1.0 / (burstiness * gaps.len() as f64).sqrt();
            assert!((mean * rate - 1.0).abs() < 4.0 * error, "mean gap {mean} at rate {rate}, seed {seed}");
            assert!((cv * burstiness.sqrt() - 1.0).abs() < 0.2, "variation {cv} at {burstiness}, seed {seed}");
        }
    }
}

#[test]
fn a_poisson_process_has_exponential_gaps() {
    let gaps = gaps(ArrivalProcess::poisson(2.0), 20_001, 7);
    for at in [0.1, 0.35, 0.5, 1.0, 2.0] {
        let above = gaps.iter().filter(|gap| **gap > at).count() as f64 / gaps.len() as f64;
        let want = (-2.0 * at).exp();
        assert!((above - want).abs() < 0.015, "{above} of the gaps are longer than {at} s, and {want} should be");
    }
}

#[test]
fn an_infinite_rate_brings_all_at_once() {
    assert!(ArrivalProcess::poisson(f64::INFINITY).times(100, 3).iter().all(|time| *time == 0.0));
}

#[test]
fn without_a_range_lengths_are_the_mean() {
    let requests = RandomLengths { input_len: 32, output_len: 64, range_ratio: 0.0 }.requests(24, 0);
    assert!(requests.iter().all(|request| (request.prompt_tokens, request.output_tokens) == (32, 64)));
}

#[test]
fn lengths_reach_both_ends_of_their_range() {
    let requests = RandomLengths { input_len: 10, output_len: 10, range_ratio: 0.5 }.requests(2000, 1);
    let lengths: std::collections::BTreeSet<usize> = requests.iter().map(|request| request.prompt_tokens).collect();
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), (5..=15).collect::<Vec<_>>());
}

#[test]
fn prompts_are_valid_ids_that_a_seed_fixes() {
    let pool = PromptPool::new(7, 1000, 50);
    let ids = pool.prompt(0, 1000);
    assert_eq!(ids, PromptPool::new(7, 1000, 50).prompt(0, 1000));
    assert!(ids.iter().all(|id| *id < 50));
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 50);
    assert_ne!(ids, pool.prompt(1, 1000));
    assert_ne!(ids, PromptPool::new(8, 1000, 50).prompt(0, 1000));
    assert_eq!(PromptPool::new(7, 1, 1).prompt(3, 1), [0]);
}
