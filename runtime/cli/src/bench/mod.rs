//! `rally bench`: a load on one deployment or on several, measured, compared, drawn.
//!
//! Contenders take turns, round by round, each round in another order, on weights that are read once: what drifts on a machine
//! drifts for all of them.

mod against;
mod client;
mod compare;
mod contender;
pub mod measure;
mod plot;
mod result;
pub mod round;
pub mod text;

use crate::Format;
use crate::chart::Form;
use crate::cost_args::CostArgs;
use crate::error::CliError;
use crate::interrupt;
use crate::load_args::{LoadArgs, MadeLoad};
use crate::machine::Machine;
use crate::observe::{ObserveArgs, Observer, model_name};
use crate::output::{FilesInUse, OutputFile, print};
use crate::session::{self, SessionArgs};
use crate::trace_form::TraceForm;
use against::Prediction;
use clap::{Args, ValueEnum};
use compare::Merit;
use contender::Contender;
use rally_graph::words::plural;
use rally_load::goodput::Goal;
use rally_load::prompt::PromptPool;
use rally_load::{Load, LoadLimits};
use rally_trace::Recording;
use rally_trace::html::PageText;
use result::Measurement;
use round::{Plan, Rounds};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `rally bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Compare schedules of the graph, interleaved on the same weights: `sequential,ping_pong:2,ping_pong:3,greedy`.
    #[arg(long, value_name = "P1,P2,…", value_delimiter = ',', conflicts_with = "schedule")]
    compare: Vec<String>,
    /// Compare with another graph file under the same load; may be given several times.
    #[arg(long, value_name = "GRAPH")]
    against_graph: Vec<PathBuf>,
    /// Add what it has to beat: `no-afd`, the undivided model on the same devices, each a share of the sequences.
    #[arg(long, value_enum)]
    baseline: Option<Baseline>,
    #[command(flatten)]
    costs: CostArgs,
    /// Requests before each round that do not count: the load's own, from the first on, over again where there are fewer.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = warm_up_count)]
    warmup: usize,
    /// Rounds; 1, or 5 where several are compared.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: Option<u32>,
    /// Take the first N tokens of every prompt as read: small numbers stand for their keys and values, and what is generated means
    /// nothing. For times at contexts whose reading would take longer than what is measured; attention on CUDA devices.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pretend_read: usize,
    /// What a good request keeps, in milliseconds: `tpot:50 ttft:2000`; the graph's `slo` if not given.
    #[arg(long, value_name = "GOAL:MS", num_args = 1..)]
    goodput: Vec<Goal>,
    /// Hold a result of `rally predict` for the same graph, schedule and load against what is measured.
    #[arg(long, value_name = "PREDICTION.json", conflicts_with_all = ["compare", "against_graph", "baseline"])]
    against: Option<PathBuf>,
    /// Write the result here, as JSON.
    #[arg(long, value_name = "F.json")]
    save_result: Option<PathBuf>,
    /// Draw the result here.
    #[arg(long, value_name = "F.svg|F.html")]
    plot: Option<PathBuf>,
    /// Write a trace of the best contender's last round here: `.json` for Perfetto, `.html` for a page of its own.
    #[arg(long, value_name = "F.json|F.html")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    observe: ObserveArgs,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// More than 2^20 requests that do not count are a slip of the keyboard.
fn warm_up_count(text: &str) -> Result<usize, String> {
    let in_range = text.parse::<usize>().ok().filter(|count| *count <= 1 << 20);
    in_range.ok_or_else(|| format!("expected a whole number from 0 to {}", 1 << 20))
}

/// What a deployment is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Baseline {
    /// Attention and FFN together on every device, sequences divided over them.
    NoAfd,
}

/// Result files, opened before any work is done.
struct Outputs {
    result: Option<OutputFile>,
    plot: Option<(Form, OutputFile)>,
    trace: Option<(TraceForm, OutputFile)>,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<ExitCode, CliError> {
    let mut contenders = contender::open_all(args)?;
    let load = make_load(args, &contenders)?;
    let machine = Machine::with(contenders.iter().map(|contender| &contender.deployment.spec));
    if let Some(costs) = args.costs.read()? {
        contender::measured_costs(&mut contenders, &costs, &machine, &load.load)?;
    }
    let goals = session::goals(&args.goodput, &contenders[0].deployment);
    let prediction = args.against.as_deref().map(|path| Prediction::read(path, &contenders[0], &load)).transpose()?;
    let outputs = open_outputs(args, &contenders)?;
    let model_name = model_name(&contenders[0].deployment, args.session.model.as_deref());
    let mut observer = Observer::start(&args.observe, &model_name)?;
    let interrupts = interrupt::channel()?;
    let (warm_up, prompts) = prepare(args, &load, &contenders);
    let plan = Plan {
        load: &load.load,
        warm_up: &warm_up,
        prompts: &prompts,
        goals: &goals,
        interrupts: &interrupts,
        keep_last: args.trace.is_some(),
        pretend_read: args.pretend_read,
        several: contenders.len() > 1,
    };
    let repeats =
        args.repeats.map_or(if contenders.len() > 1 { compare::DEFAULT_ROUNDS } else { 1 }, |repeats| repeats as usize);
    let (rounds, interrupted) = measure(&contenders, &plan, repeats, &mut observer)?;
    let cut_short = interrupted.then(|| interruption(&contenders, &rounds, repeats));
    let measurements = gather(&contenders, rounds, &goals);
    let known = Known { machine: &machine, load: &load, goals: &goals, prediction: prediction.as_ref() };
    report(args, &known, &measurements, outputs, cut_short.as_deref())?;
    if interrupted { Err(CliError::Interrupted) } else { Ok(ExitCode::SUCCESS) }
}

/// The load, held against the smallest of the contenders: all get the same.
fn make_load(args: &BenchArgs, contenders: &[Contender]) -> Result<MadeLoad, CliError> {
    let mut load = args.load.make()?;
    let mut smallest: Option<LoadLimits> = None;
    for contender in contenders {
        let limits = contender.limits();
        smallest = smallest.filter(|smallest| smallest.total_tokens <= limits.total_tokens).or(Some(limits));
        let sequences = contender.deployment.spec.limits.sequences;
        if let Some(batch) = args.load.fixed_batch().filter(|batch| *batch > sequences as usize) {
            return Err(CliError::Mistake(format!(
                "--batch {batch}: {} runs {sequences} sequences at once (`limits.sequences`)",
                contender.path.display()
            )));
        }
    }
    if let Some(limits) = smallest {
        args.load.fit(&mut load, limits)?;
    }
    load.pretend_read(args.pretend_read);
    Ok(load)
}

fn open_outputs(args: &BenchArgs, contenders: &[Contender]) -> Result<Outputs, CliError> {
    // Each graph has a model of its own.
    for contender in contenders {
        FilesInUse::new(&contender.path, &contender.deployment.weights_source)
            .reads("the --costs table", args.costs.path())
            .reads("the --trace-file", args.load.trace_file())
            .reads("the prediction of --against", args.against.as_deref())
            .writes("--save-result", args.save_result.as_deref())
            .writes("--plot", args.plot.as_deref())
            .writes("--trace", args.trace.as_deref())
            .check()?;
    }
    let result = args.save_result.as_deref().map(OutputFile::create).transpose()?;
    let plot = match &args.plot {
        None => None,
        Some(path) => Some((Form::of("--plot", path)?, OutputFile::create(path)?)),
    };
    let trace = match &args.trace {
        None => None,
        Some(path) => Some((TraceForm::of(path)?, OutputFile::create(path)?)),
    };
    Ok(Outputs { result, plot, trace })
}

/// The warm-up is the load's own beginning, all at once; prompts are those that the smallest vocabulary has.
fn prepare(args: &BenchArgs, load: &MadeLoad, contenders: &[Contender]) -> (Load, PromptPool) {
    let first = load.load.requests.iter().cycle().take(args.warmup);
    let requests = first.map(|request| rally_load::LoadRequest { arrival_s: 0.0, ..*request }).collect();
    let longest = load.load.requests.iter().map(|request| request.prompt_tokens).max().unwrap_or(1);
    let vocab = contenders.iter().map(|contender| contender.deployment.shape.vocab).min().unwrap_or(1);
    (Load { requests, max_concurrency: None }, PromptPool::new(load.seed, longest, vocab))
}

/// All rounds; and whether Ctrl-C ended them.
fn measure(
    contenders: &[Contender],
    plan: &Plan<'_>,
    repeats: usize,
    observer: &mut Observer,
) -> Result<(Vec<Rounds>, bool), CliError> {
    let mut rounds: Vec<Rounds> = contenders.iter().map(|_| Rounds::default()).collect();
    for round in 0..repeats {
        for place in 0..contenders.len() {
            // Rotated, so that nobody always runs on a cold machine or behind the same neighbour.
            let index = (round + place) % contenders.len();
            let title = format!("{} {}/{repeats}", contenders[index].name, round + 1);
            let last = round + 1 == repeats;
            if rounds[index].run(&contenders[index], plan, &title, observer, last)? {
                return Ok((rounds, true));
            }
        }
    }
    Ok((rounds, false))
}

/// How far an interrupted bench came: whose rounds are whole, and who is missing.
fn interruption(contenders: &[Contender], rounds: &[Rounds], repeats: usize) -> String {
    let done = |(contender, rounds): (&Contender, &Rounds)| match (rounds.summaries.len(), rounds.interrupted) {
        (0, _) => format!("{} was not measured", contender.name),
        (_, true) => format!("{} has part of its first round", contender.name),
        (count, false) => format!("{} has {}", contender.name, plural(count as u64, "round")),
    };
    let done: Vec<String> = contenders.iter().zip(rounds).map(done).collect();
    format!("interrupted: of {}, {}", plural(repeats as u64, "round"), done.join(", "))
}

/// Contenders that were measured at all.
fn gather<'a>(contenders: &'a [Contender], rounds: Vec<Rounds>, goals: &[Goal]) -> Vec<Measurement<'a>> {
    let measured = contenders.iter().zip(rounds).filter(|(_, rounds)| !rounds.summaries.is_empty());
    measured
        .map(|(contender, rounds)| {
            let summary = rounds.summary(goals);
            Measurement { contender, name: contender.name.clone(), rounds, summary }
        })
        .collect()
}

/// What is known beside the measurements.
struct Known<'a> {
    machine: &'a Machine,
    load: &'a MadeLoad,
    goals: &'a [Goal],
    prediction: Option<&'a Prediction>,
}

fn report(
    args: &BenchArgs,
    known: &Known<'_>,
    measurements: &[Measurement<'_>],
    outputs: Outputs,
    cut_short: Option<&str>,
) -> Result<(), CliError> {
    let Known { machine, load, goals, prediction } = *known;
    // Where arrivals set what comes out, throughput says nothing about the system.
    let open = load.load.requests.iter().any(|request| request.arrival_s > 0.0);
    let merit = if open { Merit::Tpot } else { Merit::Throughput };
    let verdict = compare::verdict(measurements, merit);
    let mut said_of_prediction = String::new();
    // Every task's time goes into it: nothing to make for nobody.
    let is_read = outputs.result.is_some() || prediction.is_some() || args.format == Format::Json;
    let result = is_read.then(|| {
        let mut result = result::result(machine, load, args.warmup, goals, measurements, &verdict);
        if let Some(cut_short) = cut_short {
            result["interruption"] = cut_short.into();
        }
        if let Some(prediction) = prediction {
            let differences = prediction.differences(&result["runs"][0]);
            said_of_prediction = format!("\n{}", prediction.table(&differences));
            result["against"] = prediction.json(&differences);
        }
        result
    });
    if let (Some(file), Some(result)) = (outputs.result, &result) {
        file.finish(|out| writeln!(out, "{result:#}"))?;
    }
    let heading = heading(machine, load, args.warmup, measurements);
    if let Some((form, file)) = outputs.plot {
        let drawn = plot::draw(measurements, &heading, goals, &verdict, form);
        file.finish(|out| out.write_all(drawn.as_bytes()))?;
    }
    if let (Some((form, file)), Some(best)) = (outputs.trace, compare::best(measurements, merit)) {
        write_trace(best, &load.words, file, form)?;
    }
    let mut text = match (args.format, measurements) {
        (Format::Json, _) => format!("{}\n", result.expect("made, since it is printed")),
        (Format::Text, []) => String::new(),
        (Format::Text, [only]) => {
            format!("{}\n\n{}{said_of_prediction}", heading.join("\n"), text::report(&only.told(), goals))
        }
        (Format::Text, several) => {
            let verdict: String = verdict.iter().map(|sentence| format!("{sentence}\n")).collect();
            format!("{}\n\n{}\n{verdict}", heading.join("\n"), compare::table(several, merit))
        }
    };
    if let (Some(cut_short), Format::Text) = (cut_short, args.format) {
        text.push_str(&format!("{cut_short}\n"));
    }
    print(&text)?;
    digest(measurements, merit);
    Ok(())
}

/// The last round of `best`. A bench that was interrupted before any contender's last round has none.
fn write_trace(best: &Measurement<'_>, load: &str, file: OutputFile, form: TraceForm) -> Result<(), CliError> {
    let Some((report, plan)) = &best.rounds.last else { return Ok(()) };
    let recording = Recording::new(plan, &report.lanes, &report.counters);
    let title = best.contender.deployment.spec.name.clone();
    let subtitle = format!("{}, round {} of a bench · {load}", best.name, best.rounds.summaries.len());
    let words = PageText { title, subtitle, digest: best.rounds.measured.digest.clone() };
    file.finish(|out| form.write(&recording, &words, out))
}

/// Where the steps of the best contender went, on stderr.
fn digest(measurements: &[Measurement<'_>], merit: Merit) {
    let Some(best) = compare::best(measurements, merit) else { return };
    let mut lines = best.rounds.measured.digest.clone();
    let rounds = best.rounds.summaries.len();
    // Rounds that were to come would have left one.
    if lines.is_empty() {
        return;
    }
    if measurements.len() > 1 || rounds > 1 {
        lines.insert(0, format!("{}, round {rounds} of {rounds}:", best.name));
    }
    // A digest that cannot be written is no reason to fail: the results are out already.
    let _ = writeln!(io::stderr(), "\n{}", lines.join("\n"));
}

/// What was measured, on what, under which load.
fn heading(machine: &Machine, load: &MadeLoad, warm_up: usize, measurements: &[Measurement<'_>]) -> Vec<String> {
    let rounds = measurements.iter().map(|measurement| measurement.rounds.summaries.len()).max().unwrap_or(0);
    let order = if measurements.len() > 1 { ", interleaved in rotating order" } else { "" };
    let (rounds, warm_up) = (plural(rounds as u64, "round"), plural(warm_up as u64, "warm-up request"));
    let mut lines = vec![
        measurements.first().map_or_else(String::new, |first| {
            let shape = &first.contender.deployment.shape;
            let (name, source) = (&first.contender.deployment.spec.name, &first.contender.deployment.weights_source);
            let model = format!("{name}, {} with {} layers from {source}", shape.family, shape.layers.len());
            // Several are named in their table.
            if measurements.len() > 1 { model } else { format!("{model}, schedule {}", first.contender.schedule.label) }
        }),
        machine.to_string(),
        format!("{}; {rounds}{order}, each after {warm_up}", load.words),
    ];
    let undivided = measurements.iter().find(|measurement| measurement.contender.part == contender::Part::NoAfd);
    if let Some(undivided) = undivided {
        lines.push(no_afd_words(undivided.contender));
    }
    lines
}

/// What "no AFD" was.
fn no_afd_words(contender: &Contender) -> String {
    let devices: Vec<&str> = contender.deployment.spec.devices.keys().map(String::as_str).collect();
    let limits = contender.deployment.spec.limits;
    format!(
        "no AFD: attention and FFN together on each of {}, the sequences divided over them, the whole model on every device, \
         one micro-batch of up to {} rows, no transfers; the same limits in total",
        devices.join(", "),
        limits.rows_per_micro_batch
    )
}
