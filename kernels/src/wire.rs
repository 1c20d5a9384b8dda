//! What rows look like on an edge between devices: f32, bf16, or e4m3 with a scale per 128 channels.
//!
//! Owns the layout of row data alone; headers, row maps and routing belong to the transport.
//!
//! **Layout.** Rows follow each other; every row is a record of its own, so records may be sent, dropped or joined
//! without touching others. Little-endian.
//! * `F32`, `Bf16`: `width` numbers.
//! * `Fp8E4m3`: `width` codes, then `ceil(width / 128)` f32 scales. A group's scale is its largest finite magnitude
//!   / 448, or the smallest normal f32 if that is larger (so for a group of zeros); a code is `value / scale` rounded.
//!   NaN and infinities become NaN codes and do not disturb the rest of their group.

use crate::dtype::{E4M3_MAX, StorageDtype, bf16_to_f32, e4m3_to_f32_arithmetic, f32_to_bf16, f32_to_e4m3};
use crate::isa::Isa;
use crate::simd::{self, Kernel, Simd};

/// Channels that share one scale on an fp8 wire (the last group of a row may have fewer).
pub const SCALE_GROUP: usize = 128;

/// Bytes of `rows` encoded rows of `width` channels.
pub fn encoded_bytes(dtype: StorageDtype, rows: usize, width: usize) -> usize {
    rows * row_bytes(dtype, width)
}

fn row_bytes(dtype: StorageDtype, width: usize) -> usize {
    match dtype {
        StorageDtype::F32 | StorageDtype::Bf16 => width * dtype.bytes(),
        StorageDtype::Fp8E4m3 => width + width.div_ceil(SCALE_GROUP) * 4,
    }
}

/// Encodes `src` (`[rows, width]`) into `dst` ([`encoded_bytes`] long).
pub fn encode(dtype: StorageDtype, src: &[f32], rows: usize, width: usize, dst: &mut [u8]) {
    check_shapes(dtype, src.len(), rows, width, dst.len());
    if !src.is_empty() {
        simd::run(Isa::detect(), Encode { dtype, src, width, dst });
    }
}

#[inline(always)]
fn encode_rows(dtype: StorageDtype, src: &[f32], width: usize, dst: &mut [u8]) {
    match dtype {
        StorageDtype::F32 => {
            let (dst, _) = dst.as_chunks_mut::<4>();
            for (dst, value) in dst.iter_mut().zip(src) {
                *dst = value.to_le_bytes();
            }
        }
        StorageDtype::Bf16 => {
            let (dst, _) = dst.as_chunks_mut::<2>();
            for (dst, &value) in dst.iter_mut().zip(src) {
                *dst = f32_to_bf16(value).to_le_bytes();
            }
        }
        StorageDtype::Fp8E4m3 => {
            let records = dst.chunks_exact_mut(row_bytes(dtype, width));
            for (record, row) in records.zip(src.chunks_exact(width)) {
                let (codes, scales) = record.split_at_mut(width);
                let (scales, _) = scales.as_chunks_mut::<4>();
                let groups = codes.chunks_mut(SCALE_GROUP).zip(row.chunks(SCALE_GROUP)).zip(scales);
                for ((codes, values), scale) in groups {
                    *scale = encode_scaled(values, codes).to_le_bytes();
                }
            }
        }
    }
}

/// Decodes `src` ([`encoded_bytes`] long) into `dst` (`[rows, width]`).
pub fn decode(dtype: StorageDtype, src: &[u8], rows: usize, width: usize, dst: &mut [f32]) {
    check_shapes(dtype, dst.len(), rows, width, src.len());
    if !dst.is_empty() {
        simd::run(Isa::detect(), Decode { dtype, src, width, dst });
    }
}

#[inline(always)]
fn decode_rows(dtype: StorageDtype, src: &[u8], width: usize, dst: &mut [f32]) {
    match dtype {
        StorageDtype::F32 => {
            let (src, _) = src.as_chunks::<4>();
            for (dst, &bytes) in dst.iter_mut().zip(src) {
                *dst = f32::from_le_bytes(bytes);
            }
        }
        StorageDtype::Bf16 => {
            let (src, _) = src.as_chunks::<2>();
            for (dst, &bytes) in dst.iter_mut().zip(src) {
                *dst = bf16_to_f32(u16::from_le_bytes(bytes));
            }
        }
        StorageDtype::Fp8E4m3 => {
            let records = src.chunks_exact(row_bytes(dtype, width));
            for (record, row) in records.zip(dst.chunks_exact_mut(width)) {
                let (codes, scales) = record.split_at(width);
                let (scales, _) = scales.as_chunks::<4>();
                let groups = row.chunks_mut(SCALE_GROUP).zip(codes.chunks(SCALE_GROUP)).zip(scales);
                for ((values, codes), &scale) in groups {
                    decode_scaled(codes, f32::from_le_bytes(scale), values);
                }
            }
        }
    }
}

fn check_shapes(dtype: StorageDtype, values: usize, rows: usize, width: usize, bytes: usize) {
    assert_eq!(values, rows * width, "values are [rows, width]");
    assert_eq!(bytes, encoded_bytes(dtype, rows, width), "the encoding of {rows}x{width} as {dtype:?} fits exactly");
}

struct Encode<'a> {
    dtype: StorageDtype,
    src: &'a [f32],
    width: usize,
    dst: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        encode_rows(self.dtype, self.src, self.width, self.dst);
    }
}

struct Decode<'a> {
    dtype: StorageDtype,
    src: &'a [u8],
    width: usize,
    dst: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        decode_rows(self.dtype, self.src, self.width, self.dst);
    }
}

/// Writes the e4m3 codes of `values` relative to the scale it returns.
///
/// Plain loops that the compiler turns into vectors of whatever set it is inlined for; no operation rounds
/// differently there.
#[inline(always)]
pub(crate) fn encode_scaled(values: &[f32], codes: &mut [u8]) -> f32 {
    // Magnitudes order like their bit patterns, and a maximum of integers has no NaN to mind: it becomes vectors.
    let mut largest = 0;
    for value in values {
        let magnitude = value.to_bits() & 0x7fff_ffff;
        largest = largest.max(if magnitude < f32::INFINITY.to_bits() { magnitude } else { 0 });
    }
    let largest = f32::from_bits(largest);
    let scale = (largest / E4M3_MAX).max(f32::MIN_POSITIVE);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = f32_to_e4m3(value / scale);
    }
    scale
}

/// The inverse of [`encode_scaled`].
#[inline(always)]
pub(crate) fn decode_scaled(codes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = e4m3_to_f32_arithmetic(code) * scale;
    }
}
