//! A run's devices: opening those that have memory of their own, and making every device's stages.

use super::assemble::{AssembleError, AssembleOptions};
#[cfg(feature = "cuda")]
use crate::checkpoint::Outline;
use crate::checkpoint::WeightSource;
#[cfg(feature = "cuda")]
use crate::kinds::cuda::{Crossings, CudaDevice, CudaValues, Precision};
use crate::kinds::{BuildContext, BuildError, StageRegistry};
#[cfg(feature = "cuda")]
use rally_cuda::CudaError;
#[cfg(feature = "cuda")]
use rally_cuda::counting::Counting;
#[cfg(feature = "cuda")]
use rally_cuda::nccl::{Choice, Fabric};
#[cfg(feature = "cuda")]
use rally_cuda::shares::Wanted;
use rally_engine::schedule::planner::PlannerConfig;
#[cfg(feature = "cuda")]
use rally_engine::slot::storage_dtype;
use rally_engine::{DeviceParts, Widths};
#[cfg(feature = "cuda")]
use rally_graph::hardware::Machine;
#[cfg(feature = "cuda")]
use rally_graph::kinds::KindRegistry;
#[cfg(feature = "cuda")]
use rally_graph::memory::{DeviceMemory, device_memory};
use rally_graph::model::ModelShape;
use rally_graph::routes::Exchanges;
#[cfg(feature = "cuda")]
use rally_graph::routes::Rails;
#[cfg(feature = "cuda")]
use rally_graph::spec::WireDtype;
use rally_graph::spec::{Backend, ComputeDtype, DeploymentSpec};
#[cfg(feature = "cuda")]
use rally_graph::stage_graph::Device;
#[cfg(feature = "cuda")]
use rally_graph::stage_graph::Payload;
use rally_graph::stage_graph::{DeviceIndex, StageGraph};
#[cfg(feature = "cuda")]
use rally_kernels::wire;
use std::collections::{BTreeSet, HashMap};
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// What stages are made from.
pub(super) struct Making<'a> {
    pub(super) graph: &'a StageGraph,
    pub(super) shape: &'a ModelShape,
    pub(super) weights: &'a dyn WeightSource,
    pub(super) planner: PlannerConfig,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a card asks"))]
    pub(super) widths: Widths,
    /// Attention devices.
    pub(super) attention: usize,
    pub(super) registry: &'a StageRegistry,
    /// The host whose devices are made, where there are several.
    pub(super) host: Option<usize>,
    /// What rows may be narrowed to.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a card asks"))]
    pub(super) compute: ComputeDtype,
}

impl Making<'_> {
    /// Whether a device is made by this process.
    fn is_here(&self, device: DeviceIndex) -> bool {
        self.host.is_none() || self.graph.devices[device].host == self.host
    }
}

#[cfg(feature = "cuda")]
pub(super) type Opened = Option<std::sync::Arc<CudaDevice>>;
#[cfg(not(feature = "cuda"))]
pub(super) type Opened = ();

/// Opens every device, in the graph's order; CPU devices need nothing.
#[cfg(feature = "cuda")]
pub(super) fn open(
    spec: &DeploymentSpec,
    making: &Making<'_>,
    options: &AssembleOptions,
) -> Result<Vec<Opened>, AssembleError> {
    let planned = device_memory(spec, making.shape, KindRegistry::shared(), Machine::default());
    let here: Vec<DeviceIndex> = (0..making.graph.devices.len())
        .filter(|index| making.graph.devices[*index].backend == Backend::Cuda && making.is_here(*index))
        .collect();
    let wanted: Vec<Wanted> = here.iter().map(|index| wanted(&making.graph.devices[*index])).collect();
    let mut machines = options
        .machines
        .open_all(&wanted)
        .map_err(|(place, error)| AssembleError::Device {
            name: making.graph.devices[here[place]].name.clone(),
            message: error.to_string(),
        })?
        .into_iter();
    let (mut opened, mut promised) = (Vec::new(), HashMap::new());
    for (index, device) in making.graph.devices.iter().enumerate() {
        let Some(machine) = here.contains(&index).then(|| machines.next()).flatten() else {
            opened.push(None);
            continue;
        };
        let refused = |message: String| AssembleError::Device { name: device.name.clone(), message };
        let fault = |error: CudaError| refused(error.to_string());
        if spec.compute != ComputeDtype::F32 && machine.mfa_ctas() == 0 {
            let on = machine.name();
            tracing::warn!(
                device = device.name,
                on,
                "no tensor cores of Hopper's: rows stay f32 whatever `compute` is"
            );
        }
        let needed = making.bytes_on(index, &*machine)?;
        if let (Some(free), Some(memory)) =
            (machine.free_bytes().map_err(fault)?, planned.iter().find(|memory| memory.name == device.name))
        {
            // What others on the card have taken is not free any more.
            let before = promised.entry(machine.place()).or_insert(0);
            fits(memory, needed as u64, *before, free as u64)
                .map_err(|why| refused(format!("{}: {why}", machine.name())))?;
            *before += needed as u64;
        }
        machine.reserve(needed).map_err(fault)?;
        opened.push(Some(making.cuda_device(index, machine, !options.eager).map_err(fault)?));
    }
    connect(making, &opened);
    Ok(opened)
}

/// Connects cards by NCCL where a device sums parts of y that are on several, if it is there and worth it.
#[cfg(feature = "cuda")]
fn connect(making: &Making<'_>, opened: &[Opened]) {
    let choice = Choice::from_environment();
    let card = |device: &DeviceIndex| opened[*device].as_ref().and_then(|device| device.card());
    for (index, device) in opened.iter().enumerate() {
        let (Some(device), Some(root)) = (device, card(&index)) else { continue };
        let mut fabrics: Vec<Arc<Fabric>> = Vec::new();
        for cards in summed_cards(making.graph, index, root, card) {
            let most = making.planner.rows_per_device * making.widths.hidden * size_of::<f32>();
            if !choice.takes(cards.len(), most) {
                continue;
            }
            match Fabric::over(&cards) {
                Ok(fabric) if fabrics.iter().any(|other| Arc::ptr_eq(other, &fabric)) => {}
                Ok(fabric) => {
                    tracing::info!(
                        device = making.graph.devices[index].name,
                        ?cards,
                        "sums of FFN parts may go through NCCL"
                    );
                    fabrics.push(fabric);
                }
                Err(error) => {
                    let device = &making.graph.devices[index].name;
                    tracing::warn!(device, ?cards, %error, "sums of FFN parts are copied and added");
                }
            }
        }
        if !fabrics.is_empty() {
            device.connect(fabrics);
        }
    }
}

/// The cards that parts of one sum of `device`, on card `root`, come from, with its own; sums of one card alone are left out.
#[cfg(feature = "cuda")]
fn summed_cards(
    graph: &StageGraph,
    device: DeviceIndex,
    root: usize,
    card: impl Fn(&DeviceIndex) -> Option<usize>,
) -> BTreeSet<Vec<usize>> {
    let mut sums = BTreeSet::new();
    for instance in graph.graph.node_weights().filter(|instance| instance.payload == Payload::Output) {
        let Some(transfer) = &graph.stages[instance.stage].transfer else { continue };
        if !transfer.to.contains(&device) {
            continue;
        }
        let mut groups: HashMap<&str, Vec<usize>> = HashMap::new();
        for from in &transfer.from {
            groups.entry(graph.devices[*from].group.as_str()).or_default().extend(card(from));
        }
        for mut cards in groups.into_values().filter(|cards| cards.len() > 1) {
            let parts = cards.len();
            cards.sort_unstable();
            cards.dedup();
            // A card has one part of a sum.
            if cards.len() == parts {
                cards.push(root);
                cards.sort_unstable();
                cards.dedup();
                sums.insert(cards);
            }
        }
    }
    sums
}

/// Which card, and what of it.
#[cfg(feature = "cuda")]
fn wanted(device: &Device) -> Wanted {
    Wanted { card: device.card.map(|card| card as usize), sms: device.sms }
}

#[cfg(feature = "cuda")]
impl Making<'_> {
    fn cuda_device(
        &self,
        device: DeviceIndex,
        machine: Arc<dyn rally_cuda::machine::Machine>,
        captures: bool,
    ) -> Result<Arc<CudaDevice>, CudaError> {
        let rows = self.planner.rows_per_device * self.attention;
        let crossings = crossings(self.graph, device, self.widths.hidden);
        let precision = Precision { compute: self.compute, captures };
        CudaDevice::open(machine, &self.planner, rows, self.widths, &crossings, precision)
    }

    /// Bytes that a device takes on `machine`: all of it made once, of nothing.
    fn bytes_on(
        &self,
        device: DeviceIndex,
        machine: &dyn rally_cuda::machine::Machine,
    ) -> Result<usize, AssembleError> {
        let outline = Outline(self.shape.weight_format);
        let making = Making { weights: &outline, ..*self };
        let counting = Arc::new(Counting::of(machine));
        let opened = making.cuda_device(device, Arc::clone(&counting) as _, false);
        let opened = opened.map_err(|error| AssembleError::Device {
            name: self.graph.devices[device].name.clone(),
            message: error.to_string(),
        })?;
        making.device(device, Some(opened))?;
        Ok(counting.bytes())
    }
}

/// What `device` offers to others of its kind, and whether it sums what it gets.
#[cfg(feature = "cuda")]
fn crossings(graph: &StageGraph, device: DeviceIndex, hidden: usize) -> Crossings {
    let mut crossings = Crossings::default();
    for instance in graph.graph.node_weights() {
        let Some(transfer) = &graph.stages[instance.stage].transfer else { continue };
        let output = instance.payload == Payload::Output;
        let railed = output && Rails::of(graph, transfer).is_some();
        crossings.sums |= output && transfer.from.len() > 1 && (railed || transfer.to.contains(&device));
        if transfer.dtype != WireDtype::F32 && transfer.from.contains(&device) {
            let bytes = wire::encoded_bytes(storage_dtype(transfer.dtype), 1, hidden);
            let widest = |room: &mut usize| *room = bytes.max(*room);
            widest(&mut crossings.offered[usize::from(output)]);
            if railed {
                widest(&mut crossings.offered[2]);
            }
        }
    }
    crossings
}

/// Whether a device finds room for the bytes `needed`, `memory` by what they are for, in the `free` ones of its card, beside the
/// `before` that others have of it.
#[cfg(feature = "cuda")]
fn fits(memory: &DeviceMemory, needed: u64, before: u64, free: u64) -> Result<(), String> {
    if needed <= free {
        return Ok(());
    }
    let gb = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    let beside = if before > 0 { format!(" beside the {} of other devices there", gb(before)) } else { String::new() };
    Err(format!(
        "{} are needed ({} of weights, {} of KV, {} of rows and scratch){beside}, and {} are free; smaller limits, or more cards",
        gb(needed),
        gb(memory.weights_bytes),
        gb(memory.kv_bytes),
        gb(needed.saturating_sub(memory.weights_bytes + memory.kv_bytes)),
        gb(free),
    ))
}

/// Without the feature `cuda` there are CPU devices alone.
#[cfg(not(feature = "cuda"))]
pub(super) fn open(
    _spec: &DeploymentSpec,
    making: &Making<'_>,
    _options: &AssembleOptions,
) -> Result<Vec<Opened>, AssembleError> {
    let message = "this program was built without the feature `cuda`";
    match making.graph.devices.iter().find(|device| device.backend == Backend::Cuda) {
        Some(device) => Err(AssembleError::Device { name: device.name.clone(), message: message.into() }),
        None => Ok(vec![(); making.graph.devices.len()]),
    }
}

impl Making<'_> {
    /// The stages of one device.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "a CPU device needs nothing opened"))]
    pub(super) fn device(&self, device: DeviceIndex, opened: Opened) -> Result<DeviceParts, BuildError> {
        let mut parts = DeviceParts::default();
        if !self.is_here(device) {
            return Ok(parts);
        }
        let mut shared = HashMap::new();
        let graph = self.graph;
        for (index, stage) in graph.stages.iter().enumerate().filter(|(_, stage)| stage.devices.contains(&device)) {
            let layers: BTreeSet<usize> =
                graph.graph.node_weights().filter(|i| i.stage == index).filter_map(|i| i.layer).collect();
            let exchanges = layers.iter().find_map(|layer| Exchanges::of(graph, stage, *layer));
            let mut context = BuildContext {
                stage,
                device,
                peers: exchanges.map(|exchanges| exchanges.peers_of(device).to_vec()).unwrap_or_default(),
                layers: layers.into_iter().collect(),
                shape: self.shape,
                weights: self.weights,
                planner: self.planner,
                attention_devices: self.attention,
                shared: &mut shared,
                #[cfg(feature = "cuda")]
                cuda: opened.clone(),
            };
            parts.stages.insert(index, self.registry.build(&mut context)?);
        }
        #[cfg(feature = "cuda")]
        {
            parts.remote = opened.map(|device| Box::new(CudaValues::new(device)) as _);
        }
        Ok(parts)
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use rally_graph::model::WeightFormat;

    #[test]
    fn a_card_is_full_when_its_devices_together_need_more_than_is_free() {
        let memory = DeviceMemory {
            name: "a".into(),
            weights_bytes: 3_000_000_000,
            kv_bytes: 1_500_000_000,
            slots_bytes: 500_000_000,
            capacity_bytes: None,
            capacity_source: None,
        };
        assert_eq!(fits(&memory, 5_000_000_000, 0, 5_000_000_000), Ok(()));
        let alone = fits(&memory, 5_000_000_000, 0, 4_999_999_999).expect_err("a byte short");
        for number in ["5.00 GB are needed", "3.00 GB of weights", "1.50 GB of KV", "0.50 GB of rows"] {
            assert!(alone.contains(number), "{alone}");
        }
        let beside = fits(&memory, 5_000_000_000, 2_000_000_000, 4_000_000_000).expect_err("taken by others");
        assert!(beside.contains("beside the 2.00 GB of other devices"), "{beside}");
    }

    fn tiny() -> ModelShape {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-step3");
        crate::config::load_model_shape(folder.as_ref()).expect("the tiny model is there")
    }

    /// Of every CUDA device: what `check` says that it needs, and what it takes of a card with so many multiprocessors of Hopper's.
    fn planned_and_taken(graph: &str, shape: ModelShape, multiprocessors: usize) -> Vec<(u64, u64)> {
        let spec: DeploymentSpec = serde_json::from_str(graph).expect("the graph is well formed");
        let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("it unrolls");
        let attention = graph.devices_of_role(rally_graph::kinds::Role::Embed).len();
        let micro_batches = spec.schedule.micro_batches as usize;
        let making = Making {
            graph: &graph,
            shape: &shape,
            weights: &Outline(shape.weight_format),
            planner: super::super::planner_config(&spec.limits, attention, micro_batches, &shape),
            widths: Widths { hidden: shape.hidden, top_k: shape.top_k },
            attention,
            registry: &StageRegistry::builtin(),
            host: None,
            compute: spec.compute,
        };
        let planned = device_memory(&spec, &shape, KindRegistry::shared(), Machine::default());
        let of_share = |device: DeviceIndex| graph.devices[device].sms.map_or(multiprocessors, |sms| sms as usize);
        let on_cuda = (0..graph.devices.len()).filter(|device| graph.devices[*device].backend == Backend::Cuda);
        let both = on_cuda.map(|device| {
            (
                planned[device].needed_bytes(),
                making.bytes_on(device, &Counting::hopper(of_share(device))).expect("it can be made") as u64,
            )
        });
        both.collect()
    }

    /// Attention on device 0, FFN on 1 and 2, which share each sum.
    #[test]
    fn sums_of_parts_on_several_cards_are_found() {
        let text = include_str!("../../../graphs/1a1f-cuda.json")
            .replace(r#""ffn":  {"#, r#""ffn": { "count": 2,"#)
            .replace(r#""kind": "expert_ffn","#, r#""kind": "expert_ffn", "shard": { "tensor": 2 },"#)
            .replace(r#""kind": "dense_ffn","#, r#""kind": "dense_ffn", "shard": { "tensor": 2 },"#);
        let spec: DeploymentSpec = serde_json::from_str(&text).expect("the graph is well formed");
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny-step3");
        let shape = crate::config::load_model_shape(model.as_ref()).expect("the tiny model is there");
        let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("it unrolls");
        let sums = |device: DeviceIndex, cards: [Option<usize>; 3]| {
            let root = cards[device].unwrap_or_default();
            summed_cards(&graph, device, root, |device| cards[*device]).into_iter().collect::<Vec<_>>()
        };
        let none: Vec<Vec<usize>> = Vec::new();
        assert_eq!(sums(0, [Some(0), Some(1), Some(2)]), [[0, 1, 2]]);
        assert_eq!(sums(0, [Some(1), Some(0), Some(1)]), [[0, 1]]);
        // Two parts on one card, a part on none, and a device that sums nothing.
        assert_eq!(sums(0, [Some(0), Some(1), Some(1)]), none);
        assert_eq!(sums(0, [Some(0), None, Some(1)]), none);
        assert_eq!(sums(1, [Some(0), Some(1), Some(2)]), none);
    }

    #[test]
    fn check_says_what_a_cuda_device_takes_within_2_percent() {
        let split = include_str!("../../../graphs/1a1f-cuda.json");
        let two_by_two = split
            .replace(r#""attn": {"#, r#""attn": { "count": 2,"#)
            .replace(r#""ffn":  {"#, r#""ffn": { "count": 2,"#)
            .replace(r#""kind": "expert_ffn","#, r#""kind": "expert_ffn", "shard": { "experts": 2 },"#)
            .replace(r#""kind": "dense_ffn","#, r#""kind": "dense_ffn", "shard": { "tensor": 2 },"#);
        let with_little_kv =
            split.replace("65536", "4096").replace(r#""rows_per_micro_batch": 64"#, r#""rows_per_micro_batch": 512"#);
        let sliced =
            two_by_two.replace(r#""kind": "mfa_attention","#, r#""kind": "mfa_attention", "shard": { "o_proj": 2 },"#);
        let copied = two_by_two.replace(
            r#""shard": { "experts": 2 },"#,
            r#""shard": { "experts": 2 }, "placement": [[0, 1, 2, 3, 6], [4, 5, 6, 7, 0]],"#,
        );
        assert_ne!(copied, two_by_two);
        for (graph, devices) in [(split, 2), (&two_by_two, 4), (&with_little_kv, 2), (&sliced, 4), (&copied, 4)] {
            near(&planned_and_taken(graph, tiny(), 0), devices);
        }
    }

    #[track_caller]
    fn near(both: &[(u64, u64)], devices: usize) {
        assert_eq!(both.len(), devices);
        for (planned, taken) in both {
            let off = planned.abs_diff(*taken) as f64 / *taken as f64;
            assert!(off <= 0.02, "{planned} bytes planned, {taken} taken: off by {:.1} %", 100.0 * off);
        }
    }

    /// Hopper's own kernels need other buffers: narrowed rows and slots, plans and parts of fast attention.
    #[test]
    fn check_says_what_tensor_cores_take_within_2_percent() {
        let graph = include_str!("../../../graphs/1a1f-cuda.json")
            .replace(r#""rows_per_micro_batch": 64"#, r#""rows_per_micro_batch": 256"#)
            .replace("65536", "4096");
        let whole = ModelShape {
            hidden: 512,
            heads: 64,
            head_dim: 256,
            query_rank: 256,
            expert_width: 256,
            shared_width: 256,
            dense_width: 512,
            ..tiny()
        };
        for format in [WeightFormat::Bf16, WeightFormat::Fp8Block] {
            let shape = ModelShape { weight_format: format, ..whole.clone() };
            let of = |compute: &str| {
                let graph = graph.replace(r#""compute": "f32""#, &format!(r#""compute": "{compute}""#));
                let both = planned_and_taken(&graph, shape.clone(), 132);
                near(&both, 2);
                let copied = graph
                    .replace(r#""ffn":  {"#, r#""ffn": { "count": 2,"#)
                    .replace(r#""kind": "dense_ffn","#, r#""kind": "dense_ffn", "shard": { "tensor": 2 },"#)
                    .replace(
                        r#""kind": "expert_ffn","#,
                        r#""kind": "expert_ffn", "shard": { "experts": 2 }, "placement": [[0, 1, 2, 3, 6], [4, 5, 6, 7, 0]],"#,
                    );
                near(&planned_and_taken(&copied, shape.clone(), 132), 3);
                // The shared expert's holder cannot sort it behind the others: then no holder does.
                let wider = ModelShape { shared_width: 512, ..shape.clone() };
                near(&planned_and_taken(&copied, wider, 132), 3);
                both.iter().map(|(_, taken)| *taken).collect::<Vec<_>>()
            };
            let (f32, bf16, fp8) = (of("f32"), of("bf16"), of("fp8"));
            let per_token = of("fp8_per_token");
            // What is chosen shows in what is taken: with fp8 weights only the head's rows may be rounded to bf16, on the attention side.
            assert!(f32 != bf16 && f32 != fp8, "{f32:?} {bf16:?} {fp8:?}");
            assert_eq!(bf16 == fp8, format == WeightFormat::Bf16, "{bf16:?} {fp8:?}");
            // A dense FFN's rows with a scale each 128 elements have other buffers.
            assert_eq!(per_token == fp8, format == WeightFormat::Bf16, "{per_token:?} {fp8:?}");
        }
        // A share of a card has work for its own multiprocessors alone.
        let shares = graph
            .replace(r#""compute": "f32""#, r#""compute": "fp8""#)
            .replace(r#""attn": {"#, r#""attn": { "sms": 16,"#)
            .replace(r#""ffn":  {"#, r#""ffn": { "sms": 8,"#);
        let shape = ModelShape { weight_format: WeightFormat::Fp8Block, ..whole };
        let (of_shares, of_cards) = (planned_and_taken(&shares, shape.clone(), 132), {
            let cards = graph.replace(r#""compute": "f32""#, r#""compute": "fp8""#);
            planned_and_taken(&cards, shape, 132)
        });
        near(&of_shares, 2);
        assert!(of_shares.iter().zip(&of_cards).all(|(share, card)| share.1 < card.1), "{of_shares:?} {of_cards:?}");
    }
}
