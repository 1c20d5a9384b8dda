//! A time per token that is to be kept, under three times the load that it allows, on virtual time.

mod cases;
mod common;

use cases::cases;
use common::table;
use proptest::prelude::*;
use rally_graph::kinds::Role;
use rally_graph::plan::Plan;
use rally_schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_schedule::planner::PlannerConfig;
use rally_schedule::policy::{PingPong, Policy, Sequential};
use rally_schedule::virtual_lanes::{
    Arrival, SequenceTimes, VirtualCosts, VirtualOptions, VirtualReport, VirtualRun, VirtualTask,
};

const LAYERS: usize = 4;
const SECOND: u64 = 1_000_000_000;

/// What a task takes: something that is the same for any rows, something for each, and for what they attend to.
#[derive(Clone, Copy, Debug)]
struct Costs {
    fixed_ns: u64,
    row_ns: u64,
    /// Positions that cost a nanosecond.
    positions_per_ns: u64,
}

const COSTS: Costs = Costs { fixed_ns: 60_000, row_ns: 30_000, positions_per_ns: 1 };

impl Costs {
    fn of(self, task: &VirtualTask<'_>) -> u64 {
        // By a few percent more or less, but the same every time.
        let jitter = (task.step * 7 + task.task as u64 * 13 + task.micro_batch as u64 * 5) % 11;
        let ns = self.fixed_ns + self.row_ns * task.load.rows as u64 + task.load.context as u64 / self.positions_per_ns;
        ns / 100 * (95 + jitter)
    }
}

fn config(micro_batches: usize) -> PlannerConfig {
    PlannerConfig {
        micro_batches,
        devices: 1,
        sequences: 256,
        sequences_per_device: 256,
        rows_per_device: 256,
        rows_per_micro_batch: 256,
        prefill_chunk: 64,
        pages_per_device: 1 << 16,
        page_tokens: 16,
        max_positions: 1 << 16,
    }
}

/// Requests that come evenly, `per_s` a second for `seconds`, of lengths that vary.
fn arrivals(per_s: f64, seconds: f64) -> Vec<Arrival> {
    let arrival = |index: usize| Arrival {
        at_ns: (index as f64 / per_s * SECOND as f64) as u64,
        request: SequenceRequest {
            id: index as u64,
            prompt: vec![1; 40 + index * 37 % 160].into(),
            generated: std::sync::Arc::default(),
            max_new_tokens: 40 + index * 53 % 120,
            stop_token_ids: [].into(),
            sampling: SamplingParams::default(),
            detail: TokenDetail::default(),
        },
    };
    (0..(per_s * seconds) as usize).map(arrival).collect()
}

struct Outcome {
    /// Mean seconds between tokens by sequence, ascending.
    tpots_s: Vec<f64>,
    tokens_per_s: f64,
    report: VirtualReport,
}

fn run(policy: &dyn Policy, micro_batches: usize, arrivals: Vec<Arrival>, options: VirtualOptions) -> Outcome {
    run_at(&|task: &VirtualTask<'_>| COSTS.of(task), policy, micro_batches, arrivals, options)
}

fn run_at(
    costs: &dyn VirtualCosts,
    policy: &dyn Policy,
    micro_batches: usize,
    arrivals: Vec<Arrival>,
    options: VirtualOptions,
) -> Outcome {
    let table = table(1, 1, LAYERS);
    let orders = policy.orders(&table, micro_batches);
    let plan = Plan::compile(table, micro_batches, &orders).expect("built-in policies make plans");
    let run = VirtualRun { plan: &plan, planner: config(micro_batches), attention: &[0], costs, token: &|_, _| 1 };
    let report = run.run_with(arrivals, options).expect("the requests fit");
    let mut tpots_s: Vec<f64> = report.sequences.values().filter_map(tpot_s).collect();
    tpots_s.sort_by(f64::total_cmp);
    let tokens: usize = report.sequences.values().map(|times| times.tokens.len()).sum();
    Outcome { tpots_s, tokens_per_s: tokens as f64 / (report.wall_ns as f64 * 1e-9), report }
}

fn tpot_s(times: &SequenceTimes) -> Option<f64> {
    let ((_, first), (_, last)) = (times.tokens.first()?, times.tokens.last()?);
    (times.tokens.len() > 1).then(|| (last - first) as f64 * 1e-9 / (times.tokens.len() - 1) as f64)
}

fn p99(sorted: &[f64]) -> f64 {
    sorted[(sorted.len() * 99).div_ceil(100) - 1]
}

/// Tokens a second that the target allows at best: the most that any fixed number of sequences under way gives while it keeps it.
fn capacity(policy: &dyn Policy, micro_batches: usize, target_s: f64) -> f64 {
    let with = |most: usize| {
        let options = VirtualOptions { max_under_way: Some(most), keeps_spans: false, ..VirtualOptions::default() };
        let outcome = run(policy, micro_batches, arrivals(1e6, 400e-6), options);
        (p99(&outcome.tpots_s) <= target_s).then_some(outcome.tokens_per_s)
    };
    (1..32).filter_map(|step| with(step * 4)).fold(0.0, f64::max)
}

#[test]
fn three_times_what_there_is_room_for_keeps_the_target_and_the_work_up() {
    for (policy, micro_batches, target_ms) in
        [(&PingPong as &dyn Policy, 3, 20u64), (&Sequential, 1, 20), (&PingPong, 2, 30)]
    {
        let target_s = target_ms as f64 * 1e-3;
        let capacity = capacity(policy, micro_batches, target_s);
        assert!(capacity > 0.0);
        // A request makes 100 tokens in the mean.
        let options = VirtualOptions {
            keep_tpot_ns: Some(target_ms * 1_000_000),
            keeps_spans: false,
            ..VirtualOptions::default()
        };
        let outcome = run(policy, micro_batches, arrivals(3.0 * capacity / 100.0, 60.0), options);
        let worst = p99(&outcome.tpots_s);
        println!(
            "{} {micro_batches}: p99 {:.3} of the target, {:.3} of {capacity:.0} tokens/s",
            policy.name(),
            worst / target_s,
            outcome.tokens_per_s / capacity
        );
        assert!(worst <= 1.1 * target_s, "{} {micro_batches}: p99 {worst} s of {target_s}", policy.name());
        let share = outcome.tokens_per_s / capacity;
        assert!(share >= 0.9, "{} {micro_batches}: {share:.3} of {capacity:.0} tokens/s", policy.name());
        // First come, first served, and everyone in the end.
        let admitted: Vec<Option<u64>> = outcome.report.sequences.values().map(|times| times.admitted_ns).collect();
        assert!(admitted.is_sorted() && admitted[0].is_some());
        assert!(outcome.report.sequences.values().all(|times| times.finished.is_some()));
    }
}

/// A load that is no trouble is not held back.
#[test]
fn a_light_load_runs_as_without_a_target() {
    let light = || arrivals(20.0, 20.0);
    let without = run(&PingPong, 3, light(), VirtualOptions::default());
    let with = VirtualOptions { keep_tpot_ns: Some(2 * SECOND), ..VirtualOptions::default() };
    let with = run(&PingPong, 3, light(), with);
    let first = |outcome: &Outcome| -> Vec<u64> {
        outcome.report.sequences.values().map(|times| times.tokens[0].1 - times.arrived_ns).collect()
    };
    let (without, with) = (first(&without), first(&with));
    let worse = with.iter().zip(&without).filter(|(with, without)| **with > **without + 5_000_000).count();
    assert!(worse * 50 <= with.len(), "{worse} of {} wait 5 ms longer for their first token", with.len());
}

/// A target that cannot be kept must not stop the run.
#[test]
fn what_cannot_be_kept_stops_nobody() {
    let options = VirtualOptions { keep_tpot_ns: Some(1), ..VirtualOptions::default() };
    let outcome = run(&PingPong, 3, arrivals(100.0, 0.3), options);
    assert!(outcome.report.sequences.values().all(|times| times.finished.is_some()));
    assert_eq!(outcome.report.free_pages, 1 << 16);
}

/// What a stage takes: as long as its weights, or its rows if these take longer; attention on its own lane, the FFN on the other.
#[derive(Clone, Copy, Debug)]
struct Stages {
    attention_ns: (u64, u64),
    ffn_ns: (u64, u64),
}

impl VirtualCosts for Stages {
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64 {
        let template = &task.table.tasks[task.task];
        let (weights, row) = match task.table.stages[template.stage].role {
            Role::Attention => self.attention_ns,
            Role::Ffn => self.ffn_ns,
            _ => return 1_000,
        };
        let jitter = (task.step * 7 + task.task as u64 * 13 + task.micro_batch as u64 * 5) % 11;
        weights.max(row * task.load.rows as u64) / 100 * (95 + jitter)
    }
}

fn keep(target_ms: u64) -> VirtualOptions {
    VirtualOptions { keep_tpot_ns: Some(target_ms * 1_000_000), ..VirtualOptions::default() }
}

/// As many sequences as there are in `lengths`, all at once, of so many tokens each.
fn together(lengths: impl IntoIterator<Item = (usize, usize)>) -> Vec<Arrival> {
    let mut all = arrivals(1.0, 1.0);
    let model = all.remove(0).request;
    let arrival = |(id, (prompt, tokens)): (usize, (usize, usize))| Arrival {
        at_ns: 0,
        request: SequenceRequest {
            id: id as u64,
            prompt: vec![1; prompt].into(),
            max_new_tokens: tokens,
            ..model.clone()
        },
    };
    lengths.into_iter().enumerate().map(arrival).collect()
}

/// Mean seconds of a round with so many sequences under way, while those between these shares of all tokens were made.
fn round_s(outcome: &Outcome, sequences: usize, from: f64, to: f64) -> f64 {
    let times = outcome.report.sequences.values().flat_map(|times| times.tokens.iter().map(|(_, at_ns)| *at_ns));
    let mut times: Vec<u64> = times.collect();
    times.sort_unstable();
    let [from, to] = [from, to].map(|share| ((times.len() - 1) as f64 * share) as usize);
    (times[to] - times[from]) as f64 * 1e-9 * sequences as f64 / (to - from) as f64
}

/// By micro-batches that had rows, the share of the plan calls between these times, in ns.
fn shares(outcome: &Outcome, micro_batches: usize, from_ns: u64, to_ns: u64) -> Vec<f64> {
    let (mut rows, mut calls) = (vec![0; micro_batches], vec![0.0; micro_batches + 1]);
    for sample in &outcome.report.counters {
        rows[sample.micro_batch as usize] = sample.rows;
        if (from_ns..to_ns).contains(&sample.at_ns) {
            calls[rows.iter().filter(|rows| **rows > 0).count()] += 1.0;
        }
    }
    let all: f64 = calls.iter().sum();
    calls.iter().map(|calls| calls / all).collect()
}

/// An FFN that takes as long for any rows, and six sequences: with all of three micro-batches a round is three FFN steps a layer, with
/// one it is attention and one.
#[test]
fn few_sequences_share_a_step_that_costs_the_same_for_one_and_for_all() {
    let costs = Stages { attention_ns: (20_000, 10_000), ffn_ns: (1_000_000, 0) };
    let six = || together([(20, 1500); 6]);
    let with = run_at(&costs, &PingPong, 3, six(), keep(16));
    let without = run_at(&costs, &PingPong, 3, six(), VirtualOptions::default());
    let [with_s, without_s] = [&with, &without].map(|outcome| round_s(outcome, 6, 0.3, 0.95));
    let half_ns = with.report.wall_ns / 2;
    let shares = shares(&with, 3, half_ns, with.report.wall_ns);
    println!("{:.2} ms instead of {:.2} ms; {shares:.2?}", with_s * 1e3, without_s * 1e3);
    assert!((without_s * 1e3 - 12.0).abs() < 0.3, "{without_s}");
    // Attention of six rows takes 60 µs.
    assert!(with_s * 1e3 <= 4.0 * 1.06 * 1.05, "{with_s}");
    assert!(shares[1] > 0.95, "{shares:?}");
    let again = run_at(&costs, &PingPong, 3, six(), keep(16));
    assert_eq!(with.report, again.report, "the same every time");
}

/// Costs that follow rows, and many sequences: lanes overlap, and nothing is gained by less of that.
#[test]
fn many_sequences_stay_in_all_micro_batches() {
    let costs = Stages { attention_ns: (10_000, 30_000), ffn_ns: (10_000, 29_000) };
    let many = || together((0..60).map(|id| (10 + id, 900)));
    let with = run_at(&costs, &PingPong, 3, many(), keep(12));
    let without = run_at(&costs, &PingPong, 3, many(), VirtualOptions::default());
    let [with_s, without_s] = [&with, &without].map(|outcome| round_s(outcome, 60, 0.3, 0.95));
    let shares = shares(&with, 3, with.report.wall_ns / 4, with.report.wall_ns);
    println!("{:.2} ms, {:.2} ms with all; {shares:.2?}", with_s * 1e3, without_s * 1e3);
    assert!(with_s <= 1.02 * without_s, "{with_s} {without_s}");
    assert!(shares[3] > 0.9, "{shares:?}");
}

/// A few at a time, then more than the target has room for, then a few again.
#[test]
fn a_load_that_rises_and_falls_has_few_micro_batches_and_many() {
    let costs = Stages { attention_ns: (50_000, 40_000), ffn_ns: (700_000, 40_000) };
    let target_ms = 16;
    let mut all = Vec::new();
    for (from_s, per_s, seconds) in [(0.0, 8.0, 20.0), (20.0, 60.0, 20.0), (70.0, 8.0, 20.0)] {
        for mut arrival in arrivals(per_s, seconds) {
            arrival.at_ns += (from_s * SECOND as f64) as u64;
            arrival.request.id = all.len() as u64;
            all.push(arrival);
        }
    }
    let options = VirtualOptions { keep_tpot_ns: Some(target_ms * 1_000_000), ..VirtualOptions::default() };
    let outcome = run_at(&costs, &PingPong, 3, all, options);
    let worst = p99(&outcome.tpots_s) * 1e3 / target_ms as f64;
    let at = |from_s: u64, to_s: u64| shares(&outcome, 3, from_s * SECOND, to_s * SECOND);
    let (few, many, few_again) = (at(5, 20), at(22, 60), at(72, 90));
    println!("{few:.2?} {many:.2?} {few_again:.2?}, p99 {worst:.3} of the target");
    assert!(worst <= 1.1, "{worst}");
    assert!(few[1] > 0.8 && few_again[1] > 0.8, "{few:?} {few_again:?}");
    assert!(many[2] + many[3] > 0.9, "{many:?}");
    assert!(outcome.report.sequences.values().all(|times| times.finished.is_some()));
}

proptest! {
    #![proptest_config(cases(12))]

    /// Whatever stages cost and however many come and go: a round is at most 5 % longer than with the best number of micro-batches.
    #[test]
    fn the_number_in_use_is_the_best(
        attention_ns in (10_000u64..1_000_000, 1_000u64..60_000), ffn_ns in (10_000u64..1_000_000, 1_000u64..60_000),
        micro_batches in 1usize..5, sequences in 1usize..40, seed in 1usize..1000,
    ) {
        let costs = Stages { attention_ns, ffn_ns };
        // Each has its successor when it ends.
        let requests = || together((0..sequences * 12).map(|id| (4 + id * seed % 12, 60 + id * seed % 130)));
        let without = VirtualOptions { max_under_way: Some(sequences), ..VirtualOptions::default() };
        let fixed = |count| round_s(&run_at(&costs, &PingPong, count, requests(), without), sequences, 0.4, 0.9);
        let fixed: Vec<f64> = (1..=micro_batches).map(fixed).collect();
        let with = VirtualOptions { keep_tpot_ns: Some((2e9 * fixed[micro_batches - 1]) as u64), ..without };
        let outcome = run_at(&costs, &PingPong, micro_batches, requests(), with);
        let chosen = round_s(&outcome, sequences, 0.4, 0.9);
        let best = fixed.iter().copied().fold(f64::INFINITY, f64::min);
        prop_assert!(chosen <= 1.05 * best, "{:.3} of {:.3?} ms, the best of them", chosen / best, fixed);
    }
}
