//! What tests with many cases draw, each case from its seed.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

/// What an environment variable says, or else the usual number.
pub fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(usual)
}

/// A number that `seed` and `salt` decide, below `below`.
pub fn draw(seed: u64, salt: u64, below: u64) -> u64 {
    let mut x = (seed << 8 | salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x ^ x >> 32) % below
}

/// Numbers that look random, a function of the seed.
pub struct Draw(pub u64);

impl Draw {
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    pub fn one<'a>(&mut self, of: &'a [String]) -> &'a String {
        &of[self.below(of.len() as u64) as usize]
    }
}
