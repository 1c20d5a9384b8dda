//! What plots show: one thing varied, the rest as in a winner.

use crate::pipeline::{Layout, Outcome, Workload};
use crate::search::{Candidate, Pool, fullest, search};
use rally_cost::{Hardware, SpecError};

/// Contexts that cost is drawn over.
pub const CONTEXTS: [u64; 6] = [2048, 4096, 8192, 16_384, 32_768, 65_536];
/// Micro-batches that are drawn.
pub const MICRO_BATCHES: [u32; 6] = [1, 2, 3, 4, 5, 6];
/// Instances of a kind that are drawn, at most.
const MOST_INSTANCES: u32 = 8;

/// The best of a pool at one context, USD per million tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AtContext {
    /// Tokens.
    pub context: u64,
    /// With attention and FFN apart; none where nothing holds.
    pub disaggregated: Option<f64>,
    /// Undivided.
    pub undivided: Option<f64>,
}

/// The search by arithmetic at each of [`CONTEXTS`].
///
/// # Errors
/// [`SpecError`] where a spec lacks a peak or a price.
pub fn contexts(workload: &Workload, pool: &[Pool], tpot_s: f64) -> Result<Vec<AtContext>, SpecError> {
    let at = |context: u64| {
        let workload = Workload { contexts: vec![(context, 1.0)], ..workload.clone() };
        let found = search(&workload, pool, tpot_s)?;
        Ok(AtContext {
            context,
            disaggregated: found.best.map(|best| best.outcome.usd_per_mtok()),
            undivided: found.undivided.map(|(_, undivided)| undivided.usd_per_mtok()),
        })
    };
    CONTEXTS.into_iter().map(at).collect()
}

/// A number of FFN instances.
#[derive(Clone, Debug)]
pub struct OfFfn {
    /// So many.
    pub ffn: u32,
    /// By number of attention instances, where anything holds.
    pub by_attention: Vec<(u32, Outcome)>,
}

/// Attention instances with the tokens a second and accelerator of each layout that holds, by number of FFN instances.
///
/// # Errors
/// As [`contexts`].
pub fn ratios(
    workload: &Workload,
    on: (&Hardware, &Hardware),
    winner: &Layout,
    tpot_s: f64,
) -> Result<Vec<OfFfn>, SpecError> {
    let most_ffn = (winner.ffn + 2).min(MOST_INSTANCES);
    let mut all = Vec::new();
    for ffn in 1..=most_ffn {
        let mut line = Vec::new();
        for attention in 1..=MOST_INSTANCES.max(winner.attention) {
            let replicas = winner.replicas && ffn > 1;
            let layout = Layout { attention, ffn, replicas, ..winner.clone() };
            line.extend(fullest(workload, on, &layout, tpot_s)?.map(|outcome| (attention, outcome)));
        }
        all.push(OfFfn { ffn, by_attention: line });
    }
    Ok(all)
}

/// The winner with other numbers of micro-batches, each with the most rows that hold the target by arithmetic.
///
/// # Errors
/// As [`contexts`].
pub fn micro_batches(
    workload: &Workload,
    on: (&Hardware, &Hardware),
    winner: &Candidate,
    tpot_s: f64,
) -> Result<Vec<Candidate>, SpecError> {
    let mut all = Vec::new();
    for micro_batches in MICRO_BATCHES {
        let layout = Layout { micro_batches, ..winner.outcome.layout.clone() };
        let outcome = fullest(workload, on, &layout, tpot_s)?;
        all.extend(outcome.map(|outcome| Candidate { outcome, ..winner.clone() }));
    }
    Ok(all)
}
