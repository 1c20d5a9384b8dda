//! What results were measured on: machine, model, graph. And whether a cost table is of the same.

use crate::machine::Machine;
use rally_engine::schedule::cost_table::CostTable;
use rally_stages::deployment::Deployment;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

/// What a result was measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Identity {
    /// The machine and the program.
    pub machine: Machine,
    /// The model.
    pub model: ModelIdentity,
    /// The graph.
    pub graph: GraphIdentity,
}

/// A model: what it is like, and where its weights are from.
#[derive(Clone, Debug, Serialize)]
pub struct ModelIdentity {
    family: String,
    layers: usize,
    /// Those of them that there are, where a graph takes a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<String>,
    hidden: usize,
    experts: usize,
    vocab: usize,
    weight_format: String,
    weights: String,
}

/// A graph file.
#[derive(Clone, Debug, Serialize)]
pub struct GraphIdentity {
    name: String,
    path: String,
    /// Of the file's text, so that a figure cannot be held against another version of it.
    hash: String,
    /// Of all in it that decides what a stage costs: devices, stages, number formats; `--exact` included.
    stages_hash: String,
}

impl Identity {
    /// Of a deployment on this machine, its graph at `path`.
    pub fn of(machine: &Machine, deployment: &Deployment, path: &Path) -> Self {
        Self {
            machine: machine.clone(),
            model: ModelIdentity::of(deployment),
            graph: GraphIdentity::of(deployment, path),
        }
    }

    /// In what `table` is of something else: a line each, with both values.
    ///
    /// Where a graph or weights lie is no difference, nor is anything that no stage's time depends on, such as the schedule.
    pub fn differences(&self, table: &CostTable) -> Vec<String> {
        let (machine, model, graph) = (json!(self.machine), json!(self.model), json!(self.graph));
        let parts: [(&str, &Value, &Value, &[&str]); 3] = [
            ("machine", &table.machine, &machine, &["cpu", "cores", "simd", "cuda", "rally", "profile"]),
            ("model", &table.model, &model, &MODEL_KEYS),
            ("graph", &table.graph, &graph, &["stages_hash"]),
        ];
        let mut differences = Vec::new();
        for (part, there, here, keys) in parts {
            for key in keys.iter().filter(|key| there[**key] != here[**key]) {
                let named = if part == "graph" { format!(" ({} there)", there["name"]) } else { String::new() };
                differences.push(format!("{part}.{key} is {} there and {} here{named}", there[*key], here[*key]));
            }
        }
        differences
    }
}

/// What decides what a model's stages cost.
const MODEL_KEYS: [&str; 6] = ["family", "layers", "hidden", "experts", "vocab", "weight_format"];

impl ModelIdentity {
    /// In what `table` is of another model: a line each, with both values.
    pub fn differences(&self, table: &CostTable) -> Vec<String> {
        let (there, here) = (&table.model, json!(self));
        let differing = MODEL_KEYS.iter().filter(|key| there[**key] != here[**key]);
        differing.map(|key| format!("model.{key} is {} there and {} here", there[*key], here[*key])).collect()
    }

    /// Of a deployment's model.
    pub fn of(deployment: &Deployment) -> Self {
        let shape = &deployment.shape;
        Self {
            family: shape.family.to_string(),
            // Layers alike cost alike: a part of them stands for the whole.
            layers: deployment.model_layers,
            part: deployment.part().map(Into::into),
            hidden: shape.hidden,
            experts: shape.experts,
            vocab: shape.vocab,
            weight_format: format!("{:?}", shape.weight_format).to_lowercase(),
            weights: deployment.weights_source.clone(),
        }
    }
}

impl GraphIdentity {
    /// Of a deployment whose graph is at `path`.
    pub fn of(deployment: &Deployment, path: &Path) -> Self {
        let spec = &deployment.spec;
        let stages = json!([spec.compute, spec.devices, spec.stages]);
        Self {
            name: spec.name.clone(),
            path: path.display().to_string(),
            hash: hash(deployment.positions.text()),
            stages_hash: hash(&stages.to_string()),
        }
    }
}

/// FNV-1a, 64 bits.
fn hash(text: &str) -> String {
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, add))
}
