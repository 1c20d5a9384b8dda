//! What `run` and its sisters start from: a deployment opened and checked, its faults reported, its weights loaded.

use crate::error::{Blame, CliError};
use crate::graph_file;
use crate::report;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rally_engine::EngineParts;
use rally_engine::schedule::policy::Schedule;
use rally_load::LoadLimits;
use rally_load::goodput::{Goal, GoalKind};
use rally_stages::checkpoint::WeightSource;
use rally_stages::deployment::{AssembleError, AssembleOptions, Choices, Deployment, GraphError};
#[cfg(feature = "cuda")]
use rally_stages::deployment::{Machines, launches_one_by_one};
use rally_stages::kinds::StageRegistry;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Arguments that choose a deployment.
#[derive(Clone, Debug, Args)]
pub struct SessionArgs {
    /// The graph file.
    pub graph: PathBuf,
    /// Model folder to use instead of the graph's.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Make every wire, KV cache and computation f32, whatever the graph says.
    #[arg(long)]
    pub exact: bool,
    /// Schedule to use instead of the graph's: `sequential`, `ping_pong`, `greedy` or `custom`, with `:N` for N micro-batches.
    #[arg(long, value_name = "POLICY[:N]")]
    pub schedule: Option<String>,
}

impl SessionArgs {
    /// What replaces or adds to the graph file.
    pub fn choices(&self) -> Choices<'_> {
        Choices {
            model: self.model.as_deref(),
            exact: self.exact,
            schedule: self.schedule.as_deref(),
            costs: None,
            kinds: None,
            machine: graph_file::this_machine(),
        }
    }
}

/// Opens the deployment; faults and warnings of the graph go to stderr as reports.
pub fn open(args: &SessionArgs) -> Result<Deployment, CliError> {
    match Deployment::open(&args.graph, &args.choices()) {
        Ok(deployment) => {
            report::print(&args.graph, deployment.positions.text(), &deployment.warnings);
            Ok(deployment)
        }
        Err(GraphError::Faulty(checked)) => {
            graph_file::report(&checked);
            Err(CliError::Reported)
        }
        Err(error) => Err(CliError::Mistake(error.to_string())),
    }
}

/// What a good request keeps: what was asked for, else the graph's `slo`.
pub fn goals(asked: &[Goal], deployment: &Deployment) -> Vec<Goal> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    deployment.spec.slo.iter().map(|slo| Goal { kind: GoalKind::Tpot, ms: slo.tpot_ms }).collect()
}

/// Longest sequence that a deployment takes.
pub fn load_limits(deployment: &Deployment) -> LoadLimits {
    let config = deployment.planner_config();
    let capacity = config.device_kv_tokens();
    // The last token is never fed back, so it needs no place in the cache.
    LoadLimits { total_tokens: config.max_positions.min(capacity.saturating_add(1)) }
}

/// Loads the weights and puts the run together, with a progress bar on a terminal.
pub fn assemble(deployment: &Deployment, options: AssembleOptions) -> Result<EngineParts, CliError> {
    assemble_with(deployment, &deployment.schedule, &*deployment.weights, options)
}

/// The same under another schedule, its weights taken from `weights`.
pub fn assemble_with(
    deployment: &Deployment,
    schedule: &Schedule,
    weights: &dyn WeightSource,
    options: AssembleOptions,
) -> Result<EngineParts, CliError> {
    #[cfg(feature = "cuda")]
    let options = AssembleOptions { machines: Machines::from_environment(), eager: launches_one_by_one(), ..options };
    let registry = StageRegistry::builtin();
    let build = || deployment.assemble_with(schedule, weights, &registry, options);
    let built = match deployment.progress() {
        Some((read, total)) if std::io::stderr().is_terminal() => with_bar(&read, total, build),
        _ => build(),
    };
    match built {
        Err(AssembleError::Plan(error)) => Err(error).or_failure(),
        other => other.or_mistake(),
    }
}

/// Shows `read` of `total` bytes while `work` runs.
fn with_bar<T>(read: &AtomicU64, total: u64, work: impl FnOnce() -> T) -> T {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("loading weights {bar:32} {bytes}/{total_bytes} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                // Matrices that are read twice can pass the size of the files.
                bar.set_position(read.load(Ordering::Relaxed).min(total));
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        // Set even if `work` panics: the scope waits for the thread above.
        let _over = SetOnDrop(&done);
        work()
    });
    bar.finish_and_clear();
    result
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
