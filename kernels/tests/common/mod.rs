//! Seeded numbers and float64 references that the tests share.

use half::bf16;
use rally_kernels::matrix::Matrix;

/// splitmix64: the same numbers on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// Roughly normal: the sum of four uniform numbers.
    pub fn normal(&mut self) -> f32 {
        let bits = self.bits();
        (0..4).map(|part| ((bits >> (part * 16)) & 0xffff) as f32 / 65_536.0 - 0.5).sum::<f32>() * 1.7
    }

    pub fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// A weight format to test.
#[derive(Debug, Clone, Copy)]
pub enum Format {
    F32,
    Bf16,
    Fp8,
}

impl Format {
    pub fn matrix(self, rows: usize, cols: usize, random: &mut Random) -> Matrix {
        match self {
            Format::F32 => Matrix::from_f32(rows, cols, random.normals(rows * cols)),
            Format::Bf16 => {
                let values = random.normals(rows * cols).into_iter().map(bf16::from_f32).collect();
                Matrix::from_bf16(rows, cols, values)
            }
            Format::Fp8 => {
                let codes = (0..rows * cols).map(|_| (random.bits() as u8) & 0xf7).collect();
                let tiles = rows.div_ceil(128) * cols.div_ceil(128);
                let scales = (0..tiles).map(|_| random.normal().abs() + 1e-3).collect();
                Matrix::from_fp8_block(rows, cols, codes, scales)
            }
        }
    }
}

/// `x · Wᵀ` in float64, and beside each output the sum of the products' magnitudes, the measure of rounding.
pub fn naive_linear(x: &[f32], rows: usize, w: &Matrix) -> Vec<(f64, f64)> {
    let mut weights = vec![0.0; w.rows() * w.cols()];
    for (row, out) in weights.chunks_exact_mut(w.cols()).enumerate() {
        w.row_into(row, out);
    }
    let mut y = Vec::with_capacity(rows * w.rows());
    for x in x.chunks_exact(w.cols()) {
        for weights in weights.chunks_exact(w.cols()) {
            let products = || x.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w));
            y.push((products().sum(), products().map(f64::abs).sum()));
        }
    }
    y
}
