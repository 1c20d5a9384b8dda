//! Root-mean-square norms of rows. Owns nothing.
//!
//! The sum of squares has 16 lanes, products rounded before they are added, and a fixed tree: the same bits on every
//! machine.

use crate::simd::LANES;

/// `out = x / sqrt(mean(x²) + eps) · weight` for each of `rows` rows.
///
/// `x` and `out` are `[rows, width]`, `weight` is `[width]`. (Step-3: every norm, eps 1e-5, plain weight.)
pub fn rms_norm(x: &[f32], rows: usize, weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), rows * weight.len(), "x is [rows, width]");
    assert_eq!(out.len(), x.len(), "out has the shape of x");
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let factor = inverse_rms(x, eps);
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }
}

/// [`rms_norm`] with the result in place of `x` (`[rows, width]`).
pub fn rms_norm_in_place(x: &mut [f32], rows: usize, weight: &[f32], eps: f32) {
    assert_eq!(x.len(), rows * weight.len(), "x is [rows, width]");
    for x in x.chunks_exact_mut(weight.len()) {
        let factor = inverse_rms(x, eps);
        for (x, &weight) in x.iter_mut().zip(weight) {
            *x = *x * factor * weight;
        }
    }
}

fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (vectors, rest) = row.as_chunks::<LANES>();
    for vector in vectors {
        for (lane, value) in lanes.iter_mut().zip(vector) {
            *lane += value * value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value * value;
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    1.0 / (lanes[0] / row.len() as f32 + eps).sqrt()
}
