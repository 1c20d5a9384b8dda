//! Synthetic requests: lengths around a mean, as `vllm bench serve --dataset-name random` draws them.

use crate::random::SeededRandom;
use crate::request::LoadRequest;

/// Lengths of synthetic requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomLengths {
    /// Mean prompt tokens.
    pub input_len: usize,
    /// Mean tokens to generate.
    pub output_len: usize,
    /// Lengths are uniform from (1 − ratio) to (1 + ratio) times the mean; 0 ≤ ratio < 1.
    pub range_ratio: f64,
}

/// Stream of the seed that lengths are drawn from.
const LENGTHS: u64 = 1;

impl RandomLengths {
    /// `count` requests that all arrive at 0.
    pub fn requests(&self, count: usize, seed: u64) -> Vec<LoadRequest> {
        let mut random = SeededRandom::new(seed, LENGTHS);
        let mut draw = |mean: usize| {
            let low = (mean as f64 * (1.0 - self.range_ratio)).floor().max(1.0) as usize;
            let high = (mean as f64 * (1.0 + self.range_ratio)).ceil().max(1.0) as usize;
            random.between(low, high)
        };
        let request = |_| LoadRequest {
            arrival_s: 0.0,
            prompt_tokens: draw(self.input_len),
            output_tokens: draw(self.output_len),
        };
        (0..count).map(request).collect()
    }
}
