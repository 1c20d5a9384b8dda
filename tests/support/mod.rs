//! What several tests share: graphs as JSON, running requests on them, reading golden folders.
// Each test binary uses its own part of this module.
#![allow(dead_code, unused_imports)]

mod drawn;
mod layout;
mod meddle;

use rally::engine::schedule::batch::{DeviceBatch, SamplingParams, SequenceRequest, TokenDetail};
use rally::engine::schedule::planner::FinishReason;
use rally::engine::schedule::policy::Schedule;
use rally::engine::stage::Probe;
use rally::engine::values::Values;
use rally::engine::{Engine, EngineParts, RunEvent};
use rally::graph::kinds::KindRegistry;
use rally::graph::model::{LayerKind, ModelShape, WeightFormat};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::StageGraph;
use rally::stages::checkpoint::{Checkpoint, WeightSource};
use rally::stages::config::load_model_shape;
use rally::stages::deployment::{AssembleOptions, assemble, make_exact};
use rally::stages::kinds::StageRegistry;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use drawn::{broadcasts, config, layouts, policies, rails};
pub use layout::{Layout, Places};
pub use meddle::Preempter;

/// A path inside the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A graph file of the repository.
pub fn graph_file(name: &str) -> DeploymentSpec {
    let path = repository("graphs").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("committed graphs parse")
}

/// One request of a test.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub tokens: usize,
    pub sampling: SamplingParams,
    pub stop_token_ids: Vec<u32>,
    pub logprobs: Option<u32>,
}

impl Ask {
    /// Greedy, always all `tokens`.
    pub fn greedy(prompt: &[u32], tokens: usize) -> Self {
        let sampling = SamplingParams::default();
        Self { prompt: prompt.to_vec(), tokens, sampling, stop_token_ids: Vec::new(), logprobs: None }
    }
}

/// Answer to an [`Ask`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    /// `[tokens][vocab]`.
    pub logits: Vec<Vec<f32>>,
    /// By token, if asked for.
    pub logprobs: Vec<(f32, Vec<(u32, f32)>)>,
    pub finish: Option<FinishReason>,
}

/// Runs `asks` on `spec` with the weights of the folder `model`.
pub fn run(spec: &DeploymentSpec, model: &Path, asks: &[Ask], probe: Option<Arc<dyn Probe>>) -> Vec<Answer> {
    let shape = load_model_shape(model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(model).expect("the model's weights are there");
    answers(start(spec, &shape, &weights, probe), asks)
}

/// Starts a run that nothing was submitted to yet.
pub fn start(
    spec: &DeploymentSpec,
    shape: &ModelShape,
    weights: &dyn WeightSource,
    probe: Option<Arc<dyn Probe>>,
) -> Engine {
    Engine::start(parts(spec, shape, weights, probe)).expect("threads can be had")
}

/// The same, with choices that are not in the graph.
pub fn start_with(
    spec: &DeploymentSpec,
    shape: &ModelShape,
    weights: &dyn WeightSource,
    options: AssembleOptions,
) -> Engine {
    Engine::start(parts_with(spec, shape, weights, options)).expect("threads can be had")
}

/// What a run is made of.
pub fn parts(
    spec: &DeploymentSpec,
    shape: &ModelShape,
    weights: &dyn WeightSource,
    probe: Option<Arc<dyn Probe>>,
) -> EngineParts {
    parts_with(spec, shape, weights, AssembleOptions { probe, ..AssembleOptions::default() })
}

/// The same, with choices that are not in the graph.
pub fn parts_with(
    spec: &DeploymentSpec,
    shape: &ModelShape,
    weights: &dyn WeightSource,
    options: AssembleOptions,
) -> EngineParts {
    let schedule = Schedule::from_spec(&spec.schedule).expect("tests use policies that run");
    let graph = StageGraph::build(spec, shape, KindRegistry::shared()).expect("the graph unrolls");
    let parts = assemble(spec, graph, shape, weights, &schedule, &StageRegistry::builtin(), options);
    parts.unwrap_or_else(|error| panic!("{error}"))
}

/// Tokens, logits as bits, and how it ended.
pub type Bits = (Vec<u32>, Vec<Vec<u32>>, Option<FinishReason>);

/// Answers so that `==` means equal to the bit.
pub fn bits(answers: &[Answer]) -> Vec<Bits> {
    let row = |row: &Vec<f32>| row.iter().map(|value| value.to_bits()).collect();
    answers.iter().map(|a| (a.tokens.clone(), a.logits.iter().map(row).collect(), a.finish)).collect()
}

/// Submits `asks`, whose indices become ids, and runs to the end.
pub fn answers(engine: Engine, asks: &[Ask]) -> Vec<Answer> {
    let requests = asks.iter().enumerate().map(|(id, ask)| request(id as u64, ask));
    let mut answers = vec![Answer::default(); asks.len()];
    let done = engine.run_to_end(requests, |event| match event {
        RunEvent::Token(report) => {
            let answer = &mut answers[report.sample.sequence as usize];
            answer.tokens.push(report.sample.token);
            answer.logits.push(report.sample.logits.expect("logits were asked for"));
            answer.logprobs.extend(report.sample.logprobs);
        }
        RunEvent::Finished(id, reason, _) => answers[id as usize].finish = Some(reason),
        RunEvent::Admitted(..) | RunEvent::Failed(_) => {}
    });
    done.unwrap_or_else(|error| panic!("{error}"));
    answers
}

/// As submitted: all logits are wanted.
pub fn request(id: u64, ask: &Ask) -> SequenceRequest {
    SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: Arc::from(ask.prompt.as_slice()),
        max_new_tokens: ask.tokens,
        stop_token_ids: Arc::from(ask.stop_token_ids.as_slice()),
        sampling: ask.sampling,
        detail: TokenDetail { logprobs: ask.logprobs, logits: true },
    }
}

/// A model without weights on disk, to be changed as a test needs it.
pub fn small_shape() -> ModelShape {
    ModelShape {
        family: "step3".into(),
        hidden: 32,
        vocab: 64,
        heads: 2,
        head_dim: 16,
        query_rank: 32,
        dense_width: 48,
        expert_width: 32,
        shared_width: 32,
        experts: 4,
        top_k: 2,
        norm_expert_weight: false,
        layers: vec![LayerKind::Dense, LayerKind::Moe],
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_positions: 512,
        tie_word_embeddings: false,
        eos_token_ids: Vec::new(),
        weight_format: WeightFormat::Bf16,
    }
}

/// As `run --exact`.
pub fn exact(mut spec: DeploymentSpec) -> DeploymentSpec {
    make_exact(&mut spec);
    spec
}

/// Chosen experts and their weights, best first.
pub type Routing = (Vec<u32>, Vec<f32>);

/// A row of a sequence: its id, and the position in it.
pub type Row = (u64, usize);

/// Notes x after `embed` and every `combine`, and the routing of every MoE layer, by sequence and position.
#[derive(Default)]
pub struct Notes {
    /// One row a layer boundary, embedding first.
    pub hidden: Mutex<HashMap<Row, Vec<Vec<f32>>>>,
    /// One entry a MoE layer.
    pub routing: Mutex<HashMap<Row, Vec<Routing>>>,
}

impl Probe for Notes {
    fn after(&self, stage: &str, _layer: Option<usize>, batch: &DeviceBatch, values: &Values) {
        let (hidden, k) = (values.widths.hidden, values.widths.top_k);
        for group in &batch.groups {
            for (i, row) in group.row_range().enumerate() {
                let key = (group.sequence, group.first_position + i);
                match stage {
                    "embed" | "combine" => {
                        let x = values.x[row * hidden..(row + 1) * hidden].to_vec();
                        self.hidden.lock().expect("no panic").entry(key).or_default().push(x);
                    }
                    "router" => {
                        let ids = values.expert_ids[row * k..(row + 1) * k].to_vec();
                        let weights = values.expert_weights[row * k..(row + 1) * k].to_vec();
                        self.routing.lock().expect("no panic").entry(key).or_default().push((ids, weights));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A golden folder's expectations.
pub struct Golden {
    pub folder: PathBuf,
    pub cases: Vec<GoldenCase>,
    bytes: Vec<u8>,
}

/// One case: sequences that are run together.
pub struct GoldenCase {
    pub id: u64,
    pub sequences: Vec<GoldenSequence>,
}

/// Prompt and the greedy tokens that follow.
pub struct GoldenSequence {
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
}

impl Golden {
    /// Reads `tests/golden/NAME`.
    pub fn open(name: &str) -> Self {
        let folder = repository("tests/golden").join(name);
        let text = std::fs::read_to_string(folder.join("golden.json")).expect("golden.json is there");
        let json: Value = serde_json::from_str(&text).expect("golden.json parses");
        let ids = |value: &Value| -> Vec<u32> {
            value.as_array().expect("a list of ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
        };
        let list = |value: &Value| value.as_array().expect("a list").clone();
        let cases = list(&json["cases"])
            .iter()
            .map(|case| GoldenCase {
                id: case["id"].as_u64().expect("an id"),
                sequences: list(&case["seqs"])
                    .iter()
                    .map(|seq| GoldenSequence { prompt: ids(&seq["prompt"]), greedy: ids(&seq["greedy"]) })
                    .collect(),
            })
            .collect();
        let bytes = std::fs::read(folder.join("golden.safetensors")).expect("golden.safetensors is there");
        Self { folder, cases, bytes }
    }

    /// A tensor of a sequence, as 4-byte values made by `from`.
    fn tensor<T>(&self, case: u64, seq: usize, name: &str, from: impl Fn([u8; 4]) -> T) -> (Vec<usize>, Vec<T>) {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).expect("golden.safetensors parses");
        let view = file.tensor(&format!("case{case}.seq{seq}.{name}")).expect("the tensor is there");
        let values = view.data().chunks_exact(4).map(|c| from([c[0], c[1], c[2], c[3]])).collect();
        (view.shape().to_vec(), values)
    }

    /// An f32 tensor as rows of its last dimension.
    pub fn rows(&self, case: u64, seq: usize, name: &str) -> Vec<Vec<f32>> {
        let (shape, values) = self.tensor(case, seq, name, f32::from_le_bytes);
        values.chunks(*shape.last().expect("not a scalar")).map(<[f32]>::to_vec).collect()
    }

    /// `router_ids`: `[layers][tokens][k]`.
    pub fn router_ids(&self, case: u64, seq: usize) -> Vec<Vec<Vec<u32>>> {
        let (shape, values) = self.tensor(case, seq, "router_ids", u32::from_le_bytes);
        let layer = |layer: &[u32]| layer.chunks(shape[2]).map(<[u32]>::to_vec).collect();
        values.chunks(shape[1] * shape[2]).map(layer).collect()
    }
}

/// Largest absolute difference; infinite if anything is NaN or lengths differ.
pub fn worst(got: &[f32], want: &[f32]) -> f32 {
    if got.len() != want.len() {
        return f32::INFINITY;
    }
    let differences = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { f32::max(worst, d) })
}

/// ‖got − want‖ / ‖want‖; infinite if NaN.
pub fn row_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = want.iter().map(|b| square(f64::from(*b))).sum();
    let error = (difference / norm).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}
