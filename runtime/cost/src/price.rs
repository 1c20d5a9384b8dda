//! Prices of decoding: an accelerator's hour divided by what it could do in it, and the cheapest pair for AFD.
//!
//! Every figure takes an accelerator at its peak and communication as hidden: a floor, not a forecast.

use crate::decode::DecodeCost;
use crate::{Dtype, Hardware, SpecError};

const SECONDS_PER_HOUR: f64 = 3600.0;
/// Tokens that prices are told for.
const TOKENS: f64 = 1e6;

/// USD per million tokens of a deployment at this price and rate.
pub fn usd_per_mtok(usd_per_hour: f64, tokens_per_s: f64) -> f64 {
    usd_per_hour / SECONDS_PER_HOUR / tokens_per_s * TOKENS
}

/// What a FLOP and a byte cost on an accelerator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitPrice {
    /// USD a FLOP.
    pub usd_per_flop: f64,
    /// USD a byte read.
    pub usd_per_byte: f64,
}

impl UnitPrice {
    /// Of `hardware` computing in `dtype`.
    ///
    /// # Errors
    /// [`SpecError`] where its spec has no price or no such peak.
    pub fn of(hardware: &Hardware, dtype: Dtype) -> Result<Self, SpecError> {
        let usd_per_s = hardware.price()? / SECONDS_PER_HOUR;
        Ok(Self {
            usd_per_flop: usd_per_s / hardware.peak(dtype)?,
            usd_per_byte: usd_per_s / hardware.memory_bytes_per_s(),
        })
    }
}

/// USD per million decoded tokens on one kind of accelerator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UsdPerMtok {
    /// Attention: the dearer of computing and reading, and its projections.
    pub attention: f64,
    /// FFN.
    pub ffn: f64,
}

impl UsdPerMtok {
    /// At these unit prices.
    pub fn of(cost: &DecodeCost, price: UnitPrice) -> Self {
        let reading = cost.kv_bytes * price.usd_per_byte;
        let computing = cost.attention_flops * price.usd_per_flop;
        Self {
            attention: (reading.max(computing) + cost.linear_flops * price.usd_per_flop) * TOKENS,
            ffn: cost.ffn_flops * price.usd_per_flop * TOKENS,
        }
    }

    /// All of it on this one kind.
    pub fn total(&self) -> f64 {
        self.attention + self.ffn
    }
}

/// The cheapest accelerator for each part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// For attention: an index.
    pub attention_on: usize,
    /// For the FFN: an index.
    pub ffn_on: usize,
    /// Both parts together.
    pub usd_per_mtok: f64,
}

/// The cheapest pair of `prices`, one entry an accelerator; the first of equal ones. None of nothing.
pub fn best_pair(prices: &[UsdPerMtok]) -> Option<Pair> {
    let least = |of: fn(&UsdPerMtok) -> f64| {
        (0..prices.len()).min_by(|left, right| of(&prices[*left]).total_cmp(&of(&prices[*right])))
    };
    let (attention_on, ffn_on) = (least(|price| price.attention)?, least(|price| price.ffn)?);
    let usd_per_mtok = prices[attention_on].attention + prices[ffn_on].ffn;
    Some(Pair { attention_on, ffn_on, usd_per_mtok })
}
