//! How well lanes overlap: the time that stage times allow, against the time that was measured.

use crate::analysis::Overlap;
use crate::recording::Recording;
use crate::window::Window;
use crate::work::Side;
use rally_graph::plan::TaskId;
use std::collections::BTreeSet;

/// What the lanes of `window` did at most: busy time and want of work, by lane.
pub(crate) fn overlap(recording: &Recording<'_>, window: &Window, busy_ns: &[u64], idle_ns: &[u64]) -> Overlap {
    let busiest = (0..busy_ns.len()).max_by_key(|lane| busy_ns[*lane]);
    let Some(busiest) = busiest.filter(|lane| busy_ns[*lane] > 0) else { return Overlap::default() };
    let means = Means::of(recording, window);
    let fill_ns = if window.fills { means.fill_ns(recording, busiest) } else { 0.0 };
    let drain_ns = if window.drains { means.drain_ns(recording, busiest) } else { 0.0 };
    let measured_ns = window.wall_ns().saturating_sub(idle_ns[busiest]);
    // Means of tasks can make fill and drain a little longer than they were; no run is faster than its bound.
    let bound_ns = (busy_ns[busiest] as f64 + fill_ns + drain_ns).min(measured_ns as f64);
    Overlap {
        busiest,
        bound_ns: bound_ns as u64,
        measured_ns,
        bound_tpot_ms: bound_ns / 1e6 / window.count.max(1) as f64,
        efficiency: if measured_ns == 0 { 0.0 } else { bound_ns / measured_ns as f64 },
        hidden_share: hidden_share(recording, window),
    }
}

/// Mean durations of tasks, and how many micro-batches took turns.
struct Means {
    /// By task; 0 for those without spans.
    task_ns: Vec<f64>,
    micro_batches: f64,
}

impl Means {
    fn of(recording: &Recording<'_>, window: &Window) -> Self {
        let mut sums = vec![(0u64, 0u64); recording.plan.table.tasks.len()];
        let mut seen = BTreeSet::new();
        for lane in 0..recording.lanes.len() {
            let spans = recording.spans(lane);
            let first = spans.partition_point(|span| span.start_ns < window.from_ns);
            for span in spans[first..].iter().take_while(|span| span.start_ns < window.to_ns) {
                let planned = recording.planned(lane, span);
                seen.insert(planned.micro_batch);
                let sum = &mut sums[planned.task];
                *sum = (sum.0 + span.end_ns - span.start_ns, sum.1 + 1);
            }
        }
        let mean = |(total, count): &(u64, u64)| if *count == 0 { 0.0 } else { *total as f64 / *count as f64 };
        Self { task_ns: sums.iter().map(mean).collect(), micro_batches: seen.len() as f64 }
    }

    /// How long `lane` must stand idle before it can be busy without a break: a task of it cannot begin before what leads to it,
    /// and all it can do meanwhile are its earlier tasks, of every micro-batch.
    fn fill_ns(&self, recording: &Recording<'_>, lane: usize) -> f64 {
        let tasks = &recording.plan.table.tasks;
        let mut reached = vec![0f64; tasks.len()];
        for (task, template) in tasks.iter().enumerate() {
            let ends = template.after.iter().map(|before| reached[*before] + self.task_ns[*before]);
            reached[task] = ends.fold(0.0, f64::max);
        }
        self.idle(&recording.plan.table.lanes[lane].tasks, &reached)
    }

    /// The same from the end: after a task of it, what still follows.
    fn drain_ns(&self, recording: &Recording<'_>, lane: usize) -> f64 {
        let tasks = &recording.plan.table.tasks;
        let mut left = vec![0f64; tasks.len()];
        for (task, template) in tasks.iter().enumerate().rev() {
            for before in &template.after {
                left[*before] = left[*before].max(left[task] + self.task_ns[task]);
            }
        }
        let mut own = recording.plan.table.lanes[lane].tasks.clone();
        own.reverse();
        self.idle(&own, &left)
    }

    /// The most that `distance` of one of `own` exceeds all work of those before it in the list.
    fn idle(&self, own: &[TaskId], distance: &[f64]) -> f64 {
        let (mut worked, mut idle) = (0f64, 0f64);
        for task in own {
            idle = idle.max(distance[*task] - worked * self.micro_batches);
            worked += self.task_ns[*task];
        }
        idle
    }
}

/// How much of the work that could run beside the busier side did: 0 if the sides took turns, 1 if the others' work never stood
/// alone.
fn hidden_share(recording: &Recording<'_>, window: &Window) -> f64 {
    let sides = [Side::Attention, Side::Ffn, Side::Between];
    let of_side = |side: Side| {
        let lanes: Vec<usize> = (0..recording.lanes.len()).filter(|lane| recording.side(*lane) == side).collect();
        covered_ns(recording, window, &lanes)
    };
    let parts = sides.map(of_side);
    let everything: Vec<usize> = (0..recording.lanes.len()).collect();
    let (sum, most) = (parts.iter().sum::<u64>(), parts.iter().copied().max().unwrap_or(0));
    let covered = covered_ns(recording, window, &everything);
    if sum == most { 0.0 } else { (sum - covered) as f64 / (sum - most) as f64 }
}

/// Time in which any of `lanes` had a task.
fn covered_ns(recording: &Recording<'_>, window: &Window, lanes: &[usize]) -> u64 {
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    for lane in lanes {
        let inside = recording.spans(*lane).iter().map(|span| {
            (span.start_ns.clamp(window.from_ns, window.to_ns), span.end_ns.clamp(window.from_ns, window.to_ns))
        });
        pieces.extend(inside.filter(|(from, to)| from < to));
    }
    pieces.sort_unstable();
    let (mut covered, mut reached) = (0, 0);
    for (from, to) in pieces {
        covered += to.saturating_sub(from.max(reached));
        reached = reached.max(to);
    }
    covered
}
