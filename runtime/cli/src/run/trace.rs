//! `--trace F.json`: the spans of a run in the Chrome trace event format, which Perfetto opens.
//!
//! Complete (`X`) events named by stage kind, one `tid` a lane, layer and micro-batch in `args`. Spans of a lane follow each
//! other, so events never nest.

use rally_engine::RunReport;
use rally_engine::span::Span;
use rally_graph::plan::{Plan, PlannedTask, TaskRole};
use rally_graph::stage_graph::StageGraph;
use serde_json::{Value, json};
use std::io::{self, Write};

/// Spans a lane keeps for a trace: about 100 MB of JSON at most.
pub const SPANS_PER_LANE: usize = 262_144;

/// Writes the trace.
pub fn write(out: &mut dyn Write, report: &RunReport, plan: &Plan, graph: &StageGraph) -> io::Result<()> {
    let dropped: u64 = report.lanes.iter().map(|lane| lane.dropped_spans).sum();
    write!(
        out,
        "{{\"displayTimeUnit\":\"ns\",\"otherData\":{},\"traceEvents\":[",
        json!({ "dropped_spans": dropped })
    )?;
    let mut separator = "\n";
    let mut event = |event: Value| {
        let written = write!(out, "{separator}{event}");
        separator = ",\n";
        written
    };
    event(json!({ "ph": "M", "name": "process_name", "pid": 1, "args": { "name": "rally" } }))?;
    for (tid, lane) in report.lanes.iter().enumerate() {
        event(json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": { "name": lane.name } }))?;
        for span in &lane.spans {
            event(span_event(span, &plan.lanes[tid].tasks[span.position as usize], tid, plan, graph))?;
        }
    }
    write!(out, "\n]}}\n")
}

fn span_event(span: &Span, task: &PlannedTask, tid: usize, plan: &Plan, graph: &StageGraph) -> Value {
    let template = &plan.table.tasks[task.task];
    let stage = &graph.stages[template.stage];
    let micros = |ns: u64| ns as f64 / 1e3;
    let mut args = json!({
        "stage": stage.id,
        "layer": template.layer,
        "micro_batch": task.micro_batch,
        "step": span.step,
        "rows": span.rows,
        "waited_us": micros(span.start_ns - span.ready_ns),
    });
    if template.role != TaskRole::Compute {
        args["part"] = json!(template.role);
        args["bytes"] = json!(span.bytes);
    }
    json!({
        "ph": "X", "name": stage.kind, "cat": "stage", "pid": 1, "tid": tid,
        "ts": micros(span.start_ns), "dur": micros(span.end_ns - span.start_ns), "args": args,
    })
}
