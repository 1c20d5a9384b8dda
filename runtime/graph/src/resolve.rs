//! The stages of a spec with their kinds and devices looked up: what validation, memory and rendering share.
//!
//! Nothing here fails: a name that leads nowhere is left out, and validation reports it.

use crate::kinds::{KindRegistry, Role, StageKindInfo};
use crate::model::{LayerKind, ModelShape};
use crate::shard::ShardCounts;
use crate::source::join;
use crate::spec::{DeploymentSpec, OneOrMany, StageEntry, StageSpec};
use crate::stage_graph::{Device, DeviceIndex, Section, expand_devices, selector_takes};
use indexmap::IndexSet;
use std::collections::HashMap;

/// A stage of the file.
pub(crate) struct StageAt<'a> {
    pub(crate) spec: &'a StageSpec,
    pub(crate) info: &'a dyn StageKindInfo,
    pub(crate) pointer: String,
    pub(crate) id: &'a str,
    pub(crate) section: Section,
    pub(crate) on: Vec<DeviceIndex>,
    pub(crate) from: Vec<DeviceIndex>,
    pub(crate) to: Vec<DeviceIndex>,
}

impl StageAt<'_> {
    pub(crate) fn role(&self) -> Role {
        self.info.role()
    }

    pub(crate) fn counts(&self) -> ShardCounts {
        ShardCounts::of(self.spec.shard.as_ref())
    }

    pub(crate) fn at(&self, key: &str) -> String {
        join(&self.pointer, key)
    }

    /// Whether the stage runs in a layer; a selector that cannot be read takes none.
    pub(crate) fn takes(&self, layer: usize, kind: LayerKind) -> bool {
        self.section == Section::Layers && spec_takes(self.spec, layer, kind)
    }
}

fn spec_takes(spec: &StageSpec, layer: usize, kind: LayerKind) -> bool {
    match &spec.on_layers {
        None => true,
        Some(selectors) => selectors.names().iter().any(|text| selector_takes(text, layer, kind) == Some(true)),
    }
}

/// Layers that hold the same stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerCase {
    /// Indices into [`Resolved::stages`], in file order.
    pub(crate) stages: Vec<usize>,
    /// The layers; of a model that is not known, representatives.
    pub(crate) layers: Vec<usize>,
    /// What they are.
    pub(crate) kind: LayerKind,
}

pub(crate) struct Resolved<'a> {
    pub(crate) spec: &'a DeploymentSpec,
    pub(crate) devices: Vec<Device>,
    pub(crate) stages: Vec<StageAt<'a>>,
}

impl<'a> Resolved<'a> {
    pub(crate) fn new(spec: &'a DeploymentSpec, registry: &'a KindRegistry) -> Self {
        let devices = expand_devices(spec);
        let stages = written_stages(spec)
            .into_iter()
            .filter_map(|(pointer, section, stage)| {
                let info = registry.get(&stage.kind)?;
                let find =
                    |names: &Option<OneOrMany>| names.as_ref().map(|n| find_devices(n, &devices)).unwrap_or_default();
                let id = stage.id.as_deref().unwrap_or(&stage.kind);
                let (on, from, to) = (find(&stage.on), find(&stage.from), find(&stage.to));
                Some(StageAt { spec: stage, info, pointer, id, section, on, from, to })
            })
            .collect();
        Self { spec, devices, stages }
    }

    /// The first stage of a role.
    pub(crate) fn first(&self, role: Role) -> Option<&StageAt<'a>> {
        self.stages.iter().find(|stage| stage.role() == role)
    }

    /// Devices that sequences are pinned to: those of the attention stages, else of the embedding.
    pub(crate) fn attention_devices(&self) -> Vec<DeviceIndex> {
        let of_role = |role: Role| {
            let mut all: Vec<DeviceIndex> =
                self.stages.iter().filter(|stage| stage.role() == role).flat_map(|stage| stage.on.clone()).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let attention = of_role(Role::Attention);
        if attention.is_empty() { of_role(Role::Embed) } else { attention }
    }

    /// The distinct layers of the model, or of all models that the selectors tell apart.
    pub(crate) fn layer_cases(&self, shape: Option<&ModelShape>) -> Vec<LayerCase> {
        let layers: Vec<(usize, LayerKind)> = match shape {
            Some(shape) => shape.layers.iter().copied().enumerate().collect(),
            None => self.representative_layers(),
        };
        let mut cases: Vec<LayerCase> = Vec::new();
        for (layer, kind) in layers {
            let takes = |(index, stage): (usize, &StageAt<'_>)| stage.takes(layer, kind).then_some(index);
            let stages: Vec<usize> = self.stages.iter().enumerate().filter_map(takes).collect();
            match cases.iter_mut().find(|case| case.kind == kind && case.stages == stages) {
                Some(case) => case.layers.push(layer),
                None => cases.push(LayerCase { stages, layers: vec![layer], kind }),
            }
        }
        cases
    }

    /// Layers on both sides of every bound that a selector names, of either kind.
    fn representative_layers(&self) -> Vec<(usize, LayerKind)> {
        let mut numbers = vec![0usize];
        for stage in &self.stages {
            for text in stage.spec.on_layers.iter().flat_map(|selectors| selectors.names()) {
                for bound in text.split("..").filter_map(|bound| bound.trim().parse::<usize>().ok()) {
                    numbers.extend([bound.saturating_sub(1), bound, bound.saturating_add(1)]);
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().flat_map(|layer| [(layer, LayerKind::Dense), (layer, LayerKind::Moe)]).collect()
    }

    /// Names of devices, a whole group by its own name.
    pub(crate) fn device_names(&self, devices: &[DeviceIndex]) -> Vec<String> {
        let mut listed: HashMap<&str, usize> = HashMap::new();
        devices.iter().for_each(|index| *listed.entry(&self.devices[*index].group).or_default() += 1);
        let mut names: IndexSet<&str> = IndexSet::new();
        for index in devices {
            let device = &self.devices[*index];
            let size = self.spec.devices.get(&device.group).map_or(1, |entry| entry.count.unwrap_or(1) as usize);
            let whole = listed.get(device.group.as_str()).is_some_and(|count| *count >= size);
            names.insert(if whole { &device.group } else { &device.name });
        }
        names.into_iter().map(str::to_owned).collect()
    }
}

/// Every stage of the file with its pointer and section, in order.
pub(crate) fn written_stages(spec: &DeploymentSpec) -> Vec<(String, Section, &StageSpec)> {
    let mut all = Vec::new();
    let mut section = Section::Before;
    for (index, entry) in spec.stages.iter().enumerate() {
        match entry {
            StageEntry::Stage(stage) => all.push((format!("/stages/{index}"), section, stage)),
            StageEntry::Layers(block) => {
                for (inner, stage) in block.layers.iter().enumerate() {
                    all.push((format!("/stages/{index}/layers/{inner}"), Section::Layers, stage));
                }
                section = Section::After;
            }
        }
    }
    all
}

/// Devices that names of devices or groups lead to, in order, each once.
fn find_devices(names: &OneOrMany, devices: &[Device]) -> Vec<DeviceIndex> {
    let mut found: IndexSet<DeviceIndex> = IndexSet::new();
    for name in names.names() {
        let meant = |device: &Device| device.name == *name || device.group == *name;
        found.extend(devices.iter().enumerate().filter(|(_, device)| meant(device)).map(|(index, _)| index));
    }
    found.into_iter().collect()
}
