//! What `run` and its sisters start from: a checked graph, its model, its tokenizer, its schedule.

use crate::error::{Blame, CliError};
use crate::graph_file;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rally_engine::EngineParts;
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::schedule::policy::Schedule;
use rally_graph::model::ModelShape;
use rally_graph::spec::{DeploymentSpec, ModelSource};
use rally_graph::stage_graph::expand_devices;
use rally_stages::checkpoint::{Checkpoint, RandomWeights, WeightSource};
use rally_stages::deployment::{self, AssembleError, AssembleOptions};
use rally_stages::kinds::StageRegistry;
use rally_stages::text::TextCodec;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// Schedule to use instead of the graph's: `sequential` or `ping_pong`, with `:N` for N micro-batches.
    #[arg(long, value_name = "POLICY[:N]")]
    pub schedule: Option<String>,
}

enum Weights {
    Checkpoint(Checkpoint),
    Random(RandomWeights),
}

/// A deployment that can be assembled.
pub struct Session {
    /// The graph, `--exact` and `--model` applied.
    pub spec: DeploymentSpec,
    /// Shapes of the model.
    pub shape: ModelShape,
    /// Tokenizer, if the model has one.
    pub codec: Option<TextCodec>,
    /// Schedule, `--schedule` applied.
    pub schedule: Schedule,
    weights: Weights,
}

impl Session {
    /// Opens and checks everything but the weights.
    pub fn open(args: &SessionArgs) -> Result<Self, CliError> {
        let opened = graph_file::open(&args.graph, args.model.as_deref())?;
        let (mut spec, shape) = (opened.spec, opened.shape);
        if args.exact {
            deployment::make_exact(&mut spec);
        }
        let schedule = match &args.schedule {
            Some(text) => Schedule::parse(text, &spec.schedule),
            None => Schedule::from_spec(&spec.schedule),
        };
        let schedule = schedule.or_mistake()?;
        let (weights, codec) = match (&spec.model, &opened.model_folder) {
            (ModelSource::Config(source), None) => {
                (Weights::Random(RandomWeights::parse(&source.weights, shape.weight_format).or_mistake()?), None)
            }
            (_, Some(folder)) => {
                let codec = TextCodec::load(folder).or_mistake()?;
                if let Some(codec) = &codec {
                    codec.check_vocab(shape.vocab).or_mistake()?;
                }
                (Weights::Checkpoint(Checkpoint::open(folder).or_mistake()?), codec)
            }
            (ModelSource::Folder(_), None) => {
                return Err(CliError::Failure("a model folder was not resolved".into()));
            }
        };
        Ok(Self { spec, shape, codec, schedule, weights })
    }

    /// Sizes the step planner will keep to.
    pub fn planner_config(&self) -> PlannerConfig {
        let attention = self.attention_devices();
        deployment::planner_config(&self.spec.limits, attention, self.schedule.micro_batches, &self.shape)
    }

    fn attention_devices(&self) -> usize {
        let devices = expand_devices(&self.spec);
        let embed = self.spec.stages.iter().find_map(|entry| match entry {
            rally_graph::spec::StageEntry::Stage(stage) if stage.kind == "embed" => stage.on.as_ref(),
            _ => None,
        });
        let names = embed.map_or(&[][..], |on| on.names());
        devices.iter().filter(|device| names.contains(&device.name) || names.contains(&device.group)).count().max(1)
    }

    /// Loads the weights and puts the run together, with a progress bar on a terminal.
    pub fn assemble(&self, options: AssembleOptions) -> Result<EngineParts, CliError> {
        let (source, progress): (&dyn WeightSource, _) = match &self.weights {
            Weights::Checkpoint(checkpoint) => (checkpoint, Some((checkpoint.bytes_read(), checkpoint.total_bytes()))),
            Weights::Random(random) => (random, None),
        };
        let registry = StageRegistry::builtin();
        let build = || deployment::assemble(&self.spec, &self.shape, source, &self.schedule, &registry, options);
        let built = match progress {
            Some((read, total)) if std::io::stderr().is_terminal() => with_bar(&read, total, build),
            _ => build(),
        };
        built.map_err(|error| match error {
            AssembleError::Plan(error) => CliError::Failure(error.to_string()),
            error => CliError::Mistake(error.to_string()),
        })
    }
}

/// Shows `read` of `total` bytes while `work` runs.
fn with_bar<T>(read: &Arc<AtomicU64>, total: u64, work: impl FnOnce() -> T) -> T {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("loading weights {bar:32} {bytes}/{total_bytes} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let done = std::sync::atomic::AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                // Tied or twice-read matrices can pass the size of the files.
                bar.set_position(read.load(Ordering::Relaxed).min(total));
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        let result = work();
        done.store(true, Ordering::Release);
        result
    });
    bar.finish_and_clear();
    result
}
