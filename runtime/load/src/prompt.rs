//! Prompts of random token ids.

use crate::random::SeededRandom;

/// Prompts of one load, cut from one piece of random ids: a trace's prompts together would fill the memory, and cutting costs
/// nothing while the load runs.
#[derive(Clone, Debug)]
pub struct PromptPool {
    ids: Vec<u32>,
    seed: u64,
}

/// Stream of the seed that token ids are drawn from.
const IDS: u64 = 3;
/// First of the streams that places are drawn from, one a request.
const PLACES: u64 = 1 << 32;
/// Places a prompt of the greatest length can be cut from.
const SLACK: usize = 1 << 16;

impl PromptPool {
    /// For prompts of at most `longest` tokens of a vocabulary of `vocab`, at least one.
    pub fn new(seed: u64, longest: usize, vocab: usize) -> Self {
        let mut random = SeededRandom::new(seed, IDS);
        Self { ids: (0..longest + SLACK).map(|_| random.between(0, vocab - 1) as u32).collect(), seed }
    }

    /// The prompt of request `request`, `tokens` long.
    ///
    /// # Panics
    /// If it is longer than `longest` and the slack together.
    pub fn prompt(&self, request: u64, tokens: usize) -> &[u32] {
        let mut random = SeededRandom::new(self.seed, PLACES + request);
        let start = random.between(0, self.ids.len() - tokens);
        &self.ids[start..start + tokens]
    }
}
