//! Durations from a machine's figures: a stage takes as long as reading what its rows touch, or as computing with it, whichever is
//! longer, at a stated share of the peak; what crosses between devices takes links that others use as well.
//!
//! Kernels follow each other: attention proper and the products with weights each have their own limit. A slice of a split output
//! projection multiplies the rows of all its peers, and what the parts hand each other takes the fabric. Left out: activations in memory,
//! and the rows that copied experts hand each other.

use crate::durations::Durations;
use crate::experts::ExpertLoad;
use crate::measured::StageTimes;
use rally_cost::{Dtype, Hardware, SpecError};
use rally_graph::kinds::{KindRegistry, Role, WeightPart, weights};
use rally_graph::model::{ModelShape, WeightFormat};
use rally_graph::plan::{TaskRole, TaskTable, TaskTemplate};
use rally_graph::shard::ShardCounts;
use rally_graph::spec::{ComputeDtype, DeploymentSpec, WireDtype};
use rally_graph::stage_graph::{DeviceIndex, Payload, StageGraph};
use rally_schedule::cost_table::{StageCost, TaskSize};
use rally_schedule::virtual_lanes::{Fold, Transit, VirtualTask};

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
    /// Seconds of a layer's attention beside reading and computing: norms, rope, cache appends.
    pub attention_s: f64,
    /// Seconds until the first byte between two hosts is there.
    pub latency_s: f64,
    /// Whether a row that goes to several devices leaves its own once, and the network copies it.
    pub multicast: bool,
}

impl Default for Efficiency {
    /// Links at 80 % as in the Step-3 report's budget (section 5.4), memory at 80 % and products at 70 %, as large kernels reach; 2 µs
    /// for a launch inside a CUDA graph and 10 µs for a message between hosts; nothing that attention takes beside.
    fn default() -> Self {
        Self {
            memory: 0.8,
            compute: 0.7,
            network: 0.8,
            launch_s: 2e-6,
            attention_s: 0.0,
            latency_s: 10e-6,
            multicast: false,
        }
    }
}

/// What is known of the machines.
pub struct Machines<'a> {
    /// By device.
    pub hardware: &'a [Hardware],
    /// The graph file.
    pub spec: &'a DeploymentSpec,
    /// Shares of the peaks, by device.
    pub efficiency: &'a [Efficiency],
    /// By device: stage times that were measured on its card and stand for figures where they fit.
    pub measured: &'a [Option<&'static StageTimes>],
    /// Whether routers, residual adds, embeddings and heads are taken from them too. Else figures stand for those, as in arithmetic that knows
    /// nothing of them.
    pub all_stages: bool,
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
    /// What attention takes beside reading and computing.
    beside_s: f64,
    /// And how many times as long it takes here.
    measured: Option<(&'static StageTimes, Part, f64)>,
    /// Of a row that is sent.
    row_bytes: f64,
    /// Other devices that get rows, each a part of them: one over this.
    to: Vec<Destination>,
    parts: usize,
}

/// What of a stage was measured.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// A whole layer's attention with its keys and values in this type.
    Attention(Dtype),
    /// A part of one whose output projection is divided into slices of so many columns.
    Divided { kv: Dtype, width: usize, part: usize },
    /// The routed experts of a shard: how many, and their columns.
    Experts { experts: usize, width: usize },
    /// A stage that depends on its rows alone.
    Plain(&'static StageCost),
}

/// Who gets rows of a send or an exchange.
#[derive(Clone, Copy, Debug)]
struct Destination {
    device: DeviceIndex,
    /// Devices that it stands for here.
    times: usize,
    /// Devices that send to each of those, of those that the sender stands for.
    senders: usize,
    /// Whether they are on the sender's host.
    near: bool,
}

/// A graph on machines that may not exist.
pub struct Roofline<'a> {
    machines: Machines<'a>,
    /// By task.
    figures: Vec<Figures>,
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
        fold: &Fold,
    ) -> Result<Self, SpecError> {
        let host = |group: &str| machines.spec.devices.get(group).and_then(|device| device.host.as_deref());
        let hosts: Vec<Option<&str>> = graph.devices.iter().map(|device| host(&device.group)).collect();
        let ways = Ways { graph, tasks, hosts: &hosts, fold };
        let mut followers: Vec<Vec<DeviceIndex>> = vec![Vec::new(); tasks.tasks.len()];
        for task in &tasks.tasks {
            for before in &task.after {
                followers[*before].push(task.device);
            }
        }
        let figures = tasks.tasks.iter().zip(&followers);
        let figures = figures.map(|(task, followers)| {
            let mut figures = of_task(&machines, graph, task, shape)?;
            if figures.row_bytes > 0.0 && task.role != TaskRole::Receive {
                (figures.to, figures.parts) = ways.destinations(task, followers);
            }
            Ok(figures)
        });
        let figures = figures.collect::<Result<_, SpecError>>()?;
        Ok(Self { machines, figures, shape, experts })
    }

    /// Stages that compute, by id: those whose times were measured, and those whose times follow from figures.
    pub fn measured(&self, graph: &StageGraph, tasks: &TaskTable) -> [Vec<String>; 2] {
        let mut stages = [Vec::new(), Vec::new()];
        for (task, figures) in tasks.tasks.iter().zip(&self.figures).filter(|(task, _)| task.computes()) {
            let ids = &mut stages[usize::from(figures.measured.is_none())];
            let id = &graph.stages[task.stage].id;
            if !ids.contains(id) {
                ids.push(id.clone());
            }
        }
        stages
    }
}

/// What decides who sends to whom, and how far.
struct Ways<'a> {
    graph: &'a StageGraph,
    tasks: &'a TaskTable,
    /// By device: host, if it names one.
    hosts: &'a [Option<&'a str>],
    fold: &'a Fold,
}

impl Ways<'_> {
    /// Who gets rows of a send or an exchange, the device itself aside, and into how many parts they are divided. Input goes to every
    /// copy of the FFN by its share; output is shared out among those it belongs to.
    fn destinations(&self, task: &TaskTemplate, followers: &[DeviceIndex]) -> (Vec<Destination>, usize) {
        let Self { graph, tasks, hosts, fold } = self;
        let replicas = task.layer.and_then(|layer| tasks.ffns[layer].as_ref()).map_or(1, |ffn| ffn.replicas());
        let mut devices = followers.to_vec();
        devices.sort_unstable();
        devices.dedup();
        // An exchange ends in its own group, a send in all groups.
        let sends = task.role == TaskRole::Send;
        let mut to = Vec::new();
        for device in devices.iter().copied() {
            let same_group = graph.devices[device].group == graph.devices[task.device].group;
            let other_groups = |device: DeviceIndex| match sends {
                true => fold.members(device).len() - usize::from(same_group),
                false => usize::from(!same_group),
            };
            if same_group && device != task.device {
                to.push(Destination { device, times: 1, senders: 1, near: true });
            }
            let (times, senders) = (other_groups(device), other_groups(task.device));
            // What it stands for is on hosts of its own, or nobody names one.
            let near = hosts[task.device] == hosts[device] && (!same_group || hosts[device].is_none());
            if times > 0 {
                to.push(Destination { device, times, senders, near });
            }
        }
        let all = || devices.iter().map(|device| if sends { fold.members(*device).len() } else { 1 }).sum();
        let parts = match (task.payload, task.role) {
            // A slice's sums go home; what it works on went to every slice.
            (Payload::None, _) => {
                if task.part > 0 {
                    all()
                } else {
                    1
                }
            }
            (Payload::Output, _) => all(),
            // What one copy got is passed on to its own devices.
            (_, TaskRole::Exchange) => 1,
            _ => replicas,
        };
        (to, parts.max(1))
    }
}

fn of_task(
    machines: &Machines<'_>,
    graph: &StageGraph,
    task: &TaskTemplate,
    shape: &ModelShape,
) -> Result<Figures, SpecError> {
    let (stage, hardware) = (&graph.stages[task.stage], &machines.hardware[task.device]);
    let (part_of_card, slower) = share(machines, graph, task.device, stage.role);
    let mut figures = Figures { bytes_per_s: hardware.memory_bytes_per_s() / slower, ..Figures::default() };
    figures.flops_per_s = part_of_card
        * hardware.peak(match machines.spec.compute {
            ComputeDtype::Fp8 | ComputeDtype::Fp8PerToken => hardware.decode_dtype(),
            ComputeDtype::Bf16 | ComputeDtype::F32 => Dtype::Bf16,
        })?;
    if let Some(transfer) = &stage.transfer {
        let routing = if task.payload == Payload::RoutedInput { weights::routing_row_bytes(shape) } else { 0 };
        figures.row_bytes = (weights::wire_row_bytes(transfer.dtype, shape.hidden) + routing) as f64;
        return Ok(figures);
    }
    let Some(info) = KindRegistry::shared().get(&stage.kind) else { return Ok(figures) };
    let counts = ShardCounts::of(stage.spec.shard.as_ref());
    let slices = if info.role() == Role::Attention { counts.o_proj } else { 1 };
    let slice_width = (shape.heads * shape.head_dim).div_ceil(slices);
    let slice_bytes = weights::projection_bytes(shape.weight_format, shape.hidden, slice_width) as f64;
    let value_bytes = if machines.spec.compute == ComputeDtype::F32 { 4.0 } else { 2.0 };
    let kv = match stage.spec.kv_dtype.unwrap_or_default() {
        WireDtype::F32 => Dtype::F32,
        WireDtype::Bf16 => Dtype::Bf16,
        WireDtype::Fp8E4m3 => Dtype::Fp8,
    };
    let card = machines.measured[task.device].filter(|measured| measured.fits(shape));
    let share = graph.devices[task.device].sms.and_then(|sms| card?.of_share(sms));
    // What was measured on such a share takes as long as that; what was measured on a whole card takes longer on a share.
    let known_as = |part: &dyn Fn(&'static StageTimes) -> Option<Part>| {
        let of = |(measured, slower): (Option<&'static StageTimes>, f64)| {
            let (measured, part) = measured.and_then(|measured| Some((measured, part(measured)?)))?;
            part.seconds(measured, 1.0, 1.0).is_some().then_some((measured, part, slower))
        };
        [(share, 1.0), (card, slower)].into_iter().find_map(of)
    };
    let known = |part: Part| known_as(&|_| Some(part));
    let is_divided = slices > 1 && stage.kind == "mfa_attention";
    let part = || Part::Divided { kv, width: slice_width, part: task.part };
    let divided = is_divided.then(part).and_then(known);
    match task.part {
        0 if slices > 1 => figures.row_bytes = slice_width as f64 * value_bytes,
        1 if slices > 1 => {
            figures.row_bytes = shape.hidden as f64 * value_bytes;
            (figures.bytes, figures.touched) = (slice_bytes, 1.0);
            figures.values = (shape.hidden * slice_width) as f64;
            figures.measured = divided;
            return Ok(figures);
        }
        0 => {}
        _ => {
            figures.measured = divided;
            return Ok(figures);
        }
    }
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
        figures.bytes = bytes(None) - if slices > 1 { slice_bytes } else { 0.0 };
    }
    figures.touched = if stage.kind == "expert_ffn" { 1.0 } else { info.active_share(shape) };
    (figures.values, figures.expert_values) = (figures.bytes * figures.touched / width, figures.expert_bytes / width);
    if info.role() == Role::Attention {
        figures.position_bytes = info.kv_bytes_per_token(shape, stage.spec.kv_dtype.unwrap_or_default()) as f64;
        // Scores and values: a product and a sum for each channel of each head (Step-3 report, section 4).
        figures.position_flops = (4 * shape.heads * shape.head_dim) as f64;
        figures.beside_s = machines.efficiency[task.device].attention_s;
    }
    let width = rally_graph::shard::part(shape.expert_width, counts.tensor, position.tensor).len();
    let experts = figures.held.len();
    figures.measured = divided.or_else(|| match stage.kind.as_str() {
        "mfa_attention" if slices == 1 => known(Part::Attention(kv)),
        "mfa_attention" => None,
        "expert_ffn" => known(Part::Experts { experts, width }),
        kind if machines.all_stages => known_as(&|measured| measured.plain(kind, shape.vocab).map(Part::Plain)),
        _ => None,
    });
    Ok(figures)
}

/// Multiprocessors that bring in weights as fast as a whole card does.
const ENOUGH_FOR_WEIGHTS: f64 = 64.0;

/// The part of its card that a device has, and how many times as long its work takes there: fitted to layers of Step-3's shapes on shares of
/// an H200 (`kernels/cuda/NOTES.md`, "Shares of a card"), within a tenth from 64 multiprocessors on and a fifth below. What two shares take
/// from each other of the memory's bandwidth is not in it.
fn share(machines: &Machines<'_>, graph: &StageGraph, device: DeviceIndex, role: Role) -> (f64, f64) {
    let device = &graph.devices[device];
    let Some(sms) = device.sms.map(f64::from) else { return (1.0, 1.0) };
    let hardware = machines.spec.devices.get(&device.group).and_then(|entry| entry.hardware.as_deref());
    let all = f64::from(rally_graph::hardware::grain(hardware).multiprocessors.unwrap_or(132)).max(sms);
    let fewer = match role {
        Role::Attention => all / sms,
        _ => ENOUGH_FOR_WEIGHTS.min(all) / sms,
    };
    (sms / all, fewer.max(1.0).powf(0.75))
}

impl Part {
    fn seconds(self, measured: &StageTimes, rows: f64, context: f64) -> Option<f64> {
        match self {
            Self::Attention(dtype) => measured.attention_s(rows, context, dtype),
            Self::Divided { kv, width, part } => measured.divided_s(rows, context, kv, (width, part)),
            Self::Experts { experts, width } => measured.experts_s(experts, width, rows),
            Self::Plain(cost) => {
                Some(cost.seconds(TaskSize { rows: rows.round() as usize, context: 0.0, experts: None }))
            }
        }
    }
}

impl Durations for Roofline<'_> {
    fn task_s(&self, task: &VirtualTask<'_>) -> f64 {
        let (figures, template) = (&self.figures[task.task], &task.table.tasks[task.task]);
        let Efficiency { memory, compute, launch_s, .. } = self.machines.efficiency[template.device];
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
        let chosen = match figures.held.is_empty() {
            true => 0.0,
            false => self.experts.chosen(layer, &figures.held, top_k, experts),
        };
        let touched = (rows * figures.touched).min(1.0);
        let takes = |bytes: f64, flops: f64| {
            (bytes / (figures.bytes_per_s * memory)).max(flops / (figures.flops_per_s * compute))
        };
        if let Some((measured, part, slower)) = figures.measured
            && let Some(seconds) = part.seconds(measured, rows, context)
        {
            // Attention was measured whole; a shared expert is none of the routed ones. What was measured has its launches.
            let beside = match part {
                Part::Attention(_) | Part::Divided { .. } | Part::Plain(_) => 0.0,
                Part::Experts { experts, width } if measured.has_shared(experts, width) => 0.0,
                Part::Experts { .. } => takes(figures.bytes * touched, 2.0 * rows * figures.values),
            };
            return seconds * slower + beside;
        }
        let products = takes(
            figures.bytes * touched + figures.expert_bytes * hit,
            2.0 * rows * (figures.values + figures.expert_values * chosen),
        );
        let core = takes(figures.position_bytes * context, figures.position_flops * context);
        products + core + figures.beside_s + launch_s
    }

    fn plan_s(&self, _exit: &VirtualTask<'_>) -> f64 {
        0.0
    }

    fn transit(&self, task: &VirtualTask<'_>) -> Option<Transit> {
        let figures = &self.figures[task.task];
        if figures.to.is_empty() {
            return None;
        }
        let device = task.table.tasks[task.task].device;
        let Efficiency { network, latency_s, multicast, .. } = self.machines.efficiency[device];
        let part_bytes = task.load.rows as f64 * figures.row_bytes / figures.parts as f64;
        let mut transit = Transit::default();
        for near in [true, false] {
            let to = figures.to.iter().filter(|to| to.near == near);
            let speed = |device: DeviceIndex| {
                let links = self.machines.hardware[device].links();
                let bytes_per_s =
                    if near { links.fabric_bytes_per_s.value } else { links.network_bytes_per_s_per_device() };
                bytes_per_s * network
            };
            let way = |device: DeviceIndex, into: bool| device * 4 + usize::from(near) * 2 + usize::from(into);
            let ns = |bytes: f64, device: DeviceIndex| (bytes / speed(device) * 1e9).round() as u64;
            let times: usize = to.clone().map(|to| to.times).sum();
            if times > 0 {
                let leaving = if multicast { 1 } else { times };
                transit.out.push((way(device, false), ns(part_bytes * leaving as f64, device)));
                transit.into.extend(to.map(|to| (way(to.device, true), to.senders as u64 * ns(part_bytes, to.device))));
                let fabric = self.machines.hardware[device].links().fabric_latency_s.as_ref();
                let latency_s = if near { fabric.map_or(0.0, |figure| figure.value) } else { latency_s };
                let latency_ns = (latency_s * 1e9).round() as u64;
                transit.latency_ns = transit.latency_ns.max(latency_ns);
            }
        }
        (!transit.out.is_empty()).then_some(transit)
    }
}
