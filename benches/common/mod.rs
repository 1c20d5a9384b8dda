//! What the benchmarks of whole runs share: a request, the CPU's name, medians.
// Each benchmark uses its own part of this module.
#![allow(dead_code)]

use rally::engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use std::sync::Arc;

/// A greedy request with a made-up prompt of ids below `vocab`.
pub fn request(id: u64, prompt_tokens: u32, vocab: u32, max_new_tokens: usize) -> SequenceRequest {
    SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: Arc::from((0..prompt_tokens).map(|i| (i * 7 + id as u32) % vocab).collect::<Vec<u32>>()),
        max_new_tokens,
        stop_token_ids: Arc::from([]),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    }
}

/// Name of the CPU that figures were measured on.
pub fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown CPU".to_owned(), |(_, model)| model.to_owned())
}

/// Sorts, so that the median is in the middle and the extremes at the ends.
pub fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle of sorted values.
pub fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}
