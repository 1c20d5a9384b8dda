//! What a deployment keeps on every device, and the time a stage may take under the SLO.
//!
//! Counted, not measured: weights as stored, KV for `limits.kv_tokens`, and the slots that the plan preallocates for
//! activations and edges. What a runtime or driver takes for itself is not in here.

mod cuda;
mod hopper;
mod slots;

use crate::hardware::{self, Machine};
use crate::kinds::{KindRegistry, WeightPart};
use crate::model::{LayerKind, ModelShape};
use crate::placement::ExpertPlacement;
use crate::resolve::{Resolved, StageAt};
use crate::spec::{Backend, DeploymentSpec, Limits};
use crate::stage_graph::{DeviceIndex, Section};
use serde::Serialize;

/// Bytes of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// Name of the device.
    pub name: String,
    /// Weights, in the format they are stored in, scales included.
    pub weights_bytes: u64,
    /// KV cache, whole pages, scales included.
    pub kv_bytes: u64,
    /// Activations, edge buffers and scratch.
    pub slots_bytes: u64,
    /// What the device has: its `memory_bytes`, else the machine's (CPU) or the hardware's; absent if unknown.
    pub capacity_bytes: Option<u64>,
    /// Where the capacity was read: `memory_bytes`, a card's name, `this machine`.
    #[serde(skip)]
    pub capacity_source: Option<String>,
}

impl DeviceMemory {
    /// Everything it needs.
    pub fn needed_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_bytes).saturating_add(self.slots_bytes)
    }
}

/// Time under the SLO (Step-3 paper §6: 50 ms over 61 layers and 3 micro-batches leave 273 µs a slot).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// Time per output token, in milliseconds.
    pub tpot_ms: f64,
    /// Time of a layer for all micro-batches, in microseconds.
    pub layer_us: f64,
    /// Time of a stage for one micro-batch in a layer, in microseconds.
    pub slot_us: f64,
}

/// The stage budget; `None` without an SLO.
pub fn budget(spec: &DeploymentSpec, shape: &ModelShape) -> Option<Budget> {
    let tpot_ms = spec.slo?.tpot_ms;
    let layer_us = tpot_ms * 1000.0 / shape.layers.len().max(1) as f64;
    Some(Budget { tpot_ms, layer_us, slot_us: layer_us / f64::from(spec.schedule.micro_batches.max(1)) })
}

/// Bytes of every device, in file order, groups expanded. Of a spec with faults, what can be counted.
pub fn device_memory(
    spec: &DeploymentSpec,
    shape: &ModelShape,
    registry: &KindRegistry,
    machine: Machine,
) -> Vec<DeviceMemory> {
    count(&Resolved::new(spec, registry), shape, machine)
}

/// Bytes of KV that one more token takes on the device that holds its sequence, over all layers.
pub fn kv_bytes_per_token(spec: &DeploymentSpec, shape: &ModelShape, registry: &KindRegistry) -> u64 {
    let resolved = Resolved::new(spec, registry);
    resolved.stages.iter().map(|stage| kv_per_token(stage, shape)).sum()
}

pub(crate) fn count(resolved: &Resolved<'_>, shape: &ModelShape, machine: Machine) -> Vec<DeviceMemory> {
    let rows = Rows::of(resolved);
    (0..resolved.devices.len())
        .map(|device| {
            let entry = &resolved.devices[device];
            let on: Vec<&StageAt<'_>> = resolved.stages.iter().filter(|stage| stage.on.contains(&device)).collect();
            let (capacity_bytes, capacity_source) = capacity(resolved.spec, &entry.group, machine).unzip();
            DeviceMemory {
                name: entry.name.clone(),
                weights_bytes: on.iter().map(|stage| weights(stage, device, shape)).fold(0, u64::saturating_add),
                kv_bytes: on.iter().map(|stage| kv(resolved, stage, shape)).fold(0, u64::saturating_add),
                slots_bytes: match resolved.spec.devices.get(&entry.group).map(|device| device.backend) {
                    Some(Backend::Cuda) => cuda::count(resolved, device, shape, &rows),
                    _ => slots::count(resolved, device, shape, &rows),
                },
                capacity_bytes,
                capacity_source,
            }
        })
        .collect()
}

/// Memory of a device of a group, and where that was read.
fn capacity(spec: &DeploymentSpec, group: &str, machine: Machine) -> Option<(u64, String)> {
    let device = spec.devices.get(group)?;
    if let Some(bytes) = device.memory_bytes {
        return Some((bytes, "memory_bytes".into()));
    }
    let name = device.hardware.as_deref().unwrap_or_default();
    let known = hardware::memory_bytes(name).map(|bytes| (bytes, name.to_owned()));
    match device.backend {
        Backend::Cpu if device.host.is_none() => {
            machine.memory_bytes.map(|bytes| (bytes, "this machine".into())).or(known)
        }
        Backend::Cpu | Backend::Cuda => known,
    }
}

fn layers_of<'a>(stage: &'a StageAt<'_>, shape: &'a ModelShape) -> impl Iterator<Item = (usize, LayerKind)> + 'a {
    shape.layers.iter().copied().enumerate().filter(|(layer, kind)| stage.takes(*layer, *kind))
}

fn weights(stage: &StageAt<'_>, device: DeviceIndex, shape: &ModelShape) -> u64 {
    let Some(index) = stage.on.iter().position(|on| *on == device) else { return 0 };
    let (counts, position) = (stage.counts(), stage.counts().position(index));
    let bytes = |layer: Option<usize>| {
        let placed = layer.filter(|_| stage.spec.placement.is_some());
        let placed = placed.map(|layer| ExpertPlacement::of(stage.spec, layer, shape.experts, counts.experts));
        let held = placed.as_ref().map(|placed| placed.held_by(position.expert));
        stage.info.weights_bytes(&WeightPart { shape, layer, counts, position, held })
    };
    match stage.section {
        Section::Layers => layers_of(stage, shape).map(|(layer, _)| bytes(Some(layer))).fold(0, u64::saturating_add),
        Section::Before | Section::After => bytes(None),
    }
}

fn kv_per_token(stage: &StageAt<'_>, shape: &ModelShape) -> u64 {
    let layers = layers_of(stage, shape).count() as u64;
    layers.saturating_mul(stage.info.kv_bytes_per_token(shape, stage.spec.kv_dtype.unwrap_or_default()))
}

/// KV pages of each attention device: `limits.kv_tokens` is a limit that all of them keep together, so each has an
/// equal number of whole pages, rounded down. 0: there is less than a page for each.
pub fn pages_per_device(limits: &Limits, attention_devices: usize) -> u64 {
    limits.kv_tokens / u64::from(limits.page_tokens.max(1)) / attention_devices.max(1) as u64
}

/// Attention devices have equal numbers of pages, and equal parts of the sequences, rounded up.
fn kv(resolved: &Resolved<'_>, stage: &StageAt<'_>, shape: &ModelShape) -> u64 {
    let limits = &resolved.spec.limits;
    let tokens = pages_per_device(limits, stage.on.len()) * u64::from(limits.page_tokens);
    let sequences = u64::from(limits.sequences).div_ceil(stage.on.len().max(1) as u64);
    let layers = layers_of(stage, shape).count() as u64;
    let states = layers.saturating_mul(stage.info.state_bytes_per_sequence(shape)).saturating_mul(sequences);
    tokens.saturating_mul(kv_per_token(stage, shape)).saturating_add(states)
}

/// Rows of one micro-batch.
struct Rows {
    attention: Vec<DeviceIndex>,
    /// Of all attention devices, each with its full share.
    total: u64,
    share: u64,
    sampled: u64,
}

impl Rows {
    fn of(resolved: &Resolved<'_>) -> Self {
        let attention = resolved.attention_devices();
        let (limits, devices) = (&resolved.spec.limits, attention.len().max(1) as u64);
        let share = u64::from(limits.rows_per_micro_batch).div_ceil(devices);
        Self {
            attention,
            total: share * devices,
            share,
            sampled: share.min(u64::from(limits.sequences).div_ceil(devices)),
        }
    }
}
