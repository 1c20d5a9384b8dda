//! Choice of the next token from logits. Pure: randomness is a function of (seed, token index) alone.
//!
//! Order of the filters, as in vLLM: temperature, min-p, top-k, top-p.

use thiserror::Error;

/// How a request samples. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 chooses the largest one.
    pub temperature: f32,
    /// Keeps this many of the largest logits (and those equal to the last of them); 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most probable tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Seed of the request's randomness.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// Why no token could be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SamplingError {
    /// A logit is NaN or infinite: the model's output is broken and any choice would hide it.
    #[error("logit {token} is not a finite number")]
    NonFiniteLogit {
        /// The first such token.
        token: u32,
    },
    /// There are no logits.
    #[error("there are no logits to choose from")]
    NoLogits,
}

/// Buffers of [`sample`], grown at first use and reused after.
#[derive(Debug, Default)]
pub struct SamplingScratch {
    /// Tokens still in the choice.
    candidates: Vec<u32>,
    /// Their probabilities relative to the best token's.
    odds: Vec<f64>,
}

impl SamplingScratch {
    /// Empty buffers.
    pub fn new() -> SamplingScratch {
        SamplingScratch::default()
    }
}

/// Chooses a token from `logits` (`[vocab]`); `token_index` counts the request's generated tokens from 0.
///
/// Temperature 0 chooses the largest logit, the lowest id among equals. Otherwise a uniform number made from (seed,
/// token index) picks from the kept tokens in proportion to their probabilities: the same token after preemption,
/// replay or resume.
///
/// # Errors
///
/// [`SamplingError`] when a logit is not finite or there is none.
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    token_index: u64,
    scratch: &mut SamplingScratch,
) -> Result<u32, SamplingError> {
    let best = argmax(logits)?;
    if params.temperature <= 0.0 {
        return Ok(best);
    }
    let largest = logits[best as usize];
    // Probability relative to the best token's.
    let odds = |token: u32| {
        let distance = f64::from(logits[token as usize]) - f64::from(largest);
        (distance / f64::from(params.temperature)).exp()
    };
    let candidates = &mut scratch.candidates;
    candidates.clear();
    candidates.extend(0..logits.len() as u32);
    if params.min_p > 0.0 {
        // The best token always stays, whatever the parameter.
        candidates.retain(|&token| token == best || odds(token) >= f64::from(params.min_p));
    }
    keep_top_k(logits, params.top_k, candidates);
    if params.top_p < 1.0 {
        keep_top_p(logits, f64::from(params.top_p), odds, candidates);
    }
    scratch.odds.clear();
    scratch.odds.extend(candidates.iter().map(|&token| odds(token)));
    let mut left = uniform(params.seed, token_index) * scratch.odds.iter().sum::<f64>();
    for (&token, odds) in candidates.iter().zip(&scratch.odds) {
        left -= odds;
        if left < 0.0 {
            return Ok(token);
        }
    }
    // Rounding may leave a crumb: the best token is as good an owner as any.
    Ok(best)
}

/// The largest logit's token, the lowest id among equals.
///
/// # Errors
///
/// [`SamplingError`] when a logit is not finite or there is none.
pub fn argmax(logits: &[f32]) -> Result<u32, SamplingError> {
    if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
        return Err(SamplingError::NonFiniteLogit { token: token as u32 });
    }
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = token;
        }
    }
    if logits.is_empty() { Err(SamplingError::NoLogits) } else { Ok(best as u32) }
}

/// Natural logarithm of the probability of `token` under the unmodified `logits` (`[vocab]`).
pub fn log_prob(logits: &[f32], token: u32) -> f32 {
    assert!((token as usize) < logits.len(), "token {token} is one of {}", logits.len());
    (f64::from(logits[token as usize]) - log_sum_exp(logits)) as f32
}

/// The `n` most probable tokens under the unmodified `logits` (`[vocab]`) with their log-probabilities, best first,
/// ties to the lower id; fewer if there are fewer tokens.
pub fn top_log_probs(logits: &[f32], n: usize) -> Vec<(u32, f32)> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let order = by_logit(logits);
    if n < tokens.len() && n > 0 {
        tokens.select_nth_unstable_by(n - 1, &order);
    }
    tokens.truncate(n);
    tokens.sort_unstable_by(&order);
    let total = log_sum_exp(logits);
    tokens.into_iter().map(|token| (token, (f64::from(logits[token as usize]) - total) as f32)).collect()
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(largest)).exp()).sum();
    f64::from(largest) + sum.ln()
}

/// Larger logits first, then lower ids.
fn by_logit(logits: &[f32]) -> impl Fn(&u32, &u32) -> std::cmp::Ordering {
    // Adding zero makes the negative zero equal to the positive one.
    let rank = |token: u32| logits[token as usize] + 0.0;
    move |&left, &right| rank(right).total_cmp(&rank(left)).then(left.cmp(&right))
}

/// Drops what is smaller than the `top_k`-th largest logit.
fn keep_top_k(logits: &[f32], top_k: u32, candidates: &mut Vec<u32>) {
    let top_k = top_k as usize;
    if top_k == 0 || top_k >= candidates.len() {
        return;
    }
    let (_, &mut last, _) = candidates.select_nth_unstable_by(top_k - 1, by_logit(logits));
    let least = logits[last as usize];
    candidates.retain(|&token| logits[token as usize] >= least);
    candidates.sort_unstable();
}

/// Keeps a token while the more probable ones have not yet reached `top_p` of the candidates' mass; at least one.
fn keep_top_p(logits: &[f32], top_p: f64, odds: impl Fn(u32) -> f64, candidates: &mut Vec<u32>) {
    let total: f64 = candidates.iter().map(|&token| odds(token)).sum();
    let order = by_logit(logits);
    let (mut sorted, mut mass) = (0, 0.0);
    loop {
        // Sorting a vocabulary is slow and a short head mostly holds the mass: sort ever longer heads.
        let end = candidates.len().min((sorted * 4).max(256));
        let rest = &mut candidates[sorted..];
        if end - sorted < rest.len() {
            rest.select_nth_unstable_by(end - sorted - 1, &order);
        }
        rest[..end - sorted].sort_unstable_by(&order);
        while sorted < end {
            mass += odds(candidates[sorted]);
            sorted += 1;
            if mass >= top_p * total {
                candidates.truncate(sorted);
                candidates.sort_unstable();
                return;
            }
        }
        if sorted == candidates.len() {
            candidates.sort_unstable();
            return;
        }
    }
}

/// A number in [0, 1) from the counter (seed, token index): two rounds of the splitmix64 finaliser.
pub fn uniform(seed: u64, token_index: u64) -> f64 {
    let bits = mix(mix(seed.wrapping_add(GOLDEN_GAMMA)).wrapping_add(token_index.wrapping_mul(GOLDEN_GAMMA)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// 2^64 divided by the golden ratio, splitmix64's step.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
