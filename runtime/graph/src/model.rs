//! The shape of a model: everything a graph needs to know about it, and nothing about how it is stored or computed.
//!
//! A shape is made from a checkpoint's `config.json` by `rally-stages`; tests make it by hand. A graph file never holds
//! sizes of its own, so the same file runs a tiny model and the real one.

use std::ops::RangeInclusive;

/// Which FFN a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// One SwiGLU of [`ModelShape::dense_width`].
    Dense,
    /// Routed experts of [`ModelShape::expert_width`] and one shared expert of [`ModelShape::shared_width`].
    Moe,
}

/// How the projections of a checkpoint are stored, for counting bytes. Embeddings, norms and routers are never fp8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value.
    Bf16,
    /// float8 e4m3 values with one f32 scale per 128×128 tile (the last tiles may be ragged).
    Fp8Block,
}

/// Side of a square fp8 tile, in rows and in columns.
pub const FP8_TILE: usize = 128;

/// Shapes and constants of a decoder (Step-3 text model: paper arXiv 2507.19427, table 1).
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    /// Family name, `step3` for now.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Query heads.
    pub heads: usize,
    /// Width of a head of q, k and v alike. There is one K head and one V head.
    pub head_dim: usize,
    /// Width of the low-rank query (`share_q_dim`).
    pub query_rank: usize,
    /// Inner width of a dense FFN (`intermediate_size`).
    pub dense_width: usize,
    /// Inner width of one routed expert (`moe_intermediate_size`).
    pub expert_width: usize,
    /// Inner width of the shared expert (`share_expert_dim`).
    pub shared_width: usize,
    /// Routed experts a MoE layer has.
    pub experts: usize,
    /// Experts a token is routed to.
    pub top_k: usize,
    /// Whether the weights of the chosen experts are divided by their sum (`norm_expert_weight`).
    pub norm_expert_weight: bool,
    /// One entry a layer, in order.
    pub layers: Vec<LayerKind>,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Longest sequence, prompt and output together.
    pub max_positions: usize,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Token ids that end a sequence; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// How projections are stored.
    pub weight_format: WeightFormat,
}

/// What a selection of layers says (`3`, or `3..6` inclusive); `None` if the text is none.
pub fn layer_range(text: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some(first..=last)
}

impl ModelShape {
    /// The same with these of its layers alone, counted from 0; `None` if it has not all of them.
    pub fn of_layers(self, range: RangeInclusive<usize>) -> Option<Self> {
        let layers = self.layers.get(range)?.to_vec();
        Some(Self { layers, ..self })
    }

    /// A model of these layers whose other sizes are the least that make sense, with 4096 positions. For stages that compute
    /// something of their own instead of a model: tests, benchmarks of scheduling, a first stage of one's own.
    pub fn toy(layers: Vec<LayerKind>) -> Self {
        Self {
            family: "toy".into(),
            hidden: 4,
            vocab: 10,
            heads: 1,
            head_dim: 2,
            query_rank: 1,
            dense_width: 1,
            expert_width: 1,
            shared_width: 1,
            experts: 1,
            top_k: 1,
            norm_expert_weight: false,
            layers,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            max_positions: 4096,
            tie_word_embeddings: false,
            eos_token_ids: Vec::new(),
            weight_format: WeightFormat::F32,
        }
    }
}
