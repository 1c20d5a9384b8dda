//! Weights of each stored format as vectors, for the loops of `tile`.

use crate::matrix::SCALE_TILE;
use crate::simd::{LANES, Simd};

/// Weights of one format, as vectors of 16.
///
/// # Safety
///
/// `load` requires the instruction set of `S` and 16 elements behind the pointer.
pub(super) trait Format {
    type Element: Copy;
    /// Whether each 128 inputs have a scale.
    const SCALED: bool;
    /// Inputs that widths are padded to: the matrix's rows are stored so, and the padding is zero.
    const STEP: usize;
    unsafe fn load<S: Simd>(from: *const Self::Element) -> S::Vector;
    /// 64 weights, for the format that has scales.
    unsafe fn load_64<S: Simd>(from: *const Self::Element) -> [S::Vector; 4];
}

pub(super) struct F32Format;
pub(super) struct Bf16Format;
pub(super) struct Fp8Format;

impl Format for F32Format {
    type Element = f32;
    const SCALED: bool = false;
    const STEP: usize = LANES;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::Vector {
        // SAFETY: the trait's contract.
        unsafe { S::load(from) }
    }
    unsafe fn load_64<S: Simd>(_from: *const f32) -> [S::Vector; 4] {
        unreachable!("a format without scales is loaded by 16")
    }
}

impl Format for Bf16Format {
    type Element = u16;
    const SCALED: bool = false;
    const STEP: usize = LANES;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u16) -> S::Vector {
        // SAFETY: the trait's contract.
        unsafe { S::load_bf16(from) }
    }
    unsafe fn load_64<S: Simd>(_from: *const u16) -> [S::Vector; 4] {
        unreachable!("a format without scales is loaded by 16")
    }
}

impl Format for Fp8Format {
    type Element = u8;
    const SCALED: bool = true;
    const STEP: usize = 4 * LANES;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::Vector {
        // SAFETY: the trait's contract.
        unsafe { S::load_e4m3(from) }
    }
    #[inline(always)]
    unsafe fn load_64<S: Simd>(from: *const u8) -> [S::Vector; 4] {
        // SAFETY: the trait's contract.
        unsafe { S::load_64_e4m3(from) }
    }
}

/// A matrix's storage in its own format.
pub(super) struct Weights<'a, F: Format> {
    pub(super) values: &'a [F::Element],
    pub(super) stride: usize,
    pub(super) scales: &'a [f32],
    pub(super) scale_stride: usize,
}

impl<F: Format> Weights<'_, F> {
    #[inline(always)]
    pub(super) fn at(&self, row: usize, start: usize) -> *const F::Element {
        self.values[row * self.stride + start..].as_ptr()
    }

    /// The scales of a row from the tile that holds `start`; any pointer if the format has none.
    #[inline(always)]
    pub(super) fn scales_at(&self, row: usize, start: usize) -> *const f32 {
        let index = if F::SCALED { row / SCALE_TILE * self.scale_stride + start / SCALE_TILE } else { 0 };
        self.scales[index..].as_ptr()
    }

    /// Widens (and scales) the inputs of one row from `start`; `to` is whole steps.
    ///
    /// # Safety
    ///
    /// The machine has the set of `S`; the row has `to.len()` inputs from `start`, padding included.
    #[inline(always)]
    pub(super) unsafe fn widen<S: Simd>(&self, row: usize, start: usize, to: &mut [f32]) {
        let (from, scales) = (self.at(row, start), self.scales_at(row, start));
        for (group, to) in to.chunks_mut(SCALE_TILE).enumerate() {
            // SAFETY: within the row and `to`, both whole steps; a scaled row has a scale per group.
            unsafe {
                let from = from.add(group * SCALE_TILE);
                if F::SCALED {
                    let scale = S::splat(*scales.add(group));
                    for index in (0..to.len()).step_by(F::STEP) {
                        for (vector, value) in F::load_64::<S>(from.add(index)).into_iter().enumerate() {
                            S::store(to.as_mut_ptr().add(index + vector * LANES), S::mul(value, scale));
                        }
                    }
                } else {
                    for index in (0..to.len()).step_by(LANES) {
                        S::store(to.as_mut_ptr().add(index), F::load::<S>(from.add(index)));
                    }
                }
            }
        }
    }
}
