//! A settled step of a plan on virtual lanes with assumed durations: what overlaps with what, as text or as a picture.

use rally_engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_engine::schedule::costs::StageCosts;
use rally_engine::schedule::planner::{PlannerConfig, SubmitError};
use rally_engine::schedule::virtual_lanes::{Arrival, VirtualRun, VirtualTask};
use rally_graph::kinds::Role;
use rally_graph::plan::Plan;
use rally_graph::render::escape;
use rally_graph::stage_graph::StageGraph;
use std::fmt::Write;

/// Columns of the text, and units of the picture.
const COLUMNS: u64 = 96;
/// Nanoseconds of a column: one unit of the assumed costs.
const UNIT: u64 = 10_000;
const ASSUMED: &str =
    "durations are assumed, not measured: attention and FFN 8 units, sampling 2, other stages 1, transfers none";

struct Bar {
    stage: String,
    layer: Option<usize>,
    micro_batch: usize,
    start: u64,
    end: u64,
}

struct Lane {
    name: String,
    bars: Vec<Bar>,
    busy_share: f64,
}

/// The beginning of a settled step.
pub struct Timeline {
    lanes: Vec<Lane>,
    units: u64,
}

impl Timeline {
    /// Runs a few steps with one sequence for each micro-batch and device.
    pub fn new(graph: &StageGraph, plan: &Plan) -> Result<Self, SubmitError> {
        const STEPS: usize = 5;
        let attention = graph.devices_of_role(Role::Embed);
        let sequences = attention.len() * plan.micro_batches;
        let planner = PlannerConfig {
            micro_batches: plan.micro_batches,
            devices: attention.len(),
            sequences,
            sequences_per_device: plan.micro_batches,
            rows_per_device: 1,
            rows_per_micro_batch: attention.len(),
            prefill_chunk: 1,
            pages_per_device: plan.micro_batches as u32,
            page_tokens: STEPS + 1,
            max_positions: STEPS + 2,
        };
        let costs = StageCosts::assumed();
        let task_ns = |task: &VirtualTask<'_>| costs.task_ns(task.table, task.task, task.load.rows);
        let run = VirtualRun { plan, planner, attention: &attention, costs: &task_ns, token: &|_, _| 0 };
        let request = |id| SequenceRequest {
            generated: std::sync::Arc::default(),
            id,
            prompt: vec![0].into(),
            max_new_tokens: STEPS,
            stop_token_ids: Vec::new().into(),
            sampling: SamplingParams::default(),
            detail: TokenDetail::default(),
        };
        let arrivals = (0..sequences as u64).map(|id| Arrival { at_ns: 0, request: request(id) }).collect();
        let report = run.run(arrivals)?;
        // The third step: the first has filled the pipeline, the last drains it.
        let begins = |step: u64| {
            let spans = report.lanes.iter().flat_map(|lane| &lane.report.spans);
            spans.filter(|span| span.step == step).map(|span| span.start_ns).min().unwrap_or(0)
        };
        let (from, to) = (begins(2), begins(3).max(begins(2) + UNIT));
        let units = COLUMNS.min((to - from).div_ceil(UNIT));
        let lanes = report.lanes.iter().zip(&plan.lanes).map(|(lane, planned)| {
            let inside = |start: u64, end: u64| end.min(to).saturating_sub(start.max(from));
            let busy: u64 = lane.report.spans.iter().map(|span| inside(span.start_ns, span.end_ns)).sum();
            let shown =
                lane.report.spans.iter().filter(|span| span.end_ns > from && span.start_ns < from + units * UNIT);
            let bar = |span: &rally_engine::span::Span| {
                let task = &planned.tasks[span.position as usize];
                let template = &plan.table.tasks[task.task];
                let (stage, layer) = (plan.table.stages[template.stage].id.clone(), template.layer);
                let place = |at: u64| at.clamp(from, from + units * UNIT) - from;
                Bar {
                    stage,
                    layer,
                    micro_batch: task.micro_batch,
                    start: place(span.start_ns),
                    end: place(span.end_ns),
                }
            };
            let bars = shown.filter(|span| span.end_ns > span.start_ns).map(bar).collect();
            Lane { name: planned.name.clone(), bars, busy_share: busy as f64 / (to - from) as f64 }
        });
        Ok(Self { lanes: lanes.collect(), units })
    }

    /// One character a unit: the micro-batch that the lane works on.
    pub fn text(&self) -> String {
        let mut out = format!("the first {} units of a settled step; {ASSUMED}\n", self.units);
        // Devices that do the same at the same time are one line.
        let rows: Vec<(&str, String)> = self.lanes.iter().map(|lane| (lane.name.as_str(), self.cells(lane))).collect();
        let names: Vec<String> = rows
            .chunk_by(|a, b| a.1 == b.1)
            .map(|alike| match alike {
                [(first, _), .., (last, _)] => format!("{first} … {last}"),
                _ => alike.iter().map(|row| row.0).collect(),
            })
            .collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        for (name, alike) in names.iter().zip(rows.chunk_by(|a, b| a.1 == b.1)) {
            let _ = writeln!(out, "  {name:<width$}  {}", alike[0].1);
        }
        out
    }

    fn cells(&self, lane: &Lane) -> String {
        let mut cells = vec!['·'; self.units as usize];
        for bar in &lane.bars {
            let digit = char::from_digit((bar.micro_batch as u32 + 1) % 36, 36).unwrap_or('#');
            cells[(bar.start / UNIT) as usize..(bar.end / UNIT) as usize].fill(digit);
        }
        format!("{}  busy {:.0} %", cells.into_iter().collect::<String>(), 100.0 * lane.busy_share)
    }

    /// The same as a picture, a bar a task.
    pub fn svg(&self, name: &str, schedule: &str) -> String {
        let width = LEFT + self.units * SCALE + 120;
        let height = TOP + self.lanes.len() as u64 * ROW + 16;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plan\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"plan of {0}\">\n<style>{STYLE}</style>\n\
             <rect class=\"back\" width=\"{width}\" height=\"{height}\"/>\n<text class=\"title\" x=\"16\" y=\"30\">{0}: {1}</text>\n\
             <text class=\"note\" x=\"16\" y=\"50\">the first {2} units of a settled step; {ASSUMED}</text>\n",
            escape(name),
            escape(schedule),
            self.units
        );
        for (index, lane) in self.lanes.iter().enumerate() {
            let y = TOP + index as u64 * ROW;
            let _ = writeln!(out, "<text class=\"name\" x=\"16\" y=\"{}\">{}</text>", y + 19, escape(&lane.name));
            let (length, end) = (self.units * SCALE, LEFT + self.units * SCALE + 10);
            let _ = writeln!(out, "<rect class=\"idle\" x=\"{LEFT}\" y=\"{y}\" width=\"{length}\" height=\"{BAR}\"/>");
            lane.bars.iter().for_each(|bar| bar.draw(y, &mut out));
            let busy = 100.0 * lane.busy_share;
            let _ = writeln!(out, "<text class=\"note\" x=\"{end}\" y=\"{}\">busy {busy:.0} %</text>", y + 19);
        }
        out.push_str("</svg>\n");
        out
    }
}

/// Pixels: names, header, a lane, a bar, a unit.
const LEFT: u64 = 110;
const TOP: u64 = 66;
const ROW: u64 = 38;
const BAR: u64 = 28;
const SCALE: u64 = 11;

const STYLE: &str = "
  .plan { --ink: #0f172a; --soft: #64748b; --back: #ffffff; --idle: #f1f5f9; font-family: Inter, 'Segoe UI', Helvetica, Arial, sans-serif; }
  @media (prefers-color-scheme: dark) { .plan { --ink: #e2e8f0; --soft: #94a3b8; --back: #0f172a; --idle: #1e293b; } }
  .plan .back { fill: var(--back); } .plan .idle { fill: var(--idle); } .plan .title { fill: var(--ink); font-size: 18px; font-weight: 650; }
  .plan .name { fill: var(--ink); font-size: 13px; font-weight: 600; } .plan .note { fill: var(--soft); font-size: 12px; }
  .plan .bar rect { stroke: var(--back); } .plan .bar text { fill: #0f172a; font-size: 10.5px; text-anchor: middle; }
";

impl Bar {
    fn draw(&self, y: u64, out: &mut String) {
        // Colours far apart for neighbours in the rotation: the golden angle.
        let hue = (210 + self.micro_batch * 137) % 360;
        let (x, width) = (LEFT + self.start * SCALE / UNIT, (self.end - self.start) * SCALE / UNIT);
        let layer = self.layer.map(|layer| format!(", layer {layer}")).unwrap_or_default();
        let what = escape(&format!("D{} {}{layer}", self.micro_batch + 1, self.stage));
        let _ = write!(
            out,
            "<g class=\"bar\"><title>{what}</title><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{BAR}\" rx=\"2\" fill=\"hsl({hue} 70% 72%)\"/>"
        );
        if width >= 60 {
            let short = match self.layer {
                Some(layer) => format!("D{} layer {layer}", self.micro_batch + 1),
                None => format!("D{}", self.micro_batch + 1),
            };
            let _ = write!(out, "<text x=\"{}\" y=\"{}\">{short}</text>", x + width / 2, y + 18);
        }
        out.push_str("</g>\n");
    }
}
