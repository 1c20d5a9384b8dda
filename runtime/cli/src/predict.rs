//! `rally predict`: what a load will do on a deployment, in the terms of `rally bench`. Reads no weights and starts no lane.

mod faults;
mod folded;
mod source;

use self::faults::Faulted;
use self::folded::Folded;
use self::source::{EfficiencyArgs, Source};
use crate::bench::measure::Measured;
use crate::bench::round::drain_s;
use crate::bench::text::{self, Told};
use crate::error::{Blame, CliError};
use crate::hosts::faults::FaultArgs;
use crate::identity::{GraphIdentity, ModelIdentity};
use crate::input::read_named;
use crate::load_args::{LoadArgs, MadeLoad};
use crate::output::{FilesInUse, OutputFile, print};
use crate::session::{self, SessionArgs};
use crate::trace_form::TraceForm;
use crate::{Format, graph_file};
use clap::Args;
use rally_engine::schedule::virtual_lanes::Fold;
use rally_graph::kinds::{KindRegistry, Role};
use rally_graph::memory::device_memory;
use rally_graph::plan::{Plan, TaskTable};
use rally_load::goodput::Goal;
use rally_load::summary::Summary;
use rally_predict::durations::Durations;
use rally_predict::experts::ExpertLoad;
use rally_predict::fold::fold;
use rally_predict::roofline::{Machines, Roofline};
use rally_predict::table::TableDurations;
use rally_predict::{Prediction, Setting};
use rally_stages::deployment::Deployment;
use rally_trace::Recording;
use rally_trace::html::PageText;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `rally predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// The cost table of `rally profile` that durations come from. Without it and --hardware they follow from what the graph's devices
    /// name as their `hardware`.
    #[arg(long, value_name = "F.json", conflicts_with = "hardware")]
    profile: Option<PathBuf>,
    /// Durations from the figures of this accelerator for all devices: a name (`h800`), or a spec of your own.
    #[arg(long, value_name = "NAME|F.json")]
    hardware: Option<String>,
    #[command(flatten)]
    efficiency: EfficiencyArgs,
    /// How rows spread over experts: `natural` (each as likely as any other), `balanced` (none is hit twice before all are hit once),
    /// or counts, `[12, 7, …]` for all layers or a list of such for each. With a profile, few rows choose by chance (--seed), so that
    /// devices which share a layer's experts wait for the unluckier one; without, and with --fold, they hit as many as in the mean.
    #[arg(long, value_name = "natural|balanced|F.json", default_value = "natural")]
    experts: String,
    /// Take the first N tokens of every prompt as read, as `rally bench --pretend-read` does.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pretend_read: usize,
    /// Scatter of every duration, standard deviation over mean, from a gamma distribution; drawn from --seed.
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = jitter)]
    jitter: f64,
    /// What a good request keeps, in milliseconds: `tpot:50 ttft:2000`; the graph's `slo` if not given.
    #[arg(long, value_name = "GOAL:MS", num_args = 1..)]
    goodput: Vec<Goal>,
    /// Write the result here, as JSON, for `rally bench --against`.
    #[arg(long, value_name = "F.json")]
    save_result: Option<PathBuf>,
    /// Run one of all devices that do the same, exactly, and keep sums instead of every task's times: for hundreds of devices. Sequences
    /// must be as many and as long on all of them: a load that the step planner cannot share out evenly is refused, which a handful of
    /// sequences on a small deployment mostly is.
    #[arg(long, conflicts_with_all = ["profile", "trace", "jitter", "faults"])]
    fold: bool,
    #[command(flatten)]
    faults: FaultArgs,
    /// Write a trace of the virtual lanes here: `.json` for Perfetto, `.html` for a page of its own.
    #[arg(long, value_name = "F.json|F.html")]
    trace: Option<PathBuf>,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn jitter(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=10.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 10".into())
}

/// Runs the command.
pub fn run(args: &PredictArgs) -> Result<ExitCode, CliError> {
    let deployment = session::open(&args.session)?;
    let mut load = args.load.make()?;
    args.load.fit(&mut load, session::load_limits(&deployment))?;
    load.pretend_read(args.pretend_read);
    let counts = match args.experts.as_str() {
        "natural" | "balanced" => None,
        path => Some(Path::new(path)),
    };
    FilesInUse::new(&args.session.graph, &deployment.weights_source)
        .reads("the --faults plan", args.faults.faults.as_deref())
        .reads("the --profile", args.profile.as_deref())
        .reads("the counts of --experts", counts)
        .reads("the --trace-file", args.load.trace_file())
        .writes("--save-result", args.save_result.as_deref())
        .writes("--trace", args.trace.as_deref())
        .check()?;
    let source = Source::of(args, &deployment)?;
    let experts = match counts {
        None if args.experts == "balanced" => ExpertLoad::Balanced,
        None => ExpertLoad::Natural,
        Some(path) => read_named("--experts", path, |text| ExpertLoad::from_json(text, deployment.shape.experts))?,
    };
    let trace = args.trace.as_deref().map(|path| Ok::<_, CliError>((TraceForm::of(path)?, OutputFile::create(path)?)));
    let (trace, result) = (trace.transpose()?, args.save_result.as_deref().map(OutputFile::create).transpose()?);
    let graph = deployment.stage_graph();
    let fold = match args.fold {
        true => fold(&deployment.spec, graph, &deployment.shape, &experts),
        false => Fold::none(graph.devices.len()),
    };
    let (plan, prediction) = predict(args, &deployment, &load, &source, &experts, &fold)?;
    let shown = Shown::new(args, &deployment, &plan, &prediction, &fold);
    let json = shown.json(args, &load, &source);
    if let Some(file) = result {
        file.finish(|out| writeln!(out, "{json:#}"))?;
    }
    if let Some((form, file)) = trace {
        let recording = shown.recording();
        let title = format!("{}, predicted", deployment.spec.name);
        let words = PageText { title, subtitle: load.words.clone(), digest: shown.measured.digest.clone() };
        file.finish(|out| form.write(&recording, &words, out))?;
    }
    print(&match args.format {
        Format::Json => format!("{json}\n"),
        Format::Text => shown.text(&load, &source),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn predict(
    args: &PredictArgs,
    deployment: &Deployment,
    load: &MadeLoad,
    source: &Source,
    experts: &ExpertLoad,
    fold: &Fold,
) -> Result<(Plan, Prediction), CliError> {
    let graph = deployment.stage_graph();
    let plan = deployment.schedule.plan(TaskTable::of_devices(graph, |device| fold.runs(device))).or_failure()?;
    let (shape, tasks) = (&deployment.shape, &plan.table);
    let durations: Box<dyn Durations + '_> = match source {
        Source::Profile(_, table) => {
            let durations = TableDurations::new(table, graph, tasks, shape, experts).or_mistake()?;
            // Luck is not the same for all of those that one is run for.
            Box::new(if args.fold { durations } else { durations.by_chance(load.seed) })
        }
        Source::Figures { hardware, shares, measured } => {
            let machines =
                Machines { hardware, spec: &deployment.spec, efficiency: shares, measured, all_stages: true };
            Box::new(Roofline::new(machines, graph, tasks, shape, experts, fold).or_mistake()?)
        }
    };
    if graph.hosts.is_empty() {
        args.faults.refuse_without_hosts()?;
    }
    let durations = match args.faults.read(&graph.hosts, graph)? {
        None => durations,
        Some(plan) => Box::new(Faulted::new(durations, plan, graph)?),
    };
    let attention = graph.devices_of_role(Role::Embed);
    let setting = Setting {
        plan: &plan,
        planner: deployment.planner_config(),
        attention: &attention,
        load: &load.load,
        durations: &*durations,
        jitter: args.jitter,
        seed: load.seed,
        fold,
        keeps_spans: !args.fold,
        learns: !args.fold,
        cores: source.cores(),
        pretend_read: args.pretend_read,
    };
    let prediction = setting.predict().or_mistake()?;
    drop(durations);
    Ok((plan, prediction))
}

/// A prediction, added up.
struct Shown<'a> {
    deployment: &'a Deployment,
    plan: &'a Plan,
    prediction: &'a Prediction,
    goals: Vec<Goal>,
    summary: Summary,
    measured: Measured,
    /// Where there are no spans.
    folded: Option<Folded<'a>>,
}

impl<'a> Shown<'a> {
    fn new(
        args: &PredictArgs,
        deployment: &'a Deployment,
        plan: &'a Plan,
        prediction: &'a Prediction,
        fold: &'a Fold,
    ) -> Self {
        let goals = session::goals(&args.goodput, deployment);
        let summary = Summary::of(&prediction.timings, prediction.duration_s, &goals);
        let graph = deployment.stage_graph();
        let folded = args.fold.then_some(Folded { graph, plan, fold, report: &prediction.report });
        let mut shown = Self { deployment, plan, prediction, goals, summary, measured: Measured::default(), folded };
        if shown.folded.is_some() {
            return shown;
        }
        let mut measured = Measured::default();
        let drain_ns = (drain_s(&prediction.timings) * 1e9) as u64;
        measured.add_recording(&shown.recording(), drain_ns, true, None);
        shown.measured = measured;
        shown
    }

    fn recording(&self) -> Recording<'a> {
        let report = &self.prediction.report;
        Recording::new(self.plan, report.lanes.iter().map(|lane| &lane.report), &report.counters)
    }

    fn json(&self, args: &PredictArgs, load: &MadeLoad, source: &Source) -> Value {
        let graph = GraphIdentity::of(self.deployment, &args.session.graph);
        let mut run = Map::new();
        run.insert("schedule".into(), json!(self.deployment.schedule.label));
        run.insert("name".into(), json!(self.deployment.schedule.label));
        run.insert("graph".into(), json!(graph));
        run.append(&mut self.summary.to_json());
        match &self.folded {
            Some(folded) => folded.put_json(&mut run),
            None => self.measured.put_json(&mut run),
        }
        let (spec, shape) = (&self.deployment.spec, &self.deployment.shape);
        let memory = device_memory(spec, shape, KindRegistry::shared(), graph_file::this_machine());
        json!({
            "machine": source.machine(),
            "predicted_from": source.json(),
            "experts": args.experts,
            "jitter": args.jitter,
            "model": ModelIdentity::of(self.deployment),
            "graph": graph,
            "load": load.json,
            "goodput": self.goals.iter().map(Goal::to_string).collect::<Vec<_>>(),
            "devices": memory,
            "runs": [run],
        })
    }

    fn text(&self, load: &MadeLoad, source: &Source) -> String {
        let (spec, shape) = (&self.deployment.spec, &self.deployment.shape);
        let head = format!(
            "{}, {} with {} layers, schedule {}: predicted, not measured\n{}\n{}\n",
            spec.name,
            shape.family,
            shape.layers.len(),
            self.deployment.schedule.label,
            source.words(),
            load.words,
        );
        let told = Told { summary: &self.summary, measured: &self.measured, rounds: 1, preemptions: 0 };
        match &self.folded {
            Some(folded) => format!("{head}\n{}\n{}", text::requests(&told, &self.goals), folded.text()),
            None => {
                format!("{head}\n{}\n{}\n", text::report(&told, &self.goals), self.measured.digest.join("\n"))
            }
        }
    }
}
