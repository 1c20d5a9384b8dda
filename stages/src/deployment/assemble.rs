//! From an unrolled graph to the parts of a run: plan, load each device's weights, make its stages.

use super::devices::{self, Making};
use super::runnable::{refuse_exchanges_across_hosts, refuse_fields, refuse_ways};
use crate::checkpoint::WeightSource;
use crate::kinds::{self, StageRegistry};
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::schedule::policy::{Schedule, ScheduleError};
use rally_engine::stage::Probe;
use rally_engine::{EngineParts, Widths};
use rally_graph::kinds::Role;
use rally_graph::memory::pages_per_device;
use rally_graph::model::ModelShape;
use rally_graph::plan::TaskTable;
use rally_graph::spec::{ComputeDtype, DeploymentSpec, LayersBlock, Limits, StageEntry, StageSpec, WireDtype};
use rally_graph::stage_graph::StageGraph;
use std::sync::Arc;

/// Choices that are not in the graph file.
#[derive(Clone, Default)]
pub struct AssembleOptions {
    /// See [`EngineParts::learn`].
    pub learn: bool,
    /// Spans each lane keeps; 0: only sums.
    pub spans_per_lane: usize,
    /// Sees values after each task.
    pub probe: Option<Arc<dyn Probe>>,
    /// The host whose devices are made, an index into the graph's; needed where there are hosts.
    pub host: Option<usize>,
    /// What CUDA devices are.
    #[cfg(feature = "cuda")]
    pub machines: super::Machines,
    /// CUDA devices launch kernel by kernel, without CUDA graphs: to look for a fault, or to compare.
    #[cfg(feature = "cuda")]
    pub eager: bool,
}

/// Why a deployment cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The policy's orders are no plan.
    #[error(transparent)]
    Plan(#[from] ScheduleError),
    /// A stage cannot be made.
    #[error(transparent)]
    Stage(#[from] kinds::BuildError),
    /// A device cannot be had.
    #[error("device `{name}`: {message}")]
    Device {
        /// Its name in the graph.
        name: String,
        /// Why not, and what would help.
        message: String,
    },
    /// A graph that this version can check and plan but not run.
    #[error("{what} can be checked but not run by this version")]
    NotRunnable {
        /// What it is.
        what: String,
    },
}

/// Makes every wire, KV cache and computation f32, as `--exact` asks.
pub fn make_exact(spec: &mut DeploymentSpec) {
    spec.compute = ComputeDtype::F32;
    for stage in stages_mut(spec) {
        for dtype in [&mut stage.kv_dtype, &mut stage.dtype].into_iter().flatten() {
            *dtype = WireDtype::F32;
        }
    }
}

fn stages_mut(spec: &mut DeploymentSpec) -> impl Iterator<Item = &mut StageSpec> {
    spec.stages.iter_mut().flat_map(|entry| match entry {
        StageEntry::Stage(stage) => std::slice::from_mut(stage),
        StageEntry::Layers(LayersBlock { layers }) => layers.as_mut_slice(),
    })
}

/// The sizes each attention device keeps to: equal parts of the graph's limits, as the memory table counts them. Pages
/// are rounded down, since nothing else holds their sum to `kv_tokens`; sequences and rows are rounded up, and the
/// planner keeps their sums.
pub fn planner_config(limits: &Limits, attention: usize, micro_batches: usize, shape: &ModelShape) -> PlannerConfig {
    let sequences = limits.sequences as usize;
    PlannerConfig {
        micro_batches,
        devices: attention,
        sequences,
        sequences_per_device: sequences.div_ceil(attention),
        rows_per_device: (limits.rows_per_micro_batch as usize).div_ceil(attention),
        rows_per_micro_batch: limits.rows_per_micro_batch as usize,
        prefill_chunk: limits.prefill_chunk as usize,
        pages_per_device: u32::try_from(pages_per_device(limits, attention)).unwrap_or(u32::MAX),
        page_tokens: limits.page_tokens as usize,
        max_positions: shape.max_positions,
    }
}

/// Refuses what a valid graph can say and nothing here runs. `host`: the one that this is, in a graph with hosts.
///
/// # Errors
/// [`AssembleError`] that names what does not run.
pub fn refuse_what_does_not_run(
    spec: &DeploymentSpec,
    graph: &StageGraph,
    host: Option<usize>,
) -> Result<(), AssembleError> {
    refuse_fields(spec, host)?;
    refuse_ways(graph, &graph.devices_of_role(Role::Embed))?;
    refuse_exchanges_across_hosts(graph)
}

/// Puts a deployment together. `spec` must have been validated, and `graph` made from it.
pub fn assemble(
    spec: &DeploymentSpec,
    graph: impl Into<Arc<StageGraph>>,
    shape: &ModelShape,
    weights: &dyn WeightSource,
    schedule: &Schedule,
    registry: &StageRegistry,
    options: AssembleOptions,
) -> Result<EngineParts, AssembleError> {
    let graph = graph.into();
    refuse_what_does_not_run(spec, &graph, options.host)?;
    let plan = Arc::new(schedule.plan(TaskTable::new(&graph))?);
    let attention = graph.devices_of_role(Role::Embed);
    let planner = planner_config(&spec.limits, attention.len(), schedule.micro_batches, shape);
    let widths = Widths { hidden: shape.hidden, top_k: shape.top_k };
    let making = Making {
        graph: &graph,
        shape,
        weights,
        planner,
        widths,
        attention: attention.len(),
        registry,
        host: options.host,
        compute: spec.compute,
    };
    let opened = devices::open(spec, &making, &options)?;
    let devices =
        opened.into_iter().enumerate().map(|(device, on)| making.device(device, on)).collect::<Result<_, _>>()?;
    let AssembleOptions { learn, spans_per_lane, probe, .. } = options;
    Ok(EngineParts { graph, plan, planner, widths, devices, attention, learn, spans_per_lane, probe, across: None })
}
