//! A layout on virtual lanes: the graph that would be written, its plan and the step planner of a run, with durations from the same
//! efficiencies as the pipeline's.
//!
//! The pipeline lets seven resources work side by side. A plan's lanes do not: a lane stands still while the rows of its own exchange
//! are on the fabric, layers differ, embedding, head and sampling have their turn, tasks are launched and messages have a latency.
//! [`Simulator::terms`] says what each of these takes.

use crate::calibration::Calibration;
use crate::graph;
use crate::pipeline::{Fabric, Layout, Outcome, Workload};
use rally_cost::model::{Attention, Ffn};
use rally_cost::price::usd_per_mtok;
use rally_cost::{Hardware, Model, SpecError};
use rally_graph::kinds::{KindRegistry, Role};
use rally_graph::memory::pages_per_device;
use rally_graph::model::{LayerKind, ModelShape, WeightFormat};
use rally_graph::plan::TaskTable;
use rally_graph::spec::{DeploymentSpec, Limits};
use rally_graph::stage_graph::{BuildError, StageGraph};
use rally_load::statistics::percentile;
use rally_load::{Load, LoadRequest};
use rally_predict::durations::Durations;
use rally_predict::experts::ExpertLoad;
use rally_predict::fold::fold;
use rally_predict::measured::StageTimes;
use rally_predict::roofline::{Efficiency, Machines, Roofline};
use rally_predict::{PredictError, Prediction, Setting};
use rally_schedule::planner::PlannerConfig;
use rally_schedule::policy::{Schedule, ScheduleError};
use rally_schedule::virtual_lanes::{Fold, Transit, VirtualTask};

/// Steps that decode, and how many of them the pipeline has to fill.
const STEPS: usize = 5;
const FILLING: usize = 2;

/// Devices up to which each has a lane of its own where they do not all do the same.
const MOST_LANES: u32 = 64;

/// Why a layout has no simulation.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// A spec lacks a figure.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The layout is no graph.
    #[error("the layout's graph: {0}")]
    Graph(#[from] serde_json::Error),
    /// It does not unroll.
    #[error("the layout's graph: {0}")]
    Build(#[from] BuildError),
    /// Its lanes have no order.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Its load cannot run.
    #[error(transparent)]
    Predict(#[from] PredictError),
}

/// What virtual lanes make of a layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulated {
    /// Policy and micro-batches.
    pub schedule: String,
    /// Sequences under way.
    pub batch: f64,
    /// Median time per token once the pipeline is full.
    pub tpot_s: f64,
    /// Tokens a second of the deployment.
    pub tokens_per_s: f64,
    /// USD an hour of the accelerators used.
    pub usd_per_hour: f64,
    /// Accelerators.
    pub devices: u32,
    /// Share of that time in which attention's busiest lane works, and the FFN's.
    pub busy: [f64; 2],
}

impl Simulated {
    /// USD per million tokens.
    pub fn usd_per_mtok(&self) -> f64 {
        usd_per_mtok(self.usd_per_hour, self.tokens_per_s)
    }

    /// Tokens a second and accelerator.
    pub fn tgs(&self) -> f64 {
        self.tokens_per_s / f64::from(self.devices)
    }
}

/// What a simulation counts beside the layers' work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Embedding, head and sampling.
    pub ends: bool,
    /// Launches, and latencies between hosts, as `rally predict` has them unless told otherwise.
    pub overheads: bool,
}

impl Counted {
    /// Everything.
    pub const ALL: Self = Self { ends: true, overheads: true };
}

/// Why virtual lanes take longer than the pipeline, in seconds a token. The terms add up to the difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// The pipeline, all of its resources side by side.
    pub pipeline: f64,
    /// Lanes stand still while rows of their own exchanges are on the fabric.
    pub fabric: f64,
    /// The plan's order, layers that are not alike, scales and routing beside the rows, uneven shards.
    pub plan: f64,
    /// Embedding, head and sampling, once a micro-batch.
    pub ends: f64,
    /// Launches and latencies.
    pub overheads: f64,
}

impl Terms {
    /// What virtual lanes take.
    pub fn simulated(&self) -> f64 {
        self.pipeline + self.fabric + self.plan + self.ends + self.overheads
    }
}

/// Puts layouts of one workload on virtual lanes.
#[derive(Clone, Debug)]
pub struct Simulator<'a> {
    workload: &'a Workload,
    shape: ModelShape,
}

impl<'a> Simulator<'a> {
    /// `None` for models whose attention rally has no stage for.
    pub fn new(workload: &'a Workload) -> Option<Self> {
        Some(Self { workload, shape: shape(&workload.model)? })
    }

    /// `layout` with `rows` rows a micro-batch, in the order of `policy`.
    ///
    /// # Errors
    /// [`SimulateError`] where it is no graph that runs, or its specs lack a figure.
    pub fn run(
        &self,
        on: (&Hardware, &Hardware),
        layout: &Layout,
        rows: f64,
        policy: &str,
        counted: Counted,
    ) -> Result<Simulated, SimulateError> {
        let outcome = Outcome::of(self.workload, on, layout, rows)?;
        let spec = graph::deployment(self.workload, on, &outcome, policy, "config.json", 1.0);
        let mut spec: DeploymentSpec = serde_json::from_value(spec)?;
        let folds = self.workload.contexts.len() == 1 || layout.total_devices() > MOST_LANES;
        let requests = self.requests(outcome.batch as usize, folds);
        spec.limits = limits(&requests, layout, rows);
        let graph = StageGraph::build(&spec, &self.shape, KindRegistry::shared())?;
        let experts = ExpertLoad::Natural;
        let attention = graph.devices_of_role(Role::Embed);
        let hardware: Vec<Hardware> = (0..graph.devices.len())
            .map(|device| if attention.contains(&device) { on.0 } else { on.1 }.clone())
            .collect();
        let efficiency: Vec<Efficiency> =
            hardware.iter().map(|hardware| self.efficiency(hardware, counted.overheads)).collect();
        let measured: Vec<Option<&'static StageTimes>> =
            hardware.iter().map(|hardware| self.workload.measured.of(&hardware.name)).collect();
        let schedule = Schedule::from_spec(&spec.schedule)?;
        let simulation = Simulation {
            spec: &spec,
            graph: &graph,
            shape: &self.shape,
            schedule: &schedule,
            hardware: &hardware,
            efficiency: &efficiency,
            measured: &measured,
            experts: &experts,
            attention: &attention,
            counted,
        };
        let load = Load { requests, max_concurrency: None };
        // One of all devices that do the same, where they do.
        let alike = match folds {
            true => fold(&spec, &graph, &self.shape, &experts),
            false => Fold::none(graph.devices.len()),
        };
        let found = match simulation.run(&load, &alike) {
            Err(SimulateError::Predict(PredictError::Uneven(_))) if layout.total_devices() <= MOST_LANES => {
                simulation.run(&load, &Fold::none(graph.devices.len()))?
            }
            found => found?,
        };
        let tpot_s = found.tpot_s;
        Ok(Simulated {
            schedule: schedule.label.clone(),
            batch: outcome.batch,
            tpot_s,
            tokens_per_s: outcome.batch / tpot_s,
            usd_per_hour: outcome.usd_per_hour,
            devices: layout.total_devices(),
            busy: found.busy,
        })
    }

    /// The difference between pipeline and virtual lanes for `layout` under ping-pong, term by term.
    ///
    /// # Errors
    /// As [`Simulator::run`].
    pub fn terms(&self, on: (&Hardware, &Hardware), layout: &Layout, rows: f64) -> Result<Terms, SimulateError> {
        let pipeline = |fabric: Fabric| {
            let workload = Workload { fabric, ..self.workload.clone() };
            Outcome::of(&workload, on, layout, rows).map(|outcome| outcome.tpot_s)
        };
        let lanes = |ends: bool, overheads: bool| {
            self.run(on, layout, rows, "ping_pong", Counted { ends, overheads }).map(|simulated| simulated.tpot_s)
        };
        let (hidden, on_lanes) = (pipeline(Fabric::Hidden)?, pipeline(Fabric::OnLanes)?);
        let (bare, with_ends, all) = (lanes(false, false)?, lanes(true, false)?, lanes(true, true)?);
        Ok(Terms {
            pipeline: hidden,
            fabric: on_lanes - hidden,
            plan: bare - on_lanes,
            ends: with_ends - bare,
            overheads: all - with_ends,
        })
    }

    fn efficiency(&self, hardware: &Hardware, overheads: bool) -> Efficiency {
        let Calibration { efficiency, layer_s } = Calibration::of(hardware);
        let usual = Efficiency::default();
        let (launch_s, latency_s) = if overheads { (usual.launch_s, usual.latency_s) } else { (0.0, 0.0) };
        let (memory, compute, network) = (efficiency, efficiency, self.workload.link_share);
        Efficiency { memory, compute, network, launch_s, latency_s, attention_s: layer_s, multicast: false }
    }

    /// Sequences whose contexts are spread as the workload's, in no order; or all `alike`, at their mean.
    fn requests(&self, count: usize, alike: bool) -> Vec<LoadRequest> {
        let shares: f64 = self.workload.contexts.iter().map(|(_, share)| share).sum();
        let context = |index: usize| {
            if alike {
                return self.workload.mean_context().round() as u64;
            }
            // Golden-ratio steps: every stretch of sequences has about the same mix.
            let mut at = (index as f64 * 0.618_033_988_749_895).fract() * shares;
            let found = self.workload.contexts.iter().find(|(_, share)| {
                at -= share;
                at < 0.0
            });
            found.or(self.workload.contexts.last()).map_or(1, |(tokens, _)| *tokens)
        };
        // The middle of the steps that count has the context that was asked for.
        let read = |tokens: u64| (tokens as usize).saturating_sub((STEPS + FILLING) / 2).max(1);
        let request =
            |index| LoadRequest { arrival_s: 0.0, prompt_tokens: read(context(index)), output_tokens: STEPS + 1 };
        (0..count).map(request).collect()
    }
}

/// Room for all sequences at once, their prompts read in one step: only decoding counts here.
fn limits(requests: &[LoadRequest], layout: &Layout, rows: f64) -> Limits {
    const PAGE: u64 = 64;
    let longest = requests.iter().map(|request| request.prompt_tokens).max().unwrap_or(1) as u64;
    let own = (rows / f64::from(layout.attention * layout.devices)).ceil() as u64;
    let most = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Limits {
        sequences: requests.len() as u32,
        rows_per_micro_batch: most(rows as u64 * longest),
        prefill_chunk: most(own * longest),
        kv_tokens: 2 * requests.len() as u64 * (longest + PAGE + STEPS as u64),
        page_tokens: PAGE as u32,
    }
}

/// One run on virtual lanes.
struct Simulation<'a> {
    spec: &'a DeploymentSpec,
    graph: &'a StageGraph,
    shape: &'a ModelShape,
    schedule: &'a Schedule,
    hardware: &'a [Hardware],
    efficiency: &'a [Efficiency],
    measured: &'a [Option<&'static StageTimes>],
    experts: &'a ExpertLoad,
    attention: &'a [usize],
    counted: Counted,
}

/// What came of it.
struct Steady {
    tpot_s: f64,
    busy: [f64; 2],
}

impl Simulation<'_> {
    fn run(&self, load: &Load, fold: &Fold) -> Result<Steady, SimulateError> {
        let Self { spec, graph, shape, schedule, hardware, efficiency, measured, experts, attention, counted } = *self;
        let plan = schedule.plan(TaskTable::of_devices(graph, |device| fold.runs(device)))?;
        // The search's arithmetic has attention and experts alone.
        let machines = Machines { hardware, spec, efficiency, measured, all_stages: false };
        let roofline = Roofline::new(machines, graph, &plan.table, shape, experts, fold)?;
        let durations = Counting { roofline: &roofline, ends: counted.ends };
        let setting = Setting {
            plan: &plan,
            planner: planner(&spec.limits, attention.len(), schedule.micro_batches, shape),
            attention,
            load,
            durations: &durations,
            jitter: 0.0,
            seed: 0,
            fold,
            keeps_spans: true,
            learns: false,
            cores: None,
            pretend_read: 0,
        };
        let prediction = setting.predict()?;
        let lanes = plan.lanes.iter().map(|lane| attention.contains(&lane.device));
        Ok(steady(&prediction, &lanes.collect::<Vec<_>>()))
    }
}

/// Of the steps in which the pipeline is full. `attends`: by lane.
fn steady(prediction: &Prediction, attends: &[bool]) -> Steady {
    let steps = (STEPS - FILLING) as f64;
    let each = prediction.timings.iter().filter(|timing| timing.token_s.len() > STEPS);
    let (begun, ended): (Vec<f64>, Vec<f64>) =
        each.map(|timing| (timing.token_s[FILLING], timing.token_s[STEPS])).unzip();
    let mut times: Vec<f64> = begun.iter().zip(&ended).map(|(begun, ended)| (ended - begun) / steps).collect();
    times.sort_by(f64::total_cmp);
    let tpot_s = percentile(&times, 50.0).unwrap_or(f64::INFINITY);
    let from = begun.iter().copied().fold(0.0, f64::max) * 1e9;
    let to = ended.iter().copied().fold(f64::INFINITY, f64::min) * 1e9;
    let mut busy = [0.0; 2];
    for (lane, attends) in prediction.report.lanes.iter().zip(attends) {
        let inside =
            |span: &rally_schedule::span::Span| (span.end_ns as f64).min(to) - (span.start_ns as f64).max(from);
        let work: f64 = lane.report.spans.iter().map(inside).filter(|ns| *ns > 0.0).sum();
        let busiest = &mut busy[usize::from(!attends)];
        *busiest = f64::max(*busiest, work / (to - from));
    }
    Steady { tpot_s, busy }
}

/// Durations with or without the ends of a step.
struct Counting<'a> {
    roofline: &'a Roofline<'a>,
    ends: bool,
}

impl Durations for Counting<'_> {
    fn task_s(&self, task: &VirtualTask<'_>) -> f64 {
        match self.ends || task.table.tasks[task.task].layer.is_some() {
            true => self.roofline.task_s(task),
            false => 0.0,
        }
    }

    fn plan_s(&self, exit: &VirtualTask<'_>) -> f64 {
        self.roofline.plan_s(exit)
    }

    fn transit(&self, task: &VirtualTask<'_>) -> Option<Transit> {
        self.roofline.transit(task)
    }
}

/// Equal parts of `limits` for every attention device, as a run has them.
fn planner(limits: &Limits, devices: usize, micro_batches: usize, shape: &ModelShape) -> PlannerConfig {
    let (sequences, rows) = (limits.sequences as usize, limits.rows_per_micro_batch as usize);
    PlannerConfig {
        micro_batches,
        devices,
        sequences,
        sequences_per_device: sequences.div_ceil(devices),
        rows_per_device: rows.div_ceil(devices),
        rows_per_micro_batch: rows,
        prefill_chunk: limits.prefill_chunk as usize,
        pages_per_device: u32::try_from(pages_per_device(limits, devices)).unwrap_or(u32::MAX),
        page_tokens: limits.page_tokens as usize,
        max_positions: shape.max_positions,
    }
}

/// The shape that a graph unrolls over, with 8-bit weights, dense layers first: where they stand changes no time per token worth
/// naming.
pub(crate) fn shape(model: &Model) -> Option<ModelShape> {
    let mut layers = Vec::new();
    let (mut heads, mut dense_width, mut moe) = (None, 1, (1, 1, 1, 1));
    for kind in &model.layers {
        let Attention::Grouped { query_heads, kv_heads: 1, head_dim, query_rank: Some(rank), window: None } =
            kind.attention
        else {
            return None;
        };
        // All layers attend alike.
        if *heads.get_or_insert((query_heads, head_dim, rank)) != (query_heads, head_dim, rank) {
            return None;
        }
        let layer = match kind.ffn {
            Ffn::Dense { width } => {
                dense_width = width;
                LayerKind::Dense
            }
            Ffn::Moe { experts, top_k, expert_width, shared_width } => {
                moe = (experts, top_k, expert_width, shared_width);
                LayerKind::Moe
            }
        };
        layers.extend(std::iter::repeat_n(layer, kind.count as usize));
    }
    layers.sort_by_key(|layer| *layer == LayerKind::Moe);
    let ((heads, head_dim, query_rank), (experts, top_k, expert_width, shared_width)) = (heads?, moe);
    let size = |value: u64| value as usize;
    Some(ModelShape {
        family: "step3".into(),
        hidden: size(model.hidden),
        vocab: size(model.vocab),
        heads: size(heads),
        head_dim: size(head_dim),
        query_rank: size(query_rank),
        dense_width: size(dense_width),
        expert_width: size(expert_width),
        shared_width: size(shared_width),
        experts: size(experts),
        top_k: size(top_k),
        max_positions: 1 << 31,
        tie_word_embeddings: model.tied,
        weight_format: WeightFormat::Fp8Block,
        ..ModelShape::toy(layers)
    })
}
