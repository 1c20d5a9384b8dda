//! `rally profile`: the time of every stage over a grid of what it depends on, as the cost table that predictions read.
//!
//! Stages are timed one by one, nothing else running, each on a thread pinned like its device's lane. So the table says what a
//! stage takes alone; what lanes take from each other (memory bandwidth, caches) shows in `rally bench`.

mod grid;
mod store;
mod workload;

use crate::error::{Blame, CliError};
use crate::identity::{GraphIdentity, ModelIdentity};
use crate::machine::Machine;
use crate::output::{FilesInUse, OutputFile, print};
use crate::session::{self, SessionArgs};
use crate::table::Table;
use crate::{Format, interrupt};
use clap::Args;
use crossbeam::channel::Receiver;
use grid::{Axes, Bounds, Subject};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rally_engine::DeviceParts;
use rally_engine::schedule::cost_table::{CostAxis, CostPart, CostPoint, CostTable, StageCost, VERSION};
use rally_engine::stage::Stage;
use rally_engine::stage_timer::{Effort, on_lane, time_stage, time_transfer};
use rally_graph::stage_graph::{Payload, StageGraph};
use rally_kernels::team::Team;
use rally_load::statistics::{mean, percentile};
use rally_stages::deployment::{AssembleOptions, Deployment};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use store::{Found, Identity, Store};

/// Arguments of `rally profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Write the cost table here. A run that was interrupted goes on where it stopped.
    #[arg(long, value_name = "F.json")]
    out: PathBuf,
    /// Rows of a task; powers of two up to the graph's limits if not given.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    rows: Vec<u32>,
    /// Positions each row attends to; powers of four up to the cache and the model's positions if not given.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    contexts: Vec<u32>,
    /// Experts hit; from those of one row, doubled, up to all if not given.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    experts: Vec<u32>,
    /// Milliseconds spent on a point: more for less spread.
    #[arg(long, value_name = "MS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    point_ms: u64,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Samples a point has at least, whatever they take: a median and a spread need some.
const LEAST_SAMPLES: usize = 5;
/// And at most: more would only fill memory.
const MOST_SAMPLES: usize = 2000;

/// Runs the command.
pub fn run(args: &ProfileArgs) -> Result<ExitCode, CliError> {
    let deployment = session::open(&args.session)?;
    let bounds = Bounds::of(&deployment);
    let axes = axes(args, &bounds);
    let (graph, model) = (&args.session.graph, &deployment.weights_source);
    FilesInUse::new(graph, model).writes("--out", Some(&args.out)).check()?;
    let file = OutputFile::create(&args.out)?;
    let machine = Machine::here();
    let identity = identity_of(args, &deployment, &machine, &axes);
    let (graph_json, model_json) = (identity.graph.clone(), identity.model.clone());
    let (store, found) = Store::open(&args.out, identity)?;
    let interrupts = interrupt::channel()?;
    let parts = session::assemble(&deployment, AssembleOptions::default())?;
    let graph = Arc::clone(&parts.graph);
    let subjects = grid::subjects(&graph, &bounds, &axes);
    refuse_empty(&subjects, &graph)?;
    let wanted = points(&subjects, &graph);
    match found {
        Found::Same => eprintln!("going on with {} of {wanted} points that an earlier run measured", store.count()),
        Found::Other => {
            eprintln!("what an earlier run left is of another machine, model, graph or grid: starting over")
        }
        Found::Nothing => {}
    }
    interrupt::begin_work();
    let mut profile = Profile { store, bounds, graph, args, interrupts, bar: bar(wanted) };
    if profile.all(&subjects, parts.devices)? {
        profile.store.write()?;
        eprintln!("{} of {wanted} points are kept: the same command goes on from there", profile.store.count());
        return Err(CliError::Interrupted);
    }
    let machine_json = json!(machine);
    let mut table =
        CostTable { version: VERSION, machine: machine_json, model: model_json, graph: graph_json, stages: Vec::new() };
    profile.store.finish(|stages| {
        table.stages = stages;
        let text = table.to_json();
        file.finish(|out| writeln!(out, "{text}"))
    })?;
    report(args, &machine, &table)
}

/// A stage without any point would be missing from the table without a word.
fn refuse_empty(subjects: &[Subject], graph: &StageGraph) -> Result<(), CliError> {
    match subjects.iter().find(|subject| subject.points.is_empty()) {
        None => Ok(()),
        Some(empty) => Err(CliError::Mistake(format!(
            "stage `{}` can have none of these points under the graph's limits: ask for fewer rows, less context, or other \
             numbers of experts",
            graph.stages[empty.stage].id
        ))),
    }
}

fn axes(args: &ProfileArgs, bounds: &Bounds<'_>) -> Axes {
    let default = bounds.default_axes();
    let chosen = |given: &[u32], default: Vec<usize>| {
        if given.is_empty() {
            return default;
        }
        let mut values: Vec<usize> = given.iter().map(|value| *value as usize).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    Axes {
        rows: chosen(&args.rows, default.rows),
        contexts: chosen(&args.contexts, default.contexts),
        experts: chosen(&args.experts, default.experts),
    }
}

/// Points may be used again on the same processor, by the same program, of the same model and graph.
fn identity_of(args: &ProfileArgs, deployment: &Deployment, machine: &Machine, axes: &Axes) -> Identity {
    let Machine { cpu, cores, simd, rally, profile, .. } = machine;
    Identity {
        machine: json!({ "cpu": cpu, "cores": cores, "simd": simd, "rally": rally, "profile": profile }),
        model: json!(ModelIdentity::of(deployment)),
        graph: json!(GraphIdentity::of(deployment, &args.session.graph)),
        axes: axes.clone(),
        point_ms: args.point_ms,
    }
}

/// Parts that are timed.
fn cost_parts(graph: &StageGraph, subject: &Subject) -> &'static [CostPart] {
    match graph.stages[subject.stage].transfer {
        Some(_) => &[CostPart::Send, CostPart::Receive],
        None => &CostPart::OF_STAGE[..subject.parts()],
    }
}

fn points(subjects: &[Subject], graph: &StageGraph) -> usize {
    subjects.iter().map(|subject| subject.points.len() * cost_parts(graph, subject).len()).sum()
}

struct Profile<'a> {
    store: Store,
    bounds: Bounds<'a>,
    graph: Arc<StageGraph>,
    args: &'a ProfileArgs,
    interrupts: Receiver<()>,
    bar: ProgressBar,
}

impl Profile<'_> {
    /// Measures what is missing. Returns whether Ctrl-C came.
    fn all(&mut self, subjects: &[Subject], mut devices: Vec<DeviceParts>) -> Result<bool, CliError> {
        self.bar.inc(self.store.count() as u64);
        let mut interrupted = false;
        for subject in subjects {
            let stage = devices[subject.device].stages.remove(&subject.stage);
            interrupted = self.subject(subject, stage)?;
            if interrupted {
                break;
            }
        }
        self.bar.finish_and_clear();
        Ok(interrupted)
    }

    /// Measures what is missing of a subject. Returns whether Ctrl-C came.
    fn subject(&mut self, subject: &Subject, mut stage: Option<Box<dyn Stage>>) -> Result<bool, CliError> {
        let device = self.graph.devices[subject.device].clone();
        self.bar.set_message(format!("{} on {}", self.graph.stages[subject.stage].id, device.name));
        let parts = cost_parts(&Arc::clone(&self.graph), subject);
        for (rows, along) in &subject.points {
            let id = &self.graph.stages[subject.stage].id;
            if parts.iter().all(|part| self.store.has(id, *part, &device.name, *rows, *along)) {
                continue;
            }
            if self.interrupts.try_recv().is_ok() {
                return Ok(true);
            }
            tracing::info!(stage = id, rows, along, "timing");
            let this = &*self;
            let timed =
                on_lane(&device.name, &device.cores, |team| this.point(subject, &mut stage, *rows, *along, team));
            let timed = timed.or_failure()??;
            for (part, seconds) in parts.iter().zip(timed) {
                let cost = self.cost(subject, *part);
                self.store.add(cost, summarise(*rows, *along, seconds))?;
                self.bar.inc(1);
            }
        }
        Ok(false)
    }

    /// Seconds of each run of each part at one point.
    fn point(
        &self,
        subject: &Subject,
        stage: &mut Option<Box<dyn Stage>>,
        rows: usize,
        along: usize,
        team: &Team,
    ) -> Result<Vec<Vec<f64>>, CliError> {
        let effort =
            Effort { least: LEAST_SAMPLES, time: Duration::from_millis(self.args.point_ms), most: MOST_SAMPLES };
        let mut workload = workload::make(subject, rows, along, &self.bounds.planner, self.bounds.shape);
        match (stage, &self.graph.stages[subject.stage].transfer) {
            (Some(stage), _) => {
                let seconds = time_stage(&mut **stage, &subject.layers, &mut workload, team, effort);
                seconds.or_failure()
            }
            (None, Some(transfer)) => {
                Ok(time_transfer(&mut workload.values, transfer.dtype, self.payload(subject), effort).into())
            }
            (None, None) => Err(CliError::Failure(format!("stage {} was not made", subject.stage))),
        }
    }

    /// What the transfer carries, routing included where some layer has it.
    fn payload(&self, subject: &Subject) -> Payload {
        let instances = self.graph.graph.node_weights().filter(|instance| instance.stage == subject.stage);
        let payloads: Vec<Payload> = instances.map(|instance| instance.payload).collect();
        let routed = payloads.contains(&Payload::RoutedInput);
        if routed { Payload::RoutedInput } else { payloads.first().copied().unwrap_or_default() }
    }

    fn cost(&self, subject: &Subject, part: CostPart) -> StageCost {
        let stage = &self.graph.stages[subject.stage];
        let (experts, shape) = (subject.experts.len(), self.bounds.shape);
        StageCost {
            stage: stage.id.clone(),
            kind: stage.kind.clone(),
            part,
            device: self.graph.devices[subject.device].name.clone(),
            axis: subject.axis,
            experts,
            routed_share: if experts > 0 { shape.top_k as f64 / shape.experts as f64 } else { 0.0 },
            points: Vec::new(),
        }
    }
}

fn summarise(rows: usize, along: usize, mut seconds: Vec<f64>) -> CostPoint {
    seconds.sort_by(f64::total_cmp);
    // Tenths of nanoseconds: what a file gives back exactly, and finer than any clock.
    let told = |seconds: Option<f64>| (seconds.unwrap_or(0.0) * 1e10).round() / 1e10;
    CostPoint {
        rows,
        along,
        seconds: told(percentile(&seconds, 50.0)),
        mean_s: told(mean(&seconds)),
        p10_s: told(percentile(&seconds, 10.0)),
        p90_s: told(percentile(&seconds, 90.0)),
        samples: seconds.len(),
    }
}

/// Shows points on a terminal, and nothing elsewhere.
fn bar(points: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(points as u64), ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} points {eta}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// The smallest and the largest point of every stage.
fn report(args: &ProfileArgs, machine: &Machine, table: &CostTable) -> Result<ExitCode, CliError> {
    let text = match args.format {
        Format::Json => format!("{}\n", serde_json::to_string(table).or_failure()?),
        Format::Text => {
            let mut lines =
                Table::new(&["stage", "part", "device", "points", "smallest", "µs", "largest", "µs (p10–p90)"]);
            for stage in &table.stages {
                let (first, last) = (stage.points[0], stage.points[stage.points.len() - 1]);
                let part = format!("{:?}", stage.part).to_lowercase();
                let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
                lines.row(&[
                    &stage.stage,
                    &part,
                    &stage.device,
                    &stage.points.len().to_string(),
                    &place(stage, first),
                    &us(first.seconds),
                    &place(stage, last),
                    &format!("{} ({}–{})", us(last.seconds), us(last.p10_s), us(last.p90_s)),
                ]);
            }
            format!("{machine}\n\n{lines}")
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn place(stage: &StageCost, point: CostPoint) -> String {
    match stage.axis {
        CostAxis::None => format!("{} rows", point.rows),
        CostAxis::Context => format!("{} rows, context {}", point.rows, point.along),
        CostAxis::Experts => format!("{} rows, {} experts", point.rows, point.along),
    }
}
