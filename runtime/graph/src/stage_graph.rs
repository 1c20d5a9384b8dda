//! The stage graph: a checked deployment unrolled over the layers of a model, as a petgraph DAG.
//!
//! It owns which stage runs on which devices in which layer, what each transfer carries, and who follows whom. It knows no
//! micro-batches and no lanes (see [`crate::plan`]), and it trusts that the spec was validated: what validation would have
//! refused comes back as a [`BuildError`], never as a panic.

use crate::kinds::{KindRegistry, Role, StageKindInfo};
use crate::model::{LayerKind, ModelShape, layer_range};
use crate::placement::ExpertPlacement;
use crate::shard::{ShardCounts, part};
use crate::spec::{Backend, DeploymentSpec, OneOrMany, Routing, StageEntry, StageSpec, WireDtype};
use petgraph::graph::{DiGraph, NodeIndex};

/// Index of a device in [`StageGraph::devices`].
pub type DeviceIndex = usize;
/// Index of a stage in [`StageGraph::stages`].
pub type StageIndex = usize;

/// One device, groups already expanded.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// `name`, or `name.i` inside a group.
    pub name: String,
    /// Key of the entry in `devices`.
    pub group: String,
    /// Runtime behind it.
    pub backend: Backend,
    /// Cores its lanes are pinned to; empty: not pinned.
    pub cores: Vec<u32>,
    /// Number of its GPU, where the file says it.
    pub card: Option<u32>,
    /// Multiprocessors of the GPU that are its own.
    pub sms: Option<u32>,
    /// Host it is on, an index into [`StageGraph::hosts`], where there are hosts.
    pub host: Option<usize>,
}

/// Where a stage stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Before the layers.
    Before,
    /// Inside the `layers` block.
    Layers,
    /// After the layers.
    After,
}

/// A stage of the file with its names resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedStage {
    /// Name in this graph.
    pub id: String,
    /// Kind of work.
    pub kind: String,
    /// What the kind is for.
    pub role: Role,
    /// Where it stands.
    pub section: Section,
    /// Devices it runs on, in order; empty for transfers.
    pub devices: Vec<DeviceIndex>,
    /// Ends and format, for transfers.
    pub transfer: Option<ResolvedTransfer>,
    /// The stage as written.
    pub spec: StageSpec,
}

impl ResolvedStage {
    /// A stage of a built-in kind on the only device there is, for running it outside a graph.
    pub fn standalone(kind: &str) -> Self {
        let spec = StageSpec { kind: kind.into(), ..StageSpec::default() };
        let role = KindRegistry::shared().get(kind).map_or(Role::Rowwise, StageKindInfo::role);
        let (id, kind) = (kind.into(), kind.into());
        Self { id, kind, role, section: Section::Layers, devices: vec![0], transfer: None, spec }
    }

    /// Ids of the experts that `device`, one of the stage's, holds in `layer` of a model with `experts`.
    pub fn held_experts(&self, device: DeviceIndex, layer: usize, experts: usize) -> Vec<usize> {
        let counts = ShardCounts::of(self.spec.shard.as_ref());
        let place = self.devices.iter().position(|other| *other == device).unwrap_or(0);
        let placed = ExpertPlacement::of(&self.spec, layer, experts, counts.experts);
        placed.held_by(counts.position(place).expert).to_vec()
    }

    /// Inner columns that `device`, one of the stage's, has of each expert of `width` columns.
    pub fn expert_columns(&self, device: DeviceIndex, width: usize) -> usize {
        let counts = ShardCounts::of(self.spec.shard.as_ref());
        let place = self.devices.iter().position(|other| *other == device).unwrap_or(0);
        part(width, counts.tensor, counts.position(place).tensor).len()
    }

    /// Whether `device`, one of the stage's, has a part of the shared expert, which goes with the first routed ones.
    pub fn has_shared_expert(&self, device: DeviceIndex) -> bool {
        let counts = ShardCounts::of(self.spec.shard.as_ref());
        let place = self.devices.iter().position(|other| *other == device).unwrap_or(0);
        counts.position(place).expert == 0
    }
}

/// Ends and format of a transfer.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedTransfer {
    /// Devices it starts from, in order.
    pub from: Vec<DeviceIndex>,
    /// Devices it ends at, in order.
    pub to: Vec<DeviceIndex>,
    /// How rows are stored on the wire.
    pub dtype: WireDtype,
    /// Who sends to whom.
    pub routing: Routing,
}

/// What a transfer carries in a given layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: the stage is not a transfer.
    #[default]
    None,
    /// The FFN's input u.
    Input,
    /// u with expert ids and weights.
    RoutedInput,
    /// The FFN's output y.
    Output,
}

/// A stage in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageInstance {
    /// Which stage.
    pub stage: StageIndex,
    /// Which layer; `None` outside the layers.
    pub layer: Option<usize>,
    /// What it carries, if it is a transfer.
    pub payload: Payload,
}

/// Why a spec could not be unrolled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A name that no device has.
    #[error("stage `{stage}` names device `{device}`, which does not exist")]
    UnknownDevice {
        /// The stage.
        stage: String,
        /// The name.
        device: String,
    },
    /// `after` names a stage that does not exist or does not run in the same layer.
    #[error("stage `{stage}` comes after `{after}`, which is no stage of layer {layer}")]
    UnknownPredecessor {
        /// The stage.
        stage: String,
        /// The missing predecessor.
        after: String,
        /// The layer.
        layer: usize,
    },
    /// A selector that cannot be read.
    #[error(
        "stage `{stage}`: `{selector}` is no layer selector: expected `all`, `moe`, `dense` or a range such as `4..59`"
    )]
    BadSelector {
        /// The stage.
        stage: String,
        /// The text.
        selector: String,
    },
    /// A kind that the registry does not have.
    #[error("stage `{stage}`: there is no kind `{kind}`")]
    UnknownKind {
        /// The stage.
        stage: String,
        /// The kind.
        kind: String,
    },
    /// The stages of a layer depend on each other in a circle.
    #[error("the stages form a cycle through `{stage}`")]
    Cycle {
        /// A stage on the circle.
        stage: String,
    },
}

/// The unrolled deployment.
#[derive(Clone, Debug)]
pub struct StageGraph {
    /// Names of the hosts, in file order; none where all runs in one process.
    pub hosts: Vec<String>,
    /// Devices, in file order, groups expanded.
    pub devices: Vec<Device>,
    /// Stages, in file order.
    pub stages: Vec<ResolvedStage>,
    /// Instances and their dataflow edges.
    pub graph: DiGraph<StageInstance, ()>,
    /// The instances in an order that respects every edge, and file order where the edges leave a choice.
    pub order: Vec<NodeIndex>,
    /// Layers of the model.
    pub layers: usize,
}

impl StageGraph {
    /// Unrolls `spec` over the layers of `shape`.
    pub fn build(spec: &DeploymentSpec, shape: &ModelShape, kinds: &KindRegistry) -> Result<Self, BuildError> {
        let devices = expand_devices(spec);
        let stages = resolve_stages(spec, &devices, kinds)?;
        let mut builder = Unroll { stages: &stages, graph: DiGraph::new(), last: Vec::new() };
        builder.chain_section(Section::Before);
        for (layer, kind) in shape.layers.iter().enumerate() {
            builder.add_layer(layer, *kind)?;
        }
        builder.chain_section(Section::After);
        let graph = builder.graph;
        // Kahn's algorithm that always takes the lowest ready index: instances were added in file order, so chains stay as
        // written. petgraph's toposort gives some valid order, not this one.
        let order = stable_topological_order(&graph)
            .map_err(|node| BuildError::Cycle { stage: stages[graph[node].stage].id.clone() })?;
        Ok(Self {
            hosts: spec.hosts.keys().cloned().collect(),
            devices,
            stages,
            graph,
            order,
            layers: shape.layers.len(),
        })
    }

    /// The stage behind an instance.
    pub fn stage(&self, node: NodeIndex) -> &ResolvedStage {
        &self.stages[self.graph[node].stage]
    }

    /// Devices of every stage with `role`, each once, in order.
    pub fn devices_of_role(&self, role: Role) -> Vec<DeviceIndex> {
        let mut devices: Vec<DeviceIndex> = Vec::new();
        for stage in self.stages.iter().filter(|stage| stage.role == role) {
            for device in &stage.devices {
                if !devices.contains(device) {
                    devices.push(*device);
                }
            }
        }
        devices
    }
}

/// Expands groups: `count: n` gives `name.0 … name.n-1`, anything else one device with the plain name.
pub fn expand_devices(spec: &DeploymentSpec) -> Vec<Device> {
    let mut devices = Vec::new();
    for (group, entry) in &spec.devices {
        let cores = entry.cores.clone().unwrap_or_default();
        let host = entry.host.as_ref().and_then(|host| spec.hosts.get_index_of(host));
        let make = |name: String, index: u32| Device {
            name,
            group: group.clone(),
            backend: entry.backend,
            cores: cores.clone(),
            card: entry.card.map(|first| first.saturating_add(index)),
            sms: entry.sms,
            host,
        };
        match entry.count {
            None => devices.push(make(group.clone(), 0)),
            Some(count) => devices.extend((0..count).map(|index| make(format!("{group}.{index}"), index))),
        }
    }
    devices
}

/// Whether one `on_layers` selector (`all`, `moe`, `dense`, `a..b` inclusive, or one number) takes `layer`; `None` if the text
/// is no selector.
pub fn selector_takes(selector: &str, layer: usize, kind: LayerKind) -> Option<bool> {
    match selector.trim() {
        "all" => Some(true),
        "moe" => Some(kind == LayerKind::Moe),
        "dense" => Some(kind == LayerKind::Dense),
        text => layer_range(text).map(|range| range.contains(&layer)),
    }
}

fn resolve_names(stage: &str, names: &OneOrMany, devices: &[Device]) -> Result<Vec<DeviceIndex>, BuildError> {
    let mut found = Vec::new();
    for name in names.names() {
        let before = found.len();
        for (index, device) in devices.iter().enumerate() {
            if (device.name == *name || device.group == *name) && !found.contains(&index) {
                found.push(index);
            }
        }
        if found.len() == before {
            return Err(BuildError::UnknownDevice { stage: stage.into(), device: name.clone() });
        }
    }
    Ok(found)
}

fn resolve_stages(
    spec: &DeploymentSpec,
    devices: &[Device],
    kinds: &KindRegistry,
) -> Result<Vec<ResolvedStage>, BuildError> {
    let mut stages = Vec::new();
    let mut section = Section::Before;
    for entry in &spec.stages {
        match entry {
            StageEntry::Stage(stage) => stages.push(resolve_stage(stage, section, devices, kinds)?),
            StageEntry::Layers(block) => {
                for stage in &block.layers {
                    stages.push(resolve_stage(stage, Section::Layers, devices, kinds)?);
                }
                section = Section::After;
            }
        }
    }
    Ok(stages)
}

fn resolve_stage(
    spec: &StageSpec,
    section: Section,
    devices: &[Device],
    kinds: &KindRegistry,
) -> Result<ResolvedStage, BuildError> {
    let id = spec.id.clone().unwrap_or_else(|| spec.kind.clone());
    let Some(info) = kinds.get(&spec.kind) else {
        return Err(BuildError::UnknownKind { stage: id, kind: spec.kind.clone() });
    };
    let role = info.role();
    let names = |names: &Option<OneOrMany>| match names {
        Some(names) => resolve_names(&id, names, devices),
        None => Ok(Vec::new()),
    };
    let transfer = (role == Role::Transfer).then_some(ResolvedTransfer {
        from: names(&spec.from)?,
        to: names(&spec.to)?,
        dtype: spec.dtype.unwrap_or_default(),
        routing: spec.routing.unwrap_or_default(),
    });
    let devices = names(&spec.on)?;
    Ok(ResolvedStage { id, kind: spec.kind.clone(), role, section, devices, transfer, spec: spec.clone() })
}

struct Unroll<'a> {
    stages: &'a [ResolvedStage],
    graph: DiGraph<StageInstance, ()>,
    /// What the next section or layer follows: the instances nothing has followed yet.
    last: Vec<NodeIndex>,
}

impl Unroll<'_> {
    fn chain_section(&mut self, section: Section) {
        for (stage, _) in self.stages.iter().enumerate().filter(|(_, stage)| stage.section == section) {
            let node = self.graph.add_node(StageInstance { stage, layer: None, payload: Payload::None });
            for before in std::mem::replace(&mut self.last, vec![node]) {
                self.graph.add_edge(before, node, ());
            }
        }
    }

    fn add_layer(&mut self, layer: usize, kind: LayerKind) -> Result<(), BuildError> {
        let mut present: Vec<(StageIndex, NodeIndex)> = Vec::new();
        for (stage, resolved) in self.stages.iter().enumerate() {
            if resolved.section == Section::Layers && takes_layer(resolved, layer, kind)? {
                let payload = self.payload(resolved, &present);
                let node = self.graph.add_node(StageInstance { stage, layer: Some(layer), payload });
                present.push((stage, node));
            }
        }
        for index in 0..present.len() {
            self.connect(layer, &present, index)?;
        }
        let leaves: Vec<NodeIndex> =
            present.iter().map(|(_, node)| *node).filter(|node| self.graph.neighbors(*node).next().is_none()).collect();
        if !present.is_empty() {
            // A layer that is all cycle has no leaf; the last instance stands in, and the order check names the cycle.
            self.last = if leaves.is_empty() { vec![present[present.len() - 1].1] } else { leaves };
        }
        Ok(())
    }

    fn connect(&mut self, layer: usize, present: &[(StageIndex, NodeIndex)], index: usize) -> Result<(), BuildError> {
        let (stage, node) = present[index];
        let resolved = &self.stages[stage];
        match &resolved.spec.after {
            Some(after) if !after.is_empty() => {
                for name in after {
                    let found = present.iter().find(|(other, _)| self.stages[*other].id == *name);
                    let (_, before) = found.ok_or_else(|| BuildError::UnknownPredecessor {
                        stage: resolved.id.clone(),
                        after: name.clone(),
                        layer,
                    })?;
                    self.graph.add_edge(*before, node, ());
                }
            }
            _ if index > 0 => {
                self.graph.add_edge(present[index - 1].1, node, ());
            }
            _ => {
                for before in self.last.clone() {
                    self.graph.add_edge(before, node, ());
                }
            }
        }
        Ok(())
    }

    /// After an FFN of this layer a transfer carries y; before it, u, with the routing if the router has run.
    fn payload(&self, stage: &ResolvedStage, present: &[(StageIndex, NodeIndex)]) -> Payload {
        let ran = |role: Role| present.iter().any(|(other, _)| self.stages[*other].role == role);
        match () {
            () if stage.transfer.is_none() => Payload::None,
            () if ran(Role::Ffn) => Payload::Output,
            () if ran(Role::Router) => Payload::RoutedInput,
            () => Payload::Input,
        }
    }
}

fn takes_layer(stage: &ResolvedStage, layer: usize, kind: LayerKind) -> Result<bool, BuildError> {
    let Some(selectors) = &stage.spec.on_layers else { return Ok(true) };
    for selector in selectors.names() {
        match selector_takes(selector, layer, kind) {
            Some(true) => return Ok(true),
            Some(false) => {}
            None => return Err(BuildError::BadSelector { stage: stage.id.clone(), selector: selector.clone() }),
        }
    }
    Ok(false)
}

fn stable_topological_order(graph: &DiGraph<StageInstance, ()>) -> Result<Vec<NodeIndex>, NodeIndex> {
    use std::cmp::Reverse;
    let mut missing: Vec<usize> =
        graph.node_indices().map(|node| graph.neighbors_directed(node, petgraph::Incoming).count()).collect();
    let mut ready: std::collections::BinaryHeap<Reverse<NodeIndex>> =
        graph.node_indices().filter(|node| missing[node.index()] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(graph.node_count());
    while let Some(Reverse(node)) = ready.pop() {
        order.push(node);
        for next in graph.neighbors(node) {
            missing[next.index()] -= 1;
            if missing[next.index()] == 0 {
                ready.push(Reverse(next));
            }
        }
    }
    match graph.node_indices().find(|node| missing[node.index()] > 0) {
        Some(node) => Err(node),
        None => Ok(order),
    }
}
