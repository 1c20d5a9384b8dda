//! `rally run`: decode prompts to the end.

mod collect;
mod console;
mod decode;
mod jobs;
mod logits;
mod trace;

use crate::Format;
use crate::error::{Blame, CliError};
use crate::output::{OutputFile, print};
use crate::session::{self, SessionArgs};
use clap::Args;
use collect::{Collector, RequestResult};
use console::Console;
use crossbeam::channel::{Receiver, bounded};
use decode::{Job, Outcome};
use rally_stages::deployment::{AssembleOptions, Deployment};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// Arguments of `rally run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// A prompt; may be given several times.
    #[arg(long = "prompt", value_name = "TEXT", required_unless_present = "requests", conflicts_with = "requests")]
    prompts: Vec<String>,
    /// Requests, one JSON object a line.
    #[arg(long, value_name = "F.jsonl")]
    requests: Option<PathBuf>,
    #[command(flatten)]
    defaults: jobs::RequestDefaults,
    /// Write results here, one JSON object a line, in input order.
    #[arg(long, value_name = "F.jsonl")]
    out: Option<PathBuf>,
    /// Write logits here: one f32 tensor `[generated, vocab]` per request, named by its id.
    #[arg(long, value_name = "F.safetensors")]
    logits: Option<PathBuf>,
    /// Write a trace here, in the Chrome trace event format (Perfetto opens it).
    #[arg(long, value_name = "F.json")]
    trace: Option<PathBuf>,
    /// Level micro-batches by fixed costs instead of learning them from how long stages work: batches can be repeated
    /// then
    #[arg(long)]
    no_learn: bool,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Output files, opened before any work is done.
struct Outputs {
    out: Option<OutputFile>,
    logits: Option<OutputFile>,
    trace: Option<OutputFile>,
}

/// Runs the command.
pub fn run(args: &RunArgs) -> Result<ExitCode, CliError> {
    let deployment = session::open(&args.session)?;
    if args.trace.as_ref().is_some_and(|path| path.extension().is_some_and(|ending| ending == "html")) {
        return Err(CliError::Mistake("--trace writes JSON in this version: give it a name that ends in .json".into()));
    }
    let jobs = jobs::make(args, &deployment)?;
    refuse_one_file_for_two(args)?;
    if args.logits.is_some() {
        logits::refuse_too_many(&jobs, &deployment.shape, crate::doctor::memory_bytes())?;
    }
    let open = |path: &Option<PathBuf>| path.as_deref().map(OutputFile::create).transpose();
    let outputs = Outputs { out: open(&args.out)?, logits: open(&args.logits)?, trace: open(&args.trace)? };
    let spans_per_lane = if outputs.trace.is_some() { trace::SPANS_PER_LANE } else { 0 };
    let parts = session::assemble(&deployment, AssembleOptions { learn: !args.no_learn, spans_per_lane, probe: None })?;
    let (plan, graph) = (parts.plan.clone(), parts.graph.clone());
    let openings = jobs.iter().map(|job| job.opening.clone()).collect();
    let mut console = Console::new(openings, args.format == Format::Json);
    static DECODING: AtomicBool = AtomicBool::new(false);
    let interrupts = interrupts(&DECODING)?;
    DECODING.store(true, Ordering::Release);
    let outcome = decode::decode(parts, &jobs, deployment.codec.as_ref(), &mut console, &interrupts)?;
    if let Some(file) = outputs.trace {
        file.finish(|out| trace::write(out, &outcome.report, &plan, &graph))?;
    }
    write_results(&outcome, &jobs, outputs.out, outputs.logits, &deployment)?;
    if args.format == Format::Json {
        print(&format!("{}\n", report_json(&outcome, &deployment)))?;
    }
    digest(&outcome, &deployment);
    if outcome.interrupted { Err(CliError::Interrupted) } else { Ok(ExitCode::SUCCESS) }
}

/// Two results under one name would silently be one.
fn refuse_one_file_for_two(args: &RunArgs) -> Result<(), CliError> {
    let files = [("--out", &args.out), ("--logits", &args.logits), ("--trace", &args.trace)];
    let files: Vec<_> = files.iter().filter_map(|(flag, path)| path.as_ref().map(|path| (flag, path))).collect();
    for (i, (flag, path)) in files.iter().enumerate() {
        if let Some((other, _)) = files[..i].iter().find(|(_, earlier)| earlier == path) {
            return Err(CliError::Mistake(format!("{other} and {flag} both name {}: use two files", path.display())));
        }
    }
    Ok(())
}

/// Ctrl-C and SIGTERM as messages. Before decoding begins, and the second time, they end the process at once.
fn interrupts(decoding: &'static AtomicBool) -> Result<Receiver<()>, CliError> {
    let (sender, receiver) = bounded(1);
    // That the first message was taken off the channel says nothing about how far the run loop has come with it.
    let mut asked = false;
    let handler = move || {
        if !decoding.load(Ordering::Acquire) || std::mem::replace(&mut asked, true) || sender.try_send(()).is_err() {
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).or_failure()?;
    Ok(receiver)
}

fn write_results(
    outcome: &Outcome,
    jobs: &[Job],
    out: Option<OutputFile>,
    logits: Option<OutputFile>,
    deployment: &Deployment,
) -> Result<(), CliError> {
    if let Some(file) = out {
        file.finish(|out| {
            outcome.collectors.iter().try_for_each(|collector| {
                serde_json::to_writer(&mut *out, &collector.result()).map_err(io::Error::from)?;
                out.write_all(b"\n")
            })
        })?;
    }
    if let Some(file) = logits {
        file.finish(|out| logits::write(out, &outcome.collectors, jobs, deployment.shape.vocab))?;
    }
    Ok(())
}

fn report_json(outcome: &Outcome, deployment: &Deployment) -> serde_json::Value {
    let results: Vec<RequestResult> = outcome.collectors.iter().map(Collector::result).collect();
    let lanes: Vec<_> = outcome
        .report
        .lanes
        .iter()
        .map(|lane| serde_json::json!({ "name": lane.name, "busy_share": lane.busy_share(), "bubble_share": 1.0 - lane.busy_share() }))
        .collect();
    serde_json::json!({
        "graph": deployment.spec.name,
        "schedule": deployment.schedule.label,
        "duration_s": outcome.elapsed_s,
        "results": results,
        "lanes": lanes,
        "costs": outcome.report.costs.map(|costs| serde_json::json!({
            "row_us": costs.per_row * 1e6, "context_us": costs.per_context * 1e6,
        })),
    })
}

/// A few lines on stderr: how fast, and where the lanes' time went.
fn digest(outcome: &Outcome, deployment: &Deployment) {
    let tokens: usize = outcome.collectors.iter().map(Collector::tokens).sum();
    let mut tpots: Vec<f64> = outcome.collectors.iter().filter_map(|c| c.result().tpot_ms).collect();
    tpots.sort_by(f64::total_cmp);
    let rate = tokens as f64 / outcome.elapsed_s;
    let mut line = format!(
        "{} requests, {tokens} tokens in {:.2} s: {rate:.0} tokens/s",
        outcome.collectors.len(),
        outcome.elapsed_s
    );
    if let Some(median) = tpots.get(tpots.len() / 2) {
        line.push_str(&format!(", median TPOT {median:.2} ms"));
        if let Some(slo) = deployment.spec.slo {
            let kept = tpots.iter().filter(|tpot| **tpot <= slo.tpot_ms).count();
            line.push_str(&format!(" (target {} ms kept by {kept} of {})", slo.tpot_ms, tpots.len()));
        }
    }
    let lanes: Vec<String> = outcome
        .report
        .lanes
        .iter()
        .map(|lane| format!("{} {:.0} % busy", lane.name, lane.busy_share() * 100.0))
        .collect();
    // A digest that cannot be written is no reason to fail: the results are out already.
    let _ = writeln!(
        io::stderr(),
        "\n{line}\n{} on {} CPU cores, lanes: {}",
        deployment.schedule.label,
        crate::doctor::available_cores(),
        lanes.join(", ")
    );
}
