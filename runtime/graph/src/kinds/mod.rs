//! What a kind of stage needs and weighs, without what it computes.
//!
//! A kind says which keys it takes, which values it reads and writes, where it may stand, and how many bytes it keeps. From
//! that alone the schema is generated, the dataflow is checked and the memory is counted, so a kind of your own is checked
//! like a built-in one. The computing half of a kind lives with the stages.

mod builtin;
pub mod weights;

use crate::model::{LayerKind, ModelShape};
use crate::shard::{ShardCounts, ShardPosition};
use crate::spec::WireDtype;
use std::sync::{Arc, OnceLock};

/// A value that flows along the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// The residual stream. It stays on the device that its sequence is pinned to.
    X,
    /// The FFN's input: the normed residual.
    U,
    /// Expert ids and weights.
    Routing,
    /// The FFN's output, a part of it on every FFN device.
    Y,
    /// Sampled tokens.
    Tokens,
}

impl Value {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::X, Self::U, Self::Routing, Self::Y, Self::Tokens];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::X => "x",
            Self::U => "u",
            Self::Routing => "the routing",
            Self::Y => "y",
            Self::Tokens => "tokens",
        }
    }
}

/// What a kind is for. It decides how rows and parts of values follow from what the stage reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Makes x from token ids.
    Embed,
    /// Mixes the tokens of a sequence; owns KV.
    Attention,
    /// Chooses experts.
    Router,
    /// Carries values to other devices.
    Transfer,
    /// Makes y from u, a part of it on every device.
    Ffn,
    /// Adds the parts of y to x.
    Combine,
    /// Chooses the next tokens.
    Sampling,
    /// Anything else: works row by row on each of its devices.
    Rowwise,
}

/// Where a kind may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Before the `layers` block.
    Before,
    /// Inside it.
    Layers,
    /// After it.
    After,
}

impl Place {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Before => "before the `layers` block",
            Self::Layers => "inside the `layers` block",
            Self::After => "after the `layers` block",
        }
    }
}

/// A key that a kind takes besides `kind`, `id`, and in layers `on_layers` and `after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Name of a field of [`StageSpec`](crate::spec::StageSpec).
    pub name: &'static str,
    /// Whether it must be there.
    pub required: bool,
    /// For `shard`: the keys inside it that mean something to the kind; empty elsewhere.
    pub inner: &'static [&'static str],
}

impl Key {
    /// A key that must be there.
    pub const fn required(name: &'static str) -> Self {
        Self { name, required: true, inner: &[] }
    }

    /// A key that may be there.
    pub const fn optional(name: &'static str) -> Self {
        Self { name, required: false, inner: &[] }
    }

    /// `shard` with the given keys inside.
    pub const fn shard(inner: &'static [&'static str]) -> Self {
        Self { name: "shard", required: false, inner }
    }
}

/// One device's part of one stage in one layer, for counting its weights.
#[derive(Clone, Copy, Debug)]
pub struct WeightPart<'a> {
    /// The model.
    pub shape: &'a ModelShape,
    /// The layer; `None` outside the layers.
    pub layer: Option<usize>,
    /// How the weights are divided.
    pub counts: ShardCounts,
    /// Which part is asked for.
    pub position: ShardPosition,
    /// Experts of the part, where the graph places them by name; else they follow from the position.
    pub held: Option<&'a [usize]>,
}

/// What a kind of stage needs and weighs. Register your own with [`KindRegistry::register`]; it takes `options`.
pub trait StageKindInfo: Send + Sync {
    /// The word in `kind`.
    fn name(&self) -> &str;

    /// One or two sentences for the schema and for help.
    fn doc(&self) -> &str;

    /// What it is for.
    fn role(&self) -> Role;

    /// Where it may stand.
    fn place(&self) -> Place {
        Place::Layers
    }

    /// Keys it takes.
    fn keys(&self) -> &[Key];

    /// Values it reads on each of its devices.
    fn reads(&self) -> &[Value];

    /// Values it writes on each of its devices.
    fn writes(&self) -> &[Value];

    /// Whether it makes sense in a layer of this kind.
    fn fits(&self, layer: LayerKind) -> bool {
        let _ = layer;
        true
    }

    /// Bytes of the weights in the format they are stored in, scales included.
    fn weights_bytes(&self, part: &WeightPart<'_>) -> u64 {
        let _ = part;
        0
    }

    /// Share of its weights that one row is multiplied with, 0 to 1.
    fn active_share(&self, shape: &ModelShape) -> f64 {
        let _ = shape;
        1.0
    }

    /// Bytes it keeps per token and layer.
    fn kv_bytes_per_token(&self, shape: &ModelShape, dtype: WireDtype) -> u64 {
        let _ = (shape, dtype);
        0
    }

    /// Bytes it keeps per sequence and layer whatever the context: windows, recurrent states.
    fn state_bytes_per_sequence(&self, shape: &ModelShape) -> u64 {
        let _ = shape;
        0
    }

    /// Values of scratch it needs per row while it runs, inputs and outputs that flow on not counted.
    fn scratch_values_per_row(&self, part: &WeightPart<'_>) -> u64 {
        let _ = part;
        0
    }
}

/// The kinds a graph may use.
#[derive(Clone)]
pub struct KindRegistry {
    kinds: Vec<Arc<dyn StageKindInfo>>,
}

impl KindRegistry {
    /// The built-in kinds alone.
    pub fn builtin() -> Self {
        Self { kinds: builtin::all().into_iter().map(Arc::from).collect() }
    }

    /// One shared registry of the built-in kinds.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<KindRegistry> = OnceLock::new();
        SHARED.get_or_init(Self::builtin)
    }

    /// Adds a kind, or replaces the one of the same name.
    pub fn register(&mut self, kind: Box<dyn StageKindInfo>) {
        match self.kinds.iter().position(|known| known.name() == kind.name()) {
            Some(index) => self.kinds[index] = Arc::from(kind),
            None => self.kinds.push(Arc::from(kind)),
        }
    }

    /// The kind of this name.
    pub fn get(&self, name: &str) -> Option<&dyn StageKindInfo> {
        self.kinds.iter().find(|kind| kind.name() == name).map(|kind| &**kind)
    }

    /// All kinds, built-in ones first.
    pub fn iter(&self) -> impl Iterator<Item = &dyn StageKindInfo> {
        self.kinds.iter().map(|kind| &**kind)
    }

    /// Their names.
    pub fn names(&self) -> Vec<&str> {
        self.iter().map(StageKindInfo::name).collect()
    }
}

impl Default for KindRegistry {
    fn default() -> Self {
        Self::builtin()
    }
}

impl std::fmt::Debug for KindRegistry {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("KindRegistry").field(&self.names()).finish()
    }
}
