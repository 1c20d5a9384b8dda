//! Deployments of many servers: one lane for all that do the same gives what all of them give, and memory grows with their number.

#[path = "support/many.rs"]
mod many;

use many::{Case, peak_bytes};
use std::process::Command;

/// Sizes of [`memory_is_linear_in_lanes`], by which a process of its own knows that it is one.
const SIZE: &str = "RALLY_TEST_SERVERS";

#[track_caller]
fn same(case: Case) {
    let (all, none) = case.predict(false, false);
    let (folded, fold) = case.predict(true, false);
    assert!(!none.folds() && fold.classes() < case.devices());
    assert!(!all.timings.is_empty() && all.timings.iter().all(|timing| timing.completed));
    assert_eq!(folded.timings, all.timings);
    assert_eq!((folded.duration_s, folded.report.wall_ns), (all.duration_s, all.report.wall_ns));
    // Lanes stand in the order of devices, and only those that are run have one.
    let mut run = folded.report.lanes.iter();
    let by_device: Vec<_> = (0..case.devices()).map(|device| fold.runs(device).then(|| run.next())).collect();
    for (device, lane) in all.report.lanes.iter().enumerate() {
        let one = by_device[fold.stands_in(device)].flatten().expect("it is run");
        let figures = |lane: &rally::schedule::virtual_lanes::VirtualLane| {
            (lane.report.busy_ns, lane.report.tasks, lane.report.active_ns, lane.bubble_ns)
        };
        assert_eq!(figures(one), figures(lane), "device {device}");
    }
}

#[test]
fn one_lane_for_all_that_do_the_same_changes_no_figure() {
    // So many that at the end, when micro-batches are over one by one, no sequence is worth moving: in small deployments the planner moves
    // some then, and devices differ.
    same(Case { attention: 40, ffn: 2, sequences: 1, prompt: 3, steps: 3 });
}

#[test]
fn memory_is_linear_in_lanes() {
    let case = |servers: usize| Case { attention: servers, ffn: 2, sequences: 1, prompt: 4, steps: 60 };
    if let Some(servers) = std::env::var(SIZE).ok().and_then(|servers| servers.parse().ok()) {
        let (prediction, _) = case(servers).predict(true, false);
        assert!(prediction.timings.iter().all(|timing| timing.completed));
        println!("\npeak {}", peak_bytes());
        return;
    }
    let peak = |servers: usize| -> f64 {
        let program = std::env::current_exe().expect("this program");
        let arguments = ["--exact", "memory_is_linear_in_lanes", "--nocapture"];
        let done = Command::new(program).args(arguments).env(SIZE, servers.to_string()).output().expect("it runs");
        let said = String::from_utf8_lossy(&done.stdout);
        let peak = said.lines().find_map(|line| line.strip_prefix("peak ")?.trim().parse().ok());
        peak.unwrap_or_else(|| panic!("{servers} servers: {said}{}", String::from_utf8_lossy(&done.stderr)))
    };
    let (one, two, four) = (peak(100), peak(200), peak(400));
    // Twice the servers beyond what is there anyhow: twice the memory, and not four times.
    assert!(two > one, "{one} {two} {four}");
    let growth = (four - two) / (two - one);
    assert!(growth < 2.6, "from 100 to 200 to 400 servers: {one}, {two}, {four} bytes, growth {growth:.2}");
}
