//! The policy `greedy`: complete orders, the same twice, never worse than ping-pong by its costs, better where there is room.

mod cases;
mod common;

use cases::cases;
use common::{at_once, planner, table};
use proptest::prelude::*;
use rally_graph::kinds::KindRegistry;
use rally_graph::model::ModelShape;
use rally_graph::plan::{Plan, TaskRole, TaskTable};
use rally_graph::stage_graph::StageGraph;
use rally_schedule::costs::StageCosts;
use rally_schedule::greedy::{Greedy, cycle_ns};
use rally_schedule::policy::{PingPong, Policy, Schedule};
use rally_schedule::virtual_lanes::{VirtualRun, VirtualTask};

/// Costs in microseconds by kind.
fn costs(kinds: &[(&str, u64)]) -> StageCosts {
    let mut costs = StageCosts::assumed();
    for (kind, micros) in kinds {
        costs.set(kind, TaskRole::Compute, 1, *micros as f64 * 1e-6);
    }
    costs
}

fn plan(table: &TaskTable, policy: &dyn Policy, micro_batches: usize) -> Plan {
    let orders = policy.orders(table, micro_batches);
    Plan::compile(table.clone(), micro_batches, &orders).expect("a policy makes plans")
}

/// Steady cycle, and the wall time of a run of 20 tokens a micro-batch, on the same costs.
fn times(table: &TaskTable, policy: &dyn Policy, micro_batches: usize, costs: &StageCosts) -> (u64, u64) {
    let plan = plan(table, policy, micro_batches);
    let durations: Vec<u64> = (0..table.tasks.len()).map(|task| costs.task_ns(table, task, 1)).collect();
    let task = |task: &VirtualTask<'_>| costs.task_ns(task.table, task.task, 1);
    let attention: Vec<usize> = (0..table.lanes.iter().filter(|lane| lane.group == "a").count()).collect();
    let planner = planner(micro_batches, attention.len());
    let run = VirtualRun { plan: &plan, planner, attention: &attention, costs: &task, token: &|_, _| 1 };
    let wall = run.run(at_once((micro_batches * attention.len()) as u64, 1, 20)).expect("the requests fit").wall_ns;
    (cycle_ns(&plan, &durations), wall)
}

#[test]
fn balanced_stages_are_served_as_ping_pong_does() {
    let table = table(1, 1, 6);
    let costs = costs(&[("mfa_attention", 100), ("expert_ffn", 100), ("dense_ffn", 100)]);
    for micro_batches in 1..5 {
        let greedy = Greedy { costs: costs.clone(), rows: 1 };
        let (cycle, wall) = times(&table, &greedy, micro_batches, &costs);
        let (rotated, rotated_wall) = times(&table, &PingPong, micro_batches, &costs);
        assert!(cycle <= rotated, "{micro_batches} micro-batches: {cycle} against {rotated}");
        assert!(
            wall as f64 <= 1.02 * rotated_wall as f64,
            "{micro_batches} micro-batches: {wall} against {rotated_wall}"
        );
    }
}

/// Sampling as long as ten layers of attention: ping-pong samples all micro-batches in a row while the FFN has nothing to do;
/// greedy feeds the FFN between them.
#[test]
fn a_long_sampling_is_spread_out() {
    let table = table(1, 1, 8);
    let costs = costs(&[("mfa_attention", 100), ("expert_ffn", 300), ("dense_ffn", 300), ("sampling", 1000)]);
    let greedy = Greedy { costs: costs.clone(), rows: 1 };
    let (cycle, wall) = times(&table, &greedy, 6, &costs);
    let (rotated, rotated_wall) = times(&table, &PingPong, 6, &costs);
    // The FFN alone needs 6 × 8 × 300 µs.
    assert!(cycle as f64 <= 1.02 * 14.4e6, "the FFN is kept busy: {cycle}");
    assert!(cycle as f64 <= 0.85 * rotated as f64, "cycle {cycle} against {rotated}");
    assert!(wall as f64 <= 0.85 * rotated_wall as f64, "run {wall} against {rotated_wall}");
}

#[test]
fn every_part_of_a_stage_has_a_cost_of_its_own() {
    let mut table = table(1, 1, 1);
    let attention = table.tasks.iter().position(|task| table.stages[task.stage].kind == "mfa_attention");
    let attention = attention.expect("it is there");
    let mut known = StageCosts::assumed();
    known.set("mfa_attention", TaskRole::Compute, 10, 1e-3);
    known.set_part("mfa_attention", TaskRole::Exchange, 1, 10, 2e-3);
    let mut ns = |role, part| {
        (table.tasks[attention].role, table.tasks[attention].part) = (role, part);
        known.task_ns(&table, attention, 10)
    };
    let (first, second, third) = (ns(TaskRole::Compute, 0), ns(TaskRole::Exchange, 1), ns(TaskRole::Exchange, 2));
    assert_eq!((first, second, third), (1_000_000, 2_000_000, 0), "what was never measured is taken to be nothing");
}

#[test]
fn costs_between_known_rows_are_on_a_line_and_drift_is_seen() {
    let table = table(1, 1, 1);
    let mut known = StageCosts::assumed();
    known.set("mfa_attention", TaskRole::Compute, 10, 1e-3);
    known.set("mfa_attention", TaskRole::Compute, 20, 2e-3);
    let attention = table.tasks.iter().position(|task| table.stages[task.stage].kind == "mfa_attention");
    let attention = attention.expect("it is there");
    let ns = |rows| known.task_ns(&table, attention, rows);
    assert_eq!([1, 10, 15, 20, 100].map(ns), [1_000_000, 1_000_000, 1_500_000, 2_000_000, 2_000_000]);
    let greedy = Greedy { costs: known.clone(), rows: 16 };
    assert!(greedy.redone(&known, 0.2).is_none());
    known.set("mfa_attention", TaskRole::Compute, 20, 2.3e-3);
    assert!(greedy.redone(&known, 0.2).is_none());
    known.set("mfa_attention", TaskRole::Compute, 20, 2.5e-3);
    assert!(greedy.redone(&known, 0.2).is_some_and(|greedy| greedy.costs == known));
}

#[test]
fn a_graph_may_ask_for_it() {
    let schedule = Schedule::parse("greedy:4", &common::spec(2, 1).schedule).expect("it is a policy");
    assert_eq!((schedule.policy.name().as_str(), schedule.micro_batches), ("greedy", 4));
    schedule.plan(table(2, 1, 3)).expect("it makes plans");
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn any_costs_make_a_plan_no_worse_than_ping_pong(
        attention in 1usize..4, ffn in 1usize..4, layers in 1usize..6, micro_batches in 1usize..6,
        micros in prop::array::uniform7(0u64..500),
    ) {
        let table = table(attention, ffn, layers);
        let kinds = ["embed", "mfa_attention", "router", "expert_ffn", "dense_ffn", "combine", "sampling"];
        let costs = costs(&kinds.into_iter().zip(micros).collect::<Vec<_>>());
        let greedy = Greedy { costs: costs.clone(), rows: 1 };
        prop_assert_eq!(greedy.orders(&table, micro_batches), greedy.orders(&table, micro_batches));
        let (cycle, wall) = times(&table, &greedy, micro_batches, &costs);
        let (rotated, rotated_wall) = times(&table, &PingPong, micro_batches, &costs);
        prop_assert!(cycle <= rotated, "{} against {}", cycle, rotated);
        prop_assert!(wall as f64 <= 1.1 * rotated_wall as f64 + 1.0, "run {} against {}", wall, rotated_wall);
    }
}

/// By Step-3's shapes half the FFN takes half as long, experts as many rows as they are given, and a schedule orders by that.
#[test]
fn costs_follow_from_shapes() {
    let shape =
        ModelShape { expert_width: 256, shared_width: 256, experts: 8, hidden: 64, top_k: 2, ..common::shape(3) };
    let of = |ffn: usize, rows: usize| {
        let mut json = serde_json::to_value(common::spec(1, ffn)).expect("a spec is JSON");
        json["stages"][1]["layers"][3]["shard"] = serde_json::json!({ "tensor": ffn });
        let spec = serde_json::from_value(json).expect("the graph is well formed");
        let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("the graph unrolls");
        let costs = StageCosts::of_shapes(&graph, &shape, KindRegistry::shared(), rows);
        let table = TaskTable::new(&graph);
        let is_experts = |task: &usize| table.stages[table.tasks[*task].stage].kind == "expert_ffn";
        let task = (0..table.tasks.len()).find(is_experts).expect("there are experts");
        costs.seconds(&table.stages[table.tasks[task].stage], TaskRole::Compute, rows)
    };
    assert!((of(1, 1) / of(2, 1) - 2.0).abs() < 1e-9);
    // One row touches two of eight experts and the shared one: a third of the weights. Three rows may touch all.
    assert!((of(1, 3) / of(1, 1) - 3.0).abs() < 1e-9);
    assert_eq!(of(1, 3), of(1, 12), "until there are rows enough, reading weights is all");
    let slow = costs(&[("mfa_attention", 100), ("expert_ffn", 300), ("dense_ffn", 300), ("sampling", 1000)]);
    let schedule = || Schedule::parse("greedy:6", &common::spec(1, 1).schedule).expect("it is a policy");
    let orders = |schedule: Schedule| schedule.policy.orders(&table(1, 1, 8), 6);
    let mut by_cost = schedule();
    assert!(by_cost.order_by(|| Greedy { costs: slow.clone(), rows: 1 }));
    let measured = orders(by_cost);
    assert_eq!(measured, Greedy { costs: slow, rows: 1 }.orders(&table(1, 1, 8), 6));
    assert_ne!(measured, orders(schedule()), "not what assumed costs give");
}
