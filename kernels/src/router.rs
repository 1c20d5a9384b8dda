//! Choice of experts from router logits. Owns nothing.
//!
//! Source: Step-3 (softmax over all experts in f32, the largest `top_k` as they are).

use crate::activation::exp;

/// Chooses `top_k` experts per row, best first, ties to the lower id.
///
/// `logits` is `[rows, experts]`, `ids` and `weights` are `[rows, top_k]`. A weight is the softmax over *all* experts,
/// divided by the sum of the chosen ones if `renormalise`. A row with NaN gets distinct valid ids and NaN weights.
pub fn route(
    logits: &[f32],
    rows: usize,
    experts: usize,
    top_k: usize,
    renormalise: bool,
    ids: &mut [u32],
    weights: &mut [f32],
) {
    assert!(top_k > 0 && top_k <= experts, "top_k {top_k} is between 1 and the number of experts, {experts}");
    assert_eq!(logits.len(), rows * experts, "logits are [rows, experts]");
    assert_eq!(ids.len(), rows * top_k, "ids are [rows, top_k]");
    assert_eq!(weights.len(), rows * top_k, "weights are [rows, top_k]");
    let chosen = ids.chunks_exact_mut(top_k).zip(weights.chunks_exact_mut(top_k));
    for (logits, (ids, weights)) in logits.chunks_exact(experts).zip(chosen) {
        choose(logits, ids);
        let largest = logits[ids[0] as usize];
        let total: f32 = logits.iter().map(|logit| exp(logit - largest)).sum();
        for (weight, &id) in weights.iter_mut().zip(ids.iter()) {
            *weight = exp(logits[id as usize] - largest) / total;
        }
        if renormalise {
            let chosen: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= chosen);
        }
    }
}

/// Fills `ids` with the positions of the largest logits by insertion; NaN ranks below every number.
fn choose(logits: &[f32], ids: &mut [u32]) {
    let rank = |id: u32| {
        let logit = logits[id as usize];
        if logit.is_nan() { f32::NEG_INFINITY } else { logit }
    };
    let mut filled = 0;
    for id in 0..logits.len() as u32 {
        // Strictly larger only: an equal logit stays behind the earlier id.
        let place = ids[..filled].iter().position(|&other| rank(id) > rank(other)).unwrap_or(filled);
        if place == ids.len() {
            continue;
        }
        filled = (filled + 1).min(ids.len());
        ids[place..filled].rotate_right(1);
        ids[place] = id;
    }
}
