//! Random numbers that a seed fixes for ever: loads must be the same on every machine and in every version.

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and a mix for each number. Good enough for loads, and small enough to
/// be sure of.
#[derive(Clone, Debug)]
pub struct SeededRandom(u64);

impl SeededRandom {
    /// A sequence of its own for each (`seed`, `stream`): lengths, arrivals and token ids do not disturb each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut mixer = Self(seed);
        let base = mixer.next_u64();
        Self(base ^ Self(stream).next_u64())
    }

    /// Any 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in (0, 1): never 0, so that its logarithm is finite.
    pub fn uniform(&mut self) -> f64 {
        ((self.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Uniform in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        let span = (high - low) as u128 + 1;
        // The high half of the product: biased by less than span / 2^64.
        low + ((u128::from(self.next_u64()) * span) >> 64) as usize
    }

    /// Standard normal (Box and Muller's cosine half).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Gamma with the given shape and mean 1 (Marsaglia and Tsang 2000; shapes below 1 by their boost).
    pub fn gamma_of_mean_one(&mut self, shape: f64) -> f64 {
        let boost = if shape < 1.0 { self.uniform().powf(1.0 / shape) } else { 1.0 };
        let d = if shape < 1.0 { shape + 1.0 } else { shape } - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return boost * d * v / shape;
            }
        }
    }
}
