//! `rally run`: decode prompts to the end.

mod collect;
mod console;
mod decode;
mod jobs;
mod journaled;
mod logits;
mod summary;

use crate::Format;
use crate::cost_args::{CostArgs, Costs};
use crate::error::CliError;
use crate::hosts::{CoordinatorArgs, Meeting};
use crate::identity::Identity;
use crate::interrupt;
use crate::machine::Machine;
use crate::observe::{ObserveArgs, Observer, model_name};
use crate::output::{FilesInUse, OutputFile, print};
use crate::session::{self, SessionArgs};
use crate::trace_form::TraceForm;
use clap::Args;
use collect::{Collector, RequestResult};
use console::Console;
use decode::{Job, Outcome, Watchers};
use rally_stages::deployment::{AssembleOptions, Deployment};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use summary::{Digest, Summary};

/// Arguments of `rally run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// A prompt; may be given several times.
    #[arg(long = "prompt", value_name = "TEXT", required_unless_present_any = ["requests", "resume"], conflicts_with_all = ["requests", "resume"])]
    prompts: Vec<String>,
    /// Requests, one JSON object a line.
    #[arg(long, value_name = "F.jsonl", conflicts_with = "resume")]
    requests: Option<PathBuf>,
    #[command(flatten)]
    defaults: jobs::RequestDefaults,
    #[command(flatten)]
    journal: journaled::JournalArgs,
    /// Write results here, one JSON object a line, in input order.
    #[arg(long, value_name = "F.jsonl")]
    out: Option<PathBuf>,
    /// Write logits here: one f32 tensor `[generated, vocab]` per request, named by its id.
    #[arg(long, value_name = "F.safetensors")]
    logits: Option<PathBuf>,
    /// Write a trace here: `.json` for Perfetto (Chrome trace events), `.html` for a page of its own.
    #[arg(long, value_name = "F.json|F.html")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    costs: CostArgs,
    #[command(flatten)]
    observe: ObserveArgs,
    /// Level micro-batches by fixed costs instead of learning them from how long stages work: batches can be repeated
    /// then
    #[arg(long)]
    no_learn: bool,
    /// Let requests that begin alike share KV pages: what one has read, others on the same attention device do not read again. No token
    /// changes
    #[arg(long)]
    prefix_reuse: bool,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
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
    let mut deployment = session::open(&args.session)?;
    let (jobs, beginning) = journaled::jobs(args, &deployment)?;
    let identity = Identity::of(&Machine::with([&deployment.spec]), &deployment, &args.session.graph);
    if let Some(costs) = args.costs.read()? {
        order_by(&costs, &mut deployment, &identity, &jobs)?;
    }
    refuse_files_used_twice(args, &deployment)?;
    let trace_form = args.trace.as_deref().map(TraceForm::of).transpose()?;
    if args.logits.is_some() {
        logits::refuse_too_many(&jobs, &deployment.shape, crate::doctor::memory_bytes())?;
    }
    let open = |path: &Option<PathBuf>| path.as_deref().map(OutputFile::create).transpose();
    let outputs = Outputs { out: open(&args.out)?, logits: open(&args.logits)?, trace: open(&args.trace)? };
    let mut observer = Observer::start(&args.observe, &model_name(&deployment, args.session.model.as_deref()))?;
    let spans_per_lane = if outputs.trace.is_some() { summary::SPANS_PER_TRACE } else { summary::SPANS_PER_DIGEST };
    let hosts = args.coordinator.hosts(&deployment)?;
    let host = hosts.as_ref().map(|hosts| hosts.own);
    let (interrupts, wait) = (interrupt::channel()?, args.coordinator.wait());
    if let Some(hosts) = &hosts {
        hosts.await_etcd(Some(wait), &interrupts)?;
    }
    // What stages cost on other hosts is not told here.
    let learn = !args.no_learn && hosts.is_none();
    let parts =
        session::assemble(&deployment, AssembleOptions { learn, spans_per_lane, host, ..AssembleOptions::default() })?;
    let meeting = hosts.map(|hosts| Meeting::new(hosts, Arc::clone(&parts.graph), deployment.shape.vocab, wait));
    let (plan, on_what) = (parts.plan.clone(), parts.on_what(crate::doctor::available_cores()));
    let openings = jobs.iter().map(|job| job.opening.clone()).collect();
    let mut console = Console::new(openings, args.format == Format::Json, args.observe.is_live());
    interrupt::begin_work();
    let journaled = beginning.begin(&jobs, &mut console)?;
    let watchers = Watchers { console: &mut console, interrupts: &interrupts, observer: &mut observer };
    let outcome = decode::decode(parts, &jobs, &deployment, watchers, journaled, meeting, args.prefix_reuse)?;
    let summary = Summary { outcome: &outcome, deployment: &deployment, plan: &plan, on_what: &on_what };
    let digest = summary.digest();
    if let (Some(file), Some(form)) = (outputs.trace, trace_form) {
        file.finish(|out| summary.write_trace(form, &digest, out))?;
    }
    write_results(&outcome, &jobs, outputs.out, outputs.logits, &deployment)?;
    if args.format == Format::Json {
        print(&format!("{}\n", report_json(&identity, &summary, &digest)))?;
    }
    // A digest that cannot be written is no reason to fail: the results are out already.
    let _ = writeln!(io::stderr(), "\n{digest}");
    if outcome.interrupted
        && let Some(path) = args.journal.path()
    {
        let _ = writeln!(io::stderr(), "what is not over goes on with --resume {}", path.display());
    }
    if outcome.interrupted { Err(CliError::Interrupted) } else { Ok(ExitCode::SUCCESS) }
}

/// No output may be an input or another output.
fn refuse_files_used_twice(args: &RunArgs, deployment: &Deployment) -> Result<(), CliError> {
    FilesInUse::new(&args.session.graph, &deployment.weights_source)
        .reads("the --requests file", args.requests.as_deref())
        .reads("the --costs table", args.costs.path())
        .reads("the --faults plan", args.coordinator.faults.faults.as_deref())
        .writes("--journal", args.journal.journal.as_deref())
        .writes("--resume", args.journal.resume.as_deref())
        .writes("--out", args.out.as_deref())
        .writes("--logits", args.logits.as_deref())
        .writes("--trace", args.trace.as_deref())
        .check()
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

/// Makes `greedy` order by `costs`, for micro-batches as `jobs` fill them.
fn order_by(costs: &Costs<'_>, deployment: &mut Deployment, identity: &Identity, jobs: &[Job]) -> Result<(), CliError> {
    let most = jobs.len().min(deployment.planner_config().sequences);
    let rows = most.div_ceil(deployment.schedule.micro_batches);
    // A sequence's context grows from its prompt on by a token a step; most runs end where they must.
    let context = |job: &Job| job.sequence.prompt.len() as f64 + job.sequence.max_new_tokens as f64 / 2.0;
    let mean = jobs.iter().map(context).sum::<f64>() / jobs.len().max(1) as f64;
    match costs.order(&mut deployment.schedule, identity, rows, mean)? {
        true => Ok(()),
        false => Err(costs.unused()),
    }
}

fn report_json(identity: &Identity, summary: &Summary<'_>, digest: &Digest) -> serde_json::Value {
    let Summary { outcome, deployment, .. } = summary;
    let results: Vec<RequestResult> = outcome.collectors.iter().map(Collector::result).collect();
    let lanes: Vec<_> = outcome
        .report
        .lanes
        .iter()
        .map(|lane| serde_json::json!({ "name": lane.name, "busy_share": lane.busy_share(), "bubble_share": 1.0 - lane.busy_share() }))
        .collect();
    serde_json::json!({
        "machine": identity.machine,
        "model": identity.model,
        "graph": identity.graph,
        "schedule": deployment.schedule.label,
        "duration_s": outcome.elapsed_s,
        "results": results,
        "lanes": lanes,
        "costs": outcome.report.costs.map(|costs| serde_json::json!({
            "row_us": costs.per_row * 1e6, "context_us": costs.per_context * 1e6,
        })),
        "interrupted": outcome.interrupted,
        "digest": digest.lines(),
        "stragglers": summary.stragglers(),
    })
}
