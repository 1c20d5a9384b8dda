//! Opening a deployment: read the graph file, check it against the model it names, choose a schedule, open the weights.

use super::assemble::{self, AssembleError, AssembleOptions, make_exact, planner_config};
use crate::checkpoint::{Checkpoint, CheckpointError, RandomWeights, WeightSource};
use crate::config::{ConfigError, load_model_shape};
use crate::kinds::StageRegistry;
use crate::text::{TextCodec, TextError};
use rally_engine::EngineParts;
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::schedule::policy::{Schedule, ScheduleError};
use rally_graph::diagnostic::Diagnostic;
use rally_graph::hardware::Machine;
use rally_graph::kinds::KindRegistry;
use rally_graph::model::ModelShape;
use rally_graph::parse::parse_graph;
use rally_graph::spec::{DeploymentSpec, ModelSource};
use rally_graph::validate::{Validation, validate};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What replaces or adds to what the graph file says.
#[derive(Clone, Copy, Default)]
pub struct Choices<'a> {
    /// Model folder instead of the graph's.
    pub model: Option<&'a Path>,
    /// Every wire, KV cache and computation f32.
    pub exact: bool,
    /// Schedule instead of the graph's, as `POLICY[:N]`.
    pub schedule: Option<&'a str>,
    /// Kinds the graph may use; the built-in ones if absent.
    pub kinds: Option<&'a KindRegistry>,
    /// What the graph is held against: cores and memory of this machine.
    pub machine: Machine,
}

/// A graph file after all checks.
#[derive(Debug)]
pub struct Checked {
    /// The file.
    pub path: PathBuf,
    /// Its contents, for reports that show the place of a fault.
    pub source: Vec<u8>,
    /// The deployment, if it could be read at all; it may still have faults of meaning.
    pub spec: Option<DeploymentSpec>,
    /// The model, if it could be found.
    pub shape: Option<ModelShape>,
    /// Folder of the weights, unless they are made from a seed.
    pub model_folder: Option<PathBuf>,
    /// Everything there is to say, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// Why the model could not be found.
    pub model_error: Option<ConfigError>,
}

impl Checked {
    /// Whether nothing stands against running it.
    pub fn is_ok(&self) -> bool {
        self.model_error.is_none() && !self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Why a deployment could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The graph file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The graph has faults.
    #[error("{}: {}", .0.path.display(), first_fault(.0))]
    Faulty(Box<Checked>),
    /// The schedule cannot be had.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The weights cannot be opened.
    #[error(transparent)]
    Weights(#[from] CheckpointError),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Text(#[from] TextError),
}

fn first_fault(checked: &Checked) -> String {
    if let Some(error) = &checked.model_error {
        return error.to_string();
    }
    match checked.diagnostics.iter().find(|diagnostic| diagnostic.is_error()) {
        Some(first) => format!("line {}, column {}: {}", first.line, first.column, first.message),
        None => "no fault".into(),
    }
}

/// Reads and checks a graph file. `model` replaces the graph's.
pub fn check_graph(path: &Path, choices: &Choices<'_>) -> Result<Checked, GraphError> {
    let unreadable = |source| GraphError::Unreadable { path: path.into(), source };
    let source = std::fs::read(path).map_err(unreadable)?;
    let registry = choices.kinds.unwrap_or(KindRegistry::shared());
    let parsed = parse_graph(&source, registry);
    let mut checked = Checked {
        path: path.into(),
        source,
        spec: parsed.spec,
        shape: None,
        model_folder: None,
        diagnostics: parsed.diagnostics,
        model_error: None,
    };
    let Some(spec) = &mut checked.spec else { return Ok(checked) };
    if choices.exact {
        make_exact(spec);
    }
    let base = path.parent().unwrap_or(Path::new(""));
    let (config, folder) = match (choices.model, &spec.model) {
        (Some(folder), _) => (folder.to_owned(), Some(folder.to_owned())),
        (None, ModelSource::Folder(folder)) => (base.join(folder), Some(base.join(folder))),
        (None, ModelSource::Config(source)) => (base.join(&source.config), None),
    };
    checked.model_folder = folder;
    match load_model_shape(&config) {
        Ok(shape) => checked.shape = Some(shape),
        Err(error) => checked.model_error = Some(error),
    }
    let (shape, machine) = (checked.shape.as_ref(), choices.machine);
    let input = Validation { spec, positions: &parsed.positions, registry, shape, machine };
    checked.diagnostics.extend(validate(&input));
    Ok(checked)
}

/// A deployment that can be run.
pub struct Deployment {
    /// The graph.
    pub spec: DeploymentSpec,
    /// Shapes of the model.
    pub shape: ModelShape,
    /// Tokenizer, if the model has one.
    pub codec: Option<TextCodec>,
    /// The schedule.
    pub schedule: Schedule,
    /// Where weights come from.
    pub weights: Box<dyn WeightSource>,
    /// The graph file's contents, for reports.
    pub source: Vec<u8>,
    /// Warnings about the graph.
    pub warnings: Vec<Diagnostic>,
    kinds: Option<KindRegistry>,
    progress: Option<(Arc<AtomicU64>, u64)>,
}

impl Deployment {
    /// Opens a graph file and its model; reads no weights yet.
    pub fn open(path: &Path, choices: &Choices<'_>) -> Result<Self, GraphError> {
        let checked = check_graph(path, choices)?;
        if !checked.is_ok() {
            return Err(GraphError::Faulty(Box::new(checked)));
        }
        let (Some(spec), Some(shape)) = (checked.spec, checked.shape) else {
            unreachable!("a graph without faults has a spec and a model");
        };
        let schedule = match choices.schedule {
            Some(text) => Schedule::parse(text, &spec.schedule)?,
            None => Schedule::from_spec(&spec.schedule)?,
        };
        let mut deployment = Self {
            weights: Box::new(RandomWeights::new(0, shape.weight_format)),
            spec,
            shape,
            codec: None,
            schedule,
            source: checked.source,
            warnings: checked.diagnostics,
            kinds: choices.kinds.cloned(),
            progress: None,
        };
        deployment.open_model(checked.model_folder.as_deref())?;
        Ok(deployment)
    }

    fn open_model(&mut self, folder: Option<&Path>) -> Result<(), GraphError> {
        match (folder, &self.spec.model) {
            (Some(folder), _) => {
                self.codec = TextCodec::load(folder)?;
                if let Some(codec) = &self.codec {
                    codec.check_vocab(self.shape.vocab)?;
                }
                let checkpoint = Checkpoint::open(folder)?;
                self.progress = Some((checkpoint.bytes_read(), checkpoint.total_bytes()));
                self.weights = Box::new(checkpoint);
            }
            (None, ModelSource::Config(source)) => {
                self.weights = Box::new(RandomWeights::parse(&source.weights, self.shape.weight_format)?);
            }
            (None, ModelSource::Folder(_)) => unreachable!("a model folder was resolved with the graph"),
        }
        Ok(())
    }

    /// Bytes of weights read so far, and about how many there are; absent for weights made from a seed.
    pub fn progress(&self) -> Option<(Arc<AtomicU64>, u64)> {
        self.progress.clone()
    }

    /// Sizes the step planner keeps to.
    pub fn planner_config(&self) -> Result<PlannerConfig, AssembleError> {
        let graph = self.stage_graph()?;
        let attention = graph.devices_of_role(rally_graph::kinds::Role::Embed).len();
        Ok(planner_config(&self.spec.limits, attention, self.schedule.micro_batches, &self.shape))
    }

    fn stage_graph(&self) -> Result<rally_graph::stage_graph::StageGraph, AssembleError> {
        let kinds = self.kinds.as_ref().unwrap_or(KindRegistry::shared());
        Ok(rally_graph::stage_graph::StageGraph::build(&self.spec, &self.shape, kinds)?)
    }

    /// Loads the weights and makes the stages.
    pub fn assemble(&self, stages: &StageRegistry, options: AssembleOptions) -> Result<EngineParts, AssembleError> {
        let graph = self.stage_graph()?;
        assemble::assemble(&self.spec, graph, &self.shape, &*self.weights, &self.schedule, stages, options)
    }
}
