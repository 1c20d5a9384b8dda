//! Sixteen `f32` lanes on every instruction set, and the way into a function compiled for one.
//!
//! Owns the only intrinsics of the crate. `Avx2` holds the 16 lanes in two registers and does the same operations on
//! them as `Avx512`, so both give the same bits.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::isa::Isa;
pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

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

    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, value: Self::Vector);
    unsafe fn add(left: Self::Vector, right: Self::Vector) -> Self::Vector;
    unsafe fn mul(left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// `left * right + sum`, rounded once where the set can.
    unsafe fn fma(left: Self::Vector, right: Self::Vector, sum: Self::Vector) -> Self::Vector;
    /// Sixteen bf16 bit patterns, widened.
    unsafe fn load_bf16(from: *const u16) -> Self::Vector;
    /// Sixteen e4m3 codes, widened; exact, NaN included.
    unsafe fn load_e4m3(from: *const u8) -> Self::Vector;
    /// Sum of the lanes in the fixed order: lane i with i + 8, then i + 4, i + 2, i + 1.
    unsafe fn reduce(value: Self::Vector) -> f32;
}

/// A computation written once for all instruction sets. `run` must be `#[inline(always)]` so that it is compiled with
/// the features of the set it is called for.
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
