//! Storage formats of numbers and their scalar conversions. Owns no buffers.
//!
//! Sources: bf16 is the upper half of an IEEE single; e4m3 is the OCP 8-bit format without infinities (bias 7, largest
//! value 448, the pattern of all ones below the sign is NaN).

/// How numbers are stored in a KV pool or on a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageDtype {
    /// IEEE single precision: 4 bytes.
    F32,
    /// The upper half of a single: 2 bytes.
    Bf16,
    /// 8-bit e4m3 without infinities: 1 byte, and a scale per group that its container defines.
    Fp8E4m3,
}

impl StorageDtype {
    /// Bytes of one number, scales not counted.
    pub const fn bytes(self) -> usize {
        match self {
            StorageDtype::F32 => 4,
            StorageDtype::Bf16 => 2,
            StorageDtype::Fp8E4m3 => 1,
        }
    }
}

/// Largest finite e4m3 value.
pub const E4M3_MAX: f32 = 448.0;

/// The e4m3 NaN without sign; with sign it is `0xff`.
pub const E4M3_NAN: u8 = 0x7f;

/// Value of each e4m3 bit pattern.
pub const E4M3_VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = e4m3_to_f32_arithmetic(code as u8);
        code += 1;
    }
    values
};

/// [`e4m3_to_f32`] without the table, for loops that the compiler turns into vectors.
#[inline(always)]
pub(crate) const fn e4m3_to_f32_arithmetic(code: u8) -> f32 {
    let sign = ((code & 0x80) as u32) << 24;
    let magnitude = code & 0x7f;
    // Subnormals are a fraction of 3 bits at exponent -6; for the others the exponent's bias grows from 7 to 127.
    let subnormal = magnitude as f32 * (1.0 / 512.0);
    let normal = f32::from_bits(((magnitude as u32) << 20) + (120 << 23));
    let finite = if magnitude < 8 { subnormal } else { normal };
    let positive = if magnitude == E4M3_NAN { f32::NAN } else { finite };
    f32::from_bits(positive.to_bits() | sign)
}

/// Widens a bf16 bit pattern; exact.
#[inline(always)]
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Rounds to bf16, to nearest with ties to even. NaN stays NaN; magnitudes beyond the format's range become infinite.
#[inline(always)]
pub const fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A payload in the low half alone would vanish and leave infinity: set the quiet bit.
    let quiet = (bits >> 16) | 0x40;
    if value.is_nan() { quiet as u16 } else { rounded as u16 }
}

/// Widens an e4m3 code; exact, `0x7f` and `0xff` are NaN.
#[inline(always)]
pub const fn e4m3_to_f32(code: u8) -> f32 {
    E4M3_VALUES[code as usize]
}

/// Rounds to e4m3, to nearest with ties to even. Finite values beyond ±448 saturate; infinities and NaN become NaN,
/// for the format has no infinity and a finite stand-in would hide the fault.
#[inline(always)]
pub const fn f32_to_e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = ((bits >> 24) & 0x80) as u8;
    let magnitude = bits & 0x7fff_ffff;
    // Both ways and a selection rather than branches: a loop over it becomes vectors.
    // At least 2^-6: drop 20 fraction bits, rounding, and lower the exponent's bias from 127 to 7.
    let rounded = (magnitude + 0x7_ffff + ((magnitude >> 20) & 1)) >> 20;
    let normal = rounded.wrapping_sub(120 << 3);
    let normal = if normal > 0x7e { 0x7e } else { normal };
    // Subnormal: count steps of 2^-9. Adding 2^23 leaves the rounded count in the low bits.
    let subnormal = (f32::from_bits(magnitude) * 512.0 + 8_388_608.0).to_bits() & 0xff;
    let finite = if magnitude >= 0x3c80_0000 { normal } else { subnormal };
    let code = if magnitude >= 0x7f80_0000 { E4M3_NAN as u32 } else { finite };
    sign | code as u8
}
