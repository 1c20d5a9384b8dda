//! What a run leaves behind for people: the digest on stderr, and the trace file.

use super::collect::Collector;
use super::decode::Outcome;
use crate::trace_form::TraceForm;
use rally_graph::plan::Plan;
use rally_graph::words::plural;
use rally_stages::deployment::Deployment;
use rally_trace::html::PageText;
use rally_trace::{Recording, digest};
use std::fmt;
use std::io::{self, Write};

/// Spans a lane keeps for a trace: 16 MB of memory, some 80 MB of JSON or 4 MB of HTML.
pub const SPANS_PER_TRACE: usize = 262_144;
/// Spans a lane keeps for the digest alone: the last steps of a run say how it went.
pub const SPANS_PER_DIGEST: usize = 16_384;

/// A run that is over.
pub struct Summary<'a> {
    /// What it produced.
    pub outcome: &'a Outcome,
    /// What was run.
    pub deployment: &'a Deployment,
    /// As it was planned.
    pub plan: &'a Plan,
    /// What it was run on.
    pub on_what: &'a str,
}

/// A run in at most 20 lines.
pub struct Digest {
    speed: String,
    setting: String,
    /// Where the time went.
    lines: Vec<String>,
}

impl Digest {
    /// All its lines.
    pub fn lines(&self) -> Vec<&str> {
        [&self.speed, &self.setting].into_iter().chain(&self.lines).map(String::as_str).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.lines().join("\n"))
    }
}

impl Summary<'_> {
    /// How fast it was, on what, and where the time went.
    pub fn digest(&self) -> Digest {
        let mut lines = digest::digest(&self.recording(), Some(crate::doctor::available_cores()));
        lines.truncate(digest::MOST_LINES - 2);
        Digest { speed: self.speed(), setting: self.setting(), lines }
    }

    /// Who was slow, as results name them.
    pub fn stragglers(&self) -> Vec<serde_json::Value> {
        crate::stragglers::json(&self.recording())
    }

    /// The trace, with `digest` where its form has a place for words.
    pub fn write_trace(&self, form: TraceForm, digest: &Digest, out: &mut dyn Write) -> io::Result<()> {
        let Digest { speed, setting, lines } = digest;
        let (title, subtitle) = (self.deployment.spec.name.clone(), format!("{setting} · {speed}"));
        form.write(&self.recording(), &PageText { title, subtitle, digest: lines.clone() }, out)
    }

    fn recording(&self) -> Recording<'_> {
        let report = &self.outcome.report;
        Recording::new(self.plan, &report.lanes, &report.counters)
    }

    fn setting(&self) -> String {
        format!("{} on {}", self.deployment.schedule.label, self.on_what)
    }

    fn speed(&self) -> String {
        let Outcome { collectors, elapsed_s, reused, .. } = self.outcome;
        let tokens: usize = collectors.iter().map(Collector::fresh_tokens).sum();
        let restored = collectors.iter().map(Collector::tokens).sum::<usize>() - tokens;
        let mut tpots: Vec<f64> = collectors.iter().filter_map(Collector::tpot_ms).collect();
        tpots.sort_by(f64::total_cmp);
        let (requests, rate) = (collectors.len(), tokens as f64 / elapsed_s);
        let (requests, tokens) = (plural(requests as u64, "request"), plural(tokens as u64, "token"));
        let mut line = format!("{requests}, {tokens} in {elapsed_s:.2} s: {rate:.0} tokens/s");
        if restored > 0 {
            line.push_str(&format!(" (beside {} from the journal)", plural(restored as u64, "token")));
        }
        if let Some(median) = tpots.get(tpots.len() / 2) {
            line.push_str(&format!(", median TPOT {median:.2} ms"));
            if let Some(slo) = self.deployment.spec.slo {
                let kept = tpots.iter().filter(|tpot| **tpot <= slo.tpot_ms).count();
                line.push_str(&format!(" (target {} ms kept by {kept} of {})", slo.tpot_ms, tpots.len()));
            }
        }
        if let Some((of, cached)) = reused {
            line.push_str(&format!(", {cached} of {of} tokens of prompts reused"));
        }
        line
    }
}
