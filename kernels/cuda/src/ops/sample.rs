//! Tokens from logits (`cu/sample.cu`).

use super::{Ops, holds, launch};
use crate::error::CudaError;
use crate::machine::Machine;
use crate::memory::{Arena, DeviceSlice, Plain};

/// Logits that are digested together.
const CHUNK: usize = 1024;

/// Most likely tokens that a row can report.
pub const REPORTED_AT_MOST: usize = 20;

/// How the token of a row is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct Choice {
    /// The row's random number, in [0, 1).
    pub uniform: f64,
    /// Divides the logits; 0 chooses the largest one.
    pub temperature: f32,
    /// Keeps the fewest most probable tokens that reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Keeps this many of the largest logits, and those equal to the last; 0 keeps all.
    pub top_k: i32,
    /// Most likely tokens to report with their log probabilities, at most [`REPORTED_AT_MOST`]; -1: not even the chosen one's.
    pub reported: i32,
    /// Fills the structure up.
    pub unused: i32,
}

// SAFETY: a double and six words of four bytes: no padding; any bits are a value.
unsafe impl Plain for Choice {}

impl Choice {
    /// The structure as words, for a descriptor that has more in it.
    pub fn words(&self) -> [i32; size_of::<Choice>() / size_of::<i32>()] {
        let uniform = self.uniform.to_bits();
        let float = |value: f32| value.to_bits() as i32;
        let (temperature, top_p, min_p) = (float(self.temperature), float(self.top_p), float(self.min_p));
        [uniform as i32, (uniform >> 32) as i32, temperature, top_p, min_p, self.top_k, self.reported, self.unused]
    }
}

/// What choosing leaves, for so many rows.
#[derive(Debug)]
pub struct Chosen {
    /// Of each row its token, and the first logit that is not finite or -1.
    pub tokens: DeviceSlice<i32>,
    /// `[rows, 21]`: log probability of the token, then of those most likely.
    pub odds: DeviceSlice<f32>,
    /// `[rows, 20]`: the most likely ones; -1 behind the last.
    pub likely: DeviceSlice<i32>,
    /// Three words for each 1,024 logits of a row.
    digests: DeviceSlice<i32>,
}

impl Chosen {
    /// Bytes of one for `rows` rows of `vocab` logits.
    pub fn bytes(rows: usize, vocab: usize) -> usize {
        Arena::bytes_for(sizes(rows, vocab).map(|count| count * size_of::<i32>()))
    }

    /// Room for `rows` rows of `vocab` logits.
    ///
    /// # Errors
    /// No memory.
    pub fn new(machine: &dyn Machine, rows: usize, vocab: usize) -> Result<Chosen, CudaError> {
        let [tokens, odds, likely, digests] = sizes(rows, vocab);
        let mut arena = machine.allocate(Chosen::bytes(rows, vocab))?;
        Ok(Chosen {
            tokens: arena.take(tokens)?,
            odds: arena.take(odds)?,
            likely: arena.take(likely)?,
            digests: arena.take(digests)?,
        })
    }
}

fn sizes(rows: usize, vocab: usize) -> [usize; 4] {
    [rows * 2, rows * (REPORTED_AT_MOST + 1), rows * REPORTED_AT_MOST, rows * vocab.div_ceil(CHUNK) * 3]
}

#[repr(C)]
struct Sample {
    logits: u64,
    choices: u64,
    digests: u64,
    chosen: u64,
    odds: u64,
    likely: u64,
    vocab: i32,
}

impl Ops {
    /// A token for each of `rows` rows of `vocab` logits, chosen as `choices` say, and if `reports` the log probabilities of rows that
    /// want any.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    pub fn sample(
        &self,
        logits: &DeviceSlice<f32>,
        rows: usize,
        vocab: usize,
        choices: &DeviceSlice<Choice>,
        reports: bool,
        chosen: &Chosen,
    ) -> Result<(), CudaError> {
        let [tokens, odds, likely, digests] = sizes(rows, vocab);
        holds("sample", "logits [rows, vocab]", logits, rows * vocab)?;
        holds("sample", "choices [rows]", choices, rows)?;
        holds("sample", "tokens [rows, 2]", &chosen.tokens, tokens)?;
        holds("sample", "odds [rows, 21]", &chosen.odds, odds)?;
        holds("sample", "likely [rows, 20]", &chosen.likely, likely)?;
        holds("sample", "digests [rows, chunks]", &chosen.digests, digests)?;
        let arguments = || Sample {
            logits: logits.address(),
            choices: choices.address(),
            digests: chosen.digests.address(),
            chosen: chosen.tokens.address(),
            odds: chosen.odds.address(),
            likely: chosen.likely.address(),
            vocab: vocab as i32,
        };
        // SAFETY: lengths were checked; that no row reports more than there is room for is the caller's promise.
        unsafe {
            launch(&*self.digest_logits, rows * vocab.div_ceil(CHUNK), arguments())?;
            launch(&*self.choose_tokens, rows, arguments())?;
            if reports { launch(&*self.report_odds, rows, arguments()) } else { Ok(()) }
        }
    }
}
