//! A schedule as people write it: the first line as `--schedule` has it, the rest as `schedule.order` of a graph file. Whatever
//! it says, it is a plan or an error that names its place.

#![no_main]

mod shape;

use libfuzzer_sys::fuzz_target;
use rally_graph::kinds::KindRegistry;
use rally_graph::order::{CustomOrder, expand};
use rally_graph::plan::TaskTable;
use rally_graph::spec::{DeploymentSpec, PolicyKind, ScheduleSpec};
use rally_graph::stage_graph::StageGraph;
use rally_schedule::policy::{Schedule, ScheduleError};
use shape::SHAPE;
use std::sync::LazyLock;

/// One of each way to lay a model out.
static TABLES: LazyLock<Vec<TaskTable>> = LazyLock::new(|| {
    let graphs = [
        include_str!("../../graphs/tiny-ping-pong.json"),
        include_str!("../../graphs/one-device.json"),
        include_str!("../../graphs/custom-order.json"),
        include_str!("../../graphs/2a2f-rail.json"),
    ];
    let table = |text: &&str| {
        let spec: DeploymentSpec = serde_json::from_str(text).expect("committed graphs parse");
        TaskTable::new(&StageGraph::build(&spec, &SHAPE, KindRegistry::shared()).expect("committed graphs unroll"))
    };
    graphs.iter().map(table).collect()
});

/// More would be as right and slower.
const MOST_MICRO_BATCHES: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[which, written], text)) = bytes.split_first_chunk() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let (label, order) = text.split_once('\n').unwrap_or((text, ""));
    let order: Option<CustomOrder> = serde_json::from_str(order).ok();
    let written = 1 + u32::from(written) % MOST_MICRO_BATCHES as u32;
    let spec = ScheduleSpec { policy: PolicyKind::PingPong, micro_batches: written, order: order.clone() };
    let table = &TABLES[which as usize % TABLES.len()];
    if let Some(Err(error)) = order.map(|order| expand(table, &order, written as usize)) {
        assert!(error.pointer().starts_with("/schedule/order") && !error.to_string().is_empty());
    }
    let Ok(schedule) = Schedule::parse(label, &spec) else { return };
    if schedule.micro_batches > MOST_MICRO_BATCHES {
        return;
    }
    match schedule.plan(table.clone()) {
        Ok(plan) => assert_eq!(plan.lanes.len(), table.lanes.len()),
        // Only what a person wrote can be wrong.
        Err(ScheduleError::Order(_) | ScheduleError::Plan(_)) => assert_eq!(schedule.policy.name(), "custom"),
        Err(other) => panic!("`{label}` was accepted: {other}"),
    }
});
