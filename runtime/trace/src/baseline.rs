//! How long tasks of each size take on each lane: what stragglers are held against, and what other schedules are tried with.

use crate::recording::Recording;
use crate::stages::percentile;
use crate::window::Window;
use rally_graph::stage_graph::StageIndex;
use rally_schedule::span::Span;
use rally_schedule::straggler::{Line, Tasks};
use std::collections::BTreeMap;

/// Times of a recording by lane, stage, part and size: what another window is held against.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    pub(crate) cells: BTreeMap<(usize, StageIndex, u8), Vec<Point>>,
    /// Mean host time before a task, by lane.
    pub(crate) host_ns: Vec<f64>,
}

/// Tasks of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    /// Effort or rows, as the baseline was asked for.
    pub(crate) size: u32,
    pub(crate) count: usize,
    pub(crate) median_ns: f64,
}

impl Baseline {
    /// Medians of `window`, by effort.
    pub fn of(recording: &Recording<'_>, window: &Window) -> Self {
        Self::by(recording, window, |span| span.effort)
    }

    /// Medians by rows: for other plans, which say nothing of effort.
    pub(crate) fn by_rows(recording: &Recording<'_>, window: &Window) -> Self {
        Self::by(recording, window, |span| span.rows)
    }

    fn by(recording: &Recording<'_>, window: &Window, size: fn(&Span) -> u32) -> Self {
        let mut durations: BTreeMap<(usize, StageIndex, u8), BTreeMap<u32, Vec<u64>>> = BTreeMap::new();
        let mut host_ns = Vec::new();
        for lane in 0..recording.lanes.len() {
            let (mut host, mut count, mut last_ns) = (0, 0usize, None);
            for span in recording.spans(lane).iter().filter(|span| inside(window, span.start_ns)) {
                let template = recording.template(lane, span);
                let cell = durations.entry((lane, template.stage, template.role as u8)).or_default();
                cell.entry(size(span)).or_default().push(span.end_ns - span.start_ns);
                host += last_ns.map_or(0, |last: u64| span.ready_ns.saturating_sub(last + span.admission_ns));
                last_ns = Some(span.end_ns);
                count += 1;
            }
            host_ns.push(host as f64 / count.max(1) as f64);
        }
        let points =
            |sizes: BTreeMap<u32, Vec<u64>>| sizes.into_iter().map(|(size, list)| Point::of(size, list)).collect();
        Self { cells: durations.into_iter().map(|(key, sizes)| (key, points(sizes))).collect(), host_ns }
    }

    /// The line through the lane's times of this stage and part.
    pub(crate) fn line(&self, lane: usize, stage: StageIndex, part: u8) -> Option<Line> {
        let mut tasks = Tasks::default();
        for point in self.cells.get(&(lane, stage, part))? {
            tasks.add(point.count as f64, f64::from(point.size), point.median_ns);
        }
        Line::through(&tasks)
    }

    /// Nanoseconds of a task of this size, between known sizes on the line between them.
    pub(crate) fn expected(&self, lane: usize, stage: StageIndex, part: u8, size: u32) -> Option<f64> {
        let points = self.cells.get(&(lane, stage, part))?;
        let above = points.partition_point(|point| point.size < size);
        let below = above.checked_sub(1).map(|below| points[below]);
        match (below, points.get(above)) {
            (Some(low), Some(high)) => {
                let share = f64::from(size - low.size) / f64::from(high.size - low.size);
                Some(low.median_ns + (high.median_ns - low.median_ns) * share)
            }
            (Some(nearest), None) => Some(nearest.median_ns),
            (None, nearest) => nearest.map(|point| point.median_ns),
        }
    }
}

impl Baseline {
    /// The lane's work, by the medians of its tasks.
    pub(crate) fn work_ns(&self, lane: usize) -> f64 {
        let points = self.cells.range((lane, 0, 0)..(lane + 1, 0, 0)).flat_map(|(_, points)| points);
        points.map(|point| point.median_ns * point.count as f64).sum()
    }

    /// As [`Baseline::expected`] between known sizes; beyond them, fewer rows take no less and more rows proportionally more. 0
    /// where nothing is known.
    pub(crate) fn cautious_ns(&self, lane: usize, stage: StageIndex, part: u8, rows: u32) -> f64 {
        let expected = self.expected(lane, stage, part, rows).unwrap_or(0.0);
        let most =
            self.cells.get(&(lane, stage, part)).and_then(|points| points.last()).map_or(rows, |point| point.size);
        if rows > most { expected * f64::from(rows) / f64::from(most.max(1)) } else { expected }
    }
}

impl Point {
    pub(crate) fn of(size: u32, mut durations_ns: Vec<u64>) -> Self {
        durations_ns.sort_unstable();
        Self { size, count: durations_ns.len(), median_ns: percentile(&durations_ns, 0.5) as f64 }
    }
}

/// Whether a moment lies in `window`.
pub(crate) fn inside(window: &Window, at_ns: u64) -> bool {
    (window.from_ns..window.to_ns).contains(&at_ns)
}
