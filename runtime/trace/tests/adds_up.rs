//! Spans add up: busy time and bubbles of every lane are the window, and so is the critical path, on virtual and on real lanes.

mod toy;

use proptest::prelude::*;
use rally_engine::schedule::virtual_lanes::VirtualTask;
use rally_graph::kinds::Role;
use rally_graph::plan::TaskRole;
use rally_trace::recording::SpanId;
use rally_trace::{Analysis, Cause, Recording, Window};
use toy::{Ran, Toy};

/// Shares of the window that may be missing.
const TOLERANCE: f64 = 0.01;

/// Every window of a step and the window of all; returns how many there were.
fn check(ran: &Ran) -> Result<usize, TestCaseError> {
    let recording = ran.recording();
    let steps = Window::each(&recording);
    let all = Window::all(&recording);
    prop_assert_eq!(steps.iter().map(Window::wall_ns).sum::<u64>(), all.wall_ns(), "the steps tile the run");
    for window in steps.iter().chain([&all]) {
        check_window(&recording, window)?;
    }
    Ok(steps.len())
}

fn check_window(recording: &Recording<'_>, window: &Window) -> Result<(), TestCaseError> {
    let analysis = Analysis::of(recording, window.clone());
    let wall = window.wall_ns() as f64;
    let near = |got: u64| (got as f64 - wall).abs() <= TOLERANCE * wall;
    for (index, lane) in analysis.lanes.iter().enumerate() {
        prop_assert!(near(lane.busy_ns + lane.bubbles_ns()), "lane {}: {lane:?} in {wall} ns", lane.name);
        // Busy time once more, from the spans alone.
        let inside = recording
            .spans(index)
            .iter()
            .map(|span| span.end_ns.min(window.to_ns).saturating_sub(span.start_ns.max(window.from_ns)));
        prop_assert_eq!(inside.sum::<u64>(), lane.busy_ns);
    }
    let path = &analysis.path;
    prop_assert!(near(path.shares.length_ns()), "path {:?} in {wall} ns", path.shares);
    for pair in path.links.windows(2) {
        let [before, after] = [pair[0].span, pair[1].span].map(|id| recording.span(id));
        prop_assert!(before.end_ns <= after.start_ns, "what was waited for is over: {before:?} {after:?}");
    }
    prop_assert!(analysis.overlap.efficiency <= 1.0 && analysis.overlap.hidden_share <= 1.0);
    Ok(())
}

/// Durations that differ by stage, layer, device and rows, so that every lane waits now and then; sends take time as well.
fn uneven(seed: u64) -> impl Fn(&VirtualTask<'_>) -> u64 {
    move |task| {
        let template = &task.table.tasks[task.task];
        let mixed =
            (seed + template.stage as u64 * 31 + template.layer.unwrap_or(7) as u64 * 17 + template.device as u64)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        100 + (mixed >> 40) % 5000 + 37 * task.load.rows as u64
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn on_virtual_lanes(
        attention in 1usize..4, ffn in 0usize..4, layers in 1usize..5, ping_pong: bool, micro_batches in 1usize..5,
        seed in 0u64..1000, asked in prop::collection::vec((0u64..400_000, 1usize..9, 1usize..12), 1..12),
    ) {
        let toy = Toy::new(attention, ffn, layers, ping_pong, micro_batches);
        let ran = toy.virtually(&uneven(seed), &asked);
        prop_assert!(check(&ran)? > 0);
    }

    /// Nothing is unexplained: without wake-up times, hosts cost nothing, and every wait ends when the task awaited does.
    #[test]
    fn virtual_bubbles_all_have_a_cause(
        attention in 1usize..4, ffn in 0usize..4, layers in 1usize..5, ping_pong: bool, micro_batches in 1usize..5,
        seed in 0u64..1000, asked in prop::collection::vec((1usize..9, 1usize..12), 1..12),
    ) {
        let toy = Toy::new(attention, ffn, layers, ping_pong, micro_batches);
        let asked: Vec<_> = asked.iter().map(|(prompt, tokens)| (0, *prompt, *tokens)).collect();
        let ran = toy.virtually(&uneven(seed), &asked);
        let recording = ran.recording();
        let analysis = Analysis::of(&recording, Window::all(&recording));
        for lane in &analysis.lanes {
            prop_assert_eq!(lane.bubble(Cause::Host), 0, "lane {}", lane.name);
        }
        prop_assert_eq!(analysis.path.shares.host_ns, 0);
    }

    #[test]
    fn on_real_lanes(
        attention in 1usize..3, ffn in 0usize..3, ping_pong: bool, micro_batches in 1usize..4,
        asked in prop::collection::vec(1usize..6, 1..6),
    ) {
        let toy = Toy::new(attention, ffn, 2, ping_pong, micro_batches);
        let ran = toy.really(|stage, _, _| if stage == "combine" { 500 } else { 3000 }, &asked);
        prop_assert!(check(&ran)? > 0);
        for (lane, report) in ran.lanes.iter().enumerate() {
            for (span, entry) in report.spans.iter().enumerate() {
                let before = ran.recording().predecessor(SpanId { lane, span });
                prop_assert!(span == 0 || before.is_some());
                prop_assert!(entry.ready_ns <= entry.start_ns && entry.start_ns <= entry.end_ns);
            }
        }
    }
}

/// Attention and FFN of equal length, nothing else: what theory says of the two schedules.
fn balanced(task: &VirtualTask<'_>) -> u64 {
    let template = &task.table.tasks[task.task];
    match (template.role, task.table.stages[template.stage].role) {
        (TaskRole::Compute, Role::Attention | Role::Ffn) => 10_000,
        _ => 0,
    }
}

#[test]
fn sequential_hides_nothing_and_ping_pong_everything() {
    let requests: Vec<_> = (0..4).map(|_| (0, 1, 50)).collect();
    let analyse = |ping_pong| {
        let ran = Toy::new(1, 1, 4, ping_pong, 2).virtually(&balanced, &requests);
        let recording = ran.recording();
        Analysis::of(&recording, Window::all(&recording))
    };
    let (sequential, ping_pong) = (analyse(false), analyse(true));
    assert!((sequential.overlap.efficiency - 0.5).abs() < 0.01, "{:?}", sequential.overlap);
    assert_eq!(sequential.overlap.hidden_share, 0.0);
    assert!(ping_pong.overlap.efficiency > 0.99, "{:?}", ping_pong.overlap);
    assert!(ping_pong.overlap.hidden_share > 0.99, "{:?}", ping_pong.overlap);
    assert_eq!(sequential.lanes[1].bubble(Cause::Attention), sequential.lanes[1].bubbles_ns(), "F waits for A alone");
    assert_eq!(sequential.path.shares.attention_ns, sequential.path.shares.ffn_ns, "the path takes turns");
}

/// Figure 7 of the Step-3 paper: all that the run takes beyond the busy lane's work is its filling and draining, and the bound
/// knows both.
#[test]
fn the_bound_of_a_full_pipeline_is_what_it_takes() {
    let costs = |task: &VirtualTask<'_>| if task.load.rows == 0 { 0 } else { balanced(task) };
    for micro_batches in 2..5 {
        let requests: Vec<_> = (0..micro_batches).map(|_| (0, 1, 9)).collect();
        let ran = Toy::new(1, 1, 3, true, micro_batches).virtually(&costs, &requests);
        let recording = ran.recording();
        let analysis = Analysis::of(&recording, Window::all(&recording));
        assert_eq!(analysis.overlap.bound_ns, analysis.window.wall_ns(), "{micro_batches} micro-batches");
    }
}

/// A has one row of prompt and twenty tokens; B comes meanwhile and reads nine rows in chunks of four.
#[test]
fn steps_that_only_decode_are_those_in_which_nobody_reads() {
    for (ping_pong, micro_batches) in [(false, 1), (true, 1), (true, 2), (true, 3)] {
        let ran = Toy::new(1, 1, 2, ping_pong, micro_batches).virtually(&balanced, &[(0, 1, 20), (300_000, 9, 5)]);
        let recording = ran.recording();
        let windows = Window::decoding(&recording, u64::MAX);
        let steps: usize = windows.iter().map(|window| window.count).sum();
        assert_eq!(windows.len(), 2, "before B and after its prompt: {ping_pong} {micro_batches}: {windows:?}");
        // Where several micro-batches rotate, a prompt gets only what keeps them level.
        let read = if micro_batches == 1 { 3..=3 } else { 3..=9 };
        assert!(read.contains(&(19 - steps)), "{ping_pong} {micro_batches}: {windows:?}");
        let until_ns = windows[1].from_ns + 1;
        assert_eq!(Window::decoding(&recording, until_ns), windows[..1], "what was not over by then is left out");
    }
}

/// One transfer takes longer than anything else: the lanes wait for it, and the path runs over it.
#[test]
fn a_slow_transfer_is_what_lanes_wait_for() {
    let costs = |task: &VirtualTask<'_>| {
        let template = &task.table.tasks[task.task];
        let sends = template.role == TaskRole::Send && task.table.stages[template.stage].id == "a2f";
        if sends { 50_000 } else { 1000 }
    };
    let ran = Toy::new(1, 1, 2, true, 1).virtually(&costs, &[(0, 1, 20)]);
    let recording = ran.recording();
    let analysis = Analysis::of(&recording, Window::settled(&recording));
    let ffn = &analysis.lanes[1];
    assert!(ffn.bubble(Cause::Transfer) > 4 * (ffn.bubble(Cause::Attention) + ffn.bubble(Cause::Ffn)), "{ffn:?}");
    assert!(analysis.path.shares.a_to_f_ns * 10 > analysis.window.wall_ns() * 8, "{:?}", analysis.path.shares);
    assert_eq!(analysis.transfers.exposed_ns, analysis.path.shares.a_to_f_ns + analysis.path.shares.f_to_a_ns);
}

/// Between two requests nothing is there to be decoded: admission, on every lane, and no fault of the overlap.
#[test]
fn want_of_work_is_told_apart() {
    let ran = Toy::new(1, 1, 2, true, 2).virtually(&balanced, &[(0, 1, 3), (5_000_000, 1, 3)]);
    let recording = ran.recording();
    let analysis = Analysis::of(&recording, Window::all(&recording));
    for lane in &analysis.lanes {
        let admission = lane.bubble(Cause::Admission);
        assert!((4_500_000..5_000_000).contains(&admission), "{lane:?}");
    }
    assert!(analysis.path.shares.admission_ns > 4_500_000, "{:?}", analysis.path.shares);
    assert!(analysis.overlap.measured_ns < 500_000);
}

#[test]
fn a_full_ring_drops_the_oldest_spans_and_counts_them() {
    let toy = Toy { spans_per_lane: 50, ..Toy::new(1, 1, 2, true, 2) };
    let ran = toy.really(|_, _, _| 0, &[30, 30]);
    let kept = Toy { spans_per_lane: 1 << 16, ..toy }.really(|_, _, _| 0, &[30, 30]);
    for (short, long) in ran.lanes.iter().zip(&kept.lanes) {
        assert_eq!(short.spans.len(), 50);
        assert_eq!(short.dropped_spans, long.spans.len() as u64 - 50);
        let places = |spans: &[rally_engine::schedule::span::Span]| -> Vec<(u64, u32)> {
            spans.iter().map(|span| (span.step, span.position)).collect()
        };
        assert_eq!(places(&short.spans), places(&long.spans[long.spans.len() - 50..]), "the newest, in order");
    }
    assert!(check(&ran).expect("what is left still adds up") > 0);
    assert!(!ran.counters.is_empty() && ran.counters.len() <= 50);
    assert!(ran.counters.iter().any(|sample| sample.running == 2 && sample.used_pages > 0));
}
