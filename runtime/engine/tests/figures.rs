//! What a run says of itself while it runs: all time accounted for, all series bounded by the graph, and the planner's state.

mod toy;

use rally_engine::figures::RunSample;
use rally_engine::{Engine, RunEvent, RunReport};
use rally_metrics::{BubbleCause, Exposition, Identity, Source};
use std::collections::BTreeSet;
use toy::{Setup, policy, request};

/// Runs eight sequences to their ends; the last figures, the page of metrics before and after, the report.
fn run(setup: &Setup) -> (RunSample, [String; 2], RunReport) {
    let engine = Engine::start(setup.parts()).expect("the toy runs");
    let figures = engine.figures();
    let page = || {
        let identity = Identity::new("toy");
        let mut page = Exposition::new(&identity);
        figures.write(&mut page);
        page.into_text()
    };
    let before = page();
    let report = engine.run_to_end((0..8).map(|id| request(id, vec![id as u32 + 1; 3], 40)), |_| ());
    (figures.sample(), [before, page()], report.expect("the toy runs to its end"))
}

#[test]
fn every_nanosecond_of_a_lane_is_busy_or_a_bubble() {
    for (ping_pong, attention, micro_batches) in [(false, 1, 1), (true, 1, 2), (true, 2, 3)] {
        let setup = Setup { attention, ..Setup::simple(policy(ping_pong), micro_batches) };
        let (sample, _, report) = run(&setup);
        for (lane, reported) in sample.lanes.iter().zip(&report.lanes) {
            assert_eq!((lane.busy_ns, lane.tasks), (reported.busy_ns, reported.tasks), "{}", lane.name);
            let all = lane.busy_ns + lane.bubble_ns.iter().sum::<u64>();
            assert_eq!(all, lane.accounted_ns, "{lane:?}");
            assert!(lane.accounted_ns >= reported.active_ns && lane.accounted_ns <= sample.at_ns, "{lane:?}");
            assert!(lane.transfer_ns > 0 && lane.transfer_ns < lane.busy_ns, "{lane:?}");
        }
        assert_eq!((sample.running, sample.waiting, sample.used_pages), (0, 0, 0));
    }
}

/// With one micro-batch the FFN can only wait for attention and its transfers, and attention only for the FFN and its own.
#[test]
fn lanes_that_take_turns_wait_for_each_other() {
    let (sample, ..) = run(&Setup::simple(policy(false), 1));
    let [attention, ffn] = &sample.lanes[..] else { panic!("two lanes: {sample:?}") };
    let of = |lane: &rally_engine::figures::LaneSample, cause: BubbleCause| lane.bubble_ns[cause as usize];
    assert!(of(ffn, BubbleCause::Attention) > 0 && of(attention, BubbleCause::Ffn) > 0, "{sample:?}");
    assert_eq!((of(ffn, BubbleCause::Ffn), of(attention, BubbleCause::Attention)), (0, 0), "{sample:?}");
}

#[test]
fn waiting_for_a_submission_is_admission() {
    let engine = Engine::start(Setup::simple(policy(true), 2).parts()).expect("the toy runs");
    let figures = engine.figures();
    let idle = std::time::Duration::from_millis(60);
    for round in 0..2 {
        // Time itself is what is measured here: nothing to do for so long.
        std::thread::sleep(idle);
        engine.submit([request(round, vec![1, 2, 3], 8)]).expect("the run is open");
        while !matches!(engine.events().recv().expect("the run goes on"), RunEvent::Finished(..)) {}
    }
    engine.close();
    engine.join();
    for lane in figures.sample().lanes {
        let admission = lane.bubble_ns[BubbleCause::Admission as usize] as f64 / 1e6;
        let least = 0.8 * idle.as_secs_f64() * 2e3;
        assert!(admission > least, "{}: {admission} ms of {least}: {lane:?}", lane.name);
    }
}

/// Names and labels of the lines of a page.
fn series(page: &str) -> BTreeSet<&str> {
    let lines = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').expect("a line has a value").0).collect()
}

#[test]
fn a_run_has_the_same_series_at_its_end_as_at_its_start() {
    let (_, [before, after], _) = run(&Setup { attention: 2, ..Setup::simple(policy(true), 3) });
    assert_eq!(series(&before), series(&after));
    assert!(series(&after).contains("rally_lane_bubble_seconds_total{lane=\"f\",cause=\"admission\"}"), "{after}");
    assert!(after.contains("\nrally_micro_batch_tokens_count "), "{after}");
    let stage = "rally_stage_seconds_count{stage=\"dense_ffn\",layer_kind=\"dense\",device=\"f\"} ";
    let count = after.lines().find_map(|line| line.strip_prefix(stage)).expect("the stage has a series");
    assert!(count.parse::<u64>().expect("a count") >= 3 * 40, "three layers, at least 40 steps: {count}");
}
