//! Opening a deployment: a graph without faults, its schedule, its tokenizer, its weights.

use super::assemble::{self, AssembleError, AssembleOptions, planner_config};
use super::check::{Checked, Choices, check_graph, check_text};
use crate::checkpoint::{Checkpoint, CheckpointError, RandomWeights, WeightSource};
use crate::kinds::StageRegistry;
use crate::text::{TextCodec, TextError};
use rally_engine::EngineParts;
use rally_engine::schedule::costs::StageCosts;
use rally_engine::schedule::greedy::Greedy;
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::schedule::policy::{Schedule, ScheduleError};
use rally_graph::diagnostic::Diagnostic;
use rally_graph::kinds::{KindRegistry, Role};
use rally_graph::model::ModelShape;
use rally_graph::source::Positions;
use rally_graph::spec::{DeploymentSpec, ModelSource};
use rally_graph::stage_graph::{self, StageGraph};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Why a deployment could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The graph has faults.
    #[error("{}: {}", .0.path.display(), first_fault(.0))]
    Faulty(Box<Checked>),
    /// The graph does not unroll over this model.
    #[error(transparent)]
    Graph(#[from] stage_graph::BuildError),
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
    match checked.diagnostics.iter().find(|diagnostic| diagnostic.is_error()) {
        Some(first) => format!("line {}, column {}: {}", first.line, first.column, first.message),
        None => "no fault".into(),
    }
}

/// What `text` says, or else the graph.
fn schedule(spec: &DeploymentSpec, text: Option<&str>) -> Result<Schedule, ScheduleError> {
    match text {
        Some(text) => Schedule::parse(text, &spec.schedule),
        None => Schedule::from_spec(&spec.schedule),
    }
}

/// `schedule` with what `greedy` orders by: measured costs, else what the model's shapes say, for half a full micro-batch.
pub fn with_costs(
    mut schedule: Schedule,
    graph: &StageGraph,
    spec: &DeploymentSpec,
    shape: &ModelShape,
    kinds: &KindRegistry,
    measured: Option<&StageCosts>,
) -> Schedule {
    let rows = (spec.limits.rows_per_micro_batch as usize).div_ceil(2);
    schedule.order_by(|| {
        let measured = measured.cloned().unwrap_or_default();
        Greedy { costs: measured.or(StageCosts::of_shapes(graph, shape, kinds, rows)), rows }
    });
    schedule
}

/// A deployment that can be run.
pub struct Deployment {
    /// The graph.
    pub spec: DeploymentSpec,
    /// Shapes of the model, with the layers that the graph takes.
    pub shape: ModelShape,
    /// Layers of the whole model.
    pub model_layers: usize,
    /// Tokenizer, if the model has one.
    pub codec: Option<TextCodec>,
    /// The schedule.
    pub schedule: Schedule,
    /// Where weights come from.
    pub weights: Arc<dyn WeightSource>,
    /// The folder of the weights, or the rule that makes them.
    pub weights_source: String,
    schedule_text: Option<String>,
    graph: Arc<StageGraph>,
    /// The graph file's text and places, for reports.
    pub positions: Positions,
    /// Warnings about the graph.
    pub warnings: Vec<Diagnostic>,
    kinds: Option<KindRegistry>,
    progress: Option<(Arc<AtomicU64>, u64)>,
    checkpoint: Option<Arc<Checkpoint>>,
}

impl Deployment {
    /// Opens a graph file and its model; reads no weights yet.
    pub fn open(path: &Path, choices: &Choices<'_>) -> Result<Self, GraphError> {
        Self::from_checked(check_graph(path, choices), choices)
    }

    /// Opens a graph that is no file, `text`, as if it stood at `path`.
    pub fn open_text(path: &Path, text: &str, choices: &Choices<'_>) -> Result<Self, GraphError> {
        Self::from_checked(check_text(path, text.as_bytes(), choices), choices)
    }

    fn from_checked(checked: Checked, choices: &Choices<'_>) -> Result<Self, GraphError> {
        if !checked.is_good() {
            return Err(GraphError::Faulty(Box::new(checked)));
        }
        let (Some(spec), Some(shape)) = (checked.spec, checked.shape) else {
            unreachable!("a graph without faults has a spec and a model");
        };
        let schedule = schedule(&spec, choices.schedule)?;
        let kinds = choices.kinds.unwrap_or(KindRegistry::shared());
        let graph = Arc::new(StageGraph::build(&spec, &shape, kinds)?);
        let schedule = with_costs(schedule, &graph, &spec, &shape, kinds, choices.costs);
        let mut deployment = Self {
            graph,
            weights: Arc::new(RandomWeights::new(0, shape.weight_format)),
            weights_source: String::new(),
            schedule_text: choices.schedule.map(Into::into),
            spec,
            model_layers: checked.model_layers.unwrap_or(shape.layers.len()),
            shape,
            codec: None,
            schedule,
            positions: checked.positions,
            warnings: checked.diagnostics,
            kinds: choices.kinds.cloned(),
            progress: None,
            checkpoint: None,
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
                let checkpoint = Arc::new(Checkpoint::open(folder)?);
                self.progress = Some((checkpoint.bytes_read(), checkpoint.total_bytes()));
                self.weights = Arc::clone(&checkpoint) as Arc<dyn WeightSource>;
                self.checkpoint = Some(checkpoint);
                self.weights_source = folder.canonicalize().unwrap_or(folder.into()).display().to_string();
            }
            (None, ModelSource::Config(source)) => {
                self.weights = Arc::new(RandomWeights::parse(&source.weights, self.shape.weight_format)?);
                self.weights_source = source.weights.clone();
            }
            (None, ModelSource::Folder(_)) => unreachable!("a model folder was resolved with the graph"),
        }
        Ok(())
    }

    /// Bytes of weights read so far, and about how many there are; absent for weights made from a seed.
    pub fn progress(&self) -> Option<(Arc<AtomicU64>, u64)> {
        self.progress.clone()
    }

    /// The layers of the model that the graph takes, as it says; `None`: all.
    pub fn part(&self) -> Option<&str> {
        let ModelSource::Config(source) = &self.spec.model else { return None };
        source.layers.as_deref().filter(|_| self.shape.layers.len() < self.model_layers)
    }

    /// Which weights these are: deployments with the same id may share what they have read. (Weights made by a rule depend on
    /// the shapes as well.)
    pub fn weights_id(&self) -> String {
        format!("{} {:?}", self.weights_source, self.shape)
    }

    /// What tells these weights from others wherever they lie: shapes, and samples of the files' bytes or the rule that makes them.
    pub fn weights_fingerprint(&self) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = format!("{:?}", self.shape).into_bytes();
        match &self.checkpoint {
            Some(checkpoint) => bytes.extend(checkpoint.fingerprint()?),
            None => bytes.extend(self.weights_source.as_bytes()),
        }
        Ok(bytes)
    }

    /// The schedule that `text` names, or its own once more, for whoever runs the deployment several times. `greedy` orders by the
    /// model's shapes.
    pub fn schedule_as(&self, text: Option<&str>) -> Result<Schedule, GraphError> {
        let schedule = schedule(&self.spec, text.or(self.schedule_text.as_deref()))?;
        let kinds = self.kinds.as_ref().unwrap_or(KindRegistry::shared());
        Ok(with_costs(schedule, &self.graph, &self.spec, &self.shape, kinds, None))
    }

    /// The stage graph, unrolled over the model's layers.
    pub fn stage_graph(&self) -> &StageGraph {
        &self.graph
    }

    /// Sizes the step planner keeps to.
    pub fn planner_config(&self) -> PlannerConfig {
        let attention = self.graph.devices_of_role(Role::Embed).len();
        planner_config(&self.spec.limits, attention, self.schedule.micro_batches, &self.shape)
    }

    /// Loads the weights and makes the stages.
    pub fn assemble(&self, stages: &StageRegistry, options: AssembleOptions) -> Result<EngineParts, AssembleError> {
        self.assemble_with(&self.schedule, &*self.weights, stages, options)
    }

    /// The same under another schedule, its weights taken from `weights`, which must be those of the same model.
    pub fn assemble_with(
        &self,
        schedule: &Schedule,
        weights: &dyn WeightSource,
        stages: &StageRegistry,
        options: AssembleOptions,
    ) -> Result<EngineParts, AssembleError> {
        assemble::assemble(&self.spec, Arc::clone(&self.graph), &self.shape, weights, schedule, stages, options)
    }
}
