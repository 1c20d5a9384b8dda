//! Figures of a run while it runs and the analysis of its trace go by one rule: bubbles of a lane agree by cause.

mod toy;

use rally_trace::{Analysis, Cause, Recording, Window};
use toy::Toy;

/// Share of the wall time that a cause may differ by.
const TOLERANCE: f64 = 0.02;

/// The largest difference, as a share of the wall time, and what it was.
fn apart(toy: &Toy, tokens: &[usize]) -> (f64, String) {
    let burn = |stage: &str, device: usize, layer: usize| match stage {
        "mfa_attention" => 20_000 + 4000 * device as u64,
        "combine" | "router" => 1000,
        _ => 15_000 + 2000 * layer as u64,
    };
    let ran = toy.really(burn, tokens);
    let recording = Recording::new(&ran.plan, &ran.lanes, &ran.counters);
    let mut worst = (0.0, String::new());
    for (lane, live) in ran.figures.lanes.iter().enumerate() {
        // Figures say all of a lane's time from the begin of the run to the end of its last task.
        let mut window = Window::all(&recording);
        (window.from_ns, window.to_ns) = (0, live.accounted_ns);
        let traced = &Analysis::of(&recording, window).lanes[lane];
        assert_eq!((live.busy_ns, live.transfer_ns), (traced.busy_ns, traced.transfer_ns), "{toy:?} {live:?}");
        for cause in Cause::ALL {
            let (ours, theirs) = (live.bubble_ns[cause as usize], traced.bubble(cause));
            let apart = ours.abs_diff(theirs) as f64 / live.accounted_ns as f64;
            if apart > worst.0 {
                worst = (apart, format!("{toy:?}, {cause:?}: {ours} and {theirs} ns: {live:?} {traced:?}"));
            }
        }
    }
    worst
}

#[test]
fn bubbles_agree_with_the_trace() {
    for (attention, ffn, ping_pong, micro_batches) in [
        (1, 1, false, 1),
        (1, 1, false, 2),
        (1, 1, true, 2),
        (1, 1, true, 3),
        (2, 1, true, 2),
        (2, 1, false, 2),
        (1, 2, true, 3),
        (2, 2, true, 3),
        (3, 1, true, 3),
    ] {
        let toy = Toy::new(attention, ffn, 4, ping_pong, micro_batches);
        let (apart, what) = apart(&toy, &[40; 12]);
        println!("{apart:.4} {attention}:{ffn} {ping_pong} {micro_batches}");
        assert!(apart <= TOLERANCE, "{apart:.3} of the time apart: {what}");
    }
}
