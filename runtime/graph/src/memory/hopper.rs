//! Bytes of what Hopper's own kernels keep beside weights and KV: rows narrowed for tensor cores, rows sorted by expert, the plans and
//! parts of fast attention. Which shapes they take is `kernels/cuda`'s; what is here follows it.

use crate::model::{FP8_TILE, ModelShape, WeightFormat};
use crate::spec::{ComputeDtype, WireDtype};

/// Multiprocessors of an H100 or H200; a share of one has fewer.
pub(super) const MULTIPROCESSORS: u64 = 132;
/// Widest row of a product.
const WIDTH_AT_MOST: u64 = 16384;
/// Widest row of a norm that keys and values are appended beside, and whose product rotates heads.
pub(super) const ROTATED_RANK: u64 = 2048;
/// Rows of a tile that slots are cut into.
const TILE: u64 = 128;

/// What products keep on so many multiprocessors: parts of sums, two tiles of 128 x 160 each but one a multiprocessor of
/// a whole card at least, and their counters.
pub(super) fn products(ctas: u64) -> u64 {
    (2 * ctas).max(MULTIPROCESSORS) * (128 * 160 + 1) * 4
}

/// Whether rows of this width can be narrowed.
pub(super) fn takes(width: u64) -> bool {
    width > 0 && width.is_multiple_of(FP8_TILE as u64) && width <= WIDTH_AT_MOST
}

/// Whether rows on their way into projections have a scale each 128 elements.
pub(super) fn groups(compute: ComputeDtype, shape: &ModelShape) -> bool {
    (shape.weight_format, compute) == (WeightFormat::Fp8Block, ComputeDtype::Fp8)
}

/// Bytes that a dense FFN keeps whose rows have a scale each 128 elements; none where it is not one of these.
pub(super) fn grouped_ffn(compute: ComputeDtype, shape: &ModelShape, rows: u64, inner: u64) -> Option<u64> {
    let (hidden, tile) = (shape.hidden as u64, FP8_TILE as u64);
    let too_wide = inner > WIDTH_AT_MOST && compute == ComputeDtype::Fp8PerToken;
    let narrow = groups(compute, shape) || too_wide && shape.weight_format == WeightFormat::Fp8Block;
    let numbers = Numbers { bytes: 1 };
    let takes = narrow && hidden.is_multiple_of(tile) && inner.is_multiple_of(tile);
    takes.then(|| numbers.rows(rows, hidden) + numbers.rows(rows, inner) + 8 * rows * inner)
}

/// Whether tensor cores take an FFN of these widths.
pub(super) fn takes_ffn(hidden: u64, inner: u64) -> bool {
    takes(hidden) && takes(inner) && hidden.is_multiple_of(2 * FP8_TILE as u64)
}

/// How rows are narrowed.
#[derive(Clone, Copy)]
pub(super) struct Numbers {
    bytes: u64,
}

impl Numbers {
    /// On their way into projections; none where they stay f32.
    pub(super) fn of_projections(compute: ComputeDtype, shape: &ModelShape) -> Option<Self> {
        match (shape.weight_format, compute) {
            (_, ComputeDtype::F32) | (WeightFormat::F32, _) | (WeightFormat::Fp8Block, ComputeDtype::Bf16) => None,
            (WeightFormat::Bf16, _) => Some(Self { bytes: 2 }),
            (WeightFormat::Fp8Block, ComputeDtype::Fp8 | ComputeDtype::Fp8PerToken) => Some(Self { bytes: 1 }),
        }
    }

    /// On their way into the head, which is never fp8.
    pub(super) fn of_head(compute: ComputeDtype, shape: &ModelShape) -> Option<Self> {
        let narrow = compute != ComputeDtype::F32 && shape.weight_format != WeightFormat::F32;
        narrow.then_some(Self { bytes: 2 })
    }

    /// Of so many rows, scales included.
    pub(super) fn rows(self, rows: u64, width: u64) -> u64 {
        rows.max(1).next_multiple_of(8) * (width * self.bytes + 4 * (width / FP8_TILE as u64))
    }
}

/// Rows sorted by expert.
pub(super) struct Slots {
    pub(super) rows: u64,
    pub(super) top_k: u64,
    pub(super) experts: u64,
    pub(super) held: u64,
    pub(super) shares: bool,
}

impl Slots {
    /// What an FFN keeps, `kept` times where others read its answers: hidden and inner width.
    pub(super) fn bytes(&self, numbers: Numbers, (hidden, inner): (u64, u64), kept: u64) -> u64 {
        let chosen = self.rows * self.top_k;
        let slots = (chosen + 7 * self.held + if self.shares { self.rows } else { 0 }).next_multiple_of(8);
        let tiles = slots / TILE + self.held + 1;
        let sorted = self.experts + chosen + 2 * slots + 5 * tiles + 3;
        numbers.rows(self.rows, hidden) + numbers.rows(slots, inner) + kept * (2 * slots * hidden + 4 * sorted)
    }
}

/// Whether fast attention takes heads, pages and cache.
pub(super) fn takes_attention(shape: &ModelShape, page_tokens: u32, kv_dtype: WireDtype) -> bool {
    (shape.heads, shape.head_dim, page_tokens) == (64, 256, 64) && kv_dtype != WireDtype::F32
}

/// What it keeps on so many multiprocessors: q and the result in bf16, two plans a micro-batch, one for rows alone in their sequence and
/// one for chunks, and parts of rows that are cut, of chunks two for each of decoding.
pub(super) fn attention(rows: u64, micro_batches: u64, width: u64, ctas: u64) -> u64 {
    let plan = (rows + 2 * ctas) * ITEM_WORDS + 6 * ctas;
    4 * rows * width + 4 * micro_batches * 2 * plan + 4 * ctas * (2 * width + 1024)
}

/// Words of an item of a plan.
const ITEM_WORDS: u64 = 16;
