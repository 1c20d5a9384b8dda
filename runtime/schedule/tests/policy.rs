//! Policies give complete orders; wrong orders are refused before anything runs.

mod common;

use common::{shape, spec};
use rally_graph::kinds::KindRegistry;
use rally_graph::plan::{Plan, PlanError, TaskRole, TaskTable, Turn};
use rally_graph::stage_graph::StageGraph;
use rally_schedule::policy::{PingPong, Policy, Schedule, ScheduleError, Sequential};

fn table(attention: usize, ffn: usize, layers: usize) -> (StageGraph, TaskTable) {
    let graph = StageGraph::build(&spec(attention, ffn), &shape(layers), KindRegistry::shared())
        .expect("the toy graph unrolls");
    let table = TaskTable::new(&graph);
    (graph, table)
}

#[test]
fn every_ratio_and_count_makes_a_plan() {
    for (attention, ffn, layers, micro_batches) in
        [(1, 1, 1, 1), (1, 1, 2, 3), (2, 1, 3, 2), (3, 2, 2, 4), (1, 4, 2, 3), (4, 4, 3, 6)]
    {
        for policy in [&Sequential as &dyn Policy, &PingPong] {
            let (_, table) = table(attention, ffn, layers);
            let orders = policy.orders(&table, micro_batches);
            Plan::compile(table, micro_batches, &orders).expect("built-in policies make plans");
        }
    }
}

/// The whole of a ping-pong cycle, as a reader would write it down.
#[test]
fn ping_pong_joins_the_end_of_a_step_with_the_next_beginning() {
    let (graph, table) = table(1, 1, 2);
    let orders = PingPong.orders(&table, 2);
    let words = |order: &[Turn]| -> Vec<String> {
        let word = |turn: &Turn| {
            let task = &table.tasks[turn.task];
            let role = match task.role {
                TaskRole::Compute => "",
                TaskRole::Send => " send",
                TaskRole::Receive => " receive",
                TaskRole::Exchange => " exchange",
            };
            let layer = task.layer.map_or(String::new(), |layer| layer.to_string());
            let behind = if turn.behind { "'" } else { "" };
            format!("{}{layer}{role} m{}{behind}", graph.stages[task.stage].id, turn.micro_batch)
        };
        order.iter().map(word).collect()
    };
    assert_eq!(
        words(&orders[0]),
        [
            "f2a1 receive m0'",
            "combine1 m0'",
            "sampling m0'",
            "embed m0",
            "mfa_attention0 m0",
            "a2f0 send m0",
            "f2a1 receive m1'",
            "combine1 m1'",
            "sampling m1'",
            "embed m1",
            "mfa_attention0 m1",
            "a2f0 send m1",
            "f2a0 receive m0",
            "combine0 m0",
            "mfa_attention1 m0",
            "router1 m0",
            "a2f1 send m0",
            "f2a0 receive m1",
            "combine0 m1",
            "mfa_attention1 m1",
            "router1 m1",
            "a2f1 send m1",
        ]
    );
    assert_eq!(
        words(&orders[1]),
        [
            "a2f0 receive m0",
            "dense_ffn0 m0",
            "f2a0 send m0",
            "a2f0 receive m1",
            "dense_ffn0 m1",
            "f2a0 send m1",
            "a2f1 receive m0",
            "expert_ffn1 m0",
            "f2a1 send m0",
            "a2f1 receive m1",
            "expert_ffn1 m1",
            "f2a1 send m1",
        ]
    );
}

#[test]
fn an_order_that_deadlocks_is_refused() {
    let (_, table) = table(1, 1, 2);
    let mut orders = Sequential.orders(&table, 2);
    // Attention serves micro-batch 0 first and waits for its answer; the FFN insists on micro-batch 1 first.
    orders[1].rotate_left(table.lanes[1].tasks.len());
    assert!(matches!(Plan::compile(table, 2, &orders), Err(PlanError::Deadlock { .. })));
}

#[test]
fn an_order_against_the_dataflow_is_refused() {
    let (_, table) = table(1, 1, 1);
    let mut orders = Sequential.orders(&table, 1);
    orders[0].swap(0, 1);
    assert!(matches!(Plan::compile(table, 1, &orders), Err(PlanError::Deadlock { .. })));
}

#[test]
fn an_incomplete_order_is_refused() {
    let (_, table) = table(1, 1, 1);
    let mut orders = Sequential.orders(&table, 1);
    let last = orders[0].pop().expect("there are tasks");
    let got = Plan::compile(table.clone(), 1, &orders).expect_err("a task is missing");
    assert!(matches!(got, PlanError::NotOnce { times: 0, .. }));
    orders[0].extend([last, last]);
    let got = Plan::compile(table.clone(), 1, &orders).expect_err("a task is there twice");
    assert!(matches!(got, PlanError::NotOnce { times: 2, .. }));
    let none = Plan::compile(table.clone(), 0, &[Vec::new(), Vec::new()]).expect_err("nothing rotates");
    assert_eq!(none, PlanError::NoMicroBatches);
    let got = Plan::compile(table, 1, &orders[..1]).expect_err("a lane has no order");
    assert_eq!(got, PlanError::LaneCount { got: 1, expected: 2 });
}

#[test]
fn schedules_parse_or_say_what_is_expected() {
    let spec = spec(1, 1).schedule;
    let parse =
        |text: &str| Schedule::parse(text, &spec).map(|schedule| (schedule.policy.name(), schedule.micro_batches));
    assert_eq!(parse("sequential"), Ok(("sequential".into(), 3)));
    assert_eq!(parse("ping_pong:5"), Ok(("ping_pong".into(), 5)));
    for wrong in ["ping_pong:0", "ping_pong:65", "ping_pong:", "ping-pong", "", ":3", "ping_pong:-1"] {
        assert_eq!(parse(wrong), Err(ScheduleError::Unknown { given: wrong.into() }));
    }
    assert_eq!(parse("custom"), Err(ScheduleError::NoOrder));
}
