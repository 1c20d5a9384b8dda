//! `rally profile`: the time of every stage over a grid of what it depends on, as the cost table that predictions read.
//!
//! Stages are timed in turn on the real lanes, in the plan's order, on rows that are the same in every step (`rehearsal.rs` of the
//! engine): so the table says what a stage takes in a run, with what lanes take from each other (memory bandwidth, caches) in it.
//! Spans of CUDA lanes are the card's times, by events; of a part of a model, caches are swept between steps, and devices that share a
//! card may take turns.
//! What the host does between two steps is timed in a short run of its own (`host.rs`).

mod grid;
mod host;
mod store;
mod workload;

use crate::error::{Blame, CliError};
use crate::identity::{GraphIdentity, ModelIdentity};
use crate::machine::Machine;
use crate::output::{FilesInUse, OutputFile, print};
use crate::session::{self, SessionArgs};
use crate::table::Table;
use crate::{Format, interrupt};
use clap::Args;
use crossbeam::channel::Receiver;
use grid::{Axes, Bounds, Subject, Walk};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rally_engine::EngineParts;
use rally_engine::rehearsal::{Effort, rehearse};
use rally_engine::schedule::cost_table::{CostAxis, CostPart, CostPoint, CostTable, StageCost, VERSION};
use rally_engine::schedule::virtual_lanes::NearBy;
use rally_engine::span::LaneReport;
use rally_graph::kinds::Role;
use rally_graph::plan::Plan;
use rally_graph::shard::ShardCounts;
use rally_graph::stage_graph::{DeviceIndex, StageGraph, StageIndex};
use rally_load::statistics::{mean, percentile};
use rally_stages::deployment::{AssembleOptions, Deployment};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::{Found, Identity, Store};
use workload::{Choices, ForcedRouter};

/// Arguments of `rally profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Write the cost table here. A run that was interrupted goes on where it stopped.
    #[arg(long, value_name = "F.json")]
    out: PathBuf,
    /// Rows of a task; powers of two up to the graph's limits if not given.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    rows: Vec<u32>,
    /// Positions each row attends to; powers of two up to the cache and the model's positions, each in the middle of a page, if not
    /// given.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    contexts: Vec<u32>,
    /// Experts hit; from those of one row, doubled, up to all if not given.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    experts: Vec<u32>,
    /// Milliseconds that all stages in turn are repeated for, for each number of rows and context or experts: more for less
    /// spread.
    #[arg(long, value_name = "MS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    point_ms: u64,
    /// Let CUDA devices take turns, task by task: devices that share a card are then timed as if each had one of its own. For shards
    /// of a large deployment on one card.
    #[arg(long)]
    in_turn: bool,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Whatever the graph's schedule: two micro-batches that alternate show a stage both where its weights come from afar and where another
/// micro-batch has just used them.
const SCHEDULE: &str = "ping_pong:2";
/// Steps of a walk at least, whatever they take: a mean and a spread need some samples.
const LEAST_STEPS: u64 = 8;
/// And at most: more would only fill memory.
const MOST_STEPS: u64 = 500;
/// Steps that do not count: caches fill, and lanes find their pace.
const WARM_UP: u64 = 2;
/// What takes this many times the median was interrupted: it says nothing of the stage how long the system looked elsewhere.
const INTERRUPTED: f64 = 3.0;

/// Runs the command.
pub fn run(args: &ProfileArgs) -> Result<ExitCode, CliError> {
    let deployment = session::open(&args.session)?;
    let mut bounds = Bounds::of(&deployment);
    let axes = axes(args, &bounds);
    let (graph, model) = (&args.session.graph, &deployment.weights_source);
    FilesInUse::new(graph, model).writes("--out", Some(&args.out)).check()?;
    let file = OutputFile::create(&args.out)?;
    let machine = Machine::with([&deployment.spec]);
    let identity = identity_of(args, &deployment, &machine, &axes);
    let (graph_json, model_json) = (identity.graph.clone(), identity.model.clone());
    let (store, found) = Store::open(&args.out, identity)?;
    let interrupts = interrupt::channel()?;
    let options =
        AssembleOptions { learn: true, spans_per_lane: spans_of_a_walk(&deployment), ..AssembleOptions::default() };
    let schedule = deployment.schedule_as(Some(SCHEDULE)).or_mistake()?;
    let mut parts = session::assemble_with(&deployment, &schedule, &*deployment.weights, options)?;
    bounds.planner = parts.planner;
    let graph = Arc::clone(&parts.graph);
    let subjects = grid::subjects(&graph, &bounds, &axes);
    refuse_empty(&subjects, &graph)?;
    let walks = bounds.walks(&axes, &subjects);
    match found {
        Found::Same => eprintln!("going on with {} points that an earlier run measured", store.count()),
        Found::Other => {
            eprintln!("what an earlier run left is of another machine, model, graph or grid: starting over")
        }
        Found::Nothing => {}
    }
    interrupt::begin_work();
    let forced = force_routers(&mut parts);
    // A few layers stay in caches that the whole model's would have passed through.
    let cold = deployment.part().is_some();
    let bar = bar(walks.len());
    let mut profile = Profile { store, bounds, graph, args, interrupts, bar, subjects: subjects.into(), forced, cold };
    if profile.all(&walks, &mut parts)? {
        profile.store.write()?;
        eprintln!("{} points are kept: the same command goes on from there", profile.store.count());
        return Err(CliError::Interrupted);
    }
    host::measure(parts, &axes.rows, |cost, point| profile.store.add(cost, point))?;
    let machine_json = json!(machine);
    let mut table =
        CostTable { version: VERSION, machine: machine_json, model: model_json, graph: graph_json, stages: Vec::new() };
    profile.store.finish(|stages| {
        table.stages = stages;
        let text = table.to_json();
        file.finish(|out| writeln!(out, "{text}"))
    })?;
    report(args, &machine, &table)
}

/// A stage without any point would be missing from the table without a word.
fn refuse_empty(subjects: &[Subject], graph: &StageGraph) -> Result<(), CliError> {
    match subjects.iter().find(|subject| subject.points.is_empty()) {
        None => Ok(()),
        Some(empty) => Err(CliError::Mistake(format!(
            "stage `{}` can have none of these points under the graph's limits: ask for fewer rows, less context, or other \
             numbers of experts",
            graph.stages[empty.stage].id
        ))),
    }
}

fn axes(args: &ProfileArgs, bounds: &Bounds<'_>) -> Axes {
    let default = bounds.default_axes();
    let chosen = |given: &[u32], default: Vec<usize>| {
        if given.is_empty() {
            return default;
        }
        let mut values: Vec<usize> = given.iter().map(|value| *value as usize).collect();
        values.sort_unstable();
        values.dedup();
        values
    };
    Axes {
        rows: chosen(&args.rows, default.rows),
        contexts: chosen(&args.contexts, default.contexts),
        experts: chosen(&args.experts, default.experts),
    }
}

/// Points may be used again on the same processor, by the same program, of the same model and graph.
fn identity_of(args: &ProfileArgs, deployment: &Deployment, machine: &Machine, axes: &Axes) -> Identity {
    let Machine { cpu, cores, simd, cuda, rally, profile, .. } = machine;
    Identity {
        machine: json!({ "cpu": cpu, "cores": cores, "simd": simd, "cuda": cuda, "rally": rally, "profile": profile }),
        model: json!(ModelIdentity::of(deployment)),
        graph: json!(GraphIdentity::of(deployment, &args.session.graph)),
        axes: axes.clone(),
        point_ms: args.point_ms,
        in_turn: args.in_turn,
    }
}

/// Room for everything that a lane does in a walk.
fn spans_of_a_walk(deployment: &Deployment) -> usize {
    // A layer has at most some ten tasks on a lane for each of the two micro-batches.
    let tasks = 10 * (deployment.shape.layers.len() + 1) * 2;
    (tasks * MOST_STEPS as usize).min(1 << 20)
}

/// What a device's rows choose, by device.
type Forced = HashMap<DeviceIndex, Arc<Mutex<Choices>>>;

/// Ways in which rows choose the same number of experts, taking turns.
const DRAWS: u64 = 7;

/// Puts every router under control.
fn force_routers(parts: &mut EngineParts) -> Forced {
    let (mut forced, graph) = (Forced::new(), Arc::clone(&parts.graph));
    for (device, parts) in parts.devices.iter_mut().enumerate() {
        let routes = |index: StageIndex| graph.stages[index].role == Role::Router;
        let routers: Vec<_> = parts.stages.keys().copied().filter(|index| routes(*index)).collect();
        for index in routers {
            if let Some(inner) = parts.stages.remove(&index) {
                let (router, ids) = ForcedRouter::new(inner);
                parts.stages.insert(index, Box::new(router));
                forced.insert(device, ids);
            }
        }
    }
    forced
}

struct Profile<'a> {
    store: Store,
    bounds: Bounds<'a>,
    graph: Arc<StageGraph>,
    args: &'a ProfileArgs,
    interrupts: Receiver<()>,
    bar: ProgressBar,
    subjects: Arc<[Subject]>,
    forced: Forced,
    /// Whether devices of few layers begin every cycle with nothing in their caches.
    cold: bool,
}

/// Whose times these are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SampleKey {
    stage: StageIndex,
    device: DeviceIndex,
    part: &'static str,
    warm: bool,
    rows: usize,
}

impl Profile<'_> {
    /// Walks that are missing. Returns whether Ctrl-C came.
    fn all(&mut self, walks: &[Walk], parts: &mut EngineParts) -> Result<bool, CliError> {
        let done = self.store.walks().min(walks.len());
        self.bar.inc(done as u64);
        if done < walks.len() {
            self.fill(walks, parts)?;
        }
        for walk in &walks[done..] {
            if self.interrupts.try_recv().is_ok() {
                self.bar.finish_and_clear();
                return Ok(true);
            }
            self.bar.set_message(format!("{} rows, context {}", walk.asked, walk.context));
            tracing::info!(rows = walk.asked, context = walk.context, "timing");
            self.walk(walk, parts)?;
            self.store.walked()?;
            self.bar.inc(1);
        }
        self.bar.finish_and_clear();
        Ok(false)
    }

    /// Writes to the KV pages that the walks read.
    fn fill(&self, walks: &[Walk], parts: &mut EngineParts) -> Result<(), CliError> {
        let mut all = true;
        for (index, stage) in parts.devices.iter_mut().flat_map(|device| &mut device.stages) {
            if self.graph.stages[*index].role == Role::Attention {
                all &= stage.pretend().or_failure()?;
            }
        }
        if all {
            return Ok(());
        }
        let planner = self.bounds.planner;
        let pages = |walk: &Walk| {
            let sequences = (planner.micro_batches * walk.rows[0]).min(planner.sequences_per_device);
            sequences * walk.context.div_ceil(planner.page_tokens)
        };
        let most = walks.iter().map(pages).max().unwrap_or(0);
        for turn in workload::fill(most, &planner) {
            rehearse(parts, turn, Effort { least: 1, time: Duration::ZERO, most: 1, cold: false, in_turn: false })
                .or_failure()?;
        }
        Ok(())
    }

    fn walk(&mut self, walk: &Walk, parts: &mut EngineParts) -> Result<(), CliError> {
        self.route(walk, &parts.attention);
        let batches = workload::batches(walk, &self.bounds.planner, self.bounds.shape.vocab);
        let time = Duration::from_millis(self.args.point_ms);
        let reports = rehearse(
            parts,
            batches,
            Effort { least: LEAST_STEPS, time, most: MOST_STEPS, cold: self.cold, in_turn: self.args.in_turn },
        )
        .or_failure()?;
        let mut samples = samples(&parts.plan, &reports, self.cold);
        let subjects = Arc::clone(&self.subjects);
        for (index, subject) in subjects.iter().enumerate() {
            let along = match (subject.axis, walk.routed) {
                (CostAxis::None, _) => 0,
                (CostAxis::Context, _) => walk.context,
                (CostAxis::Experts, Some((routed, hit))) if routed == index => hit,
                (CostAxis::Experts, _) => continue,
            };
            if !subject.points.contains(&(walk.asked, along)) {
                continue;
            }
            for part in CostPart::ALL {
                let counts = if subject.gathers.has(part) { walk.gathered } else { walk.own };
                // A transfer is looked up on the device that it leaves, and its other end may be anywhere.
                let keys: Vec<SampleKey> = samples
                    .keys()
                    .filter(|key| {
                        let anywhere = matches!(part, CostPart::Receive | CostPart::Exchange);
                        let here = key.device == subject.device || anywhere;
                        key.stage == subject.stage && key.part == part.name() && here && counts
                    })
                    .copied()
                    .collect();
                for key in keys {
                    let seconds = samples.remove(&key).unwrap_or_default();
                    self.keep(subject, part, key, along, seconds);
                }
            }
        }
        Ok(())
    }

    /// Sets what the routers find.
    fn route(&self, walk: &Walk, attention: &[DeviceIndex]) {
        let top_k = self.bounds.shape.top_k;
        let all: usize = walk.rows.iter().sum();
        let ids = |(index, hit): (usize, usize)| -> Vec<Vec<u32>> {
            let subject = &self.subjects[index];
            (1..=DRAWS).map(|draw| workload::routing(subject, all, hit, self.bounds.shape, draw)).collect()
        };
        let draws = walk.routed.map(ids).unwrap_or_default();
        for (device, forced) in &self.forced {
            // A router on a device that holds no sequences sees everyone's rows.
            let place = attention.iter().position(|other| other == device);
            let first: usize = place.map_or(0, |place| walk.rows[..place].iter().sum());
            let own = |ids: &Vec<u32>| ids.get(first * top_k..).unwrap_or_default().to_vec();
            forced.lock().unwrap_or_else(PoisonError::into_inner).set(draws.iter().map(own).collect());
        }
    }

    /// Adds a point, unless an earlier walk came by it.
    fn keep(&mut self, subject: &Subject, part: CostPart, key: SampleKey, along: usize, seconds: Vec<f64>) {
        let (stage, device) = (&self.graph.stages[subject.stage], &self.graph.devices[subject.device].name);
        if seconds.is_empty() {
            return;
        }
        let (experts, shape) = (subject.experts.len(), self.bounds.shape);
        let cost = StageCost {
            stage: stage.id.clone(),
            kind: stage.kind.clone(),
            part,
            device: device.clone(),
            warm: key.warm,
            axis: subject.axis,
            experts,
            routed_share: if experts > 0 { shape.top_k as f64 / shape.experts as f64 } else { 0.0 },
            width: match ShardCounts::of(stage.spec.shard.as_ref()).o_proj {
                slices if slices > 1 => (shape.heads * shape.head_dim).div_ceil(slices),
                _ if experts > 0 => stage.expert_columns(subject.device, shape.expert_width),
                _ => 0,
            },
            shared: experts > 0 && stage.has_shared_expert(subject.device),
            // Rows arrive on other devices than they leave.
            sms: self.graph.devices[key.device].sms.unwrap_or_default(),
            kv_dtype: (stage.role == Role::Attention).then(|| stage.spec.kv_dtype.unwrap_or_default()),
            points: Vec::new(),
        };
        self.store.add(cost, summarise(key.rows, along, seconds));
    }
}

/// Seconds of every task that counts.
/// Of a part of a model (`of_part`), a stage's first layer does not count where it has others: what is done once a step is done there, such as
/// dividing attention's pages on the host before the card has anything to do, and it would count for every layer of the whole.
fn samples(plan: &Plan, reports: &[LaneReport], of_part: bool) -> BTreeMap<SampleKey, Vec<f64>> {
    let mut samples: BTreeMap<SampleKey, Vec<f64>> = BTreeMap::new();
    let mut layers: HashMap<StageIndex, (usize, usize)> = HashMap::new();
    for task in &plan.table.tasks {
        if let Some(layer) = task.layer {
            let known = layers.entry(task.stage).or_insert((layer, layer));
            *known = (known.0.min(layer), known.1.max(layer));
        }
    }
    let is_left_out = |stage: StageIndex, layer: Option<usize>| {
        let others = layers.get(&stage).is_some_and(|(first, last)| first < last && layer == Some(*first));
        of_part && others
    };
    for (lane, report) in plan.lanes.iter().zip(reports) {
        let first = report.spans.iter().map(|span| span.step).min().unwrap_or(0);
        let mut near_by = NearBy::default();
        for span in &report.spans {
            let id = lane.tasks[span.position as usize].task;
            let (task, warm) = (&plan.table.tasks[id], near_by.begin(&plan.table, id));
            let part = CostPart::of(task);
            let (rows, part) = (span.rows as usize, part.name());
            let key = SampleKey { stage: task.stage, device: lane.device, part, warm, rows };
            if span.step < first + WARM_UP || is_left_out(task.stage, task.layer) {
                continue;
            }
            samples.entry(key).or_default().push((span.end_ns - span.start_ns) as f64 * 1e-9);
        }
    }
    samples
}

fn summarise(rows: usize, along: usize, mut seconds: Vec<f64>) -> CostPoint {
    seconds.sort_by(f64::total_cmp);
    // Tenths of nanoseconds: what a file gives back exactly, and finer than any clock.
    let told = |seconds: Option<f64>| (seconds.unwrap_or(0.0) * 1e10).round() / 1e10;
    let mean_s = mean(&seconds);
    let (p10, p90) = (percentile(&seconds, 10.0), percentile(&seconds, 90.0));
    let longest = INTERRUPTED * percentile(&seconds, 50.0).unwrap_or(0.0);
    seconds.iter_mut().for_each(|seconds| *seconds = seconds.min(longest));
    CostPoint {
        rows,
        along,
        seconds: told(mean(&seconds)),
        mean_s: told(mean_s),
        p10_s: told(p10),
        p90_s: told(p90),
        samples: seconds.len(),
    }
}

/// Shows walks on a terminal, and nothing elsewhere.
fn bar(walks: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(walks as u64), ProgressDrawTarget::stderr_with_hz(5));
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} {eta}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// The smallest and the largest point of every stage.
fn report(args: &ProfileArgs, machine: &Machine, table: &CostTable) -> Result<ExitCode, CliError> {
    let text = match args.format {
        Format::Json => format!("{}\n", serde_json::to_string(table).or_failure()?),
        Format::Text => {
            let mut lines =
                Table::new(&["stage", "part", "device", "points", "smallest", "µs", "largest", "µs (p10–p90)"]);
            for stage in &table.stages {
                let (first, last) = (stage.points[0], stage.points[stage.points.len() - 1]);
                let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
                lines.row(&[
                    &stage.stage,
                    &format!("{}{}", stage.part.name(), if stage.warm { ", warm" } else { "" }),
                    &stage.device,
                    &stage.points.len().to_string(),
                    &place(stage, first),
                    &us(first.seconds),
                    &place(stage, last),
                    &format!("{} ({}–{})", us(last.seconds), us(last.p10_s), us(last.p90_s)),
                ]);
            }
            format!("{machine}\n\n{lines}")
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn place(stage: &StageCost, point: CostPoint) -> String {
    match stage.axis {
        CostAxis::None => format!("{} rows", point.rows),
        CostAxis::Context => format!("{} rows, context {}", point.rows, point.along),
        CostAxis::Experts => format!("{} rows, {} experts", point.rows, point.along),
    }
}
