//! What if: the same devices and stages under another schedule, on virtual lanes that take the times measured.
//!
//! Another number of micro-batches means other rows in each. Where the recording has tasks of such sizes, their times are taken.
//! Beyond them nothing is known, and the answer errs against change: fewer rows take no less time, more rows take
//! proportionally more. Going on after a wait takes what it took in the recording.

use crate::baseline::{Baseline, inside};
use crate::recording::{Recording, SpanId};
use crate::window::Window;
use rally_graph::kinds::Role;
use rally_graph::plan::{Plan, TaskRole};
use rally_graph::stage_graph::DeviceIndex;
use rally_schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_schedule::planner::PlannerConfig;
use rally_schedule::policy::{PingPong, Policy};
use rally_schedule::span::LaneReport;
use rally_schedule::virtual_lanes::{Arrival, VirtualCosts, VirtualRun, VirtualTask};
use serde::Serialize;

/// Most micro-batches that are tried.
const MOST_MICRO_BATCHES: usize = 6;
/// Steps of a trial: enough to settle.
const STEPS: usize = 10;
/// Most sequences of a trial; beyond, only rows grow, which the times know.
const MOST_SEQUENCES: usize = 4096;

/// Schedules tried on the same stage times.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replan {
    /// Milliseconds a step of the schedule that was run, on virtual lanes.
    pub now_ms: f64,
    /// Others, the fastest first.
    pub candidates: Vec<Candidate>,
}

/// A schedule and what it would take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// As `--schedule` takes it.
    pub schedule: String,
    /// Micro-batches.
    pub micro_batches: usize,
    /// Milliseconds a step.
    pub step_ms: f64,
}

/// Tries ping-pong with other numbers of micro-batches. `None` if the window has nothing to go by.
pub fn replan(recording: &Recording<'_>, window: &Window) -> Option<Replan> {
    let trial = Trial::new(recording, window)?;
    let now_ms = trial.step_ms(recording.plan)?;
    let mut candidates = Vec::new();
    for micro_batches in 1..=MOST_MICRO_BATCHES.min(trial.sequences) {
        let table = recording.plan.table.clone();
        let orders = PingPong.orders(&table, micro_batches);
        let plan = Plan::compile(table, micro_batches, &orders).ok()?;
        if plan.lanes != recording.plan.lanes {
            let step_ms = trial.step_ms(&plan)?;
            candidates.push(Candidate { schedule: format!("ping_pong:{micro_batches}"), micro_batches, step_ms });
        }
    }
    candidates.sort_by(|a, b| a.step_ms.total_cmp(&b.step_ms));
    Some(Replan { now_ms, candidates })
}

struct Trial<'a> {
    recording: &'a Recording<'a>,
    times: Baseline,
    wake_ns: u64,
    sequences: usize,
    attention: Vec<DeviceIndex>,
}

impl<'a> Trial<'a> {
    fn new(recording: &'a Recording<'a>, window: &Window) -> Option<Self> {
        let table = &recording.plan.table;
        let embeds = |device: DeviceIndex| {
            let own = table.tasks.iter().filter(|task| task.device == device && task.role == TaskRole::Compute);
            own.into_iter().any(|task| table.stages[task.stage].role == Role::Embed)
        };
        let attention: Vec<DeviceIndex> = table.lanes.iter().map(|lane| lane.device).filter(|d| embeds(*d)).collect();
        let inside = recording.counters.iter().filter(|sample| (window.from_ns..=window.to_ns).contains(&sample.at_ns));
        let mut running: Vec<u32> = inside.map(|sample| sample.running).collect();
        running.sort_unstable();
        let sequences = running.get(running.len() / 2).copied().unwrap_or(0) as usize;
        if sequences == 0 || attention.is_empty() || window.count == 0 {
            return None;
        }
        let sequences = sequences.min(MOST_SEQUENCES);
        let (times, wake_ns) = (Baseline::by_rows(recording, window), wake_ns(recording, window));
        Some(Self { recording, times, wake_ns, sequences, attention })
    }

    /// A settled step of `plan`, every sequence decoding.
    fn step_ms(&self, plan: &Plan) -> Option<f64> {
        let devices = self.attention.len();
        let planner = PlannerConfig {
            micro_batches: plan.micro_batches,
            devices,
            sequences: self.sequences,
            sequences_per_device: self.sequences,
            rows_per_device: self.sequences,
            rows_per_micro_batch: self.sequences * devices,
            prefill_chunk: 1,
            pages_per_device: self.sequences as u32,
            page_tokens: STEPS + 1,
            max_positions: STEPS + 2,
        };
        let token = |_, _| 0;
        let run = VirtualRun { plan, planner, attention: &self.attention, costs: self, token: &token };
        let report = run.run((0..self.sequences as u64).map(arrival).collect()).ok()?;
        let reports: Vec<LaneReport> = report.lanes.into_iter().map(|lane| lane.report).collect();
        let settled = Window::settled(&Recording::new(plan, &reports, &[]));
        (settled.count > 0).then(|| settled.step_ms())
    }
}

impl VirtualCosts for Trial<'_> {
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64 {
        let template = &task.table.tasks[task.task];
        let lanes = &self.recording.plan.lanes;
        let lane = lanes.iter().position(|lane| lane.device == template.device).unwrap_or(0);
        let part = template.role as u8;
        self.times.cautious_ns(lane, template.stage, part, task.load.rows as u32).round() as u64
    }

    fn wake_ns(&self) -> u64 {
        self.wake_ns
    }
}

/// From the end of a task to the begin of the one that waited for it, in the mean.
fn wake_ns(recording: &Recording<'_>, window: &Window) -> u64 {
    let (mut total, mut count) = (0, 0);
    for lane in 0..recording.lanes.len() {
        for (span, entry) in recording.spans(lane).iter().enumerate() {
            let counts = inside(window, entry.start_ns);
            if let (true, Some((awaited, true))) = (counts, recording.awaited(SpanId { lane, span })) {
                let over_ns = recording.span(awaited).end_ns.max(entry.ready_ns);
                total += entry.start_ns.saturating_sub(over_ns);
                count += 1;
            }
        }
    }
    total / count.max(1)
}

fn arrival(id: u64) -> Arrival {
    let request = SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: vec![0].into(),
        max_new_tokens: STEPS,
        stop_token_ids: Vec::new().into(),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    };
    Arrival { at_ns: 0, request }
}
