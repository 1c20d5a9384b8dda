//! A toy model for real lanes: small integers instead of a model, so that every fault shows as a wrong token.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use rally_engine::schedule::batch::{GroupInput, SamplingParams, SequenceRequest, TokenDetail};
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::schedule::policy::{PingPong, Policy, Sequential};
use rally_engine::stage::{Sample, Stage, StageError, TaskContext};
use rally_engine::{DeviceParts, EngineParts, Widths};
use rally_graph::kinds::{KindRegistry, Role};
use rally_graph::model::{LayerKind, ModelShape};
use rally_graph::plan::{Plan, TaskTable};
use rally_graph::spec::DeploymentSpec;
use rally_graph::stage_graph::StageGraph;
use std::sync::Arc;

const LAYERS: usize = 3;
const HIDDEN: usize = 4;

/// What the toy model computes from one token to the next; also the reference.
pub fn next_token(token: u32, position: usize) -> u32 {
    let mut x = token as f32;
    for layer in 0..LAYERS {
        let u = x + position as f32 + layer as f32;
        let y = (u * 3.0) % 101.0;
        x = (x + y) % 997.0;
    }
    x as u32
}

pub fn reference(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut out = Vec::new();
    let mut last = *prompt.last().expect("prompts are not empty");
    for index in 0..tokens {
        last = next_token(last, prompt.len() - 1 + index);
        out.push(last);
    }
    out
}

#[derive(Clone, Copy, PartialEq)]
pub enum Toy {
    Embed,
    Attention,
    Ffn,
    Combine,
    Sampling,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Misdeed {
    None,
    Fail,
    Panic,
}

struct ToyStage {
    toy: Toy,
    calls: usize,
    misdeed: (usize, Misdeed),
}

impl Stage for ToyStage {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        self.calls += 1;
        if self.calls == self.misdeed.0 {
            match self.misdeed.1 {
                Misdeed::None => {}
                Misdeed::Fail => return Err(StageError::Other("told to fail".into())),
                Misdeed::Panic => panic!("told to panic"),
            }
        }
        match self.toy {
            Toy::Embed => embed(task),
            Toy::Attention => rows(task, |task, row, position| {
                task.values.u[row * HIDDEN] = task.values.x[row * HIDDEN] + position as f32 + task.layer as f32;
            }),
            Toy::Ffn => {
                for row in 0..task.values.rows {
                    task.values.y[row * HIDDEN] = (task.values.u[row * HIDDEN] * 3.0) % 101.0;
                }
            }
            Toy::Combine => rows(task, |task, row, _| {
                let x = &mut task.values.x[row * HIDDEN];
                *x = (*x + task.values.y[row * HIDDEN]) % 997.0;
            }),
            Toy::Sampling => sample(task),
        }
        Ok(())
    }
}

fn rows(task: &mut TaskContext<'_>, mut each: impl FnMut(&mut TaskContext<'_>, usize, usize)) {
    for group in task.batch.groups.clone() {
        for (i, row) in group.row_range().enumerate() {
            each(task, row, group.first_position + i);
        }
    }
}

fn embed(task: &mut TaskContext<'_>) {
    for group in &task.batch.groups {
        for row in group.row_range() {
            let token = match group.input {
                GroupInput::Given => task.batch.token_ids[row],
                GroupInput::LastSampled => task.last_tokens[group.slot],
            };
            task.values.x[row * HIDDEN] = token as f32;
        }
    }
}

fn sample(task: &mut TaskContext<'_>) {
    for group in task.batch.groups.iter().filter(|group| group.sample.is_some()) {
        let token = task.values.x[(group.first_row + group.rows - 1) * HIDDEN] as u32;
        task.last_tokens[group.slot] = token;
        task.samples.push(Sample { sequence: group.sequence, token, logprobs: None, logits: None });
    }
}

fn shape() -> ModelShape {
    ModelShape { hidden: HIDDEN, vocab: 1000, ..ModelShape::toy(vec![LayerKind::Dense; LAYERS]) }
}

fn graph(attention: usize, split: bool) -> StageGraph {
    let ffn = if split { "f" } else { "a" };
    let mut layers = vec![serde_json::json!({ "kind": "mfa_attention", "on": "a" })];
    let transfer =
        |id: &str, from: &str, to: &str| serde_json::json!({ "kind": "transfer", "id": id, "from": from, "to": to });
    if split {
        layers.push(transfer("a2f", "a", "f"));
    }
    layers.push(serde_json::json!({ "kind": "dense_ffn", "on": ffn }));
    if split {
        layers.push(transfer("f2a", "f", "a"));
    }
    layers.push(serde_json::json!({ "kind": "combine", "on": "a" }));
    let spec: DeploymentSpec = serde_json::from_value(serde_json::json!({
        "version": 1, "name": "toy", "model": "none",
        "devices": if split {
            serde_json::json!({ "a": { "backend": "cpu", "count": attention }, "f": { "backend": "cpu" } })
        } else {
            serde_json::json!({ "a": { "backend": "cpu", "count": attention } })
        },
        "stages": [{ "kind": "embed", "on": "a" }, { "layers": layers }, { "kind": "sampling", "on": "a" }],
        "limits": { "sequences": 8, "rows_per_micro_batch": 8, "prefill_chunk": 4, "kv_tokens": 512, "page_tokens": 8 },
        "schedule": { "policy": "ping_pong", "micro_batches": 3 },
    }))
    .expect("the toy graph is well formed");
    StageGraph::build(&spec, &shape(), KindRegistry::shared()).expect("the toy graph unrolls")
}

pub struct Setup {
    pub attention: usize,
    pub split: bool,
    pub policy: Box<dyn Policy>,
    pub micro_batches: usize,
    pub prefill_chunk: usize,
    /// Of each attention device.
    pub rows: usize,
    /// In all, and of each attention device.
    pub sequences: usize,
    /// Of each attention device.
    pub pages: u32,
    /// Which stage misbehaves at which call.
    pub misdeed: Option<(Toy, usize, Misdeed)>,
}

impl Setup {
    pub fn simple(policy: Box<dyn Policy>, micro_batches: usize) -> Self {
        Self {
            attention: 1,
            split: true,
            policy,
            micro_batches,
            prefill_chunk: 4,
            rows: 8,
            sequences: 8,
            pages: 1 << 14,
            misdeed: None,
        }
    }

    pub fn parts(&self) -> EngineParts {
        let graph = Arc::new(graph(self.attention, self.split));
        let table = TaskTable::new(&graph);
        let orders = self.policy.orders(&table, self.micro_batches);
        let plan = Arc::new(Plan::compile(table, self.micro_batches, &orders).expect("built-in policies make plans"));
        let mut devices: Vec<DeviceParts> = graph.devices.iter().map(|_| DeviceParts::default()).collect();
        for (index, stage) in graph.stages.iter().enumerate() {
            let toy = match stage.kind.as_str() {
                "embed" => Toy::Embed,
                "mfa_attention" => Toy::Attention,
                "dense_ffn" => Toy::Ffn,
                "combine" => Toy::Combine,
                _ => Toy::Sampling,
            };
            for device in &stage.devices {
                let misdeed = self.misdeed.filter(|(other, ..)| *other == toy);
                let misdeed = misdeed.map_or((0, Misdeed::None), |(_, call, misdeed)| (call, misdeed));
                devices[*device].stages.insert(index, Box::new(ToyStage { toy, calls: 0, misdeed }));
            }
        }
        let planner = PlannerConfig {
            micro_batches: self.micro_batches,
            devices: self.attention,
            sequences: self.sequences,
            sequences_per_device: self.sequences,
            rows_per_device: self.rows,
            rows_per_micro_batch: self.rows * self.attention,
            prefill_chunk: self.prefill_chunk,
            pages_per_device: self.pages,
            page_tokens: 8,
            max_positions: 1 << 20,
        };
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
            spans_per_lane: 64,
            probe: None,
            across: None,
        }
    }
}

pub fn request(id: u64, prompt: Vec<u32>, tokens: usize) -> SequenceRequest {
    SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: Arc::from(prompt),
        max_new_tokens: tokens,
        stop_token_ids: Arc::from([]),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}

pub fn policy(ping_pong: bool) -> Box<dyn Policy> {
    if ping_pong { Box::new(PingPong) } else { Box::new(Sequential) }
}
