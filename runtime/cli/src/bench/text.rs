//! One result for people, measured or predicted, under the words of `vllm bench serve`.

use super::measure::Measured;
use crate::table::Table;
use rally_load::goodput::Goal;
use rally_load::statistics::Distribution;
use rally_load::summary::Summary;
use std::fmt::Write;

/// What is told.
pub struct Told<'a> {
    /// Of all rounds.
    pub summary: &'a Summary,
    /// What the lanes did.
    pub measured: &'a Measured,
    /// How many rounds.
    pub rounds: usize,
    /// Sequences that had to give their pages back.
    pub preemptions: u64,
}

/// Throughput, latencies, stages, lanes.
pub fn report(told: &Told<'_>, goals: &[Goal]) -> String {
    let mut out = requests(told, goals);
    out.push('\n');
    out.push_str(&stages(told.measured));
    out.push('\n');
    out.push_str(&lanes(told.measured));
    out
}

/// Throughput and latencies.
pub fn requests(told: &Told<'_>, goals: &[Goal]) -> String {
    let summary = told.summary;
    let mut table = Table::new(&["", "", ""]);
    let mut line = |name: &str, value: String, note: &str| table.row(&[name, &value, note]);
    line("completed", format!("{} of {}", summary.completed, summary.num_prompts), "");
    line("duration", format!("{:.3} s", summary.duration_s), rounds_note(told.rounds));
    line("output throughput", format!("{:.0} tokens/s", summary.output_throughput()), "");
    line("total throughput", format!("{:.0} tokens/s", summary.total_token_throughput()), "prompts included");
    line("request throughput", format!("{:.2} requests/s", summary.request_throughput()), "");
    if let Some(goodput) = summary.request_goodput() {
        let goals: Vec<String> = goals.iter().map(Goal::to_string).collect();
        line("goodput", format!("{goodput:.2} requests/s"), &format!("those that kept {}", goals.join(" ")));
    }
    if told.preemptions > 0 {
        line("preemptions", told.preemptions.to_string(), "for want of KV pages");
    }
    let mut latencies = Table::new(&["ms", "mean", "median", "p99"]);
    let named =
        [("TTFT", summary.ttft_ms), ("TPOT", summary.tpot_ms), ("ITL", summary.itl_ms), ("E2EL", summary.e2el_ms)];
    for (name, latency) in named {
        let ms = |of: fn(Distribution) -> f64| latency.map_or("–".into(), |latency| format!("{:.3}", of(latency)));
        latencies.row(&[name, &ms(|l| l.mean), &ms(|l| l.median), &ms(|l| l.p99)]);
    }
    // The first table has no header worth a line.
    format!("{}\n{latencies}", table.to_string().trim_start())
}

fn rounds_note(count: usize) -> &'static str {
    if count > 1 { "all rounds together" } else { "" }
}

fn stages(measured: &Measured) -> String {
    let stages = measured.stages();
    let total: f64 = stages.iter().map(super::measure::StageTimes::total_s).sum();
    let mut table = Table::new(&["stage", "mean µs", "p50", "p99", "tasks", "of all work"]);
    for stage in &stages {
        let name =
            if stage.part == "compute" { stage.stage.clone() } else { format!("{} {}", stage.stage, stage.part) };
        table.row(&[
            &name,
            &format!("{:.1}", stage.mean_us()),
            &format!("{:.1}", stage.percentile_us(50.0)),
            &format!("{:.1}", stage.percentile_us(99.0)),
            &stage.sorted_us.len().to_string(),
            &format!("{:.1} %", stage.total_s() / total * 100.0),
        ]);
    }
    table.to_string()
}

fn lanes(measured: &Measured) -> String {
    let mut out = String::new();
    for lane in &measured.lanes {
        let causes: Vec<String> = lane
            .bubble_shares()
            .filter(|(_, share)| *share >= 0.005)
            .map(|(cause, share)| format!("{} {:.0} %", cause.name(), share * 100.0))
            .collect();
        let waited = if causes.is_empty() { String::new() } else { format!(" (waiting for: {})", causes.join(", ")) };
        let (busy, bubble) = (lane.busy_share() * 100.0, lane.bubble_share() * 100.0);
        let _ = writeln!(out, "lane {}: busy {busy:.0} %, bubble {bubble:.0} %{waited}", lane.name);
    }
    let _ = match (measured.overlap_efficiency(), measured.bound_tpot_ms()) {
        (Some(efficiency), Some(ms)) => {
            writeln!(
                out,
                "overlap efficiency {efficiency:.2}: a decode step could take {ms:.3} ms by its stages' times"
            )
        }
        _ => writeln!(out, "overlap efficiency –: {}", measured.bound_unknown().unwrap_or_default()),
    };
    let (hidden, exposed_ms) = (measured.hidden_share() * 100.0, measured.exposed_transfer_ms());
    let _ =
        writeln!(out, "{hidden:.0} % of the work that can hide was hidden; exposed transfer {exposed_ms:.3} ms a step");
    if measured.dropped_spans() > 0 {
        let _ =
            writeln!(out, "times are those of the newest tasks: {} older ones were not kept", measured.dropped_spans());
    }
    out
}
