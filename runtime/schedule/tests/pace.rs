//! A time per token that is to be kept, under three times the load that it allows, on virtual time.

mod common;

use common::table;
use rally_graph::plan::Plan;
use rally_schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_schedule::planner::PlannerConfig;
use rally_schedule::policy::{PingPong, Policy, Sequential};
use rally_schedule::virtual_lanes::{Arrival, SequenceTimes, VirtualOptions, VirtualReport, VirtualRun, VirtualTask};

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
    let table = table(1, 1, LAYERS);
    let orders = policy.orders(&table, micro_batches);
    let plan = Plan::compile(table, micro_batches, &orders).expect("built-in policies make plans");
    let costs = |task: &VirtualTask<'_>| COSTS.of(task);
    let run =
        VirtualRun { plan: &plan, planner: config(micro_batches), attention: &[0], costs: &costs, token: &|_, _| 1 };
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
