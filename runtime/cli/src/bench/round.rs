//! One contender, one load, once: put together, warmed up, run, taken apart.

use super::client::LoadClient;
use super::contender::Contender;
use super::measure::{LoadTimes, Measured};
use crate::drive::drive;
use crate::error::{Blame, CliError};
use crate::observe::Observer;
use crate::{interrupt, session};
use crossbeam::channel::Receiver;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rally_engine::{Engine, EngineParts, RunReport};
use rally_graph::kinds::Role;
use rally_graph::plan::Plan as LanePlan;
use rally_load::Load;
use rally_load::goodput::Goal;
use rally_load::prompt::PromptPool;
use rally_load::summary::{RequestTiming, Summary};
use rally_stages::deployment::AssembleOptions;
use std::sync::Arc;

/// Spans each lane keeps in a round: some 15 MB. A longer round is judged by its newest spans, and says so.
const SPANS_PER_LANE: usize = 262_144;
/// Sequence ids of the load begin here, those of the warm-up at 0.
const FIRST_ID: u64 = 1 << 32;

/// What every round is given.
pub struct Plan<'a> {
    /// The requests.
    pub load: &'a Load,
    /// Those before it that do not count.
    pub warm_up: &'a Load,
    /// Prompts of both.
    pub prompts: &'a PromptPool,
    /// What a good request keeps.
    pub goals: &'a [Goal],
    /// Ctrl-C.
    pub interrupts: &'a Receiver<()>,
    /// Keep what the lanes of the last round did, for a trace.
    pub keep_last: bool,
    /// Tokens of every prompt that count as read.
    pub pretend_read: usize,
    /// Whether several contenders take turns, and metrics name them.
    pub several: bool,
}

/// All rounds of a contender so far.
#[derive(Default)]
pub struct Rounds {
    /// By round.
    pub summaries: Vec<Summary>,
    /// What the lanes did.
    pub measured: Measured,
    /// Of all rounds.
    timings: Vec<RequestTiming>,
    duration_s: f64,
    /// Sequences that had to give their pages back.
    pub preemptions: u64,
    /// What the lanes of the last round did, as they were planned, if that is kept.
    pub last: Option<(RunReport, Arc<LanePlan>)>,
    /// The only round was cut short.
    pub interrupted: bool,
}

impl Rounds {
    /// All rounds as one.
    pub fn summary(&self, goals: &[Goal]) -> Summary {
        Summary::of(&self.timings, self.duration_s, goals)
    }

    /// Runs the contender once more. Returns whether Ctrl-C came; a round that it cut short counts only where there is no other.
    /// The `last` one leaves a digest.
    pub fn run(
        &mut self,
        contender: &Contender,
        plan: &Plan<'_>,
        title: &str,
        observer: &mut Observer,
        last: bool,
    ) -> Result<bool, CliError> {
        // As `rally run` has it.
        let options = AssembleOptions { learn: true, spans_per_lane: SPANS_PER_LANE, ..AssembleOptions::default() };
        let weights = contender.weights.assembly();
        let mut parts = session::assemble_with(&contender.deployment, &contender.schedule, &weights, options)?;
        if plan.pretend_read > 0 {
            pretend(&mut parts)?;
        }
        let lane_plan = Arc::clone(&parts.plan);
        let engine = Engine::start(parts).or_failure()?;
        engine.pretend_read(plan.pretend_read);
        interrupt::begin_work();
        let hidden = ProgressBar::hidden();
        let bar = if observer.is_live() { hidden.clone() } else { bar(title, plan.load.output_tokens() as u64) };
        let mut warm_up = LoadClient::new(plan.warm_up, plan.prompts, 0, &hidden);
        if drive(&engine, &mut warm_up, plan.interrupts, &Observer::blind())? {
            return Ok(true);
        }
        engine.figures().forget_samples();
        observer.watch(&engine, &contender.deployment, title, plan.several.then_some(&contender.name));
        let already = engine.handle().preemptions();
        let mut client = LoadClient::new(plan.load, plan.prompts, FIRST_ID, &bar);
        let from_ns = client.begun().duration_since(engine.started()).as_nanos() as u64;
        tracing::info!(contender = title, requests = plan.load.requests.len(), "measuring");
        let interrupted = drive(&engine, &mut client, plan.interrupts, observer)?;
        bar.finish_and_clear();
        let preemptions = engine.handle().preemptions() - already;
        engine.close();
        let mut report = engine.join();
        observer.finish();
        if interrupted && !self.summaries.is_empty() {
            return Ok(true);
        }
        let (timings, duration_s) = client.finish();
        let drain_ns = from_ns.saturating_add((drain_s(&timings) * 1e9) as u64);
        self.summaries.push(Summary::of(&timings, duration_s, plan.goals));
        self.measured.add(&mut report, &lane_plan, LoadTimes { from_ns, drain_ns }, last || interrupted);
        if plan.keep_last && (last || interrupted) {
            self.last = Some((report, lane_plan));
        }
        self.timings.extend(timings);
        self.duration_s += duration_s;
        self.preemptions += preemptions;
        self.interrupted = interrupted;
        Ok(interrupted)
    }
}

/// Writes something to all KV pages.
fn pretend(parts: &mut EngineParts) -> Result<(), CliError> {
    let graph = Arc::clone(&parts.graph);
    for (device, part) in parts.devices.iter_mut().enumerate() {
        for (index, stage) in &mut part.stages {
            if graph.stages[*index].role == Role::Attention && !stage.pretend().or_failure()? {
                let name = &graph.devices[device].name;
                let what = "--pretend-read is for attention on CUDA devices";
                return Err(CliError::Mistake(format!("{what}, and `{name}` is none: let prompts be read")));
            }
        }
    }
    Ok(())
}

/// When the load began to drain, in seconds since it began: all that had begun had their first tokens, and the next one ended.
pub fn drain_s(timings: &[RequestTiming]) -> f64 {
    let began_last = timings.iter().filter_map(|timing| timing.token_s.first().copied()).fold(0.0, f64::max);
    let ends = timings.iter().filter_map(|timing| timing.token_s.last().copied());
    ends.filter(|end_s| *end_s >= began_last).fold(f64::INFINITY, f64::min)
}

/// Shows tokens on a terminal, and nothing elsewhere.
fn bar(title: &str, tokens: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(tokens), ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{msg} {bar:32} {pos}/{len} tokens {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(title.to_owned());
    bar
}
