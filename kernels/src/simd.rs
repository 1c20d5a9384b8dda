//! Sixteen `f32` lanes on every instruction set, and the way into a function compiled for one.
//!
//! Owns the only intrinsics of the crate. `Avx2` holds the 16 lanes in two registers and does the same operations on
//! them as `Avx512`, so both give the same bits.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::activation::{EXP_LEAST, EXP_LN_2, EXP_MOST, EXP_POLYNOMIAL, EXP_SHIFT};
use crate::isa::Isa;
use portable::Portable;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Rows and columns that [`Simd::transpose_8`] transposes.
pub(crate) const TRANSPOSED: usize = 8;

/// Operations on 16 lanes.
///
/// # Safety
///
/// Every function requires that the machine has the instruction set; loads and stores besides require that the
/// pointer is valid for 16 elements of its type, at any alignment that type allows.
pub(crate) trait Simd: Copy + 'static {
    /// Sixteen lanes.
    type Vector: Copy;
    /// Vector registers, which decides how many accumulators a tile keeps.
    const ACCUMULATORS: usize;
    /// Whether [`Simd::load_64_e4m3`] is the fast way to widen codes.
    const WIDENS_64_CODES: bool = false;

    /// Asks for the cache line at `from` in the second-level cache; any address will do. Changes no result.
    #[inline(always)]
    unsafe fn prefetch<T>(_from: *const T) {}
    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, value: Self::Vector);
    unsafe fn add(left: Self::Vector, right: Self::Vector) -> Self::Vector;
    unsafe fn mul(left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `left * right + sum`, rounded once where the set can.
    unsafe fn fma(left: Self::Vector, right: Self::Vector, sum: Self::Vector) -> Self::Vector;
    unsafe fn sub(left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// By lane the left number if it is larger, or else the right one: a NaN on the left loses, one on the right stays.
    unsafe fn larger(left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// By lane the left number if it is smaller, or else the right one.
    unsafe fn smaller(left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `value · 2^n`, rounded once, for values between 1/2 and 2 (or NaN); `shifted` is `n` + 1.5 · 2^23, with n between −152 and 130.
    unsafe fn times_power_of_2(value: Self::Vector, shifted: Self::Vector) -> Self::Vector;
    /// [`exp`](crate::activation::exp) of every lane, to the bit.
    #[inline(always)]
    unsafe fn exp(x: Self::Vector) -> Self::Vector {
        // SAFETY: the trait's contract.
        unsafe {
            let x = Self::smaller(Self::splat(EXP_MOST), Self::larger(Self::splat(EXP_LEAST), x));
            let shift = Self::splat(EXP_SHIFT);
            let shifted = Self::add(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)), shift);
            let n = Self::sub(shifted, shift);
            let r = Self::sub(x, Self::mul(n, Self::splat(EXP_LN_2[0])));
            let r = Self::sub(r, Self::mul(n, Self::splat(EXP_LN_2[1])));
            let mut polynomial = Self::splat(EXP_POLYNOMIAL[0]);
            for factor in &EXP_POLYNOMIAL[1..] {
                polynomial = Self::add(Self::mul(polynomial, r), Self::splat(*factor));
            }
            let value = Self::add(Self::mul(polynomial, Self::mul(r, r)), r);
            Self::times_power_of_2(Self::add(value, Self::splat(1.0)), shifted)
        }
    }
    /// Sixteen bf16 bit patterns, widened.
    unsafe fn load_bf16(from: *const u16) -> Self::Vector;
    /// Sixteen e4m3 codes, widened; exact, NaN included.
    unsafe fn load_e4m3(from: *const u8) -> Self::Vector;
    /// Sixty-four e4m3 codes, widened; `from` is valid for 64 bytes. Faster than four times 16 where
    /// [`Simd::WIDENS_64_CODES`].
    #[inline(always)]
    unsafe fn load_64_e4m3(from: *const u8) -> [Self::Vector; 4] {
        // SAFETY: the trait's contract.
        unsafe {
            [
                Self::load_e4m3(from),
                Self::load_e4m3(from.add(LANES)),
                Self::load_e4m3(from.add(2 * LANES)),
                Self::load_e4m3(from.add(3 * LANES)),
            ]
        }
    }
    /// Transposes 8×8 numbers between rows at the given strides.
    #[inline(always)]
    unsafe fn transpose_8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for row in 0..TRANSPOSED {
            for column in 0..TRANSPOSED {
                // SAFETY: both pointers are valid for 8 rows of 8 at their strides.
                unsafe { *to.add(column * to_stride + row) = *from.add(row * from_stride + column) };
            }
        }
    }
    /// The largest lane, if none is NaN.
    unsafe fn largest(value: Self::Vector) -> f32;
    /// Sum of the lanes in the fixed order: lane i with i + 8, then i + 4, i + 2, i + 1.
    unsafe fn reduce(value: Self::Vector) -> f32;
    /// [`Simd::reduce`] of four vectors: the same sums, with fewer instructions where the set has a way.
    #[inline(always)]
    unsafe fn reduce_4(values: [Self::Vector; 4]) -> [f32; 4] {
        // SAFETY: the trait's contract.
        unsafe { [Self::reduce(values[0]), Self::reduce(values[1]), Self::reduce(values[2]), Self::reduce(values[3])] }
    }
    /// [`Simd::reduce`] of a tile of vectors.
    #[inline(always)]
    unsafe fn reduce_tile<const R: usize, const C: usize>(values: [[Self::Vector; C]; R]) -> [[f32; C]; R] {
        let mut sums = [[0.0; C]; R];
        let at = |index: usize| (index / C, index % C);
        let mut index = 0;
        // SAFETY: the trait's contract.
        unsafe {
            while index + 4 <= R * C {
                let mut four = [values[0][0]; 4];
                for (offset, value) in four.iter_mut().enumerate() {
                    *value = values[at(index + offset).0][at(index + offset).1];
                }
                let four = Self::reduce_4(four);
                for (offset, sum) in four.into_iter().enumerate() {
                    sums[at(index + offset).0][at(index + offset).1] = sum;
                }
                index += 4;
            }
            while index < R * C {
                sums[at(index).0][at(index).1] = Self::reduce(values[at(index).0][at(index).1]);
                index += 1;
            }
        }
        sums
    }
}

/// A computation written once for all instruction sets. `run` must be `#[inline(always)]` so that it is compiled with
/// the features of the set it is called for, and so must all it calls; closures may stay outlined, so none of them may
/// hold operations on vectors.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// # Safety
    ///
    /// The machine has the instruction set of `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs `kernel` compiled for `isa`.
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    debug_assert!(isa.is_available(), "a team's instruction set is available");
    match isa {
        // SAFETY: the portable set is what the program itself is compiled for.
        Isa::Portable => unsafe { kernel.run::<Portable>() },
        // SAFETY: an `Isa` reaches this point through `Isa::detect` or `Team::with_isa`, which check the machine.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 => unreachable!("x86 sets are available on x86 alone"),
    }
}
