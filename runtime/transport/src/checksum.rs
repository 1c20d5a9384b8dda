//! A check sum for what crosses: it recognises what a network or a machine has garbled, not what somebody has forged.
//!
//! Every step is one to one in the word that it takes, so a change within one word is always found; others are with 64 bits.

/// Bytes of a check sum on the wire.
pub const CHECK_BYTES: usize = 8;
/// Odd, so that a product can be undone; without a pattern (digits of the golden ratio and of roots).
const FACTORS: [u64; 4] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
/// Four chains beside each other: one would wait for its products.
const BLOCK_BYTES: usize = 32;

/// The sum of all that it was shown.
#[derive(Clone, Copy, Debug)]
pub struct Checksum {
    chains: [u64; 4],
    lengths: u64,
}

impl Default for Checksum {
    fn default() -> Self {
        Self { chains: FACTORS, lengths: 0 }
    }
}

impl Checksum {
    /// Of these parts, one after the other.
    pub fn of(parts: &[&[u8]]) -> [u8; CHECK_BYTES] {
        let mut sum = Self::default();
        parts.iter().for_each(|part| sum.add(part));
        sum.finish()
    }

    /// Shows it a part. Where one part ends and the next begins counts.
    pub fn add(&mut self, part: &[u8]) {
        let (blocks, rest) = part.as_chunks::<BLOCK_BYTES>();
        blocks.iter().for_each(|block| self.block(block));
        if !rest.is_empty() {
            let mut block = [0; BLOCK_BYTES];
            block[..rest.len()].copy_from_slice(rest);
            self.block(&block);
        }
        self.lengths = self.lengths.rotate_left(13).wrapping_mul(FACTORS[0]) ^ part.len() as u64;
    }

    fn block(&mut self, block: &[u8; BLOCK_BYTES]) {
        let (words, _) = block.as_chunks::<8>();
        for ((chain, word), factor) in self.chains.iter_mut().zip(words).zip(FACTORS) {
            *chain = (*chain ^ u64::from_le_bytes(*word)).wrapping_mul(factor).rotate_left(29);
        }
    }

    /// The sum.
    pub fn finish(self) -> [u8; CHECK_BYTES] {
        let mix = |sum: u64, chain: &u64| {
            let sum = (sum ^ chain).wrapping_mul(FACTORS[1]);
            sum ^ sum >> 32
        };
        self.chains.iter().fold(self.lengths, mix).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_counts_and_so_does_every_length() {
        let bytes: Vec<u8> = (0..101u32).map(|i| (i * 37 + 11) as u8).collect();
        let whole = Checksum::of(&[&bytes]);
        for bit in 0..bytes.len() * 8 {
            let mut garbled = bytes.clone();
            garbled[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Checksum::of(&[&garbled]), whole, "bit {bit}");
        }
        for cut in 1..bytes.len() {
            assert_ne!(Checksum::of(&[&bytes[..cut]]), whole);
            assert_ne!(Checksum::of(&[&bytes[..cut], &bytes[cut..]]), whole);
        }
        for (one, other) in (0..bytes.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
            let mut swapped = bytes.clone();
            swapped.swap(one, other);
            assert!(swapped == bytes || Checksum::of(&[&swapped]) != whole, "{one} and {other} have changed places");
        }
        assert_ne!(Checksum::of(&[&[0; 4]]), Checksum::of(&[&[0; 5]]));
    }
}
