//! The graph file as typed data: a serde mirror of the JSON, one field for one key.
//!
//! It owns the names, defaults and ranges of the keys (the JSON schema is generated from it) and no rule that spans two
//! fields: those live in validation. Unknown keys are rejected.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A whole deployment: which stages there are, where each runs, how micro-batches rotate, and what latency must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeploymentSpec {
    /// Path or address of the JSON schema, for editors; rally ignores it.
    #[serde(rename = "$schema", default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// Version of the format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Name of the deployment, shown in reports.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Which model it serves.
    pub model: ModelSource,
    /// What rows may be rounded to on their way into products; sums are f32 whatever it is.
    #[serde(default)]
    pub compute: ComputeDtype,
    /// Hosts by name; absent when everything runs in one process.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub hosts: IndexMap<String, HostSpec>,
    /// How hosts find each other where that is not by the addresses in `hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<MembershipSpec>,
    /// Devices and device groups by name: letters, digits, `_` and `-`.
    pub devices: IndexMap<String, DeviceSpec>,
    /// The dataflow, in order: stages before the layers, one `layers` block, stages after them.
    #[schemars(length(min = 1))]
    pub stages: Vec<StageEntry>,
    /// Sizes that are preallocated.
    pub limits: Limits,
    /// How micro-batches rotate.
    pub schedule: ScheduleSpec,
    /// The latency that must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloSpec>,
}

/// Where the model comes from. Paths are relative to the graph file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ModelSource {
    /// A folder with `config.json` and `model.safetensors` or its index.
    Folder(String),
    /// Real shapes without a checkpoint.
    Config(ModelConfigSource),
}

/// A configuration file and a rule that makes weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfigSource {
    /// Path of a `config.json`.
    pub config: String,
    /// `random:SEED`.
    pub weights: String,
    /// Layers of it that there are, such as `3` or `3..5` (inclusive), counted from 0 in the graph; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<String>,
}

/// What rows may be rounded to on their way into products with weights that are stored so; sums, norms, the residual stream and the router
/// stay f32. CPU devices take f32 alone. A CUDA device without Hopper's tensor cores, or whose shapes they do not take, keeps f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputeDtype {
    /// Not at all: the reference.
    #[default]
    F32,
    /// bfloat16, where weights are.
    Bf16,
    /// fp8 e4m3 where weights are fp8, and bfloat16 where weights are. Attention's projections and dense FFNs take a scale for each token
    /// and 128 channels and sum in f32, as fp8 checkpoints define it; experts one scale a token.
    Fp8,
    /// The same with one scale a token everywhere, and the tensor cores' own sums of 14 bits: faster, and farther from the definition.
    Fp8PerToken,
}

/// One host of a multi-host deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// `address:port` the host listens on. With `membership` it may be left to `rally worker --listen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Membership by etcd: each host keeps a key there that says where it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MembershipSpec {
    /// Client addresses of one cluster's members: `http://address:port`. Another is asked where one does not answer.
    #[schemars(length(min = 1))]
    pub etcd: Vec<String>,
    /// What all keys begin with, before `/hosts/NAME`; `/rally/` and the name of the deployment if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub prefix: Option<String>,
    /// Seconds after which a host that etcd does not hear of is none any more.
    #[serde(default = "default_lease_seconds")]
    #[schemars(range(min = 2, max = 3600))]
    pub lease_seconds: u32,
}

fn default_lease_seconds() -> u32 {
    5
}

/// Runtime behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Threads of this machine's processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// A device, or with `count` a group of equal devices `name.0 … name.n-1` on one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Runtime behind it.
    pub backend: Backend,
    /// Devices in the group; absent means a single device with the plain name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub count: Option<u32>,
    /// CPU cores the device's lanes are pinned to; several cores share the work of one stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(range(max = 65_535)))]
    pub cores: Option<Vec<u32>>,
    /// Number of the GPU it is on, from 0; the devices of a group take this one and those that follow. Without it CUDA devices take
    /// the GPUs of their host in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1023))]
    pub card: Option<u32>,
    /// Share of the GPU that each device has to itself, in multiprocessors; without it the device has the whole GPU. Of the devices on
    /// one GPU all name a share, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub sms: Option<u32>,
    /// Host it is on, a key of `hosts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Link inside the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fabric: Option<Fabric>,
    /// Hardware profile that the predictor reads, such as `h800`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware: Option<String>,
    /// Memory the deployment may use on each device of the group, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000u64))]
    pub memory_bytes: Option<u64>,
}

/// Link inside a device group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fabric {
    /// NVLink.
    Nvlink,
    /// PCI Express.
    Pcie,
    /// Memory of one host.
    SharedMemory,
}

/// An element of `stages`: a stage, or the block that repeats for every layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
// A graph has a handful of stages outside its layers: a box around each would save nothing and be in everyone's way.
#[allow(clippy::large_enum_variant)]
pub enum StageEntry {
    /// The one `layers` block.
    Layers(LayersBlock),
    /// A stage outside the layers.
    Stage(StageSpec),
}

/// Stages that repeat for every layer of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LayersBlock {
    /// The stages of one layer, in dataflow order.
    #[schemars(length(min = 1))]
    pub layers: Vec<StageSpec>,
}

/// One stage. Which keys a kind takes is part of the kind (`StageKindInfo`); the others are rejected in validation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageSpec {
    /// Kind of work.
    pub kind: String,
    /// Name of the stage in this graph; the kind if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub id: Option<String>,
    /// Devices or groups it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<OneOrMany>,
    /// Layers it runs in: `all`, `moe`, `dense`, or inclusive ranges such as `4..59`, or a list of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_layers: Option<OneOrMany>,
    /// Ids of the stages of the same layer it follows, instead of the one before it in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub after: Option<Vec<String>>,
    /// `mfa_attention`: how keys and values are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<WireDtype>,
    /// `transfer`: devices it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<OneOrMany>,
    /// `transfer`: devices it ends at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<OneOrMany>,
    /// `transfer`: how rows are stored on the wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<WireDtype>,
    /// `transfer`: who sends to whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// `transfer` between hosts: the engine that moves the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<TransportKind>,
    /// How weights are divided over the devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<ShardSpec>,
    /// `expert_ffn`: which experts each expert shard holds, in the order of `shard`; an expert on several shards is copied, and
    /// its rows are spread over them. Consecutive parts if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementSpec>,
    /// Settings of a kind that is not built in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Which expert shard holds which experts: a list for each shard, the same in every layer, or such lists by layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PlacementSpec {
    /// The same in every layer.
    Everywhere(Vec<HeldExperts>),
    /// By layers: `moe`, a number, or an inclusive range such as `4..59`.
    ByLayer(IndexMap<String, Vec<HeldExperts>>),
}

/// Ids of the experts that one expert shard holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct HeldExperts(#[schemars(length(min = 1), inner(range(max = 65_535)))] pub Vec<u32>);

/// A name, or a list of names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    /// A single name.
    One(String),
    /// Several, in order.
    Many(#[schemars(length(min = 1))] Vec<String>),
}

impl OneOrMany {
    /// The names, in order.
    pub fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// How values are stored on an edge or in the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WireDtype {
    /// 32-bit floats: nothing is lost.
    #[default]
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// float8 e4m3 with scales: on an edge one per row and 128 channels, in the KV cache one per token and tensor.
    Fp8E4m3,
}

/// Who sends to whom over a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// Each source sends rows to every destination that needs them.
    #[default]
    Broadcast,
    /// Device i of a source group sends to device i of each destination group, which exchanges them over its fabric.
    Rail,
}

/// Engine that moves bytes between hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransportKind {
    /// Within one process.
    Local,
    /// TCP frames.
    Tcp,
    /// NIXL: RDMA, GPUDirect, shared memory.
    Nixl,
}

/// How a stage's weights are divided. FFN stages: experts × tensor × replicas = number of devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardSpec {
    /// Shards of the routed experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub experts: Option<u32>,
    /// Shards of each expert's (or dense FFN's) inner width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub tensor: Option<u32>,
    /// Copies of everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub replicas: Option<u32>,
    /// `mfa_attention`: shards of the output projection inside a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub o_proj: Option<u32>,
}

/// Sizes that are preallocated, over the whole deployment; attention devices take equal parts, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Sequences that decode at once.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub sequences: u32,
    /// Rows (decoded tokens and prefill tokens) of one micro-batch of one step.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub rows_per_micro_batch: u32,
    /// Most prompt tokens of one sequence in one step.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub prefill_chunk: u32,
    /// Most tokens the KV cache holds, over all attention devices: each has an equal number of whole pages.
    #[schemars(range(min = 1, max = 1_099_511_627_776u64))]
    pub kv_tokens: u64,
    /// Tokens of one KV page.
    #[schemars(range(min = 1, max = 65_536))]
    pub page_tokens: u32,
}

/// How micro-batches rotate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSpec {
    /// The policy.
    pub policy: PolicyKind,
    /// Micro-batches in flight.
    #[schemars(range(min = 1, max = 64))]
    pub micro_batches: u32,
    /// `custom`: per device or group, the pattern of one layer, `stage_id:micro_batch` each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<IndexMap<String, Vec<String>>>,
}

/// Built-in policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// One micro-batch after the other; nothing overlaps.
    Sequential,
    /// Micro-batches take turns on every lane.
    PingPong,
    /// List scheduling by measured stage costs.
    Greedy,
    /// The order written in `order`.
    Custom,
}

/// The latency that must hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SloSpec {
    /// Time per output token, in milliseconds.
    #[schemars(range(min = 0.001, max = 600_000.0))]
    pub tpot_ms: f64,
}
