//! Sixteen lanes in one AVX-512 register or two AVX2 registers.

use std::arch::x86_64::*;

use super::{Kernel, Simd};
use crate::activation::EXP_SHIFT;
use crate::dtype::E4M3_VALUES;

/// AVX-512 F, BW, DQ, VL, VBMI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the set.
    unsafe { kernel.run::<Avx512>() }
}

/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx2`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the set.
    unsafe { kernel.run::<Avx2>() }
}

/// Half-precision numbers, each 1/256 of its e4m3 code's value: both have a sign, an exponent and a fraction in this
/// order, so shifting the code left by 7 lines them up with the exponent bias 8 too small. Subnormals come out right.
/// A NaN code (all ones below the sign) becomes a half-precision NaN.
///
/// # Safety
///
/// AVX2; `from` is valid for 16 bytes.
#[inline(always)]
unsafe fn e4m3_as_half(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()));
        let halves = _mm256_and_si256(_mm256_slli_epi16::<7>(codes), _mm256_set1_epi16(0xbfff_u16 as i16));
        let ones = _mm256_set1_epi16(-1);
        let is_nan = _mm256_cmpeq_epi16(_mm256_or_si256(codes, _mm256_set1_epi16(0xff80_u16 as i16)), ones);
        _mm256_or_si256(halves, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7e00)))
    }
}

/// What `e4m3_as_half` leaves to multiply.
const HALF_TO_E4M3: f32 = 256.0;

/// Every e4m3 magnitude is a bf16 number: the upper bytes of those, by code.
static BF16_HIGH_BYTES: [u8; 128] = bf16_bytes(8);

/// The lower bytes.
static BF16_LOW_BYTES: [u8; 128] = bf16_bytes(0);

const fn bf16_bytes(shift: u32) -> [u8; 128] {
    let mut bytes = [0; 128];
    let mut code = 0;
    while code < 128 {
        bytes[code] = (E4M3_VALUES[code].to_bits() >> (16 + shift)) as u8;
        code += 1;
    }
    bytes
}

/// Where each byte of 64 codes is taken from, so that pairing bytes within quarters of a register (all that the
/// instruction does) and then splitting pairs puts number 16 v + i into lane i of vector v.
static CODE_ORDER: [u8; 64] = {
    let mut order = [0; 64];
    let mut number = 0;
    while number < 64 {
        let (vector, lane) = (number / 16, number % 16);
        let place = lane / 4 * 16 + vector / 2 * 8 + lane % 4 * 2 + vector % 2;
        order[place] = number as u8;
        number += 1;
    }
    order
};

/// One half of a table.
///
/// # Safety
///
/// AVX-512; `index` is 0 or 1.
#[inline(always)]
unsafe fn half(table: &[u8; 128], index: usize) -> __m512i {
    // SAFETY: both halves are 64 bytes.
    unsafe { _mm512_loadu_si512(table.as_ptr().add(index * 64).cast()) }
}

/// Transposes 8×8 numbers: pairs of rows, then fours, then halves.
///
/// # Safety
///
/// AVX2; both pointers are valid for 8 rows of 8 at their strides.
#[inline(always)]
unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [_mm256_setzero_ps(); 8];
        for (index, row) in rows.iter_mut().enumerate() {
            *row = _mm256_loadu_ps(from.add(index * from_stride));
        }
        let mut pairs = rows;
        for index in 0..4 {
            pairs[2 * index] = _mm256_unpacklo_ps(rows[2 * index], rows[2 * index + 1]);
            pairs[2 * index + 1] = _mm256_unpackhi_ps(rows[2 * index], rows[2 * index + 1]);
        }
        // fours[4 h + c]: columns c and c + 4 of rows 4 h to 4 h + 3.
        let mut fours = pairs;
        for half in [0, 4] {
            let (a, b, c, d) = (pairs[half], pairs[half + 1], pairs[half + 2], pairs[half + 3]);
            fours[half] = _mm256_shuffle_ps::<0x44>(a, c);
            fours[half + 1] = _mm256_shuffle_ps::<0xee>(a, c);
            fours[half + 2] = _mm256_shuffle_ps::<0x44>(b, d);
            fours[half + 3] = _mm256_shuffle_ps::<0xee>(b, d);
        }
        for column in 0..4 {
            let (upper, lower) = (fours[column], fours[column + 4]);
            _mm256_storeu_ps(to.add(column * to_stride), _mm256_permute2f128_ps::<0x20>(upper, lower));
            _mm256_storeu_ps(to.add((column + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(upper, lower));
        }
    }
}

/// Sum of eight lanes: i with i + 4, then i + 2, i + 1.
///
/// # Safety
///
/// AVX2.
#[inline(always)]
unsafe fn reduce_8(value: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        let one = _mm_add_ss(two, _mm_shuffle_ps::<1>(two, two));
        _mm_cvtss_f32(one)
    }
}

/// The largest of eight lanes, if none is NaN.
///
/// # Safety
///
/// AVX2.
#[inline(always)]
unsafe fn largest_of_8(value: __m256) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps::<1>(value));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        let one = _mm_max_ss(two, _mm_shuffle_ps::<1>(two, two));
        _mm_cvtss_f32(one)
    }
}

/// [`crate::activation::times_power_of_2`] of eight lanes.
///
/// # Safety
///
/// AVX2.
#[inline(always)]
unsafe fn times_power_of_2_of_8(value: __m256, shifted: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(EXP_SHIFT.to_bits() as i32));
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
        let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
        _mm256_mul_ps(_mm256_mul_ps(value, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second))
    }
}

// SAFETY of every block below: the trait's contract (instruction set present, pointers valid for 16 elements).
impl Simd for Avx512 {
    type Vector = __m512;
    const ACCUMULATORS: usize = 24;
    const WIDENS_64_CODES: bool = true;

    #[inline(always)]
    unsafe fn prefetch<T>(from: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: __m512) {
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn add(left: __m512, right: __m512) -> __m512 {
        unsafe { _mm512_add_ps(left, right) }
    }

    #[inline(always)]
    unsafe fn mul(left: __m512, right: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(left, right) }
    }

    #[inline(always)]
    unsafe fn fma(left: __m512, right: __m512, sum: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(left, right, sum) }
    }

    #[inline(always)]
    unsafe fn sub(left: __m512, right: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(left, right) }
    }

    #[inline(always)]
    unsafe fn larger(left: __m512, right: __m512) -> __m512 {
        unsafe { _mm512_max_ps(left, right) }
    }

    #[inline(always)]
    unsafe fn smaller(left: __m512, right: __m512) -> __m512 {
        unsafe { _mm512_min_ps(left, right) }
    }

    #[inline(always)]
    unsafe fn times_power_of_2(value: __m512, shifted: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(value, _mm512_sub_ps(shifted, _mm512_set1_ps(EXP_SHIFT))) }
    }

    #[inline(always)]
    unsafe fn largest(value: __m512) -> f32 {
        unsafe { largest_of_8(_mm256_max_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> __m512 {
        unsafe { _mm512_mul_ps(_mm512_cvtph_ps(e4m3_as_half(from)), _mm512_set1_ps(HALF_TO_E4M3)) }
    }

    #[inline(always)]
    unsafe fn transpose_8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        unsafe { transpose(from, from_stride, to, to_stride) }
    }

    #[inline(always)]
    unsafe fn reduce(value: __m512) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps::<1>(value));
            reduce_8(eight)
        }
    }

    #[inline(always)]
    unsafe fn load_64_e4m3(from: *const u8) -> [__m512; 4] {
        unsafe {
            let order = _mm512_loadu_si512(CODE_ORDER.as_ptr().cast());
            let codes = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(from.cast()));
            // The look-up ignores a code's sign bit, which then joins the high byte: high | (codes & 0x80).
            let unsigned = _mm512_permutex2var_epi8(half(&BF16_HIGH_BYTES, 0), codes, half(&BF16_HIGH_BYTES, 1));
            let high = _mm512_ternarylogic_epi32::<0xf8>(unsigned, codes, _mm512_set1_epi8(-128));
            let low = _mm512_permutex2var_epi8(half(&BF16_LOW_BYTES, 0), codes, half(&BF16_LOW_BYTES, 1));
            // A bf16 number in each half of a double word: the lower one moves up, the upper one stays alone.
            let (first, second) = (_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high));
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(first)),
                _mm512_castsi512_ps(_mm512_and_si512(first, upper)),
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(second)),
                _mm512_castsi512_ps(_mm512_and_si512(second, upper)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn reduce_4(values: [__m512; 4]) -> [f32; 4] {
        unsafe {
            let [a, b, c, d] = values;
            // Lanes i + (i + 8), of two vectors at once.
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
            // i + (i + 4): then a quarter of the register holds four lanes of each.
            let four = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let two = _mm512_add_ps(four, _mm512_permute_ps::<0x4e>(four));
            let one = _mm512_add_ps(two, _mm512_permute_ps::<0xb1>(two));
            let firsts = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), one);
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(firsts));
            sums
        }
    }
}

// SAFETY of every block below: the trait's contract (instruction set present, pointers valid for 16 elements).
impl Simd for Avx2 {
    type Vector = [__m256; 2];
    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    unsafe fn prefetch<T>(from: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> [__m256; 2] {
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: [__m256; 2]) {
        unsafe {
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        }
    }

    #[inline(always)]
    unsafe fn add(left: [__m256; 2], right: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_add_ps(left[0], right[0]), _mm256_add_ps(left[1], right[1])] }
    }

    #[inline(always)]
    unsafe fn mul(left: [__m256; 2], right: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_mul_ps(left[0], right[0]), _mm256_mul_ps(left[1], right[1])] }
    }

    #[inline(always)]
    unsafe fn fma(left: [__m256; 2], right: [__m256; 2], sum: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_fmadd_ps(left[0], right[0], sum[0]), _mm256_fmadd_ps(left[1], right[1], sum[1])] }
    }

    #[inline(always)]
    unsafe fn sub(left: [__m256; 2], right: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_sub_ps(left[0], right[0]), _mm256_sub_ps(left[1], right[1])] }
    }

    #[inline(always)]
    unsafe fn larger(left: [__m256; 2], right: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_max_ps(left[0], right[0]), _mm256_max_ps(left[1], right[1])] }
    }

    #[inline(always)]
    unsafe fn smaller(left: [__m256; 2], right: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_min_ps(left[0], right[0]), _mm256_min_ps(left[1], right[1])] }
    }

    #[inline(always)]
    unsafe fn times_power_of_2(value: [__m256; 2], shifted: [__m256; 2]) -> [__m256; 2] {
        unsafe { [times_power_of_2_of_8(value[0], shifted[0]), times_power_of_2_of_8(value[1], shifted[1])] }
    }

    #[inline(always)]
    unsafe fn largest(value: [__m256; 2]) -> f32 {
        unsafe { largest_of_8(_mm256_max_ps(value[0], value[1])) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> [__m256; 2] {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        }
    }

    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> [__m256; 2] {
        unsafe {
            let halves = e4m3_as_half(from);
            let factor = _mm256_set1_ps(HALF_TO_E4M3);
            let low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
            [_mm256_mul_ps(low, factor), _mm256_mul_ps(high, factor)]
        }
    }

    #[inline(always)]
    unsafe fn transpose_8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        unsafe { transpose(from, from_stride, to, to_stride) }
    }

    #[inline(always)]
    unsafe fn reduce(value: [__m256; 2]) -> f32 {
        unsafe { reduce_8(_mm256_add_ps(value[0], value[1])) }
    }
}
