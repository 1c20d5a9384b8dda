//! Statistics against the naive way, and the definitions of the latency keys on a load whose answers are known.

use proptest::prelude::*;
use rally_load::goodput::Goal;
use rally_load::statistics::{Distribution, Spread, percentile};
use rally_load::summary::{RequestTiming, Summary};

/// NumPy's `percentile`, written from its definition: the k-th smallest, by selection.
fn naive_percentile(samples: &[f64], percent: f64) -> f64 {
    let kth = |k: usize| {
        let smaller = |x: f64| samples.iter().filter(|y| **y < x).count();
        let up_to = |x: f64| samples.iter().filter(|y| **y <= x).count();
        *samples.iter().find(|x| smaller(**x) <= k && k < up_to(**x)).expect("every rank is taken")
    };
    let place = percent / 100.0 * (samples.len() - 1) as f64;
    let (low, high) = (kth(place.floor() as usize), kth(place.ceil() as usize));
    low + (high - low) * (place - place.floor())
}

proptest! {
    #[test]
    fn percentiles_are_exact(samples in proptest::collection::vec(-1e6f64..1e6, 1..200), percent in 0.0f64..=100.0) {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let got = percentile(&sorted, percent).expect("there are samples");
        prop_assert!((got - naive_percentile(&samples, percent)).abs() <= 1e-6);
    }

    #[test]
    fn distributions_agree_with_sums(samples in proptest::collection::vec(0.0f64..1e4, 1..100)) {
        let n = samples.len() as f64;
        let distribution = Distribution::of(samples.clone()).expect("there are samples");
        let (sum, squares) = samples.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
        prop_assert!((distribution.mean - sum / n).abs() < 1e-6);
        prop_assert!((distribution.std.powi(2) - (squares / n - (sum / n).powi(2))).abs() < 1e-3);
        prop_assert!((distribution.median - naive_percentile(&samples, 50.0)).abs() < 1e-6);
        prop_assert!((distribution.p99 - naive_percentile(&samples, 99.0)).abs() < 1e-6);
    }

    #[test]
    fn spreads_hold_their_median_and_mean(values in proptest::collection::vec(0.0f64..1e4, 2..20)) {
        let spread = Spread::of(&values).expect("there are values");
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let (low, high) = spread.ci95.expect("there are two or more");
        prop_assert!(spread.min <= spread.median && spread.median <= spread.max);
        prop_assert!(low <= mean + 1e-9 && mean <= high + 1e-9);
    }
}

#[test]
fn nothing_has_no_statistics() {
    assert_eq!(percentile(&[], 50.0), None);
    assert_eq!(Distribution::of(Vec::new()), None);
    assert_eq!(Spread::of(&[]), None);
    assert_eq!(Spread::of(&[3.0]).expect("one").ci95, None);
}

#[test]
fn a_confidence_interval_is_student_t() {
    // Mean 3, standard deviation √2.5, t(0.975, 4) = 2.776.
    let (low, high) = Spread::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).expect("five").ci95.expect("an interval");
    let half = 2.776 * (2.5f64 / 5.0).sqrt();
    assert!((low - (3.0 - half)).abs() < 1e-9 && (high - (3.0 + half)).abs() < 1e-9);
}

fn timing(arrival_s: f64, token_s: &[f64]) -> RequestTiming {
    RequestTiming { arrival_s, prompt_tokens: 10, token_s: token_s.to_vec(), completed: true }
}

#[track_caller]
fn close(got: Option<f64>, want: f64) {
    let got = got.expect("there is a figure");
    assert!((got - want).abs() < 1e-9, "{got} is not {want}");
}

#[test]
fn latencies_count_from_the_arrival() {
    let late = timing(1.0, &[1.5, 1.6, 1.8]);
    close(late.ttft_ms(), 500.0);
    close(late.e2el_ms(), 800.0);
    close(late.tpot_ms(), 150.0);
    let gaps: Vec<f64> = late.itl_ms().collect();
    close(gaps.first().copied(), 100.0);
    close(gaps.get(1).copied(), 200.0);
    assert_eq!(timing(0.0, &[1.0]).tpot_ms(), None);
    assert_eq!(timing(0.0, &[]).ttft_ms(), None);
}

#[test]
fn a_summary_has_the_keys_of_vllm() {
    let cut = RequestTiming { completed: false, ..timing(0.0, &[0.1, 0.2]) };
    let timings = [timing(0.0, &[0.1, 0.2, 0.3]), timing(0.0, &[0.2]), cut];
    let goals: Vec<Goal> = ["tpot:120", "ttft:150"].iter().map(|text| text.parse().expect("a goal")).collect();
    let summary = Summary::of(&timings, 2.0, &goals);
    let json = summary.to_json();
    for (key, want) in [
        ("num_prompts", 3.0),
        ("completed", 2.0),
        ("duration", 2.0),
        ("total_input_tokens", 20.0),
        ("total_output_tokens", 4.0),
        ("request_throughput", 1.0),
        ("request_goodput", 0.5),
        ("output_throughput", 2.0),
        ("total_token_throughput", 12.0),
        ("mean_ttft_ms", 150.0),
        ("median_ttft_ms", 150.0),
        ("p99_ttft_ms", 199.0),
        ("mean_tpot_ms", 100.0),
        ("median_itl_ms", 100.0),
        ("mean_e2el_ms", 250.0),
    ] {
        close(json[key].as_f64(), want);
    }
    for name in ["ttft", "tpot", "itl", "e2el"] {
        for statistic in ["mean", "median", "std", "p99"] {
            assert!(json[&format!("{statistic}_{name}_ms")].is_number(), "{statistic} of {name}");
        }
    }
    let nothing = Summary::of(&[], 0.0, &[]).to_json();
    assert!(nothing["mean_tpot_ms"].is_null() && nothing["request_goodput"].is_null());
    assert_eq!(nothing["output_throughput"], 0.0);
}

#[test]
fn goals_are_read_and_kept() {
    let goal: Goal = "tpot:50".parse().expect("a goal");
    assert!(goal.kept_by(&timing(0.0, &[9.0, 9.05])) && !goal.kept_by(&timing(0.0, &[9.0, 9.06])));
    assert!(goal.kept_by(&timing(0.0, &[9.0])));
    assert_eq!(goal.to_string(), "tpot:50");
    assert!(!"ttft:10".parse::<Goal>().expect("a goal").kept_by(&timing(0.0, &[])));
    for text in ["tpot", "tpot:", "tpot:0", "tpot:-1", "tpot:inf", "itl:5", "50"] {
        let error = text.parse::<Goal>().expect_err("no goal").to_string();
        assert!(error.contains(&format!("`{text}` is no goal")), "{error}");
    }
}
