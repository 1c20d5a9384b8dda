//! Which devices of a deployment are alike: whole groups that have the same part in every stage.
//!
//! A load may still make them differ; that shows while it runs ([`Uneven`](rally_schedule::virtual_lanes::Uneven)).

use crate::experts::ExpertLoad;
use rally_graph::kinds::{KindRegistry, WeightPart};
use rally_graph::model::ModelShape;
use rally_graph::shard::ShardCounts;
use rally_graph::spec::{DeploymentSpec, DeviceSpec};
use rally_graph::stage_graph::{DeviceIndex, StageGraph};
use rally_schedule::virtual_lanes::Fold;
use std::collections::HashSet;

/// What a device does in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It sends.
    From(usize),
    /// It receives.
    To(usize),
    /// It holds weights: so many bytes, so many experts among them, and which shard of them where rows do not choose all alike.
    Holds { stage: usize, bytes: u64, experts: usize, shard: usize },
}

/// Devices by the one that can be run for them. Every device stands for itself where stages place experts by hand, and where groups share
/// hosts with others.
pub fn fold(spec: &DeploymentSpec, graph: &StageGraph, shape: &ModelShape, experts: &ExpertLoad) -> Fold {
    let none = Fold::none(graph.devices.len());
    if graph.stages.iter().any(|stage| stage.spec.placement.is_some()) || !own_hosts(spec) {
        return none;
    }
    let parts = parts(graph, shape, experts);
    let mut groups: Vec<(&str, Vec<DeviceIndex>)> = Vec::new();
    for (device, entry) in graph.devices.iter().enumerate() {
        match groups.last_mut().filter(|(name, _)| *name == entry.group) {
            Some((_, devices)) => devices.push(device),
            None => groups.push((&entry.group, vec![device])),
        }
    }
    let entry = |name: &str| spec.devices.get(name).map(|entry| DeviceSpec { host: None, ..entry.clone() });
    let mut classes: Vec<(Option<DeviceSpec>, &[DeviceIndex])> = Vec::new();
    let mut stands_in: Vec<DeviceIndex> = (0..graph.devices.len()).collect();
    for (name, devices) in &groups {
        let entry = entry(name);
        let alike = |class: &&(Option<DeviceSpec>, &[DeviceIndex])| {
            let same = |(one, other): (&DeviceIndex, &DeviceIndex)| parts[*one] == parts[*other];
            class.0 == entry && class.1.len() == devices.len() && class.1.iter().zip(devices).all(same)
        };
        match classes.iter().find(alike) {
            Some((_, first)) => first.iter().zip(devices).for_each(|(first, device)| stands_in[*device] = *first),
            None => classes.push((entry, devices)),
        }
    }
    Fold::new(stands_in)
}

/// Whether every group has a host to itself, or none names one.
fn own_hosts(spec: &DeploymentSpec) -> bool {
    let mut seen = HashSet::new();
    let hosts: Vec<&str> = spec.devices.values().filter_map(|entry| entry.host.as_deref()).collect();
    hosts.is_empty() || (hosts.len() == spec.devices.len() && hosts.iter().all(|host| seen.insert(*host)))
}

/// By device.
fn parts(graph: &StageGraph, shape: &ModelShape, load: &ExpertLoad) -> Vec<Vec<Part>> {
    let mut parts: Vec<Vec<Part>> = vec![Vec::new(); graph.devices.len()];
    for (stage, resolved) in graph.stages.iter().enumerate() {
        if let Some(transfer) = &resolved.transfer {
            transfer.from.iter().for_each(|device| parts[*device].push(Part::From(stage)));
            transfer.to.iter().for_each(|device| parts[*device].push(Part::To(stage)));
        }
        let Some(info) = KindRegistry::shared().get(&resolved.kind) else { continue };
        let counts = ShardCounts::of(resolved.spec.shard.as_ref());
        // Layers of a stage are alike, and without a placement so are their experts.
        let layer = graph.graph.node_weights().find(|instance| instance.stage == stage).and_then(|first| first.layer);
        let shards = if resolved.kind == "expert_ffn" { counts.experts } else { 0 };
        let first = |shard: usize| resolved.devices.get(shard * counts.tensor).copied().unwrap_or_default();
        let held: Vec<Vec<usize>> =
            (0..shards).map(|shard| resolved.held_experts(first(shard), layer.unwrap_or(0), shape.experts)).collect();
        for (place, device) in resolved.devices.iter().enumerate() {
            let position = counts.position(place);
            let held = held.get(position.expert);
            let part = WeightPart { shape, layer, counts, position, held: held.map(Vec::as_slice) };
            parts[*device].push(Part::Holds {
                stage,
                bytes: info.weights_bytes(&part),
                experts: held.map_or(0, Vec::len),
                shard: if matches!(load, ExpertLoad::Recorded(_)) { position.expert } else { 0 },
            });
        }
    }
    parts
}
