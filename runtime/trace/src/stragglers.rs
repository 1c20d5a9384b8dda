//! Stragglers: a device, a stage, a layer, a transfer or a host that takes longer than it should, and which of these it is.
//!
//! Times are compared on one host and within one recording at a time, so no clocks need to agree. "Should" comes from a baseline
//! (the same lanes at another time) where there is one, else from peers: the same stage on the other devices of the group, and
//! the other layers of the same stage. Peers convict by effort where they do different work for the same rows, as shards of experts
//! do: what one takes is held against the line through what the others take for theirs. And much more is asked for than against a
//! baseline. What is slow *together* says what is at fault:
//!
//! | slow | fault |
//! |---|---|
//! | one stage's computing on a lane, all else as it should be | that stage there (or in one layer, or everywhere) |
//! | most of what a lane computes and moves | its device |
//! | sends, receives or exchanges of one transfer, the computing as it should be | the transfer: the network |
//! | the time between tasks | the device's host: planning, handing over, a core shared with others |
//!
//! A slow one shortens everyone else's own wait for it, so waits convict nobody here.

pub use crate::baseline::Baseline;
use crate::baseline::{Point, inside};
use crate::recording::Recording;
use crate::window::Window;
use crate::work::Side;
use rally_graph::plan::TaskRole;
use rally_graph::stage_graph::StageIndex;
use rally_schedule::straggler::{
    FEWEST_TASKS, Held, SHORTEST_TASK_NS, SLOW_BESIDE_OTHERS, device_is_slow, lower_median,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What is slower than it should be by this much is named. Two lanes that share a cache or a core differ by less.
pub const SLOW: f64 = 1.5;
/// And only if it costs at least this share of what the busiest lane works: a stage of a microsecond may well take three. (Of work,
/// not of the window: a machine that others use as well stretches waits, and would hide what is slow.)
pub const WORTH_NAMING: f64 = 0.02;
/// Likewise a larger share of what the busiest lane works.
pub const WORTH_NAMING_BESIDE_OTHERS: f64 = 0.05;
/// Who is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Culprit {
    /// Everything on this lane.
    Device {
        /// The lane.
        lane: usize,
    },
    /// The computing of one stage.
    Stage {
        /// The stage.
        stage: StageIndex,
        /// On this lane only; `None`: wherever it runs.
        lane: Option<usize>,
        /// In this layer only; `None`: in all.
        layer: Option<usize>,
    },
    /// The moving of one transfer.
    Transfer {
        /// The stage.
        stage: StageIndex,
        /// On this lane only; `None`: at all its ends.
        lane: Option<usize>,
    },
    /// What happens between the tasks of this lane.
    Host {
        /// The lane.
        lane: usize,
    },
}

/// What it was compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// The same at another time.
    Baseline,
    /// The same on other devices of the group.
    Siblings,
    /// The same stage in other layers.
    Layers,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Straggler {
    /// Who.
    pub culprit: Culprit,
    /// How many times as long as it should take.
    pub ratio: f64,
    /// Time above what it should have taken, in the window, over all lanes concerned.
    pub excess_ns: u64,
    /// What it was compared with.
    pub evidence: Evidence,
}

impl Straggler {
    /// In words: "device `ffn.1` takes 3.0 times as long as its siblings".
    pub fn describe(&self, recording: &Recording<'_>) -> String {
        let name = |lane: usize| &recording.plan.lanes[lane].name;
        let id = |stage: StageIndex| &recording.plan.table.stages[stage].id;
        let on = |lane: Option<usize>| lane.map(|lane| format!(" on `{}`", name(lane))).unwrap_or_default();
        let side = |lane: usize| match recording.side(lane) {
            Side::Attention => "attention device",
            Side::Ffn => "FFN device",
            Side::Between => "device",
        };
        let who = match self.culprit {
            Culprit::Device { lane } => format!("{} `{}`", side(lane), name(lane)),
            Culprit::Stage { stage, lane, layer } => {
                let layer = layer.map(|layer| format!(", layer {layer}")).unwrap_or_default();
                format!("stage `{}`{layer}{}", id(stage), on(lane))
            }
            Culprit::Transfer { stage, lane } => format!("transfer `{}`{}", id(stage), on(lane)),
            Culprit::Host { lane } => format!("the host of {} `{}`", side(lane), name(lane)),
        };
        let than = match self.evidence {
            Evidence::Baseline => "before",
            Evidence::Siblings => "its siblings",
            Evidence::Layers => "other layers",
        };
        format!("{who}: {:.1} times as long as {than}", self.ratio)
    }
}

/// A stage or a part of a transfer on a lane: what it took, and what it should have taken.
#[derive(Clone, Copy, Debug)]
struct Cell {
    lane: usize,
    stage: StageIndex,
    transfer: bool,
    tasks: usize,
    actual_ns: f64,
    expected_ns: f64,
}

/// Who was slow while the run was settled; nobody in a run too short to say.
pub fn while_settled(recording: &Recording<'_>) -> Vec<Straggler> {
    let window = Window::settled(recording);
    if window.count < Window::FEWEST_STEPS { Vec::new() } else { stragglers(recording, &window, None) }
}

/// Who is slow in `window`, the costliest first.
pub fn stragglers(recording: &Recording<'_>, window: &Window, baseline: Option<&Baseline>) -> Vec<Straggler> {
    let now = Baseline::of(recording, window);
    let share = if baseline.is_some() { WORTH_NAMING } else { WORTH_NAMING_BESIDE_OTHERS };
    let worth_ns = share * (0..recording.lanes.len()).map(|lane| now.work_ns(lane)).fold(0.0, f64::max);
    let trial = Trial { recording, window, now: &now, baseline, worth_ns };
    let (mut found, mut slow) = (Vec::new(), Vec::new());
    for lane in 0..recording.lanes.len() {
        let cells = trial.cells(lane);
        match trial.device(lane, &cells) {
            Some(device) => found.push(device),
            None => slow.extend(cells.into_iter().filter(|cell| trial.is_slow(cell))),
        }
    }
    found.extend(trial.stages(slow));
    found.extend(trial.hosts());
    let known: Vec<Culprit> = found.iter().map(|straggler| straggler.culprit).collect();
    found.extend(trial.layers(&known));
    found.sort_by_key(|straggler| std::cmp::Reverse(straggler.excess_ns));
    found
}

struct Trial<'a> {
    recording: &'a Recording<'a>,
    window: &'a Window,
    now: &'a Baseline,
    baseline: Option<&'a Baseline>,
    /// The least excess that is worth a word.
    worth_ns: f64,
}

impl Trial<'_> {
    /// What the lane's stages took and should have taken; those that there is nothing to compare with are left out.
    fn cells(&self, lane: usize) -> Vec<Cell> {
        let own = self.now.cells.range((lane, 0, 0)..(lane + 1, 0, 0));
        let cell = |(key, points): (&(usize, StageIndex, u8), &Vec<Point>)| {
            let (_, stage, part) = *key;
            let (mut tasks, mut actual_ns, mut expected_ns) = (0, 0.0, 0.0);
            for point in points {
                let expected = self.expected(lane, stage, part, point.size)?;
                tasks += point.count;
                actual_ns += point.median_ns * point.count as f64;
                expected_ns += expected * point.count as f64;
            }
            Some(Cell { lane, stage, transfer: self.moves(stage, part), tasks, actual_ns, expected_ns })
        };
        own.filter_map(cell).collect()
    }

    fn expected(&self, lane: usize, stage: StageIndex, part: u8, size: u32) -> Option<f64> {
        // Where devices do unequal work, sizes seen on one need not be near those of another, or of another time.
        let uneven = self.recording.plan.table.uneven[stage];
        let of = |known: &Baseline, lane: usize| match uneven {
            true => Some(known.line(lane, stage, part)?.at(f64::from(size))),
            false => known.expected(lane, stage, part, size),
        };
        if let Some(baseline) = self.baseline {
            return of(baseline, lane);
        }
        let lanes = &self.recording.plan.table.lanes;
        let siblings = (0..lanes.len()).filter(|other| *other != lane && lanes[*other].group == lanes[lane].group);
        let times = siblings.filter_map(|other| of(self.now, other));
        lower_median(times.collect())
    }

    /// Whether the tasks of this stage and part move rows of a transfer.
    fn moves(&self, stage: StageIndex, part: u8) -> bool {
        let mut tasks = self.recording.plan.table.tasks.iter();
        tasks.any(|task| task.stage == stage && task.role as u8 == part && !task.computes())
    }

    fn is_slow(&self, cell: &Cell) -> bool {
        self.matters(cell.actual_ns, cell.expected_ns, cell.tasks)
    }

    /// Whether the difference is large, worth a word, and no accident.
    fn matters(&self, actual_ns: f64, expected_ns: f64, tasks: usize) -> bool {
        let known = self.baseline.is_some();
        let sure = known || (tasks as u64 >= FEWEST_TASKS && actual_ns >= SHORTEST_TASK_NS * tasks as f64);
        sure && actual_ns >= self.slow() * expected_ns && actual_ns - expected_ns >= self.worth_ns
    }

    /// How many times as long as it should take makes a slow one.
    fn slow(&self) -> f64 {
        if self.baseline.is_some() { SLOW } else { SLOW_BESIDE_OTHERS }
    }

    /// A device is slow if what it does beside its slowest stage is slow as well.
    fn device(&self, lane: usize, cells: &[Cell]) -> Option<Straggler> {
        let held = cells.iter().map(|cell| Held {
            stage: cell.stage,
            actual_ns: cell.actual_ns,
            expected_ns: cell.expected_ns,
            slow: self.is_slow(cell),
        });
        if !device_is_slow(held, self.slow()) {
            return None;
        }
        let (actual, expected) = sums(cells);
        Some(self.verdict(Culprit::Device { lane }, actual, expected))
    }

    /// Slow stages and transfers of devices that are not slow themselves; what is slow wherever it runs is told once.
    fn stages(&self, slow: Vec<Cell>) -> Vec<Straggler> {
        let mut by_stage: BTreeMap<(StageIndex, bool), Vec<Cell>> = BTreeMap::new();
        for cell in slow {
            by_stage.entry((cell.stage, cell.transfer)).or_default().push(cell);
        }
        let mut found = Vec::new();
        for ((stage, transfer), cells) in by_stage {
            let concerned: BTreeSet<usize> = cells.iter().map(|cell| cell.lane).collect();
            let runs = self.now.cells.keys().filter(|key| key.1 == stage).map(|key| key.0);
            let everywhere = concerned.len() == runs.collect::<BTreeSet<usize>>().len();
            let parts: Vec<(Option<usize>, Vec<Cell>)> = if everywhere {
                vec![(None, cells)]
            } else {
                let of = |lane: usize| cells.iter().filter(|cell| cell.lane == lane).copied().collect();
                concerned.iter().map(|lane| (Some(*lane), of(*lane))).collect()
            };
            for (lane, cells) in parts {
                let (actual, expected) = sums(&cells);
                let culprit = match transfer {
                    true => Culprit::Transfer { stage, lane },
                    false => Culprit::Stage { stage, lane, layer: None },
                };
                found.push(self.verdict(culprit, actual, expected));
            }
        }
        found
    }

    /// Hosts that take longer between tasks than before. Siblings are no measure: the one that ends a step last plans for all.
    fn hosts(&self) -> Vec<Straggler> {
        let Some(baseline) = self.baseline else { return Vec::new() };
        let host = |lane: usize| {
            let count = self.now.cells.range((lane, 0, 0)..(lane + 1, 0, 0)).flat_map(|(_, points)| points);
            let count = count.map(|point| point.count).sum::<usize>() as f64;
            let (actual, expected) = (self.now.host_ns[lane] * count, baseline.host_ns.get(lane)? * count);
            let slow = expected > 0.0 && self.matters(actual, expected, count as usize);
            slow.then(|| self.verdict(Culprit::Host { lane }, actual, expected))
        };
        (0..self.recording.lanes.len()).filter_map(host).collect()
    }

    /// Layers that take longer than the other layers of their stage, unless the whole stage or device is slow already.
    fn layers(&self, known: &[Culprit]) -> Vec<Straggler> {
        let mut durations: BTreeMap<(usize, StageIndex), BTreeMap<usize, Vec<u64>>> = BTreeMap::new();
        for lane in 0..self.recording.lanes.len() {
            for span in self.recording.spans(lane).iter().filter(|span| inside(self.window, span.start_ns)) {
                let template = self.recording.template(lane, span);
                if let (Some(layer), TaskRole::Compute) = (template.layer, template.role) {
                    let layers = durations.entry((lane, template.stage)).or_default();
                    layers.entry(layer).or_default().push(span.end_ns - span.start_ns);
                }
            }
        }
        let mut found = Vec::new();
        for ((lane, stage), layers) in durations {
            let named = known.iter().any(|culprit| match *culprit {
                Culprit::Device { lane: other } => other == lane,
                Culprit::Stage { stage: other, lane: on, .. } => other == stage && on.is_none_or(|on| on == lane),
                Culprit::Transfer { .. } | Culprit::Host { .. } => false,
            });
            if !named && !self.recording.plan.table.uneven[stage] {
                self.slow_layers(lane, stage, layers, &mut found);
            }
        }
        found
    }

    fn slow_layers(
        &self,
        lane: usize,
        stage: StageIndex,
        layers: BTreeMap<usize, Vec<u64>>,
        found: &mut Vec<Straggler>,
    ) {
        let points: Vec<(usize, Point)> = layers.into_iter().map(|(layer, list)| (layer, Point::of(0, list))).collect();
        for (layer, point) in &points {
            let others = points.iter().filter(|(other, _)| other != layer).map(|(_, point)| point.median_ns);
            let Some(expected) = lower_median(others.collect()) else { return };
            let count = point.count as f64;
            if expected > 0.0 && self.matters(point.median_ns * count, expected * count, point.count) {
                let culprit = Culprit::Stage { stage, lane: Some(lane), layer: Some(*layer) };
                let verdict = self.verdict(culprit, point.median_ns * count, expected * count);
                found.push(Straggler { evidence: Evidence::Layers, ..verdict });
            }
        }
    }

    fn verdict(&self, culprit: Culprit, actual_ns: f64, expected_ns: f64) -> Straggler {
        let evidence = if self.baseline.is_some() { Evidence::Baseline } else { Evidence::Siblings };
        let ratio = if expected_ns > 0.0 { actual_ns / expected_ns } else { f64::INFINITY };
        Straggler { culprit, ratio, excess_ns: (actual_ns - expected_ns).max(0.0) as u64, evidence }
    }
}

/// What cells took and should have taken together.
fn sums<'c>(cells: impl IntoIterator<Item = impl std::borrow::Borrow<Cell> + 'c>) -> (f64, f64) {
    cells.into_iter().fold((0.0, 0.0), |(actual, expected), cell| {
        let cell = cell.borrow();
        (actual + cell.actual_ns, expected + cell.expected_ns)
    })
}
