//! Custom orders: patterns of one layer become lane orders over all layers, or say where they are wrong.

mod cases;
mod common;

use cases::cases;
use common::{order, ping_pong_by_hand, table};
use proptest::prelude::*;
use rally_graph::order::OrderError;
use rally_graph::plan::{Plan, PlanError};
use rally_graph::spec::{PolicyKind, ScheduleSpec};
use rally_schedule::policy::{Custom, PingPong, Policy, Schedule, ScheduleError, Sequential};

#[test]
fn ping_pong_written_by_hand_is_ping_pong() {
    for (attention, ffn, layers) in [(1, 1, 1), (1, 1, 2), (1, 1, 5), (2, 3, 4), (4, 1, 3)] {
        for micro_batches in 1..5 {
            let table = table(attention, ffn, layers);
            let by_hand = Custom { order: ping_pong_by_hand(micro_batches) };
            let got = by_hand.checked_orders(&table, micro_batches).expect("the pattern is right");
            assert_eq!(got, PingPong.orders(&table, micro_batches), "{attention}:{ffn}, {layers} layers");
        }
    }
}

/// Transfers may be named; where a person would leave them out, naming them changes nothing.
#[test]
fn naming_the_transfers_where_they_would_be_changes_nothing() {
    let table = table(2, 1, 4);
    let named = order(&[
        ("a.0", "f2a:0 combine:0 mfa_attention:0 router:0 a2f:0 f2a:1 combine:1 mfa_attention:1 router:1 a2f:1"),
        ("a", "combine:0 mfa_attention:0 router:0 combine:1 mfa_attention:1 router:1"),
        ("f", "a2f:0 dense_ffn:0 expert_ffn:0 f2a:0 a2f:1 expert_ffn:1 dense_ffn:1 f2a:1"),
    ]);
    let got = Custom { order: named }.checked_orders(&table, 2).expect("the pattern is right");
    assert_eq!(got, PingPong.orders(&table, 2));
}

/// Attention of one micro-batch while the other is at the FFN, without joining steps: each step drains.
#[test]
fn a_pattern_in_dataflow_order_keeps_steps_apart() {
    let table = table(1, 1, 3);
    let pattern = order(&[
        ("a", "mfa_attention:0 router:0 mfa_attention:1 router:1 combine:0 combine:1"),
        ("f", "expert_ffn:0 dense_ffn:0 expert_ffn:1 dense_ffn:1"),
    ]);
    let orders = Custom { order: pattern }.checked_orders(&table, 2).expect("the pattern is right");
    assert!(orders.iter().flatten().all(|turn| !turn.behind), "nothing lags");
    Plan::compile(table, 2, &orders).expect("it is a plan");
}

fn fault(patterns: &[(&str, &str)], micro_batches: usize) -> OrderError {
    let orders = Custom { order: order(patterns) }.checked_orders(&table(1, 1, 3), micro_batches);
    orders.expect_err("the pattern is wrong")
}

#[test]
fn wrong_patterns_say_where() {
    let ffn = ("f", "expert_ffn:0 dense_ffn:0");
    let attention = "mfa_attention:0 router:0 combine:0";
    let pointer = |pattern: &str| fault(&[("a", pattern), ffn], 1).pointer();
    assert_eq!(pointer("mfa_attention:0 router combine:0"), "/schedule/order/a/1");
    assert_eq!(pointer("mfa_attention:0 router:0 expert_ffn:0"), "/schedule/order/a/2");
    assert_eq!(pointer("mfa_attention:0 router:0 sampling:0"), "/schedule/order/a/2");
    assert_eq!(pointer("mfa_attention:0 router:1 combine:0"), "/schedule/order/a/1");
    assert_eq!(pointer("mfa_attention:0 router:0 combine:0 router:0"), "/schedule/order/a/3");
    assert_eq!(pointer("mfa_attention:0 combine:0"), "/schedule/order/a");
    assert_eq!(fault(&[("a", attention)], 1), OrderError::NoPattern { lane: "f.0".into() });
    // Combine, then router, then attention: two rounds back for one layer.
    assert!(matches!(fault(&[("a", "combine:0 router:0 mfa_attention:0"), ffn], 1), OrderError::Backwards { .. }));
    // The router of a layer after the next layer's attention.
    assert!(matches!(fault(&[("a", "combine:0 mfa_attention:0"), ffn], 1), OrderError::Missing { .. }));
    let text = fault(&[("a", "mfa_attention:0 router:0"), ffn], 1).to_string();
    assert!(text.contains("lacks `combine:0`"), "{text}");
}

#[test]
fn lanes_that_wait_for_each_other_are_refused_in_words() {
    let pattern = order(&[
        ("a", "mfa_attention:0 router:0 combine:0 mfa_attention:1 router:1 combine:1"),
        ("f", "expert_ffn:1 dense_ffn:1 expert_ffn:0 dense_ffn:0"),
    ]);
    let spec = ScheduleSpec { policy: PolicyKind::Custom, micro_batches: 2, order: Some(pattern) };
    let schedule = Schedule::from_spec(&spec).expect("there is an order");
    let error = schedule.plan(table(1, 1, 2)).expect_err("attention and FFN insist on different micro-batches");
    assert!(matches!(error, ScheduleError::Plan(PlanError::Deadlock { .. })), "{error:?}");
    assert!(error.to_string().contains("`f2a` receive, layer 0, of micro-batch 0"), "{error}");
}

#[test]
fn custom_needs_its_order_and_its_number() {
    let none = ScheduleSpec { policy: PolicyKind::Custom, micro_batches: 2, order: None };
    assert_eq!(Schedule::from_spec(&none).err(), Some(ScheduleError::NoOrder));
    let written = ScheduleSpec { order: Some(ping_pong_by_hand(2)), ..none };
    let asked = Schedule::parse("custom:3", &written).err();
    assert_eq!(asked, Some(ScheduleError::OtherCount { written: 2, asked: 3 }));
    assert!(Schedule::parse("custom", &written).is_ok_and(|schedule| schedule.plan(table(1, 1, 2)).is_ok()));
}

proptest! {
    #![proptest_config(cases(256))]

    /// Whatever the order of the turns: a plan with every task once, or a fault with its place; never a panic.
    #[test]
    fn any_shuffled_pattern_is_a_plan_or_a_fault(
        layers in 1usize..5, micro_batches in 1usize..4,
        attention in Just((0..3 * 3).collect::<Vec<usize>>()).prop_shuffle(),
        ffn in Just((0..2 * 3).collect::<Vec<usize>>()).prop_shuffle(),
    ) {
        let turns = |ids: &[&str], shuffled: &[usize]| -> String {
            let turn = |i: &usize| (i / ids.len() < micro_batches).then(|| format!("{}:{}", ids[i % ids.len()], i / ids.len()));
            shuffled.iter().filter_map(turn).collect::<Vec<_>>().join(" ")
        };
        let patterns = order(&[
            ("a", &turns(&["mfa_attention", "router", "combine"], &attention)),
            ("f", &turns(&["expert_ffn", "dense_ffn"], &ffn)),
        ]);
        let table = table(1, 1, layers);
        match (Custom { order: patterns }).checked_orders(&table, micro_batches) {
            Ok(orders) => match Plan::compile(table.clone(), micro_batches, &orders) {
                Ok(plan) => {
                    let tasks: usize = plan.lanes.iter().map(|lane| lane.tasks.len()).sum();
                    prop_assert_eq!(tasks, table.tasks.len() * micro_batches);
                }
                Err(error) => prop_assert!(matches!(error, PlanError::Deadlock { .. }), "{}", error),
            },
            Err(error) => prop_assert!(matches!(error, OrderError::Backwards { .. }), "{}", error),
        }
    }
}

/// The baseline can be written as a custom order too, where there is one layer.
#[test]
fn sequential_written_by_hand_is_sequential_over_one_layer() {
    let table = table(1, 1, 1);
    let pattern =
        order(&[("a", "mfa_attention:0 combine:0 mfa_attention:1 combine:1"), ("f", "dense_ffn:0 dense_ffn:1")]);
    let got = Custom { order: pattern }.checked_orders(&table, 2).expect("the pattern is right");
    assert_eq!(got, Sequential.orders(&table, 2));
}
