//! Integers for the page: little-endian base-128 (seven bits a byte, the eighth says that more follow), then base64.

use std::io::{self, Write};

/// Collects integers.
#[derive(Default)]
pub(super) struct Packer(Vec<u8>);

impl Packer {
    pub(super) fn unsigned(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Small magnitudes stay small: 0, −1, 1, −2, … become 0, 1, 2, 3, …
    pub(super) fn signed(&mut self, value: i64) {
        self.unsigned((value << 1 ^ value >> 63) as u64);
    }

    /// As a JSON string.
    pub(super) fn write_base64(&self, out: &mut dyn Write) -> io::Result<()> {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        out.write_all(b"\"")?;
        // In pieces, so that a trace of megabytes needs no copy of itself.
        let mut text = Vec::with_capacity(4096);
        for piece in self.0.chunks(3 * 1024) {
            text.clear();
            for three in piece.chunks(3) {
                let bits =
                    three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
                let digits = [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize]);
                text.extend_from_slice(&digits[..three.len() + 1]);
                text.extend(std::iter::repeat_n(b'=', 3 - three.len()));
            }
            out.write_all(&text)?;
        }
        out.write_all(b"\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(packer: &Packer) -> String {
        let mut out = Vec::new();
        packer.write_base64(&mut out).expect("memory can be written");
        String::from_utf8(out).expect("base64 is text")
    }

    #[test]
    fn known_values() {
        let mut packer = Packer::default();
        assert_eq!(text(&packer), "\"\"");
        packer.unsigned(0);
        assert_eq!(text(&packer), "\"AA==\"");
        packer.unsigned(300);
        assert_eq!(packer.0, [0, 0xAC, 0x02]);
        assert_eq!(text(&packer), "\"AKwC\"");
        packer.signed(-1);
        packer.signed(1);
        packer.unsigned(u64::MAX);
        assert_eq!(packer.0[3..5], [1, 2]);
        assert_eq!(packer.0.len(), 5 + 10);
    }
}
