//! Element-wise operations on rows, and the exponential they and the softmaxes share. Owns nothing.
//!
//! Products are rounded before they are added, on every instruction set: the same bits everywhere.

use crate::isa::Isa;
use crate::simd::{self, Kernel, Simd};

/// `gate = silu(gate) · up` with `silu(g) = g / (1 + e^-g)`; both have the same length.
pub fn swiglu_in_place(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have the same shape");
    simd::run(Isa::detect(), SwiGlu { gate, up });
}

/// `to += from`, element by element.
pub fn add_in_place(to: &mut [f32], from: &[f32]) {
    assert_eq!(to.len(), from.len(), "both sides of a sum have the same shape");
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// `to += factor · from`, element by element; the product is rounded before it is added.
pub fn axpy(factor: f32, from: &[f32], to: &mut [f32]) {
    assert_eq!(to.len(), from.len(), "both sides of a sum have the same shape");
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

struct SwiGlu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exp(-*gate)) * up;
        }
    }
}

/// e^x within 2 units in the last place, subnormal results, overflow to infinity and NaN included.
///
/// Our own rather than the system library's, so that results are the same on every machine and loops over it
/// vectorise. x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r is a polynomial of degree 6 (Cephes `expf`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Written so that NaN passes.
    let x = if x < EXP_LEAST { EXP_LEAST } else { x };
    let x = if x > EXP_MOST { EXP_MOST } else { x };
    let shifted = x * std::f32::consts::LOG2_E + EXP_SHIFT;
    let n = shifted - EXP_SHIFT;
    let r = (x - n * EXP_LN_2[0]) - n * EXP_LN_2[1];
    let [first, factors @ ..] = EXP_POLYNOMIAL;
    let polynomial = factors.into_iter().fold(first, |polynomial, factor| polynomial * r + factor);
    times_power_of_2(polynomial * (r * r) + r + 1.0, shifted)
}

/// Beyond these the result is 0 or infinity.
pub(crate) const EXP_LEAST: f32 = -104.0;
/// The other end.
pub(crate) const EXP_MOST: f32 = 89.0;
/// 1.5 · 2^23: added to a number it rounds it to an integer, which then stands in the low bits.
pub(crate) const EXP_SHIFT: f32 = 12_582_912.0;
/// ln 2 in two parts, the first with few enough bits that n times it is exact.
pub(crate) const EXP_LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// From r^6 down to r^2.
pub(crate) const EXP_POLYNOMIAL: [f32; 6] =
    [1.987_569_2e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// [`Simd::times_power_of_2`] of one number.
#[inline(always)]
pub(crate) fn times_power_of_2(value: f32, shifted: f32) -> f32 {
    // In two factors, as n may lie outside the exponents of normal numbers: the first product is exact.
    let n = (shifted.to_bits() as i32).wrapping_sub(EXP_SHIFT.to_bits() as i32);
    let half = n >> 1;
    let power = |exponent: i32| f32::from_bits((exponent.wrapping_add(127) as u32) << 23);
    value * power(half) * power(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::LANES;

    #[test]
    fn exp_agrees_with_f64_over_its_whole_range() {
        for step in -110_000..=90_000 {
            let x = step as f32 * 1e-3;
            let want = f64::from(x).exp();
            let got = f64::from(exp(x));
            if want > f64::from(f32::MAX) {
                assert_eq!(got, f64::INFINITY, "e^{x}");
            } else {
                let tolerance = (want * 2.4e-7).max(2.9e-45);
                assert!((got - want).abs() <= tolerance, "e^{x} = {want}, not {got}");
            }
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    struct Exps<'a>(&'a mut [f32]);

    impl Kernel for Exps<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for vector in self.0.chunks_exact_mut(LANES) {
                // SAFETY: a chunk is a vector, and the machine has the set.
                unsafe { S::store(vector.as_mut_ptr(), S::exp(S::load(vector.as_ptr()))) };
            }
        }
    }

    #[test]
    fn exps_of_vectors_are_those_of_numbers_to_the_bit() {
        let special =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE, 1e-45, -1e-45, f32::MAX];
        let mut numbers: Vec<f32> = (-110_000..=95_000).map(|step| step as f32 * 1e-3).chain(special).collect();
        // Every exponent and sign.
        numbers.extend((0..1 << 16).map(|high| f32::from_bits(high << 16 | 0x5a5a)));
        numbers.resize(numbers.len().next_multiple_of(LANES), 1.0);
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available()) {
            let mut found = numbers.clone();
            simd::run(isa, Exps(&mut found));
            for (x, got) in numbers.iter().zip(&found) {
                let want = exp(*x);
                assert!(
                    want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(),
                    "{isa:?}: e^{x} = {want}, not {got}"
                );
            }
        }
    }
}
