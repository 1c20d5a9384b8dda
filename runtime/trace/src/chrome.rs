//! Trace files in the Chrome trace event format, which Perfetto and `chrome://tracing` open.
//!
//! One track a lane with a complete (`X`) event for each task, named by stage kind; tasks of a lane follow each other, so events
//! never nest. Flow arrows (`s`, `f`) lead from every send to the receives that got its rows. Counters (`C`) show queue, rows and
//! KV pages. Times are microseconds with three decimals: nanoseconds.

use crate::recording::{Recording, SpanId};
use rally_graph::plan::{TaskId, TaskRole};
use rally_schedule::span::Span;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::{self, Display};
use std::io::{self, Write};

/// Writes the trace.
pub fn write(out: &mut dyn Write, recording: &Recording<'_>) -> io::Result<()> {
    let dropped = json!({ "dropped_spans": recording.dropped_spans() });
    write!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{dropped},\"traceEvents\":[")?;
    write!(out, "\n{}", json!({ "ph": "M", "name": "process_name", "pid": 1, "args": { "name": "rally" } }))?;
    let sends = Sends::of(recording);
    let mut flows = 0u64;
    for (tid, lane) in recording.lanes.iter().enumerate() {
        metadata(out, tid, "thread_name", json!({ "name": lane.name }))?;
        metadata(out, tid, "thread_sort_index", json!({ "sort_index": tid }))?;
        let texts = texts(recording, tid);
        for span in recording.spans(tid) {
            complete(out, recording, tid, span, &texts[span.position as usize])?;
            for send in sends.to(recording, tid, span) {
                arrow(out, recording, send, tid, span, flows)?;
                flows += 1;
            }
        }
    }
    counters(out, recording)?;
    write!(out, "\n]}}\n")
}

fn metadata(out: &mut dyn Write, tid: usize, name: &str, args: Value) -> io::Result<()> {
    write!(out, ",\n{}", json!({ "ph": "M", "name": name, "pid": 1, "tid": tid, "args": args }))
}

/// Microseconds of nanoseconds, exactly.
struct Micros(u64);

impl Display for Micros {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// What all events of one position of a lane's list share: the inside of the event, and of its `args`. A trace has hundreds of
/// thousands of events and a few hundred positions.
fn texts(recording: &Recording<'_>, tid: usize) -> Vec<(String, String)> {
    let inside = |value: Value| {
        let text = value.to_string();
        text[1..text.len() - 1].to_owned()
    };
    let position = |planned: &rally_graph::plan::PlannedTask| {
        let template = &recording.plan.table.tasks[planned.task];
        let stage = &recording.plan.table.stages[template.stage];
        let event = json!({ "ph": "X", "name": stage.kind, "cat": "stage", "pid": 1, "tid": tid });
        let mut args = json!({ "stage": stage.id, "layer": template.layer, "micro_batch": planned.micro_batch });
        if template.role != TaskRole::Compute {
            args["part"] = json!(template.role);
        }
        (inside(event), inside(args))
    };
    recording.plan.lanes[tid].tasks.iter().map(position).collect()
}

fn complete(
    out: &mut dyn Write,
    recording: &Recording<'_>,
    tid: usize,
    span: &Span,
    (event, args): &(String, String),
) -> io::Result<()> {
    let Span { step, rows, bytes, .. } = span;
    let (start, duration) = (Micros(span.start_ns), Micros(span.end_ns - span.start_ns));
    let waited = Micros(span.start_ns - span.ready_ns);
    write!(out, ",\n{{{event},\"ts\":{start},\"dur\":{duration},\"args\":{{{args},\"step\":{step},\"tokens\":{rows}")?;
    if recording.work(tid, span).is_transfer() {
        write!(out, ",\"bytes\":{bytes}")?;
    }
    write!(out, ",\"waited_us\":{waited}")?;
    if let Some(lane) = span.waited_for.lane() {
        write!(out, ",\"waited_for\":{}", json!(recording.lanes[lane].name))?;
    }
    if span.admission_ns > 0 {
        write!(out, ",\"without_work_us\":{}", Micros(span.admission_ns))?;
    }
    write!(out, "}}}}")
}

/// The sends and exchanges of a recording, by task, micro-batch and step.
struct Sends(HashMap<(TaskId, usize, u64), SpanId>);

impl Sends {
    fn of(recording: &Recording<'_>) -> Self {
        let mut sends = HashMap::new();
        for lane in 0..recording.lanes.len() {
            for (span, entry) in recording.spans(lane).iter().enumerate() {
                let planned = recording.planned(lane, entry);
                let template = recording.template(lane, entry);
                if !template.computes() && template.role != TaskRole::Receive {
                    sends.insert((planned.task, planned.micro_batch, entry.step), SpanId { lane, span });
                }
            }
        }
        Self(sends)
    }

    /// Those on other lanes whose rows `span` took.
    fn to<'s>(&'s self, recording: &'s Recording<'_>, lane: usize, span: &Span) -> impl Iterator<Item = SpanId> + 's {
        let planned = recording.planned(lane, span);
        let template = recording.template(lane, span);
        let takes = !template.computes() && template.role != TaskRole::Send;
        let (micro_batch, step) = (planned.micro_batch, span.step);
        let before = template.after.iter().filter(move |_| takes);
        before
            .filter_map(move |task| self.0.get(&(*task, micro_batch, step)).copied())
            .filter(move |id| id.lane != lane)
    }
}

/// An arrow from the last nanosecond of `send` to the begin of the span that took its rows: each end lies inside its slice.
fn arrow(
    out: &mut dyn Write,
    recording: &Recording<'_>,
    send: SpanId,
    tid: usize,
    to: &Span,
    id: u64,
) -> io::Result<()> {
    let from = recording.span(send);
    let name = json!(recording.plan.table.stages[recording.template(send.lane, from).stage].id);
    let leaves = Micros(from.end_ns.saturating_sub(1).max(from.start_ns));
    let (from_tid, arrives) = (send.lane, Micros(to.start_ns));
    let both = format!("\"name\":{name},\"cat\":\"transfer\",\"id\":{id},\"pid\":1");
    write!(out, ",\n{{\"ph\":\"s\",{both},\"tid\":{from_tid},\"ts\":{leaves}}}")?;
    write!(out, ",\n{{\"ph\":\"f\",\"bp\":\"e\",{both},\"tid\":{tid},\"ts\":{arrives}}}")
}

fn counters(out: &mut dyn Write, recording: &Recording<'_>) -> io::Result<()> {
    for sample in recording.counters {
        let at = Micros(sample.at_ns);
        let (running, waiting, rows, pages) = (sample.running, sample.waiting, sample.rows, sample.used_pages);
        let batch = format!("batch rows, micro-batch {}", sample.micro_batch);
        let head = format!("\"ph\":\"C\",\"pid\":1,\"ts\":{at}");
        write!(
            out,
            ",\n{{{head},\"name\":\"sequences\",\"args\":{{\"running\":{running},\"waiting\":{waiting}}}}},\
             \n{{{head},\"name\":\"{batch}\",\"args\":{{\"rows\":{rows}}}}},\
             \n{{{head},\"name\":\"KV pages in use\",\"args\":{{\"pages\":{pages}}}}}"
        )?;
    }
    Ok(())
}
