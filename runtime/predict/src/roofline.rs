//! Durations from a machine's figures: a stage takes as long as reading what its rows touch, or as computing with it, whichever is
//! longer, at a stated share of the peak; what crosses between devices takes links that others use as well.
//!
//! Left out: activations in memory, the slice of a split output projection as a part of its own (it counts with the first part), and
//! the rows that such parts hand each other.

use crate::durations::Durations;
use crate::experts::ExpertLoad;
use rally_cost::{Dtype, Hardware, SpecError};
use rally_graph::kinds::{KindRegistry, Role, StageKindInfo, WeightPart, weights};
use rally_graph::model::{ModelShape, WeightFormat};
use rally_graph::plan::{TaskRole, TaskTable, TaskTemplate};
use rally_graph::shard::ShardCounts;
use rally_graph::spec::{ComputeDtype, DeploymentSpec};
use rally_graph::stage_graph::{DeviceIndex, Payload, StageGraph};
use rally_schedule::virtual_lanes::{Transit, VirtualTask};

/// Shares of the peaks that work reaches, and what every task and every message costs beside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Efficiency {
    /// Of the memory's bandwidth.
    pub memory: f64,
    /// Of the peak FLOPs.
    pub compute: f64,
    /// Of the links' bandwidth.
    pub network: f64,
    /// Seconds before a task does anything.
    pub launch_s: f64,
    /// Seconds until the first byte between two hosts is there.
    pub latency_s: f64,
    /// Whether a row that goes to several devices leaves its own once, and the network copies it.
    pub multicast: bool,
}

impl Default for Efficiency {
    /// Links at 80 % as in the Step-3 report's budget (section 5.4), memory at 80 % and products at 70 %, as large kernels reach; 2 µs
    /// for a launch inside a CUDA graph and 10 µs for a message between hosts.
    fn default() -> Self {
        Self { memory: 0.8, compute: 0.7, network: 0.8, launch_s: 2e-6, latency_s: 10e-6, multicast: false }
    }
}

/// What is known of the machines.
pub struct Machines<'a> {
    /// By device.
    pub hardware: &'a [Hardware],
    /// The graph file.
    pub spec: &'a DeploymentSpec,
    /// Shares of the peaks.
    pub efficiency: Efficiency,
}

/// What one task takes, as far as it does not depend on its rows.
#[derive(Clone, Debug, Default)]
struct Figures {
    /// Bytes read whatever the rows, and values that every row is multiplied with.
    bytes: f64,
    values: f64,
    /// Most of `bytes` that a row touches, 0 to 1.
    touched: f64,
    /// Of each position that a row attends to.
    position_bytes: f64,
    position_flops: f64,
    /// Of each expert that is hit.
    expert_bytes: f64,
    expert_values: f64,
    /// Ids of the experts here.
    held: Vec<usize>,
    bytes_per_s: f64,
    flops_per_s: f64,
    /// Of a row that is sent.
    row_bytes: f64,
    /// Other devices that get rows, and which share of them.
    to: Vec<(DeviceIndex, f64)>,
}

/// A graph on machines that may not exist.
pub struct Roofline<'a> {
    machines: Machines<'a>,
    /// By task.
    figures: Vec<Figures>,
    /// By device: host, if it names one.
    hosts: Vec<Option<&'a str>>,
    shape: &'a ModelShape,
    experts: &'a ExpertLoad,
}

impl<'a> Roofline<'a> {
    /// For the tasks of `tasks`.
    ///
    /// # Errors
    /// [`SpecError::Missing`] if the hardware lacks a peak that the graph computes in.
    pub fn new(
        machines: Machines<'a>,
        graph: &StageGraph,
        tasks: &TaskTable,
        shape: &'a ModelShape,
        experts: &'a ExpertLoad,
    ) -> Result<Self, SpecError> {
        let mut followers: Vec<Vec<DeviceIndex>> = vec![Vec::new(); tasks.tasks.len()];
        for task in &tasks.tasks {
            for before in &task.after {
                followers[*before].push(task.device);
            }
        }
        let figures = tasks.tasks.iter().zip(&followers);
        let figures = figures.map(|(task, followers)| {
            let mut figures = of_task(&machines, graph, task, shape)?;
            if task.payload != Payload::None && task.role != TaskRole::Receive {
                figures.to = destinations(tasks, task, followers);
            }
            Ok(figures)
        });
        let figures = figures.collect::<Result<_, SpecError>>()?;
        let host = |group: &str| machines.spec.devices.get(group).and_then(|device| device.host.as_deref());
        let hosts = graph.devices.iter().map(|device| host(&device.group)).collect();
        Ok(Self { machines, figures, hosts, shape, experts })
    }
}

/// Who gets rows of a send or an exchange, itself aside. Input goes to every copy of the FFN by its share; output is shared out
/// among those it belongs to.
fn destinations(tasks: &TaskTable, task: &TaskTemplate, followers: &[DeviceIndex]) -> Vec<(DeviceIndex, f64)> {
    let replicas = task.layer.and_then(|layer| tasks.ffns[layer].as_ref()).map_or(1, |ffn| ffn.replicas());
    let mut devices = followers.to_vec();
    devices.sort_unstable();
    devices.dedup();
    let share = match (task.payload, task.role) {
        (Payload::Output, _) => 1.0 / devices.len().max(1) as f64,
        // What one copy got is passed on to its own devices.
        (_, TaskRole::Exchange) => 1.0,
        _ => 1.0 / replicas as f64,
    };
    devices.into_iter().filter(|device| *device != task.device).map(|device| (device, share)).collect()
}

fn of_task(
    machines: &Machines<'_>,
    graph: &StageGraph,
    task: &TaskTemplate,
    shape: &ModelShape,
) -> Result<Figures, SpecError> {
    let (stage, hardware) = (&graph.stages[task.stage], &machines.hardware[task.device]);
    let mut figures = Figures { bytes_per_s: hardware.memory_bytes_per_s(), ..Figures::default() };
    figures.flops_per_s = hardware.peak(match machines.spec.compute {
        ComputeDtype::Fp8 => hardware.decode_dtype(),
        ComputeDtype::Bf16 | ComputeDtype::F32 => Dtype::Bf16,
    })?;
    if let Some(transfer) = &stage.transfer {
        let routing = if task.payload == Payload::RoutedInput { weights::routing_row_bytes(shape) } else { 0 };
        figures.row_bytes = (weights::wire_row_bytes(transfer.dtype, shape.hidden) + routing) as f64;
        return Ok(figures);
    }
    let Some(info) = KindRegistry::shared().get(&stage.kind).filter(|_| task.part == 0) else { return Ok(figures) };
    let counts = ShardCounts::of(stage.spec.shard.as_ref());
    let place = stage.devices.iter().position(|device| *device == task.device).unwrap_or(0);
    let position = counts.position(place);
    let bytes = |held: Option<&[usize]>| {
        info.weights_bytes(&WeightPart { shape, layer: task.layer, counts, position, held }) as f64
    };
    let width = match shape.weight_format {
        WeightFormat::F32 => 4.0,
        WeightFormat::Bf16 => 2.0,
        WeightFormat::Fp8Block => 1.0,
    };
    if stage.kind == "expert_ffn" {
        figures.held = stage.held_experts(task.device, task.layer.unwrap_or(0), shape.experts);
        figures.bytes = bytes(Some(&[]));
        figures.expert_bytes = (bytes(Some(&figures.held)) - figures.bytes) / figures.held.len().max(1) as f64;
    } else if stage.role == Role::Sampling {
        // A head that is the embedding is read all the same.
        figures.bytes = weights::plain_bytes(shape.weight_format, shape.vocab * shape.hidden) as f64;
    } else {
        figures.bytes = bytes(None);
    }
    figures.touched = if stage.kind == "expert_ffn" { 1.0 } else { info.active_share(shape) };
    (figures.values, figures.expert_values) = (figures.bytes * figures.touched / width, figures.expert_bytes / width);
    attention(&mut figures, info, stage.spec.kv_dtype.unwrap_or_default(), shape);
    Ok(figures)
}

fn attention(figures: &mut Figures, info: &dyn StageKindInfo, dtype: rally_graph::spec::WireDtype, shape: &ModelShape) {
    if info.role() == Role::Attention {
        figures.position_bytes = info.kv_bytes_per_token(shape, dtype) as f64;
        // Scores and values: a product and a sum for each channel of each head (Step-3 report, section 4).
        figures.position_flops = (4 * shape.heads * shape.head_dim) as f64;
    }
}

impl Durations for Roofline<'_> {
    fn task_s(&self, task: &VirtualTask<'_>) -> f64 {
        let (figures, template) = (&self.figures[task.task], &task.table.tasks[task.task]);
        let Efficiency { memory, compute, launch_s, .. } = self.machines.efficiency;
        let rows = task.rows();
        if rows == 0 || (template.payload != Payload::None && figures.to.is_empty() && template.role == TaskRole::Send)
        {
            return 0.0;
        }
        let (top_k, experts, layer) = (self.shape.top_k, self.shape.experts, template.layer.unwrap_or(0));
        let hit = match figures.held.is_empty() {
            true => 0.0,
            false => self.experts.hit(rows, layer, &figures.held, top_k, experts),
        };
        let (rows, context) = (rows as f64, task.load.context as f64);
        let chosen = figures.held.len() as f64 * top_k as f64 / experts.max(1) as f64;
        let touched = (rows * figures.touched).min(1.0);
        let bytes = figures.bytes * touched + figures.expert_bytes * hit + figures.position_bytes * context;
        let flops = 2.0 * rows * (figures.values + figures.expert_values * chosen) + figures.position_flops * context;
        (bytes / (figures.bytes_per_s * memory)).max(flops / (figures.flops_per_s * compute)) + launch_s
    }

    fn plan_s(&self, _exit: &VirtualTask<'_>) -> f64 {
        0.0
    }

    fn transit(&self, task: &VirtualTask<'_>) -> Option<Transit> {
        let figures = &self.figures[task.task];
        let device = task.table.tasks[task.task].device;
        let Efficiency { network, latency_s, multicast, .. } = self.machines.efficiency;
        let bytes = task.load.rows as f64 * figures.row_bytes;
        let mut transit = Transit::default();
        for near in [true, false] {
            let same_host = |other: &DeviceIndex| (self.hosts[*other] == self.hosts[device]) == near;
            let to = figures.to.iter().filter(|(other, _)| same_host(other));
            let speed = |device: DeviceIndex| {
                let links = self.machines.hardware[device].links();
                let bytes_per_s =
                    if near { links.fabric_bytes_per_s.value } else { links.network_bytes_per_s_per_device() };
                bytes_per_s * network
            };
            let way = |device: DeviceIndex, into: bool| device * 4 + usize::from(near) * 2 + usize::from(into);
            let ns = |bytes: f64, device: DeviceIndex| (bytes / speed(device) * 1e9).round() as u64;
            let shares = to.clone().map(|(_, share)| *share);
            let leaving = if multicast { shares.fold(0.0, f64::max) } else { shares.sum() };
            if leaving > 0.0 {
                transit.out.push((way(device, false), ns(bytes * leaving, device)));
                transit.into.extend(to.map(|(other, share)| (way(*other, true), ns(bytes * share, *other))));
                let latency_ns = if near { 0 } else { (latency_s * 1e9).round() as u64 };
                transit.latency_ns = transit.latency_ns.max(latency_ns);
            }
        }
        (!transit.out.is_empty()).then_some(transit)
    }
}
