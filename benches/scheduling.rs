//! What does scheduling cost? A plan of 1,098 empty tasks a step (61 layers × 3 micro-batches × 6) on real lanes, through
//! `dyn Stage`, with spans recorded: on one lane, and in ping-pong over two lanes that are pinned to a core each.
//!
//! `cargo bench --bench scheduling`. A stage does nothing, and a transfer moves one row of four numbers, so all that is left
//! is the lanes' own work. The figure of a task is the time from the end of the task before it on its lane to its own end:
//! clock reads, the span, checks, publishing, and **all waiting for the other lane**, as the other lane has nothing to do but
//! scheduling either. Nothing is subtracted. Between steps a micro-batch's sampling calls the step planner and sends events;
//! the task after a sampling carries that, so those are counted apart (`step`: 3 of 1,104 tasks) and the percentiles are
//! printed with and without them.

mod common;

use common::{cpu_model, request};
use crossbeam::utils::CachePadded;
use rally::engine::schedule::planner::PlannerConfig;
use rally::engine::schedule::policy::PingPong;
use rally::engine::schedule::policy::Policy;
use rally::engine::schedule::span::LaneReport;
use rally::engine::stage::{Sample, Stage, StageError, TaskContext};
use rally::engine::{DeviceParts, Engine, EngineParts, Widths};
use rally::graph::kinds::{KindRegistry, Role};
use rally::graph::model::{LayerKind, ModelShape};
use rally::graph::plan::{Plan, TaskTable};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::StageGraph;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const LAYERS: usize = 61;
const MICRO_BATCHES: usize = 3;
/// Steps of a run, and how many of the last are looked at: by then caches, page tables and the ring of spans are warm.
const STEPS: usize = 600;
const COUNTED_STEPS: usize = 300;
const RUNS: usize = 7;
const HIDDEN: usize = 4;

/// Samples a token where that is due; otherwise nothing.
struct Empty {
    samples: bool,
}

impl Stage for Empty {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        if self.samples {
            for group in task.batch.groups.iter().filter(|group| group.sample.is_some()) {
                task.samples.push(Sample { sequence: group.sequence, token: 1, logprobs: None, logits: None });
            }
        }
        Ok(())
    }
}

fn shape(kind: LayerKind) -> ModelShape {
    ModelShape { hidden: HIDDEN, vocab: 16, max_positions: 1 << 20, ..ModelShape::toy(vec![kind; LAYERS]) }
}

/// A layer is six tasks. On one lane: attention, router, send and receive of a transfer to itself, FFN, combine. On two:
/// attention, send, receive, FFN, send, receive.
fn graph(lanes: usize) -> StageGraph {
    let on = |kind: &str, on: &str| json!({ "kind": kind, "on": on });
    let transfer = |id: &str, from: &str, to: &str| json!({ "kind": "transfer", "id": id, "from": from, "to": to });
    let (kind, devices, layers): (LayerKind, Value, Value) = if lanes == 1 {
        let layers = json!([
            on("mfa_attention", "a"),
            on("router", "a"),
            transfer("a2f", "a", "a"),
            on("expert_ffn", "a"),
            on("combine", "a"),
        ]);
        (LayerKind::Moe, json!({ "a": { "backend": "cpu", "cores": [0] } }), layers)
    } else {
        let devices = json!({ "a": { "backend": "cpu", "cores": [0] }, "f": { "backend": "cpu", "cores": [1] } });
        let layers = json!([
            on("mfa_attention", "a"),
            transfer("a2f", "a", "f"),
            on("dense_ffn", "f"),
            transfer("f2a", "f", "a"),
        ]);
        (LayerKind::Dense, devices, layers)
    };
    let spec: DeploymentSpec = serde_json::from_value(json!({
        "version": 1, "name": "empty", "model": "none", "devices": devices,
        "stages": [on("embed", "a"), { "layers": layers }, on("sampling", "a")],
        "limits": { "sequences": 3, "rows_per_micro_batch": 4, "prefill_chunk": 4, "kv_tokens": 4096, "page_tokens": 64 },
        "schedule": { "policy": "ping_pong", "micro_batches": MICRO_BATCHES },
    }))
    .expect("the graph above is well formed");
    StageGraph::build(&spec, &shape(kind), KindRegistry::shared()).expect("the graph above unrolls")
}

fn parts(lanes: usize, record: bool) -> EngineParts {
    let graph = Arc::new(graph(lanes));
    let table = TaskTable::new(&graph);
    let orders = PingPong.orders(&table, MICRO_BATCHES);
    let plan = Arc::new(Plan::compile(table, MICRO_BATCHES, &orders).expect("ping-pong's orders are a plan"));
    let mut devices: Vec<DeviceParts> = graph.devices.iter().map(|_| DeviceParts::default()).collect();
    for (index, stage) in graph.stages.iter().enumerate() {
        for device in &stage.devices {
            devices[*device].stages.insert(index, Box::new(Empty { samples: stage.role == Role::Sampling }));
        }
    }
    let planner = PlannerConfig {
        micro_batches: MICRO_BATCHES,
        devices: 1,
        sequences: MICRO_BATCHES,
        sequences_per_device: MICRO_BATCHES,
        rows_per_device: 4,
        rows_per_micro_batch: 4,
        prefill_chunk: 4,
        pages_per_device: 64,
        page_tokens: 64,
        max_positions: 1 << 20,
    };
    let tasks = plan.lanes.iter().map(|lane| lane.tasks.len()).max().unwrap_or(0);
    let spans_per_lane = if record { COUNTED_STEPS * tasks } else { 0 };
    let attention = graph.devices_of_role(Role::Embed);
    let widths = Widths { hidden: HIDDEN, top_k: 1 };
    EngineParts {
        graph,
        plan,
        planner,
        widths,
        devices,
        attention,
        learn: false,
        spans_per_lane,
        probe: None,
        across: None,
    }
}

fn run(lanes: usize, record: bool) -> (Arc<Plan>, Vec<LaneReport>) {
    let parts = parts(lanes, record);
    let plan = Arc::clone(&parts.plan);
    let requests = (0..MICRO_BATCHES as u64).map(|id| request(id, 1, 16, STEPS));
    let engine = Engine::start(parts).expect("threads can be had");
    let report = engine.run_to_end(requests, |_| ()).expect("the run ends well");
    (plan, report.lanes)
}

/// How long it takes one core to see what another has written, one way, in ns: the least of some rounds of two threads that answer
/// each other through a cache line each. No handover between lanes is shorter, and a task that waits has one or two on its way.
fn handover_ns() -> f64 {
    const TURNS: u64 = 200_000;
    let sides: [CachePadded<AtomicU64>; 2] = Default::default();
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let pin = |side: usize| cores.get(side).is_some_and(|core| core_affinity::set_for_current(*core));
    let answer = |own: usize, turn: u64| {
        sides[own].store(turn, Ordering::Release);
        while sides[1 - own].load(Ordering::Acquire) < turn {
            std::hint::spin_loop();
        }
    };
    let round = || {
        sides.iter().for_each(|side| side.store(0, Ordering::Relaxed));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pin(1);
                for turn in 1..=TURNS {
                    while sides[0].load(Ordering::Acquire) < turn {
                        std::hint::spin_loop();
                    }
                    sides[1].store(turn, Ordering::Release);
                }
            });
            let there = scope.spawn(|| {
                pin(0);
                answer(0, 1);
                let start = Instant::now();
                (2..=TURNS).for_each(|turn| answer(0, turn));
                start.elapsed().as_nanos() as f64 / (2 * (TURNS - 1)) as f64
            });
            there.join().expect("it only counts")
        })
    };
    (0..5).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// Figures of one run, of the lane that has the larger ones, in ns.
#[derive(Clone, Copy, Default)]
struct Figures {
    mean: f64,
    p50: u64,
    p99: u64,
    p999: u64,
    /// The same percentile without tasks that follow a step's end.
    p999_inside: u64,
    /// Median of those that do.
    step: u64,
}

fn percentile(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)]
}

fn figures(plan: &Plan, reports: &[LaneReport]) -> Figures {
    let mut worst = Figures::default();
    for (lane, report) in plan.lanes.iter().zip(reports) {
        let ends_step = |position: u32| plan.table.exits.contains(&lane.tasks[position as usize].task);
        let gaps = report.spans.windows(2).map(|pair| (ends_step(pair[0].position), pair[1].end_ns - pair[0].end_ns));
        let (mut all, mut inside, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        for (after_step, gap) in gaps {
            all.push(gap);
            if after_step { steps.push(gap) } else { inside.push(gap) }
        }
        [&mut all, &mut inside, &mut steps].into_iter().for_each(|gaps| gaps.sort_unstable());
        worst.mean = worst.mean.max(all.iter().sum::<u64>() as f64 / all.len() as f64);
        worst.p50 = worst.p50.max(percentile(&all, 0.5));
        worst.p99 = worst.p99.max(percentile(&all, 0.99));
        worst.p999 = worst.p999.max(percentile(&all, 0.999));
        worst.p999_inside = worst.p999_inside.max(percentile(&inside, 0.999));
        if !steps.is_empty() {
            worst.step = worst.step.max(percentile(&steps, 0.5));
        }
    }
    worst
}

/// The median, and the best beside it where others use the machine as well.
fn spread<T: Copy + PartialOrd>(mut values: Vec<T>) -> (T, T) {
    values.sort_by(|a, b| a.partial_cmp(b).expect("times are numbers"));
    (values[values.len() / 2], values[0])
}

fn main() {
    println!("ns a task, median of {RUNS} runs of {COUNTED_STEPS} steps (best run), {}", cpu_model());
    println!("a bare handover from core to core: {:.0} ns", handover_ns());
    for (lanes, mean_bar_ns) in [(1, 100.0), (2, 300.0)] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let (plan, reports) = run(lanes, true);
            with.push(figures(&plan, &reports));
            let (_, reports) = run(lanes, false);
            without.push(reports.iter().map(|lane| lane.active_ns as f64 / lane.tasks as f64).fold(0.0, f64::max));
        }
        let of = |field: fn(&Figures) -> u64| spread(with.iter().map(field).collect());
        let show = |(median, best): (u64, u64)| format!("{median} ({best})");
        let (mean, best) = spread(with.iter().map(|figures| figures.mean).collect::<Vec<_>>());
        let (off, off_best) = spread(without);
        println!(
            "scheduling, {lanes} lane{}: mean {mean:.1} ({best:.1}), {:.2} of {mean_bar_ns} ns; p50 {}, p99 {}, p99.9 {}, \
             p99.9 inside a step {}; first task after a step's end {}; spans not kept: mean {off:.1} ({off_best:.1})",
            if lanes == 1 { "" } else { "s" },
            mean / mean_bar_ns,
            show(of(|figures| figures.p50)),
            show(of(|figures| figures.p99)),
            show(of(|figures| figures.p999)),
            show(of(|figures| figures.p999_inside)),
            show(of(|figures| figures.step)),
        );
    }
}
