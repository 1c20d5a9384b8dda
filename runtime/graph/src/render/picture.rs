//! What there is to draw: lanes, boxes and edges of each distinct layer.

use crate::kinds::{KindRegistry, Role, Value};
use crate::model::{LayerKind, ModelShape};
use crate::resolve::{LayerCase, Resolved, StageAt};
use crate::spec::{Backend, DeploymentSpec, HeldExperts, PlacementSpec, PolicyKind, Routing, TransportKind, WireDtype};
use crate::stage_graph::Section;
use crate::words;
use serde::Serialize;

/// A whole deployment, ready to draw.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Picture {
    /// Name of the deployment.
    pub name: String,
    /// Policy and micro-batches, such as `ping_pong:3`.
    pub schedule: String,
    /// Latency that must hold, in milliseconds.
    pub tpot_ms: Option<f64>,
    /// One for each distinct layer, in order of the first layer that looks so.
    pub layers: Vec<LayerPicture>,
}

/// A distinct layer with what stands before and after the layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerPicture {
    /// `layers 4..59 (MoE)`.
    pub title: String,
    /// The layers; empty where the model is not known.
    pub layers: Vec<usize>,
    /// Sets of devices that stages run on.
    pub lanes: Vec<Lane>,
    /// Stages, in dataflow order.
    pub boxes: Vec<Box>,
    /// Who follows whom.
    pub edges: Vec<Edge>,
}

/// A set of devices that some stage runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lane {
    /// Names of the groups or devices.
    pub name: String,
    /// Backend, count, cores, hardware.
    pub note: String,
}

/// Which part of the deployment a box belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Before the layers.
    Before,
    /// The layer.
    Layer,
    /// After the layers.
    After,
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Box {
    /// Id of the stage.
    pub id: String,
    /// Kind of the stage.
    pub kind: String,
    /// What the kind is for, as a word for styles: `attention`, `ffn`, `transfer`, …
    pub role: &'static str,
    /// Which part it belongs to.
    pub part: Part,
    /// Lane it runs on; for a transfer the one it starts from.
    pub lane: usize,
    /// Lane a transfer ends on; `lane` for other stages.
    pub to_lane: usize,
    /// Formats and shards.
    pub notes: Vec<String>,
    /// Column: the longest way from the start.
    pub column: usize,
}

/// Dataflow between two boxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// Index of the box it leaves.
    pub from: usize,
    /// Index of the box it enters.
    pub to: usize,
}

/// Draws up a deployment. Of a spec with faults, what can be drawn.
pub fn picture(spec: &DeploymentSpec, shape: Option<&ModelShape>, registry: &KindRegistry) -> Picture {
    let resolved = Resolved::new(spec, registry);
    let cases = match shape {
        Some(_) => resolved.layer_cases(shape),
        None => merged(resolved.layer_cases(None), &resolved),
    };
    Picture {
        name: words::printable(&spec.name).replace(['\n', '\r', '\t'], " "),
        schedule: format!("{}:{}", policy(spec.schedule.policy), spec.schedule.micro_batches),
        tpot_ms: spec.slo.map(|slo| slo.tpot_ms),
        layers: cases.iter().map(|case| layer(&resolved, case, shape.is_some())).collect(),
    }
}

/// Without a model: one case for each distinct list of stages that has exactly one FFN.
fn merged(cases: Vec<LayerCase>, resolved: &Resolved<'_>) -> Vec<LayerCase> {
    let mut kept: Vec<LayerCase> = Vec::new();
    for case in cases {
        let ffns: Vec<&StageAt<'_>> = case
            .stages
            .iter()
            .map(|index| &resolved.stages[*index])
            .filter(|stage| stage.role() == Role::Ffn)
            .collect();
        let fits = ffns.len() == 1 && ffns[0].info.fits(case.kind);
        if fits && !kept.iter().any(|other| other.stages == case.stages) {
            kept.push(case);
        }
    }
    kept
}

fn policy(policy: PolicyKind) -> &'static str {
    match policy {
        PolicyKind::Sequential => "sequential",
        PolicyKind::PingPong => "ping_pong",
        PolicyKind::Greedy => "greedy",
        PolicyKind::Custom => "custom",
    }
}

fn layer(resolved: &Resolved<'_>, case: &LayerCase, known: bool) -> LayerPicture {
    let kind = match case.kind {
        LayerKind::Dense => "dense",
        LayerKind::Moe => "MoE",
    };
    let title = match (known, case.layers.as_slice()) {
        (false, _) => format!("{kind} layers"),
        (true, [only]) => format!("layer {only} ({kind})"),
        (true, layers) => format!("layers {} ({kind})", words::runs(layers)),
    };
    let mut draft = Draft { resolved, lanes: Vec::new(), boxes: Vec::new(), edges: Vec::new() };
    let outside = |section: Section| {
        (0..resolved.stages.len()).filter(move |index| resolved.stages[*index].section == section).collect::<Vec<_>>()
    };
    let before = outside(Section::Before);
    let mut last = draft.chain(&before, Part::Before, Vec::new());
    last = draft.layer(case, last);
    draft.chain(&outside(Section::After), Part::After, last);
    draft.columns();
    let Draft { lanes, boxes, edges, .. } = draft;
    LayerPicture { title, layers: if known { case.layers.clone() } else { Vec::new() }, lanes, boxes, edges }
}

struct Draft<'a, 'r> {
    resolved: &'a Resolved<'r>,
    lanes: Vec<Lane>,
    boxes: Vec<Box>,
    edges: Vec<Edge>,
}

impl Draft<'_, '_> {
    fn chain(&mut self, stages: &[usize], part: Part, mut last: Vec<usize>) -> Vec<usize> {
        for index in stages {
            let added = self.add(*index, part, None);
            self.edges.extend(last.iter().map(|from| Edge { from: *from, to: added }));
            last = vec![added];
        }
        last
    }

    fn layer(&mut self, case: &LayerCase, entry: Vec<usize>) -> Vec<usize> {
        let first = self.boxes.len();
        let stage = |position: usize| &self.resolved.stages[case.stages[position]];
        let mut order = Vec::new();
        for position in 0..case.stages.len() {
            let passed = || (0..position).map(stage);
            let payload = (stage(position).role() == Role::Transfer).then(|| {
                let routed = passed().any(|earlier| earlier.info.writes().contains(&Value::Routing));
                match (passed().any(|earlier| earlier.role() == Role::Ffn), routed) {
                    (true, _) => "y",
                    (false, true) => "u + routing",
                    (false, false) => "u",
                }
            });
            order.push(payload);
        }
        for (position, payload) in order.into_iter().enumerate() {
            self.add(case.stages[position], Part::Layer, payload);
        }
        for position in 0..case.stages.len() {
            let to = first + position;
            let after = self.resolved.stages[case.stages[position]].spec.after.as_deref().unwrap_or_default();
            let named = |id: &String| case.stages.iter().position(|other| self.resolved.stages[*other].id == id);
            let before: Vec<usize> = match (after.is_empty(), position) {
                (false, _) => after.iter().filter_map(named).map(|position| first + position).collect(),
                (true, 0) => entry.clone(),
                (true, _) => vec![to - 1],
            };
            self.edges.extend(before.into_iter().filter(|from| *from != to).map(|from| Edge { from, to }));
        }
        let leaf = |index: &usize| !self.edges.iter().any(|edge| edge.from == *index);
        let leaves: Vec<usize> = (first..self.boxes.len()).filter(leaf).collect();
        if leaves.is_empty() { entry } else { leaves }
    }

    fn add(&mut self, index: usize, part: Part, payload: Option<&str>) -> usize {
        let stage = &self.resolved.stages[index];
        let (lane, to_lane) = match stage.role() {
            Role::Transfer => (self.lane(&stage.from), self.lane(&stage.to)),
            _ => {
                let lane = self.lane(&stage.on);
                (lane, lane)
            }
        };
        let notes = payload.map(str::to_owned).into_iter().chain(notes(stage)).collect();
        let (id, kind, role) = (stage.id.to_owned(), stage.info.name().to_owned(), role(stage.role()));
        self.boxes.push(Box { id, kind, role, part, lane, to_lane, notes, column: 0 });
        self.boxes.len() - 1
    }

    fn lane(&mut self, devices: &[usize]) -> usize {
        let names = self.resolved.device_names(devices);
        let name = if names.is_empty() { "?".to_owned() } else { names.join(", ") };
        let lane = Lane { name, note: lane_note(self.resolved, devices) };
        match self.lanes.iter().position(|known| known.name == lane.name) {
            Some(known) => known,
            None => {
                self.lanes.push(lane);
                self.lanes.len() - 1
            }
        }
    }

    /// Longest ways from the start. As many rounds as there are boxes settle them; a cycle stops there too.
    fn columns(&mut self) {
        for _ in 0..self.boxes.len() {
            let mut moved = false;
            for edge in &self.edges {
                let least = self.boxes[edge.from].column + 1;
                if self.boxes[edge.to].column < least && least < self.boxes.len() {
                    self.boxes[edge.to].column = least;
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Embed => "embed",
        Role::Attention => "attention",
        Role::Router => "router",
        Role::Transfer => "transfer",
        Role::Ffn => "ffn",
        Role::Combine => "combine",
        Role::Sampling => "sampling",
        Role::Rowwise => "rowwise",
    }
}

fn dtype(dtype: WireDtype) -> &'static str {
    match dtype {
        WireDtype::F32 => "f32",
        WireDtype::Bf16 => "bf16",
        WireDtype::Fp8E4m3 => "fp8_e4m3",
    }
}

fn notes(stage: &StageAt<'_>) -> Vec<String> {
    let spec = stage.spec;
    let mut notes = Vec::new();
    match stage.role() {
        Role::Attention => notes.push(format!("KV {}", dtype(spec.kv_dtype.unwrap_or_default()))),
        Role::Transfer => {
            notes.push(dtype(spec.dtype.unwrap_or_default()).to_owned());
            if spec.routing == Some(Routing::Rail) {
                notes.push("rail".into());
            }
            match spec.transport {
                Some(TransportKind::Tcp) => notes.push("tcp".into()),
                Some(TransportKind::Nixl) => notes.push("nixl".into()),
                Some(TransportKind::Local) | None => {}
            }
        }
        _ => {}
    }
    if let Some(shard) = spec.shard {
        let parts = [
            ("experts", shard.experts),
            ("tensor", shard.tensor),
            ("replicas", shard.replicas),
            ("o_proj", shard.o_proj),
        ];
        let written: Vec<String> =
            parts.iter().filter_map(|(name, count)| count.map(|count| format!("{name} {count}"))).collect();
        notes.push(written.join(" × "));
    }
    notes.extend(spec.placement.as_ref().map(placed));
    notes
}

/// The experts of every shard, where that is short; else how many there are.
fn placed(placement: &PlacementSpec) -> String {
    let PlacementSpec::Everywhere(shards) = placement else { return "experts placed by layer".into() };
    let ids = |HeldExperts(ids): &HeldExperts| {
        let mut ids: Vec<usize> = ids.iter().map(|id| *id as usize).collect();
        ids.sort_unstable();
        words::runs(&ids)
    };
    let lists = shards.iter().map(ids).collect::<Vec<_>>().join(" | ");
    match lists.chars().count() {
        ..=60 => format!("experts {lists}"),
        _ => format!("{} placed by list", words::plural(shards.iter().map(|held| held.0.len() as u64).sum(), "expert")),
    }
}

fn lane_note(resolved: &Resolved<'_>, devices: &[usize]) -> String {
    let Some(first) = devices.first() else { return String::new() };
    let entry = &resolved.spec.devices[&resolved.devices[*first].group];
    let backend = match (entry.backend, &entry.hardware) {
        (_, Some(hardware)) => hardware.clone(),
        (Backend::Cpu, None) => "cpu".into(),
        (Backend::Cuda, None) => "cuda".into(),
    };
    let cores = match &entry.cores {
        Some(cores) if cores.len() == 1 => format!(" · core {}", cores[0]),
        Some(cores) => format!(" · {}", words::plural(cores.len() as u64, "core")),
        None => String::new(),
    };
    let share = entry.sms.map(|sms| format!(" · {sms} multiprocessors")).unwrap_or_default();
    match devices.len() {
        1 => format!("{backend}{cores}{share}"),
        count => format!("{count} × {backend}{cores}{share}"),
    }
}
