//! What a layer's attention reads and computes for one token, by kind.

use super::KvDtypes;

/// An attention and its sizes.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Heads of queries over fewer heads of keys and values: MHA, GQA, MQA, and MFA with its low-rank query.
    Grouped {
        /// Heads of queries.
        query_heads: u64,
        /// Heads of keys, and of values.
        kv_heads: u64,
        /// Width of a head.
        head_dim: u64,
        /// Width of the low-rank query of MFA (`share_q_dim`).
        query_rank: Option<u64>,
        /// Tokens it sees at most: a window, or a chunk.
        window: Option<u64>,
    },
    /// One latent row for all heads, from which keys and values are made (MLA, absorbed).
    Latent {
        /// Heads.
        heads: u64,
        /// Width of the low-rank query, if it has one.
        query_rank: Option<u64>,
        /// Width of the latent row (`kv_lora_rank`).
        latent: u64,
        /// Width of a key without position.
        nope: u64,
        /// Width of the shared key with position, kept beside the latent row.
        rope: u64,
        /// Width of a value.
        value: u64,
    },
    /// A state of `heads × head_dim × head_dim` instead of a cache (lightning attention).
    Recurrent {
        /// Heads.
        heads: u64,
        /// Width of a head.
        head_dim: u64,
    },
}

/// FLOPs a token does on each element of a recurrent state: decay, outer product, read-out. Fitted to the report's MiniMax M1 row,
/// which does not state it.
const FLOPS_PER_STATE_ELEMENT: f64 = 10.0;

/// Projections of a recurrent layer: q, k, v, output and gate.
const RECURRENT_PROJECTIONS: u64 = 5;

impl Attention {
    /// Tokens that are seen at a context of `tokens`; a recurrent one sees its state instead.
    fn seen(&self, tokens: f64) -> f64 {
        match self {
            Self::Grouped { window: Some(window), .. } => tokens.min(*window as f64),
            _ => tokens,
        }
    }

    /// Bytes of cache that one token reads. A state is read and written, and counts twice.
    pub fn kv_bytes(&self, tokens: f64, dtypes: KvDtypes) -> f64 {
        match self {
            Self::Grouped { kv_heads, head_dim, window, .. } => {
                let dtype = if window.is_some() { dtypes.window } else { dtypes.full };
                self.seen(tokens) * 2.0 * (kv_heads * head_dim) as f64 * dtype.bytes()
            }
            Self::Latent { latent, rope, .. } => tokens * (latent + rope) as f64 * dtypes.full.bytes(),
            Self::Recurrent { heads, head_dim } => 2.0 * (heads * head_dim * head_dim) as f64 * dtypes.state.bytes(),
        }
    }

    /// Bytes that one sequence keeps: as read, but a state is there once.
    pub fn kept_bytes(&self, tokens: f64, dtypes: KvDtypes) -> f64 {
        match self {
            Self::Recurrent { .. } => self.kv_bytes(tokens, dtypes) / 2.0,
            _ => self.kv_bytes(tokens, dtypes),
        }
    }

    /// FLOPs of one token's scores and sums, projections aside. The report counts the width of an MLA key for its value as well.
    pub fn flops(&self, tokens: f64) -> f64 {
        match self {
            Self::Grouped { query_heads, head_dim, .. } => self.seen(tokens) * (query_heads * head_dim) as f64 * 4.0,
            Self::Latent { heads, latent, rope, .. } => tokens * (heads * (latent + rope)) as f64 * 4.0,
            Self::Recurrent { heads, head_dim } => FLOPS_PER_STATE_ELEMENT * (heads * head_dim * head_dim) as f64,
        }
    }

    /// Weights of its projections.
    pub fn parameters(&self, hidden: u64) -> f64 {
        self.input_parameters(hidden) + self.output_parameters(hidden)
    }

    /// Weights of the projections of queries, keys, values and gates.
    pub fn input_parameters(&self, hidden: u64) -> f64 {
        let parameters = match self {
            Self::Grouped { query_heads, kv_heads, head_dim, query_rank, .. } => {
                let query = match query_rank {
                    Some(rank) => hidden * rank + rank * query_heads * head_dim,
                    None => hidden * query_heads * head_dim,
                };
                query + 2 * hidden * kv_heads * head_dim
            }
            Self::Latent { heads, query_rank, latent, nope, rope, value } => {
                let query = match query_rank {
                    Some(rank) => hidden * rank + rank * heads * (nope + rope),
                    None => hidden * heads * (nope + rope),
                };
                query + hidden * (latent + rope) + latent * heads * (nope + value)
            }
            Self::Recurrent { heads, head_dim } => (RECURRENT_PROJECTIONS - 1) * hidden * heads * head_dim,
        };
        parameters as f64
    }

    /// Weights of the output projection, the one that the report splits over a server.
    pub fn output_parameters(&self, hidden: u64) -> f64 {
        let width = match self {
            Self::Grouped { query_heads, head_dim, .. } => query_heads * head_dim,
            Self::Latent { heads, value, .. } => heads * value,
            Self::Recurrent { heads, head_dim } => heads * head_dim,
        };
        (width * hidden) as f64
    }
}
