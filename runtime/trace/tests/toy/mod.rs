//! A toy deployment on virtual and on real lanes: stages without a model that take the time they are told to.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use rally_engine::figures::RunSample;
use rally_engine::schedule::batch::{DeviceBatch, SamplingParams, SequenceRequest, TokenDetail};
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::schedule::policy::{PingPong, Policy, Sequential};
use rally_engine::schedule::span::{CounterSample, LaneReport};
use rally_engine::schedule::virtual_lanes::{Arrival, VirtualCosts, VirtualRun};
use rally_engine::stage::{Probe, Sample, Stage, StageError, TaskContext};
use rally_engine::values::Values;
use rally_engine::{DeviceParts, Engine, EngineParts, Widths};
use rally_graph::kinds::{KindRegistry, Role};
use rally_graph::model::{LayerKind, ModelShape};
use rally_graph::plan::{Plan, TaskTable};
use rally_graph::spec::DeploymentSpec;
use rally_graph::stage_graph::StageGraph;
use rally_trace::Recording;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a run left behind.
pub struct Ran {
    pub graph: Arc<StageGraph>,
    pub plan: Arc<Plan>,
    pub planner: PlannerConfig,
    pub lanes: Vec<LaneReport>,
    pub counters: Vec<CounterSample>,
    /// What a real run said of itself at its end.
    pub figures: RunSample,
}

impl Ran {
    pub fn recording(&self) -> Recording<'_> {
        Recording::new(&self.plan, &self.lanes, &self.counters)
    }
}

/// A deployment: attention on `a`, FFN on `f`; the first layer dense, the others with routed experts.
#[derive(Clone, Copy, Debug)]
pub struct Toy {
    pub attention: usize,
    /// 0: the FFN runs where attention runs.
    pub ffn: usize,
    pub layers: usize,
    pub ping_pong: bool,
    pub micro_batches: usize,
    pub spans_per_lane: usize,
}

impl Toy {
    pub fn new(attention: usize, ffn: usize, layers: usize, ping_pong: bool, micro_batches: usize) -> Self {
        Self { attention, ffn, layers, ping_pong, micro_batches, spans_per_lane: 1 << 16 }
    }

    pub fn graph(&self) -> StageGraph {
        StageGraph::build(&self.spec(), &self.shape(), KindRegistry::shared()).expect("the toy graph unrolls")
    }

    fn spec(&self) -> DeploymentSpec {
        let cpus = |count: usize| json!({ "backend": "cpu", "count": count });
        let at = if self.ffn == 0 { "a" } else { "f" };
        let mut layers = vec![
            json!({ "kind": "mfa_attention", "on": "a" }),
            json!({ "kind": "router", "on": "a", "on_layers": "moe" }),
            json!({ "kind": "expert_ffn", "on": at, "on_layers": "moe" }),
            json!({ "kind": "dense_ffn", "on": at, "on_layers": "dense" }),
            json!({ "kind": "combine", "on": "a" }),
        ];
        let mut devices = json!({ "a": cpus(self.attention) });
        if self.ffn > 0 {
            devices["f"] = cpus(self.ffn);
            layers.insert(4, json!({ "kind": "transfer", "id": "f2a", "from": "f", "to": "a" }));
            layers.insert(2, json!({ "kind": "transfer", "id": "a2f", "from": "a", "to": "f" }));
        }
        serde_json::from_value(json!({
            "version": 1, "name": "toy", "model": "none", "devices": devices,
            "stages": [{ "kind": "embed", "on": "a" }, { "layers": layers }, { "kind": "sampling", "on": "a" }],
            "limits": { "sequences": 8, "rows_per_micro_batch": 8, "prefill_chunk": 4, "kv_tokens": 512, "page_tokens": 8 },
            "schedule": { "policy": "ping_pong", "micro_batches": 3 },
        }))
        .expect("the toy graph is well formed")
    }

    fn shape(&self) -> ModelShape {
        ModelShape {
            vocab: 23,
            experts: 8,
            ..ModelShape::toy(
                (0..self.layers).map(|l| if l == 0 { LayerKind::Dense } else { LayerKind::Moe }).collect(),
            )
        }
    }

    pub fn plan(&self, graph: &StageGraph) -> Plan {
        let table = TaskTable::new(graph);
        let policy: &dyn Policy = if self.ping_pong { &PingPong } else { &Sequential };
        let orders = policy.orders(&table, self.micro_batches);
        Plan::compile(table, self.micro_batches, &orders).expect("built-in policies make plans")
    }

    fn planner(&self) -> PlannerConfig {
        PlannerConfig {
            micro_batches: self.micro_batches,
            devices: self.attention,
            sequences: 64,
            sequences_per_device: 64,
            rows_per_device: 16,
            rows_per_micro_batch: 16 * self.attention,
            prefill_chunk: 4,
            pages_per_device: 1 << 12,
            page_tokens: 8,
            max_positions: 1 << 16,
        }
    }

    /// `requests`: when each comes, its prompt, and the tokens it asks for.
    pub fn virtually(&self, costs: &dyn VirtualCosts, requests: &[(u64, usize, usize)]) -> Ran {
        let graph = Arc::new(self.graph());
        let plan = Arc::new(self.plan(&graph));
        let attention = graph.devices_of_role(Role::Embed);
        let (planner, token) = (self.planner(), |_, _| 1);
        let run = VirtualRun { plan: &plan, planner, attention: &attention, costs, token: &token };
        let arrivals = requests.iter().enumerate().map(|(id, (at_ns, prompt, tokens))| Arrival {
            at_ns: *at_ns,
            request: request(id as u64, *prompt, *tokens),
        });
        let report = run.run(arrivals.collect()).expect("the requests fit");
        let lanes = report.lanes.into_iter().map(|lane| lane.report).collect();
        Ran { graph, plan, planner, lanes, counters: report.counters, figures: RunSample::default() }
    }

    /// `burn`: the nanoseconds that a stage's task takes, by stage id, device and layer.
    pub fn really(&self, burn: impl Fn(&str, usize, usize) -> u64 + Send + Sync + 'static, tokens: &[usize]) -> Ran {
        self.really_probed(burn, None, tokens)
    }

    /// As [`Toy::really`], with a probe on every task that has rows.
    pub fn really_probed(
        &self,
        burn: impl Fn(&str, usize, usize) -> u64 + Send + Sync + 'static,
        probe: Option<Arc<dyn Probe>>,
        tokens: &[usize],
    ) -> Ran {
        let (graph, burn) = (Arc::new(self.graph()), Arc::new(burn));
        let plan = Arc::new(self.plan(&graph));
        let mut devices: Vec<DeviceParts> = graph.devices.iter().map(|_| DeviceParts::default()).collect();
        for (index, stage) in graph.stages.iter().enumerate() {
            for device in &stage.devices {
                let (id, samples, burn) = (stage.id.clone(), stage.role == Role::Sampling, Arc::clone(&burn));
                let device_index = *device;
                let burn = Box::new(move |layer: usize| burn(&id, device_index, layer));
                devices[*device].stages.insert(index, Box::new(Burner { samples, burn }));
            }
        }
        let attention = graph.devices_of_role(Role::Embed);
        let (planner, widths) = (self.planner(), Widths { hidden: 4, top_k: 1 });
        let spans_per_lane = self.spans_per_lane;
        let (graph_of_run, plan_of_run) = (Arc::clone(&graph), Arc::clone(&plan));
        let parts = EngineParts {
            graph: graph_of_run,
            plan: plan_of_run,
            planner,
            widths,
            devices,
            attention,
            learn: false,
            spans_per_lane,
            probe,
            across: None,
        };
        let engine = Engine::start(parts).expect("threads can be had");
        let figures = engine.figures();
        let requests = tokens.iter().enumerate().map(|(id, tokens)| request(id as u64, 3, *tokens));
        let report = engine.run_to_end(requests, |_| ()).expect("nothing fails here");
        let figures = figures.sample();
        Ran { graph, plan, planner, lanes: report.lanes, counters: report.counters, figures }
    }
}

/// Keeps the core busy for so many nanoseconds.
fn keep_busy(ns: u64) {
    let (began, wanted) = (Instant::now(), Duration::from_nanos(ns));
    while began.elapsed() < wanted {
        std::hint::spin_loop();
    }
}

/// Makes sends and receives take longer than their encoding and decoding, by the nanoseconds that it says for a stage's id.
pub struct SlowWire<F>(pub F);

impl<F: Fn(&str) -> u64 + Send + Sync> Probe for SlowWire<F> {
    fn after(&self, stage: &str, _: Option<usize>, _: &DeviceBatch, _: &Values) {
        keep_busy((self.0)(stage));
    }
}

/// A stage that keeps its core busy.
struct Burner {
    samples: bool,
    burn: Box<dyn Fn(usize) -> u64 + Send>,
}

impl Stage for Burner {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        keep_busy((self.burn)(task.layer));
        for group in task.batch.groups.iter().filter(|group| self.samples && group.sample.is_some()) {
            task.samples.push(Sample { sequence: group.sequence, token: 1, logprobs: None, logits: None });
        }
        Ok(())
    }
}

fn request(id: u64, prompt: usize, tokens: usize) -> SequenceRequest {
    SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: vec![1; prompt].into(),
        max_new_tokens: tokens,
        stop_token_ids: Vec::new().into(),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}
