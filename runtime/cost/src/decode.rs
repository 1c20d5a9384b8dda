//! What decoding one token takes: bytes of cache, and FLOPs of attention, projections and FFNs. Router, embedding and head are
//! left out, as in the report: under 5 %.

use crate::Model;

/// Of one decoded token, over all layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeCost {
    /// Bytes of keys, values and states.
    pub kv_bytes: f64,
    /// FLOPs of attention proper.
    pub attention_flops: f64,
    /// FLOPs of the attention's projections.
    pub linear_flops: f64,
    /// FLOPs of dense FFNs and of the experts that a token passes.
    pub ffn_flops: f64,
}

impl DecodeCost {
    /// FLOPs of attention for each byte of cache.
    pub fn arithmetic_intensity(&self) -> f64 {
        self.attention_flops / self.kv_bytes
    }
}

impl Model {
    /// What one token at a context of `tokens` takes.
    pub fn decode_cost(&self, tokens: u64) -> DecodeCost {
        let tokens = tokens as f64;
        DecodeCost {
            kv_bytes: self.sum(|layers| layers.attention.kv_bytes(tokens, self.kv_dtypes)),
            attention_flops: self.sum(|layers| layers.attention.flops(tokens)),
            linear_flops: 2.0 * self.attention_parameters(),
            ffn_flops: 2.0 * self.ffn_active_parameters(),
        }
    }

    /// Bytes of cache that a sequence of `tokens` keeps.
    pub fn kept_bytes(&self, tokens: u64) -> f64 {
        self.sum(|layers| layers.attention.kept_bytes(tokens as f64, self.kv_dtypes))
    }
}
