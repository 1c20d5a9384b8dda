//! What fits into a time per token: stage budgets, the least sparsity that a network can feed, the batch at which an FFN is
//! bound by computing, and how many accelerators each part takes (Step-3 report, sections 5.4, 6 and 7).

use crate::{Dtype, Hardware, Model, SpecError};

/// Bytes of one channel of a row on its way to an FFN and back: fp8 there, bf16 back.
const BYTES_PER_CHANNEL: f64 = 3.0;

/// Share of its bandwidth with which an accelerator that is an FFN reads weights, in the report's reckoning (section 6).
const FFN_BANDWIDTH_SHARE: f64 = 0.5;

/// Time of one of `stages` equal stages of a token, all layers together, rounded down to three digits as the report has it
/// (16.6 ms of 50 ms in three, 12.5 ms in four).
pub fn stage_budget_s(tpot_s: f64, stages: u32) -> f64 {
    let budget = tpot_s / f64::from(stages);
    let unit = 10f64.powf(budget.log10().floor() - 2.0);
    // A whole number of units must not lose one to rounding.
    (budget / unit * (1.0 + 1e-12)).floor() * unit
}

/// The same for one layer: a slot of the pipeline.
pub fn slot_s(tpot_s: f64, stages: u32, layers: u64) -> f64 {
    stage_budget_s(tpot_s, stages) / layers as f64
}

/// The batch at which a dense FFN of 8-bit weights takes as long to compute as its weights to read.
///
/// # Errors
/// [`SpecError`] where `hardware` has no such peak.
pub fn ideal_dense_batch(hardware: &Hardware, dtype: Dtype) -> Result<f64, SpecError> {
    // Two FLOPs a weight and row, one byte a weight.
    Ok(hardware.peak(dtype)? / (2.0 * hardware.memory_bytes_per_s()))
}

/// The same for an FFN of which a token passes a share of `sparsity`.
pub fn ideal_batch(ideal_dense_batch: f64, sparsity: f64) -> f64 {
    ideal_dense_batch / sparsity
}

/// The least share of its weights that a token must pass so that the batch that keeps an FFN server of `hardware` busy still
/// crosses its network within a third of the time per token, there and back; at `network_share` of the network's rate.
///
/// # Errors
/// [`SpecError`] where `hardware` has no such peak.
pub fn min_sparsity(
    model: &Model,
    hardware: &Hardware,
    dtype: Dtype,
    network_share: f64,
    tpot_s: f64,
) -> Result<f64, SpecError> {
    let network = hardware.links().network_bytes_per_s.value * network_share;
    // Not rounded down as a stage's budget is: the report's 11.1 ms are two thirds of 16.67 ms, not of 16.6 ms.
    let slot_s = tpot_s / 3.0 / model.layer_count() as f64;
    let bytes_per_row = BYTES_PER_CHANNEL * model.hidden as f64;
    Ok(bytes_per_row * ideal_dense_batch(hardware, dtype)? / (network * slot_s))
}

/// Tokens a second and accelerator.
pub fn tokens_per_s_per_device(total_batch: f64, tpot_s: f64, devices: f64) -> f64 {
    total_batch / (tpot_s * devices)
}

/// Bytes a second that one accelerator of an FFN server exchanges, both ways, for `rows` rows a slot.
pub fn ffn_network_bytes_per_s(hidden: u64, rows: f64, slot_s: f64) -> f64 {
    rows * hidden as f64 * BYTES_PER_CHANNEL / slot_s
}

/// What one accelerator does within a slot, and so how many are needed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feasibility {
    /// One layer's share of the time per token.
    pub slot_s: f64,
    /// Bytes it reads in that.
    pub slot_bytes: f64,
    /// Bytes of a layer's attention weights: all of them, but the output projection divided over a server.
    pub attention_weight_bytes: f64,
    /// What is left for keys and values.
    pub kv_bytes: f64,
    /// Sequences whose keys and values can be read in that, at the context asked for.
    pub sequences: f64,
    /// Their contexts together.
    pub context_tokens: f64,
    /// Bytes of FFN weights that it reads in a slot, at half of its bandwidth.
    pub ffn_weight_bytes: f64,
    /// Servers that hold and read them in time.
    pub ffn_servers: u64,
    /// Accelerators in those.
    pub ffn_devices: u64,
}

/// Whether `hardware` can be attention or FFN of `model` within `tpot_s` in `stages` stages, 8-bit weights.
pub fn feasibility(model: &Model, hardware: &Hardware, context: u64, tpot_s: f64, stages: u32) -> Feasibility {
    let layers = model.layer_count() as f64;
    let per_server = hardware.links().devices_per_server.value;
    let slot_s = slot_s(tpot_s, stages, model.layer_count());
    let slot_bytes = hardware.memory_bytes_per_s() * slot_s;
    let attention_weight_bytes = model.attention_parameters_each(per_server) / layers;
    let kv_bytes = (slot_bytes - attention_weight_bytes).max(0.0);
    let sequences = kv_bytes / (model.decode_cost(context).kv_bytes / layers);
    let ffn_weight_bytes = slot_bytes * FFN_BANDWIDTH_SHARE;
    let ffn_servers = (model.ffn_parameters() / (ffn_weight_bytes * layers * per_server)).ceil() as u64;
    Feasibility {
        slot_s,
        slot_bytes,
        attention_weight_bytes,
        kv_bytes,
        sequences,
        context_tokens: sequences * context as f64,
        ffn_weight_bytes,
        ffn_servers,
        ffn_devices: ffn_servers * per_server as u64,
    }
}
