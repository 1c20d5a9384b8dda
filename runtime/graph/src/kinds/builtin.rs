//! The kinds of Step-3: MFA attention, router, routed and dense FFNs, and what stands around them (paper §4, §5).

use super::weights::{kv_row_bytes, plain_bytes, projection_bytes, swiglu_bytes};
use super::{Key, Place, Role, StageKindInfo, Value, WeightPart};
use crate::model::{LayerKind, ModelShape};
use crate::shard::part;
use crate::spec::WireDtype;

pub(super) fn all() -> Vec<Box<dyn StageKindInfo>> {
    vec![
        Box::new(Embed),
        Box::new(MfaAttention),
        Box::new(Router),
        Box::new(Transfer),
        Box::new(ExpertFfn),
        Box::new(DenseFfn),
        Box::new(Combine),
        Box::new(Sampling),
    ]
}

const ON: &[Key] = &[Key::required("on")];

struct Embed;

impl StageKindInfo for Embed {
    fn name(&self) -> &str {
        "embed"
    }
    fn doc(&self) -> &str {
        "Looks up token ids and makes the residual x, which stays on its attention device."
    }
    fn role(&self) -> Role {
        Role::Embed
    }
    fn place(&self) -> Place {
        Place::Before
    }
    fn keys(&self) -> &[Key] {
        ON
    }
    fn reads(&self) -> &[Value] {
        &[]
    }
    fn writes(&self) -> &[Value] {
        &[Value::X]
    }
    fn weights_bytes(&self, part: &WeightPart<'_>) -> u64 {
        plain_bytes(part.shape.weight_format, part.shape.vocab * part.shape.hidden)
    }
    fn active_share(&self, shape: &ModelShape) -> f64 {
        // A row looks up one of them.
        1.0 / shape.vocab.max(1) as f64
    }
}

struct MfaAttention;

impl StageKindInfo for MfaAttention {
    fn name(&self) -> &str {
        "mfa_attention"
    }
    fn doc(&self) -> &str {
        "Multi-matrix factorization attention: norm, projections, rope, KV append, attention, output projection, residual add, \
         and the norm that makes the FFN's input u. Data-parallel over its devices; each keeps the KV of its sequences."
    }
    fn role(&self) -> Role {
        Role::Attention
    }
    fn keys(&self) -> &[Key] {
        const KEYS: &[Key] = &[Key::required("on"), Key::optional("kv_dtype"), Key::shard(&["o_proj"])];
        KEYS
    }
    fn reads(&self) -> &[Value] {
        &[Value::X]
    }
    fn writes(&self) -> &[Value] {
        &[Value::X, Value::U]
    }
    fn weights_bytes(&self, part: &WeightPart<'_>) -> u64 {
        let shape = part.shape;
        let projection = |rows, columns| projection_bytes(shape.weight_format, rows, columns);
        let attention_width = shape.heads * shape.head_dim;
        plain_bytes(shape.weight_format, 2 * shape.hidden + shape.query_rank)
            + projection(shape.query_rank, shape.hidden)
            + 2 * projection(shape.head_dim, shape.hidden)
            + projection(attention_width, shape.query_rank)
            + projection(shape.hidden, attention_width.div_ceil(part.counts.o_proj))
    }
    fn kv_bytes_per_token(&self, shape: &ModelShape, dtype: WireDtype) -> u64 {
        // One K head and one V head.
        2 * kv_row_bytes(dtype, shape.head_dim)
    }
    fn scratch_values_per_row(&self, part: &WeightPart<'_>) -> u64 {
        let shape = part.shape;
        let width = shape.heads * shape.head_dim;
        // h, o, c, k and v, then q and the heads' outputs.
        let whole = 2 * shape.hidden + shape.query_rank + 2 * shape.head_dim + 2 * width;
        // A slice of the output projection works on the rows of all that have one.
        let sliced = if part.counts.o_proj > 1 { width + part.counts.o_proj * shape.hidden } else { 0 };
        (whole + sliced) as u64
    }
}

struct Router;

impl StageKindInfo for Router {
    fn name(&self) -> &str {
        "router"
    }
    fn doc(&self) -> &str {
        "Scores the experts and chooses the top k of each row: u to expert ids and weights. It may stand on either side of the \
         cut; on the FFN side it reads u as the wire rounded it."
    }
    fn role(&self) -> Role {
        Role::Router
    }
    fn keys(&self) -> &[Key] {
        ON
    }
    fn reads(&self) -> &[Value] {
        &[Value::U]
    }
    fn writes(&self) -> &[Value] {
        &[Value::Routing]
    }
    fn fits(&self, layer: LayerKind) -> bool {
        layer == LayerKind::Moe
    }
    fn weights_bytes(&self, part: &WeightPart<'_>) -> u64 {
        plain_bytes(part.shape.weight_format, part.shape.experts * part.shape.hidden)
    }
    fn scratch_values_per_row(&self, part: &WeightPart<'_>) -> u64 {
        part.shape.experts as u64
    }
}

struct Transfer;

impl StageKindInfo for Transfer {
    fn name(&self) -> &str {
        "transfer"
    }
    fn doc(&self) -> &str {
        "Carries rows to other devices: u and the routing before the layer's FFN, y after it. Rounds them to `dtype`."
    }
    fn role(&self) -> Role {
        Role::Transfer
    }
    fn keys(&self) -> &[Key] {
        const KEYS: &[Key] = &[
            Key::required("from"),
            Key::required("to"),
            Key::optional("dtype"),
            Key::optional("routing"),
            Key::optional("transport"),
        ];
        KEYS
    }
    fn reads(&self) -> &[Value] {
        &[]
    }
    fn writes(&self) -> &[Value] {
        &[]
    }
}

const FFN_SHARDS: &[&str] = &["experts", "tensor", "replicas"];

struct ExpertFfn;

impl StageKindInfo for ExpertFfn {
    fn name(&self) -> &str {
        "expert_ffn"
    }
    fn doc(&self) -> &str {
        "The FFN of a MoE layer: the routed experts, weighted, and the shared expert, which the first expert shard adds."
    }
    fn role(&self) -> Role {
        Role::Ffn
    }
    fn keys(&self) -> &[Key] {
        const KEYS: &[Key] = &[Key::required("on"), Key::shard(FFN_SHARDS), Key::optional("placement")];
        KEYS
    }
    fn reads(&self) -> &[Value] {
        &[Value::U, Value::Routing]
    }
    fn writes(&self) -> &[Value] {
        &[Value::Y]
    }
    fn fits(&self, layer: LayerKind) -> bool {
        layer == LayerKind::Moe
    }
    fn weights_bytes(&self, query: &WeightPart<'_>) -> u64 {
        let (shape, counts, at) = (query.shape, query.counts, query.position);
        let experts = match query.held {
            Some(held) => held.len() as u64,
            None => part(shape.experts, counts.experts, at.expert).len() as u64,
        };
        let routed = experts * swiglu_bytes(shape, part(shape.expert_width, counts.tensor, at.tensor).len());
        let shared = match at.expert {
            0 => swiglu_bytes(shape, part(shape.shared_width, counts.tensor, at.tensor).len()),
            _ => 0,
        };
        routed + shared
    }
    fn active_share(&self, shape: &ModelShape) -> f64 {
        let width = |experts: usize| (experts * shape.expert_width + shape.shared_width).max(1) as f64;
        width(shape.top_k) / width(shape.experts)
    }
    fn scratch_values_per_row(&self, query: &WeightPart<'_>) -> u64 {
        let (shape, tensor) = (query.shape, query.counts.tensor);
        let widest = shape.expert_width.max(shape.shared_width).div_ceil(tensor);
        // Gate and up, an expert's rows and its answers.
        (2 * widest + 2 * shape.hidden) as u64
    }
}

struct DenseFfn;

impl StageKindInfo for DenseFfn {
    fn name(&self) -> &str {
        "dense_ffn"
    }
    fn doc(&self) -> &str {
        "The FFN of a dense layer: one SwiGLU."
    }
    fn role(&self) -> Role {
        Role::Ffn
    }
    fn keys(&self) -> &[Key] {
        const KEYS: &[Key] = &[Key::required("on"), Key::shard(&["tensor", "replicas"])];
        KEYS
    }
    fn reads(&self) -> &[Value] {
        &[Value::U]
    }
    fn writes(&self) -> &[Value] {
        &[Value::Y]
    }
    fn fits(&self, layer: LayerKind) -> bool {
        layer == LayerKind::Dense
    }
    fn weights_bytes(&self, query: &WeightPart<'_>) -> u64 {
        swiglu_bytes(query.shape, part(query.shape.dense_width, query.counts.tensor, query.position.tensor).len())
    }
    fn scratch_values_per_row(&self, query: &WeightPart<'_>) -> u64 {
        // The block's answers go through a buffer of the size of u.
        (2 * query.shape.dense_width.div_ceil(query.counts.tensor) + query.shape.hidden) as u64
    }
}

struct Combine;

impl StageKindInfo for Combine {
    fn name(&self) -> &str {
        "combine"
    }
    fn doc(&self) -> &str {
        "Adds the parts of y, in order of the FFN's groups and devices, to x."
    }
    fn role(&self) -> Role {
        Role::Combine
    }
    fn keys(&self) -> &[Key] {
        ON
    }
    fn reads(&self) -> &[Value] {
        &[Value::X, Value::Y]
    }
    fn writes(&self) -> &[Value] {
        &[Value::X]
    }
}

struct Sampling;

impl StageKindInfo for Sampling {
    fn name(&self) -> &str {
        "sampling"
    }
    fn doc(&self) -> &str {
        "Final norm, head, and the choice of the next token."
    }
    fn role(&self) -> Role {
        Role::Sampling
    }
    fn place(&self) -> Place {
        Place::After
    }
    fn keys(&self) -> &[Key] {
        ON
    }
    fn reads(&self) -> &[Value] {
        &[Value::X]
    }
    fn writes(&self) -> &[Value] {
        &[Value::Tokens]
    }
    fn weights_bytes(&self, part: &WeightPart<'_>) -> u64 {
        let shape = part.shape;
        // A tied head is the embedding, which the same device holds.
        let head = if shape.tie_word_embeddings { 0 } else { shape.vocab * shape.hidden };
        plain_bytes(shape.weight_format, head + shape.hidden)
    }
    fn scratch_values_per_row(&self, part: &WeightPart<'_>) -> u64 {
        (part.shape.vocab + part.shape.hidden) as u64
    }
}
