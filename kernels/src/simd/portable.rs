//! Sixteen lanes as an array: what the compiler makes of it. Products are rounded before they are added.

use super::{LANES, Simd};
use crate::activation::times_power_of_2;
use crate::dtype::{bf16_to_f32, e4m3_to_f32};

/// The set every machine has.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    type Vector = [f32; LANES];
    const ACCUMULATORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Vector {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::Vector {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { from.cast::<Self::Vector>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::Vector) {
        // SAFETY: the caller's pointer is valid for 16 elements.
        unsafe { to.cast::<Self::Vector>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn add(left: Self::Vector, right: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| left[lane] + right[lane])
    }

    #[inline(always)]
    unsafe fn mul(left: Self::Vector, right: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| left[lane] * right[lane])
    }

    #[inline(always)]
    unsafe fn fma(left: Self::Vector, right: Self::Vector, sum: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| left[lane] * right[lane] + sum[lane])
    }

    #[inline(always)]
    unsafe fn sub(left: Self::Vector, right: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| left[lane] - right[lane])
    }

    #[inline(always)]
    unsafe fn larger(left: Self::Vector, right: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| if left[lane] > right[lane] { left[lane] } else { right[lane] })
    }

    #[inline(always)]
    unsafe fn smaller(left: Self::Vector, right: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| if left[lane] < right[lane] { left[lane] } else { right[lane] })
    }

    #[inline(always)]
    unsafe fn times_power_of_2(value: Self::Vector, shifted: Self::Vector) -> Self::Vector {
        std::array::from_fn(|lane| times_power_of_2(value[lane], shifted[lane]))
    }

    #[inline(always)]
    unsafe fn largest(value: Self::Vector) -> f32 {
        value.into_iter().reduce(|left, right| if left > right { left } else { right }).unwrap_or(f32::NAN)
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::Vector {
        // SAFETY: the caller's pointer is valid for 16 elements.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(bf16_to_f32)
    }

    #[inline(always)]
    unsafe fn load_e4m3(from: *const u8) -> Self::Vector {
        // SAFETY: the caller's pointer is valid for 16 elements.
        let codes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        codes.map(e4m3_to_f32)
    }

    #[inline(always)]
    unsafe fn reduce(value: Self::Vector) -> f32 {
        let mut lanes = value;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        lanes[0]
    }
}
