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
    // Beyond these the result is 0 or infinity. Written so that NaN passes.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let polynomial = 1.987_569_2e-4;
    let polynomial = polynomial * r + 1.398_2e-3;
    let polynomial = polynomial * r + 8.333_452e-3;
    let polynomial = polynomial * r + 4.166_579_6e-2;
    let polynomial = polynomial * r + 1.666_666_5e-1;
    let polynomial = polynomial * r + 0.5;
    let value = polynomial * (r * r) + r + 1.0;
    // 2^n in two factors, as n may lie outside the exponents of normal numbers.
    let n = (shifted.to_bits() as i32).wrapping_sub(0x4b40_0000);
    let half = n >> 1;
    let power = |exponent: i32| f32::from_bits((exponent.wrapping_add(127) as u32) << 23);
    value * power(half) * power(n.wrapping_sub(half))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
