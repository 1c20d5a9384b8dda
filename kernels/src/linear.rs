//! Products of activations with a weight matrix as stored. Owns the order of their sums, and no memory but a packed
//! copy of the activations per thread, grown once.
//!
//! **Order of a sum** (over the input width K): blocks of 1,024 inputs; in a block 16 lanes, lane i adding inputs i,
//! i + 16, … with fused multiply-adds from zero; then the lanes as a tree (i with i + 8, + 4, + 2, + 1); then the
//! blocks one after another. A weight is widened exactly, and an fp8 one multiplied by its scale and rounded, before.

mod tile;
mod weights;

use std::cell::RefCell;

use crate::matrix::Matrix;
use crate::memory::{AlignedBuffer, SharedMut};
use crate::simd::{self, LANES};
use crate::team::Team;
use tile::Product;

/// Columns that a thread's part is a multiple of.
const COLUMN_GRANULE: usize = 24;

/// The most inputs that a loop over them takes at once.
const STEP: usize = 4 * LANES;

thread_local! {
    static PACKED: RefCell<AlignedBuffer<f32>> = RefCell::default();
}

/// `y = x · Wᵀ`: `x` is `[rows, w.cols()]`, `y` is `[rows, w.rows()]`.
///
/// Batch-invariant: a row of `y` depends on its row of `x` alone. NaN and infinities propagate.
pub fn linear(team: &Team, x: &[f32], rows: usize, w: &Matrix, y: &mut [f32]) {
    assert_eq!(x.len(), rows * w.cols(), "x is [rows, in] with in = {}", w.cols());
    assert_eq!(y.len(), rows * w.rows(), "y is [rows, out] with out = {}", w.rows());
    if rows == 0 {
        return;
    }
    // Taken out rather than borrowed: a thread that waits for its team may run another product meanwhile.
    let mut buffer = PACKED.take();
    let x_stride = pack(x, rows, w.cols(), &mut buffer);
    let packed = &buffer[..rows * x_stride];
    let y = SharedMut::new(y);
    team.split(w.rows(), COLUMN_GRANULE, rows * w.rows() * w.cols(), |_, columns| {
        simd::run(team.isa(), Product { x: packed, x_stride, rows, w, y, columns });
    });
    PACKED.set(buffer);
}

/// Copies the rows of `x` to cache-line-aligned rows, the width padded with zeros to whole steps; returns the
/// stride. Unaligned rows cost a fifth of the speed, and so do strides of a multiple of 4,096 bytes, as all rows then
/// compete for the same cache sets: those get one line more.
fn pack(x: &[f32], rows: usize, width: usize, packed: &mut AlignedBuffer<f32>) -> usize {
    let padded = width.next_multiple_of(STEP);
    let stride = if padded.is_multiple_of(1024) { padded + LANES } else { padded };
    packed.grow(rows * stride);
    for (to, from) in packed.chunks_exact_mut(stride).zip(x.chunks_exact(width)) {
        to[..width].copy_from_slice(from);
        // The buffer may hold an earlier call's numbers.
        to[width..padded].fill(0.0);
    }
    stride
}
