//! Random data from a seed, and the number formats of KV on the host.

use half::bf16;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d049bb133111eb);
        x ^ (x >> 31)
    }

    /// 0 to `bound - 1`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// 0 to 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Mean 0, variance 1.
    pub fn normal(&mut self) -> f32 {
        ((-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }

    /// Numbers 0 to `count - 1` in random order.
    pub fn shuffled(&mut self, count: usize) -> Vec<i32> {
        let mut all: Vec<i32> = (0..count as i32).collect();
        for i in (1..count).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }
}

pub fn from_bf16(bits: u16) -> f64 {
    f64::from(bf16::from_bits(bits).to_f32())
}

pub fn to_bf16(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

/// The value of e4m3 bits.
pub fn from_e4m3(bits: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * (0.5f64).powi(9),
        _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
    };
    if bits & 128 == 0 { magnitude } else { -magnitude }
}

/// The nearest e4m3, ties to even, saturating.
pub fn to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 128 } else { 0 };
    let magnitude = f64::from(x.abs()).min(448.0);
    let exponent = (magnitude.max(1e-30).log2().floor() as i32).clamp(-6, 8);
    let steps = (magnitude / 2f64.powi(exponent - 3)).round_ties_even() as i32;
    // `steps` counts units of the last place; 8 to 15 with a leading one, 16 the next exponent's 8.
    sign | ((exponent + 6) * 8 + steps) as u8
}
