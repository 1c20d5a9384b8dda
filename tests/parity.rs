//! Virtual lanes are real lanes without the work: the same graph, plan and requests give the same tasks in the same order on
//! every lane, with the same rows in the same steps, and the same tokens counted.

use proptest::prelude::*;
use rally::engine::schedule::batch::{SamplingParams, SequenceId, SequenceRequest, TokenDetail};
use rally::engine::schedule::greedy::Greedy;
use rally::engine::schedule::planner::PlannerConfig;
use rally::engine::schedule::policy::{Custom, PingPong, Policy, Sequential};
use rally::engine::schedule::span::LaneReport;
use rally::engine::schedule::virtual_lanes::{Arrival, VirtualReport, VirtualRun, VirtualTask};
use rally::engine::stage::{Sample, Stage, StageError, TaskContext};
use rally::engine::{DeviceParts, Engine, EngineParts, RunEvent, RunReport, Widths};
use rally::graph::kinds::{KindRegistry, Role};
use rally::graph::model::{LayerKind, ModelShape, WeightFormat};
use rally::graph::plan::{Plan, TaskTable};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::StageGraph;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const LAYERS: usize = 3;
const STOP: u32 = 7;

/// Tokens without a model: a function of the sequence and the index, now and then a stop.
fn token(sequence: SequenceId, index: u64) -> u32 {
    let mixed = (sequence * 1009 + index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 32) as u32 % 23
}

/// Samples by [`token`]; every other stage does nothing.
struct Toy {
    samples: bool,
}

impl Stage for Toy {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        for group in task.batch.groups.iter().filter(|_| self.samples) {
            if let Some(sample) = &group.sample {
                let token = token(group.sequence, sample.token_index);
                task.samples.push(Sample { sequence: group.sequence, token, logprobs: None, logits: None });
            }
        }
        Ok(())
    }
}

fn shape() -> ModelShape {
    ModelShape {
        family: "toy".into(),
        hidden: 4,
        vocab: 23,
        heads: 1,
        head_dim: 2,
        query_rank: 1,
        dense_width: 1,
        expert_width: 1,
        shared_width: 1,
        experts: 1,
        top_k: 1,
        norm_expert_weight: false,
        layers: vec![LayerKind::Dense; LAYERS],
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_positions: 4096,
        tie_word_embeddings: false,
        eos_token_ids: Vec::new(),
        weight_format: WeightFormat::F32,
    }
}

/// `ffn` devices for the FFN; 0: it runs where attention runs.
fn graph(attention: usize, ffn: usize) -> StageGraph {
    let cpus = |count: usize| json!({ "backend": "cpu", "count": count });
    let transfer = |id: &str, from: &str, to: &str| json!({ "kind": "transfer", "id": id, "from": from, "to": to });
    let layers = match ffn {
        0 => json!([
            { "kind": "mfa_attention", "on": "a" }, { "kind": "dense_ffn", "on": "a" }, { "kind": "combine", "on": "a" },
        ]),
        _ => json!([
            { "kind": "mfa_attention", "on": "a" }, transfer("a2f", "a", "f"), { "kind": "dense_ffn", "on": "f" },
            transfer("f2a", "f", "a"), { "kind": "combine", "on": "a" },
        ]),
    };
    let devices =
        if ffn == 0 { json!({ "a": cpus(attention) }) } else { json!({ "a": cpus(attention), "f": cpus(ffn) }) };
    let spec: DeploymentSpec = serde_json::from_value(json!({
        "version": 1, "name": "toy", "model": "none", "devices": devices,
        "stages": [{ "kind": "embed", "on": "a" }, { "layers": layers }, { "kind": "sampling", "on": "a" }],
        "limits": { "sequences": 8, "rows_per_micro_batch": 8, "prefill_chunk": 4, "kv_tokens": 512, "page_tokens": 8 },
        "schedule": { "policy": "ping_pong", "micro_batches": 3 },
    }))
    .expect("the toy graph is well formed");
    StageGraph::build(&spec, &shape(), KindRegistry::shared()).expect("the toy graph unrolls")
}

#[derive(Clone, Debug)]
struct Setup {
    ffn: usize,
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
            _ if self.ffn > 0 => Box::new(Custom {
                order: [("a", turns(&["mfa_attention", "combine"])), ("f", turns(&["dense_ffn"]))]
                    .into_iter()
                    .map(|(key, turns)| (key.to_owned(), turns))
                    .collect(),
            }),
            _ => Box::new(Custom {
                order: [("a".to_owned(), turns(&["mfa_attention", "dense_ffn", "combine"]))].into_iter().collect(),
            }),
        }
    }

    fn parts(&self, graph: Arc<StageGraph>, plan: Arc<Plan>) -> EngineParts {
        let mut devices: Vec<DeviceParts> = graph.devices.iter().map(|_| DeviceParts::default()).collect();
        for (index, stage) in graph.stages.iter().enumerate() {
            for device in &stage.devices {
                devices[*device].stages.insert(index, Box::new(Toy { samples: stage.role == Role::Sampling }));
            }
        }
        let attention = graph.devices_of_role(Role::Embed);
        let (planner, widths) = (self.planner, Widths { hidden: 4, top_k: 1 });
        let (learn, spans_per_lane) = (false, 1 << 16);
        EngineParts { graph, plan, planner, widths, devices, attention, learn, spans_per_lane, probe: None }
    }
}

fn request(id: u64, prompt: usize, tokens: usize) -> SequenceRequest {
    SequenceRequest {
        id,
        prompt: vec![1; prompt].into(),
        max_new_tokens: tokens,
        stop_token_ids: vec![STOP].into(),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}

fn on_real_lanes(parts: EngineParts, requests: Vec<SequenceRequest>) -> (RunReport, BTreeMap<u64, Vec<u32>>) {
    let mut tokens: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let engine = Engine::start(parts).expect("threads can be had");
    let report = engine.run_to_end(requests, |event| {
        if let RunEvent::Token(report) = event {
            tokens.entry(report.sample.sequence).or_default().push(report.sample.token);
        }
    });
    (report.expect("nothing fails here"), tokens)
}

fn on_virtual_lanes(parts: &EngineParts, requests: Vec<SequenceRequest>) -> VirtualReport {
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
    run.run(requests.into_iter().map(|request| Arrival { at_ns: 0, request }).collect()).expect("the requests fit")
}

/// Position, step and rows of every task that ran.
fn done(lane: &LaneReport) -> Vec<(u32, u64, u32)> {
    lane.spans.iter().map(|span| (span.position, span.step, span.rows)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn real_and_virtual_lanes_do_the_same(
        attention in 1usize..4, ffn in 0usize..3, policy in 0usize..4, micro_batches in 1usize..6,
        prefill_chunk in 1usize..6, rows in 1usize..6, sequences in 1usize..9,
        asked in prop::collection::vec((1usize..20, 1usize..12), 1..16),
    ) {
        let planner = PlannerConfig {
            micro_batches, devices: attention, sequences, sequences_per_device: sequences, rows_per_device: rows,
            rows_per_micro_batch: rows * attention,
            prefill_chunk, pages_per_device: 1 << 10, page_tokens: 8, max_positions: 4096,
        };
        let setup = Setup { ffn, policy, planner };
        let graph = Arc::new(graph(attention, ffn));
        let table = TaskTable::new(&graph);
        let orders = setup.policy().checked_orders(&table, micro_batches).expect("the policies are right");
        let plan = Arc::new(Plan::compile(table, micro_batches, &orders).expect("and make plans"));
        let requests = || asked.iter().enumerate().map(|(id, (prompt, tokens))| request(id as u64, *prompt, *tokens)).collect();
        let parts = setup.parts(graph, plan);
        let virtual_report = on_virtual_lanes(&parts, requests());
        let (real, tokens) = on_real_lanes(parts, requests());
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
