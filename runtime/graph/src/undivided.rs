//! The deployment without disaggregation on the same devices: what every divided one has to beat.
//!
//! Each device runs attention and FFN for its own share of the sequences, so nothing crosses between devices and every device
//! holds the whole model. The limits are the same in total; where M micro-batches rotated there is one, M times as large,
//! because a lane that waits for nobody only loses by reading its weights more often.

use crate::kinds::{KindRegistry, Role};
use crate::spec::{
    Backend, DeploymentSpec, DeviceSpec, OneOrMany, PolicyKind, ScheduleSpec, ShardSpec, StageEntry, StageSpec,
};
use std::collections::BTreeSet;

/// Why there is no undivided form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UndividedError {
    /// The graph is that already, or its devices are cards.
    #[error(
        "an undivided form is made of a graph's CPU devices, and this one has fewer than two: there is nothing to compare it with"
    )]
    OneDevice,
    /// The graph is that already, on several devices.
    #[error(
        "attention and FFN run on the same devices of this graph, so it is not divided: there is nothing to compare it with"
    )]
    SameDevices,
    /// Which stage follows which would have to be invented.
    #[error(
        "stage `{0}` names its predecessors with `after`, and it is not clear what follows what without transfers: write the \
         undivided graph yourself and give it with --against-graph"
    )]
    After(String),
    /// Several hosts share nothing.
    #[error("the graph has hosts, and an undivided form is only made of the devices of one process")]
    Hosts,
}

/// Makes the undivided deployment of all CPU devices of `spec`.
///
/// # Errors
/// [`UndividedError`] where there is none, or none without guessing.
pub fn undivided(spec: &DeploymentSpec, kinds: &KindRegistry) -> Result<DeploymentSpec, UndividedError> {
    if !spec.hosts.is_empty() {
        return Err(UndividedError::Hosts);
    }
    let mut made = spec.clone();
    made.devices.retain(|_, device| device.backend == Backend::Cpu);
    let devices = made.devices.values().map(size).sum::<u32>();
    if devices < 2 {
        return Err(UndividedError::OneDevice);
    }
    if role_devices(spec, kinds, Role::Attention) == role_devices(spec, kinds, Role::Ffn) {
        return Err(UndividedError::SameDevices);
    }
    let on = OneOrMany::Many(made.devices.keys().cloned().collect());
    let attention = attention_devices(spec, kinds).max(1);
    for entry in &mut made.stages {
        match entry {
            StageEntry::Stage(stage) => undivide(stage, &on, devices, kinds)?,
            StageEntry::Layers(block) => {
                block.layers.retain(|stage| role(stage, kinds) != Some(Role::Transfer));
                block.layers.iter_mut().try_for_each(|stage| undivide(stage, &on, devices, kinds))?;
            }
        }
    }
    made.name = format!("{}, undivided", spec.name);
    let rotating = spec.schedule.micro_batches;
    made.limits.rows_per_micro_batch = spec.limits.rows_per_micro_batch.saturating_mul(rotating);
    // A chunk is an attention device's and a micro-batch's: the sum over a cycle stays.
    let chunks = u64::from(spec.limits.prefill_chunk) * u64::from(rotating) * u64::from(attention);
    made.limits.prefill_chunk = u32::try_from(chunks.div_ceil(u64::from(devices))).unwrap_or(u32::MAX);
    made.schedule = ScheduleSpec { policy: PolicyKind::Sequential, micro_batches: 1, order: None };
    Ok(made)
}

fn role(stage: &StageSpec, kinds: &KindRegistry) -> Option<Role> {
    kinds.get(&stage.kind).map(|info| info.role())
}

fn undivide(stage: &mut StageSpec, on: &OneOrMany, devices: u32, kinds: &KindRegistry) -> Result<(), UndividedError> {
    if stage.after.is_some() {
        return Err(UndividedError::After(stage.id.clone().unwrap_or_else(|| stage.kind.clone())));
    }
    stage.on = Some(on.clone());
    let replicas = ShardSpec { replicas: Some(devices), ..ShardSpec::default() };
    stage.placement = None;
    stage.shard = (role(stage, kinds) == Some(Role::Ffn)).then_some(replicas);
    Ok(())
}

/// Names on which stages of a role run, a group's devices one by one.
fn role_devices(spec: &DeploymentSpec, kinds: &KindRegistry, wanted: Role) -> BTreeSet<String> {
    let stages = spec.stages.iter().flat_map(|entry| match entry {
        StageEntry::Stage(stage) => std::slice::from_ref(stage),
        StageEntry::Layers(block) => &block.layers,
    });
    let names = stages.filter(|stage| role(stage, kinds) == Some(wanted)).filter_map(|stage| stage.on.as_ref());
    let devices = |name: &String| match spec.devices.get(name).and_then(|device| device.count) {
        Some(count) => (0..count).map(|index| format!("{name}.{index}")).collect(),
        None => vec![name.clone()],
    };
    names.flat_map(|on| on.names().iter().flat_map(devices).collect::<Vec<_>>()).collect()
}

fn size(device: &DeviceSpec) -> u32 {
    device.count.unwrap_or(1)
}

/// Devices that hold sequences.
fn attention_devices(spec: &DeploymentSpec, kinds: &KindRegistry) -> u32 {
    let embed = spec.stages.iter().find_map(|entry| match entry {
        StageEntry::Stage(stage) if role(stage, kinds) == Some(Role::Embed) => stage.on.as_ref(),
        _ => None,
    });
    // A name that is no key is one device of a group.
    embed.map_or(0, |on| on.names().iter().map(|name| spec.devices.get(name).map_or(1, size)).sum())
}
