//! Virtual lanes are real lanes without the work: the same graph, plan and requests give the same tasks in the same order on
//! every lane, with the same rows in the same steps, and the same tokens counted. Over rails, copies of the FFN, copied experts
//! and split output projections as well.

use proptest::prelude::*;
use rally::engine::exchange::ExchangeSize;
use rally::engine::schedule::batch::{SamplingParams, SequenceId, SequenceRequest, TokenDetail};
use rally::engine::schedule::greedy::Greedy;
use rally::engine::schedule::planner::PlannerConfig;
use rally::engine::schedule::policy::{Custom, PingPong, Policy, Sequential};
use rally::engine::schedule::span::LaneReport;
use rally::engine::schedule::virtual_lanes::{Arrival, VirtualOptions, VirtualReport, VirtualRun, VirtualTask};
use rally::engine::stage::{Sample, Stage, StageError, TaskContext};
use rally::engine::{DeviceParts, Engine, EngineParts, RunEvent, RunReport, Widths};
use rally::graph::kinds::{KindRegistry, Role};
use rally::graph::model::{LayerKind, ModelShape};
use rally::graph::plan::{Plan, TaskTable};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::StageGraph;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const STOP: u32 = 7;

/// Tokens without a model: a function of the sequence and the index, now and then a stop.
fn token(sequence: SequenceId, index: u64) -> u32 {
    let mixed = (sequence * 1009 + index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 32) as u32 % 23
}

/// Most rows of a micro-batch on one device, for the exchanges.
const MOST_ROWS: usize = 64;

/// Samples by [`token`], and hands rows on where attention devices work on each other's; every other stage does nothing.
struct Toy {
    role: Role,
}

impl Stage for Toy {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        for group in task.batch.groups.iter().filter(|_| self.role == Role::Sampling) {
            if let Some(sample) = &group.sample {
                let token = token(group.sequence, sample.token_index);
                task.samples.push(Sample { sequence: group.sequence, token, logprobs: None, logits: None });
            }
        }
        for peer in (0..task.exchange.peers()).filter(|_| self.role == Role::Attention) {
            match task.exchange.part() {
                0 => task.exchange.send(peer, &[0.0; MOST_ROWS][..task.batch.rows])?,
                1 => task.exchange.send(peer, &[0.0; MOST_ROWS][..task.exchange.rows_from(peer)?])?,
                _ => assert_eq!(task.exchange.rows_from(peer)?, task.batch.rows),
            }
        }
        Ok(())
    }

    fn exchanges(&self) -> Vec<ExchangeSize> {
        vec![ExchangeSize { rows: MOST_ROWS, width: 1, own: true, stays: false }; 2]
    }
}

fn shape() -> ModelShape {
    ModelShape { vocab: 23, experts: 4, ..ModelShape::toy(vec![LayerKind::Dense, LayerKind::Moe, LayerKind::Moe]) }
}

/// Devices, and how rows and weights are divided over them.
#[derive(Clone, Debug)]
struct Places {
    /// Sizes of the attention groups.
    a: Vec<usize>,
    /// Sizes of the FFN groups; none: the FFN runs where attention runs, without a transfer.
    f: Vec<usize>,
    /// Experts, tensor, replicas.
    shard: [usize; 3],
    rail: bool,
    o_proj: usize,
    copies: bool,
}

fn graph(places: &Places) -> StageGraph {
    let names =
        |prefix: &str, sizes: &[usize]| -> Vec<String> { (0..sizes.len()).map(|i| format!("{prefix}{i}")).collect() };
    let (a, f) = (names("a", &places.a), names("f", &places.f));
    let groups = a.iter().zip(&places.a).chain(f.iter().zip(&places.f));
    let devices: serde_json::Map<String, serde_json::Value> =
        groups.map(|(name, count)| (name.clone(), json!({ "backend": "cpu", "count": count }))).collect();
    let routing = if places.rail { "rail" } else { "broadcast" };
    let transfer = |id: &str, from: &[String], to: &[String]| json!({ "kind": "transfer", "id": id, "from": from, "to": to, "routing": routing });
    let [experts, tensor, replicas] = places.shard;
    let shard = json!({ "experts": experts, "tensor": tensor, "replicas": replicas });
    let on = if f.is_empty() { &a } else { &f };
    let mut moe = json!({ "kind": "expert_ffn", "on": on, "on_layers": "moe", "shard": shard });
    if places.copies {
        let held = |shard: usize| if shard == 0 { vec![0] } else { vec![0, shard] };
        moe["placement"] = (0..experts).map(held).collect::<Vec<_>>().into();
    }
    let shard = json!({ "tensor": experts * tensor, "replicas": replicas });
    let ffns = [moe, json!({ "kind": "dense_ffn", "on": on, "on_layers": "dense", "shard": shard })];
    let mut layers = vec![json!({ "kind": "mfa_attention", "on": a, "shard": { "o_proj": places.o_proj } })];
    match f.is_empty() {
        true => layers.extend(ffns),
        false => {
            layers.push(transfer("a2f", &a, &f));
            layers.extend(ffns);
            layers.push(transfer("f2a", &f, &a));
        }
    }
    layers.push(json!({ "kind": "combine", "on": a }));
    let spec: DeploymentSpec = serde_json::from_value(json!({
        "version": 1, "name": "toy", "model": "none", "devices": devices,
        "stages": [{ "kind": "embed", "on": a }, { "layers": layers }, { "kind": "sampling", "on": a }],
        "limits": { "sequences": 8, "rows_per_micro_batch": 8, "prefill_chunk": 4, "kv_tokens": 512, "page_tokens": 8 },
        "schedule": { "policy": "ping_pong", "micro_batches": 3 },
    }))
    .expect("the toy graph is well formed");
    StageGraph::build(&spec, &shape(), KindRegistry::shared()).expect("the toy graph unrolls")
}

prop_compose! {
    fn apart()(
        a in prop::collection::vec(1usize..3, 1..3), devices in 1usize..5, which in 0usize..6, o_proj in 1usize..3, copies: bool,
    ) -> Places {
        let shard = match (which, devices) {
            (0, n) => [n, 1, 1],
            (1, n) => [1, n, 1],
            (2, n) => [1, 1, n],
            (3, 4) => [2, 1, 2],
            (4, 4) => [2, 2, 1],
            (_, n) => [n, 1, 1],
        };
        let o_proj = if a.iter().all(|size| size.is_multiple_of(o_proj)) { o_proj } else { 1 };
        Places { a, f: vec![devices], shard, rail: false, o_proj, copies }
    }
}

prop_compose! {
    fn rails()(size in 2usize..4, a in 1usize..3, which in 0usize..4, split: bool, copies: bool) -> Places {
        let (groups, shard) = match which {
            0 => (1, [size, 1, 1]),
            1 => (2, [2, size, 1]),
            2 => (2, [size, 1, 2]),
            _ => (2, [1, size, 2]),
        };
        let o_proj = if split { size } else { 1 };
        Places { a: vec![size; a], f: vec![size; groups], shard, rail: true, o_proj, copies }
    }
}

prop_compose! {
    fn together()(devices in 1usize..4, split: bool) -> Places {
        let o_proj = if split { devices } else { 1 };
        Places { a: vec![devices], f: vec![], shard: [1, 1, devices], rail: false, o_proj, copies: false }
    }
}

#[derive(Clone, Debug)]
struct Setup {
    places: Places,
    policy: usize,
    planner: PlannerConfig,
}

impl Setup {
    fn policy(&self) -> Box<dyn Policy> {
        let turns = |ids: &[&str]| -> Vec<String> {
            (0..self.planner.micro_batches).flat_map(|m| ids.iter().map(move |id| format!("{id}:{m}"))).collect()
        };
        match self.policy {
            0 => Box::new(Sequential),
            1 => Box::new(PingPong),
            2 => Box::new(Greedy::default()),
            // One side after the other, layer by layer: not what any other policy does.
            _ => {
                let Places { a, f, .. } = &self.places;
                let alone = ["mfa_attention", "expert_ffn", "dense_ffn", "combine"];
                let ids = if f.is_empty() { &alone[..] } else { &["mfa_attention", "combine"] };
                let a = (0..a.len()).map(|group| (format!("a{group}"), turns(ids)));
                let f = (0..f.len()).map(|group| (format!("f{group}"), turns(&["expert_ffn", "dense_ffn"])));
                Box::new(Custom { order: a.chain(f).collect() })
            }
        }
    }

    fn parts(&self, graph: Arc<StageGraph>, plan: Arc<Plan>) -> EngineParts {
        let mut devices: Vec<DeviceParts> = graph.devices.iter().map(|_| DeviceParts::default()).collect();
        for (index, stage) in graph.stages.iter().enumerate() {
            for device in &stage.devices {
                devices[*device].stages.insert(index, Box::new(Toy { role: stage.role }));
            }
        }
        let attention = graph.devices_of_role(Role::Embed);
        let (planner, widths) = (self.planner, Widths { hidden: 4, top_k: 1 });
        let (learn, spans_per_lane) = (false, 1 << 16);
        EngineParts {
            graph,
            plan,
            planner,
            widths,
            devices,
            attention,
            learn,
            spans_per_lane,
            probe: None,
            across: None,
        }
    }
}

fn request(id: u64, prompt: usize, tokens: usize) -> SequenceRequest {
    SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: vec![1; prompt].into(),
        max_new_tokens: tokens,
        stop_token_ids: vec![STOP].into(),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}

fn on_real_lanes(
    parts: EngineParts,
    requests: Vec<SequenceRequest>,
    reuse: bool,
) -> (RunReport, BTreeMap<u64, Vec<u32>>) {
    let mut tokens: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let engine = Engine::start(parts).expect("threads can be had");
    if reuse {
        engine.reuse_prefixes();
    }
    let report = engine.run_to_end(requests, |event| {
        if let RunEvent::Token(report) = event {
            tokens.entry(report.sample.sequence).or_default().push(report.sample.token);
        }
    });
    (report.expect("nothing fails here"), tokens)
}

fn on_virtual_lanes(parts: &EngineParts, requests: Vec<SequenceRequest>, reuse_prefixes: bool) -> VirtualReport {
    // Any durations give the same order: a lane's list is fixed. These differ by stage, so that lanes do wait.
    let costs =
        |task: &VirtualTask<'_>| 10 + 7 * (task.table.tasks[task.task].stage as u64 % 5) + task.load.rows as u64;
    let run = VirtualRun {
        plan: &parts.plan,
        planner: parts.planner,
        attention: &parts.attention,
        costs: &costs,
        token: &token,
    };
    let arrivals = requests.into_iter().map(|request| Arrival { at_ns: 0, request }).collect();
    let options = VirtualOptions { reuse_prefixes, ..VirtualOptions::default() };
    run.run_with(arrivals, options).expect("the requests fit")
}

/// Position, step and rows of every task that ran.
fn done(lane: &LaneReport) -> Vec<(u32, u64, u32)> {
    lane.spans.iter().map(|span| (span.position, span.step, span.rows)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn real_and_virtual_lanes_do_the_same(
        places in prop_oneof![2 => apart(), 2 => rails(), 1 => together()], policy in 0usize..4, micro_batches in 1usize..6,
        prefill_chunk in 1usize..6, rows in 1usize..6, sequences in 1usize..9, reuse: bool,
        asked in prop::collection::vec((1usize..20, 1usize..12), 1..16),
    ) {
        let attention = places.a.iter().sum();
        let graph = Arc::new(graph(&places));
        let planner = PlannerConfig {
            micro_batches, devices: attention, sequences, sequences_per_device: sequences, rows_per_device: rows,
            rows_per_micro_batch: rows * attention,
            prefill_chunk, pages_per_device: 1 << 10, page_tokens: 8, max_positions: 4096,
        };
        let setup = Setup { places, policy, planner };
        let table = TaskTable::new(&graph);
        let orders = setup.policy().checked_orders(&table, micro_batches).expect("the policies are right");
        let plan = Arc::new(Plan::compile(table, micro_batches, &orders).expect("and make plans"));
        let requests = || asked.iter().enumerate().map(|(id, (prompt, tokens))| request(id as u64, *prompt, *tokens)).collect();
        let parts = setup.parts(graph, plan);
        let virtual_report = on_virtual_lanes(&parts, requests(), reuse);
        let (real, tokens) = on_real_lanes(parts, requests(), reuse);
        prop_assert_eq!(real.lanes.len(), virtual_report.lanes.len());
        for (real, virtual_lane) in real.lanes.iter().zip(&virtual_report.lanes) {
            prop_assert_eq!(real.dropped_spans, 0);
            prop_assert_eq!(&real.name, &virtual_lane.report.name);
            prop_assert_eq!(done(real), done(&virtual_lane.report), "lane {}", real.name);
        }
        for (id, sequence) in &virtual_report.sequences {
            let counted: Vec<u32> = sequence.tokens.iter().map(|(token, _)| *token).collect();
            prop_assert_eq!(&counted, &tokens[id]);
        }
    }
}
