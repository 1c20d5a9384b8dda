//! One self-contained page that shows a recording: it needs no network, and its scripts are the files beside this one.
//!
//! Owns what the page is told; drawing is the scripts' part. Spans are packed in columns of variable-length integers, so a trace
//! of two million spans stays a file that a browser opens.

mod pack;

use crate::path::critical_path;
use crate::recording::Recording;
use crate::window::Window;
use crate::work::Cause;
use pack::Packer;
use rally_graph::plan::{PlannedTask, TaskRole};
use rally_graph::render::escape;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, Write};

const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/page.css");
/// In the order in which they build on each other.
const SCRIPTS: [&str; 7] = [
    include_str!("html/decode.js"),
    include_str!("html/view.js"),
    include_str!("html/draw.js"),
    include_str!("html/overview.js"),
    include_str!("html/tooltip.js"),
    include_str!("html/tables.js"),
    include_str!("html/main.js"),
];

/// What the page says beside the recording.
#[derive(Clone, Debug, Default)]
pub struct PageText {
    /// Its headline: the deployment's name.
    pub title: String,
    /// Below it: schedule, machine, figures.
    pub subtitle: String,
    /// A digest's lines.
    pub digest: Vec<String>,
}

/// Writes the page.
pub fn write(out: &mut dyn Write, recording: &Recording<'_>, text: &PageText) -> io::Result<()> {
    let title = escape(&text.title);
    for (index, piece) in PAGE.split("{{").enumerate() {
        let (slot, rest) = if index == 0 { ("", piece) } else { piece.split_once("}}").unwrap_or((piece, "")) };
        match slot {
            "TITLE" => out.write_all(title.as_bytes())?,
            "SUBTITLE" => out.write_all(escape(&text.subtitle).as_bytes())?,
            "STYLE" => out.write_all(STYLE.as_bytes())?,
            "DATA" => data(out, recording, &text.digest)?,
            "SCRIPT" => SCRIPTS.iter().try_for_each(|script| out.write_all(script.as_bytes()))?,
            _ => {}
        }
        out.write_all(rest.as_bytes())?;
    }
    Ok(())
}

/// JSON inside a script element: whatever a name contains, it does not end the element.
fn write_json(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    out.write_all(value.to_string().replace('<', "\\u003c").as_bytes())
}

fn data(out: &mut dyn Write, recording: &Recording<'_>, digest: &[String]) -> io::Result<()> {
    let all = Window::all(recording);
    write!(out, "{{\"digest\":")?;
    write_json(out, &json!(digest))?;
    write!(out, ",\"stages\":")?;
    write_json(out, &stages(recording))?;
    write!(out, ",\"causes\":{}", json!(Cause::ALL.map(Cause::name)))?;
    write!(out, ",\"dropped\":{},\"steps\":", recording.dropped_spans())?;
    steps(recording).write_base64(out)?;
    write!(out, ",\"path\":")?;
    path(recording, &all).write_base64(out)?;
    write!(out, ",\"counters\":")?;
    counters(recording).write_base64(out)?;
    write!(out, ",\"lanes\":[")?;
    let places = places(recording);
    for lane in 0..recording.lanes.len() {
        write!(out, "{}{{\"name\":", if lane == 0 { "" } else { "," })?;
        write_json(out, &json!(recording.lanes[lane].name))?;
        write!(out, ",\"side\":{},\"tasks\":", json!(recording.side(lane)))?;
        let tasks = recording.plan.lanes[lane].tasks.iter().map(|planned| task(recording, planned, lane, &places));
        write_json(out, &Value::Array(tasks.collect()))?;
        write!(out, ",\"count\":{},\"spans\":", recording.spans(lane).len())?;
        spans(recording, lane).write_base64(out)?;
        write!(out, ",\"bubbles\":")?;
        bubbles(recording, lane, &all).write_base64(out)?;
        write!(out, "}}")?;
    }
    write!(out, "]}}")
}

/// Stages by index: id, kind, role.
fn stages(recording: &Recording<'_>) -> Value {
    let role = |role: rally_graph::kinds::Role| format!("{role:?}").to_lowercase();
    let stage = |stage: &rally_graph::plan::StageLabel| json!([stage.id, stage.kind, role(stage.role)]);
    Value::Array(recording.plan.table.stages.iter().map(stage).collect())
}

type Places = HashMap<(usize, usize), (usize, usize)>;

/// Lane and position of every task of every micro-batch.
fn places(recording: &Recording<'_>) -> Places {
    let mut places = Places::new();
    for (lane, planned) in recording.plan.lanes.iter().enumerate() {
        for (position, task) in planned.tasks.iter().enumerate() {
            places.insert((task.task, task.micro_batch), (lane, position));
        }
    }
    places
}

/// An entry of a lane's list: stage, part, work, layer, micro-batch, whether it lags a step, and the places that send it rows.
fn task(recording: &Recording<'_>, planned: &PlannedTask, lane: usize, places: &Places) -> Value {
    let template = &recording.plan.table.tasks[planned.task];
    let takes = !template.computes() && template.role != TaskRole::Send;
    let senders = template.after.iter().filter(|_| takes).map(|task| places[&(*task, planned.micro_batch)]);
    let senders: Vec<(usize, usize)> = senders.filter(|place| place.0 != lane).collect();
    let work = recording.work_of(planned.task) as u8;
    let (stage, part, layer) = (template.stage, template.role as u8, template.layer);
    json!([stage, part, work, layer, planned.micro_batch, u8::from(planned.behind), senders])
}

/// Spans: gap since the last one's end, duration, position, step, rows, bytes, lane waited for, waited, without work.
fn spans(recording: &Recording<'_>, lane: usize) -> Packer {
    let mut packer = Packer::default();
    let (mut end_ns, mut position, mut step) = (0, -1i64, 0i64);
    for span in recording.spans(lane) {
        packer.unsigned(span.start_ns - end_ns);
        packer.unsigned(span.end_ns - span.start_ns);
        packer.signed(i64::from(span.position) - position - 1);
        packer.signed(span.step as i64 - step);
        packer.unsigned(u64::from(span.rows));
        packer.unsigned(span.bytes);
        packer.unsigned(span.waited_for.lane().map_or(0, |lane| lane as u64 + 1));
        packer.unsigned(span.start_ns - span.ready_ns);
        packer.unsigned(span.admission_ns);
        (end_ns, position, step) = (span.end_ns, i64::from(span.position), span.step as i64);
    }
    packer
}

/// A bubble shorter than this is drawn as the background: real lanes have one of some ten nanoseconds before every task.
const SHORTEST_BUBBLE_NS: u64 = 200;

/// Bubbles: gap since the last one's end, duration, cause.
fn bubbles(recording: &Recording<'_>, lane: usize, window: &Window) -> Packer {
    let mut packer = Packer::default();
    let mut end_ns = 0;
    for bubble in crate::bubbles::bubbles(recording, lane, window) {
        if bubble.to_ns - bubble.from_ns >= SHORTEST_BUBBLE_NS {
            packer.unsigned(bubble.from_ns - end_ns);
            packer.unsigned(bubble.to_ns - bubble.from_ns);
            packer.unsigned(bubble.cause.index() as u64);
            end_ns = bubble.to_ns;
        }
    }
    packer
}

/// The critical path as runs of neighbouring spans of a lane: lane, first span, how many.
fn path(recording: &Recording<'_>, window: &Window) -> Packer {
    let links = critical_path(recording, window).links;
    let mut packer = Packer::default();
    let follows =
        |a: &crate::path::Link, b: &crate::path::Link| (a.span.lane, a.span.span + 1) == (b.span.lane, b.span.span);
    for run in links.chunk_by(follows) {
        packer.unsigned(run[0].span.lane as u64);
        packer.unsigned(run[0].span.span as u64);
        packer.unsigned(run.len() as u64);
    }
    packer
}

/// Steps: number, and where each begins, as differences.
fn steps(recording: &Recording<'_>) -> Packer {
    let mut packer = Packer::default();
    let (mut step, mut at_ns) = (0, 0);
    for window in Window::each(recording) {
        packer.unsigned(window.steps.start - step);
        packer.unsigned(window.from_ns - at_ns);
        (step, at_ns) = (window.steps.start, window.from_ns);
    }
    packer
}

/// Counters: time since the last sample, micro-batch, rows, running, waiting, pages.
fn counters(recording: &Recording<'_>) -> Packer {
    let mut packer = Packer::default();
    let mut at_ns = 0;
    for sample in recording.counters {
        packer.unsigned(sample.at_ns.saturating_sub(at_ns));
        for value in [sample.micro_batch, sample.rows, sample.running, sample.waiting, sample.used_pages] {
            packer.unsigned(u64::from(value));
        }
        at_ns = sample.at_ns.max(at_ns);
    }
    packer
}
