//! The digest says what bounds a step and what would help, in few lines, and its advice holds when it is followed.

mod toy;

use rally_engine::schedule::virtual_lanes::VirtualTask;
use rally_graph::kinds::Role;
use rally_graph::plan::TaskRole;
use rally_trace::digest::{MOST_LINES, digest};
use rally_trace::replan::replan;
use rally_trace::{Recording, Window};
use toy::Toy;

/// Nanoseconds of attention, FFN and of each end of a transfer; a twentieth of it more for each row.
fn costs(attention: u64, ffn: u64, transfer: u64) -> impl Fn(&VirtualTask<'_>) -> u64 {
    move |task| {
        let template = &task.table.tasks[task.task];
        let base = match (template.role, task.table.stages[template.stage].role) {
            (TaskRole::Compute, Role::Attention) => attention,
            (TaskRole::Compute, Role::Ffn) => ffn,
            (TaskRole::Compute, _) => 100,
            _ => transfer,
        };
        base + base * task.load.rows as u64 / 20
    }
}

fn load(sequences: usize) -> Vec<(u64, usize, usize)> {
    vec![(0, 4, 40); sequences]
}

fn line<'l>(lines: &'l [String], head: &str) -> &'l str {
    lines.iter().find(|line| line.starts_with(head)).unwrap_or_else(|| panic!("no {head}: {lines:#?}"))
}

#[test]
fn it_names_what_bounds_the_step() {
    for (cost, bound) in [((90, 20, 1), "by A;"), ((20, 90, 1), "by F;"), ((5, 5, 90), "by A→F;")] {
        let (attention, ffn, transfer) = cost;
        let costs = costs(attention * 1000, ffn * 1000, transfer * 1000);
        let ran = Toy::new(1, 1, 3, true, if transfer > 1 { 1 } else { 3 }).virtually(&costs, &load(6));
        let lines = digest(&ran.recording(), None);
        // Both ways cost the same in the last case; either name is right.
        let told = line(&lines, "bound").replace("F→A", "A→F");
        assert!(told.contains(bound), "{lines:#?}");
        assert!(lines.len() <= MOST_LINES);
    }
}

#[test]
fn its_advice_holds_when_it_is_followed() {
    let costs = costs(40_000, 40_000, 500);
    let run = |ping_pong, micro_batches| Toy::new(1, 1, 4, ping_pong, micro_batches).virtually(&costs, &load(8));
    let ran = run(false, 2);
    let recording = ran.recording();
    let told = line(&digest(&recording, None), "try").to_owned();
    assert!(told.contains("--schedule ping_pong:"), "{told}");
    let plan = replan(&recording, &Window::settled(&recording)).expect("there is something to go by");
    let step_ms = |recording: &Recording<'_>| Window::settled(recording).step_ms();
    for candidate in plan.candidates.iter().filter(|candidate| candidate.micro_batches <= 2) {
        let followed = run(true, candidate.micro_batches);
        let got = step_ms(&followed.recording()) / step_ms(&recording);
        let promised = candidate.step_ms / plan.now_ms;
        assert!(got < promised + 0.1, "{candidate:?}: promised {promised}, got {got}");
    }
}

#[test]
fn it_knows_when_the_ratio_is_wrong_and_when_nothing_helps() {
    let ran = Toy::new(1, 1, 3, true, 3).virtually(&costs(90_000, 20_000, 100), &load(9));
    let told = line(&digest(&ran.recording(), None), "try").to_owned();
    assert!(told.contains("2:1"), "{told}");
    let ran = Toy::new(1, 1, 3, true, 2).virtually(&costs(50_000, 50_000, 10), &load(2));
    let told = line(&digest(&ran.recording(), None), "try").to_owned();
    assert!(told.contains("nothing in the schedule"), "{told}");
}

#[test]
fn it_advises_no_more_lanes_than_there_are_cores_and_nothing_if_there_is_little_work() {
    let ran = Toy::new(1, 1, 3, true, 3).virtually(&costs(90_000, 20_000, 100), &load(9));
    for (cores, advised) in [(1, false), (2, false), (3, true), (16, true)] {
        let told = line(&digest(&ran.recording(), Some(cores)), "try").to_owned();
        assert_eq!(told.contains("another A:F ratio"), advised, "{cores} cores: {told}");
    }
    let rare: Vec<_> = (0..40).map(|id| (id * 20_000_000, 4, 4)).collect();
    let ran = Toy::new(1, 1, 3, true, 3).virtually(&costs(90_000, 20_000, 100), &rare);
    let lines = digest(&ran.recording(), None);
    assert!(line(&lines, "try").contains("the load is too light to say"), "{lines:#?}");
}

#[test]
fn it_names_stragglers_and_stays_short() {
    let slow = |task: &VirtualTask<'_>| {
        let times = if task.table.tasks[task.task].device == 3 { 3 } else { 1 };
        costs(20_000, 20_000, 500)(task) * times
    };
    let ran = Toy::new(12, 12, 3, true, 3).virtually(&slow, &load(24));
    let lines = digest(&ran.recording(), None);
    assert!(line(&lines, "slow").contains("attention device `a.3`"), "{lines:#?}");
    assert!(lines.len() <= MOST_LINES, "{lines:#?}");
}

#[test]
fn a_tiny_run_gets_a_short_one_and_no_run_none() {
    let ran = Toy::new(1, 1, 1, true, 1).virtually(&costs(1000, 1000, 10), &[(0, 1, 1)]);
    assert_eq!(digest(&ran.recording(), None).len(), 3, "the step and two lanes");
    let ran = Toy::new(1, 1, 1, true, 1).virtually(&costs(1000, 1000, 10), &[]);
    assert!(digest(&ran.recording(), None).is_empty());
}
