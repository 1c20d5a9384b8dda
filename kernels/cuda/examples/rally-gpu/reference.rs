//! MFA decode attention in f64 on the host, and the error of a result against it.

use rayon::prelude::*;

/// One row's inputs as f64: q `[heads, dim]`, K and V `[context, dim]`.
pub struct Row {
    pub q: Vec<f64>,
    pub k: Vec<f64>,
    pub v: Vec<f64>,
    pub dim: usize,
    pub scale: f64,
}

impl Row {
    /// `[heads, dim]`.
    pub fn attend(&self) -> Vec<f64> {
        self.q.par_chunks(self.dim).flat_map_iter(|q| self.head(q)).collect()
    }

    fn head(&self, q: &[f64]) -> Vec<f64> {
        let dot = |k: &[f64]| q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * self.scale;
        let scores: Vec<f64> = self.k.chunks(self.dim).map(dot).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut out, mut total) = (vec![0.0; self.dim], 0.0);
        for (score, v) in scores.iter().zip(self.v.chunks(self.dim)) {
            let p = (score - top).exp();
            total += p;
            out.iter_mut().zip(v).for_each(|(out, v)| *out += p * v);
        }
        out.iter_mut().for_each(|out| *out /= total);
        out
    }
}

/// ‖got − want‖ / ‖want‖; NaN if anything is.
pub fn error(got: &[f64], want: &[f64]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (got, want) in got.iter().zip(want) {
        difference += (got - want).powi(2);
        norm += want * want;
    }
    (difference / norm).sqrt()
}
