//! `linear` against a float64 reference, and the equality of its bits over rows, threads and instruction sets.

mod common;

use common::Random;
use half::bf16;
use proptest::prelude::*;
use rally_kernels::isa::Isa;
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::team::Team;

/// A weight format to test.
#[derive(Debug, Clone, Copy)]
enum Format {
    F32,
    Bf16,
    Fp8,
}

impl Format {
    fn matrix(self, rows: usize, cols: usize, random: &mut Random) -> Matrix {
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
fn naive_linear(x: &[f32], rows: usize, w: &Matrix) -> Vec<(f64, f64)> {
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

fn product(team: &Team, x: &[f32], rows: usize, w: &Matrix) -> Vec<f32> {
    // NaN shows an output that nothing wrote.
    let mut y = vec![f32::NAN; rows * w.rows()];
    linear(team, x, rows, w, &mut y);
    y
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Checks one product against float64 and, bit by bit, against every other way to compute it.
fn check(format: Format, rows: usize, out: usize, width: usize, seed: u64) {
    let mut random = Random::new(seed);
    let w = format.matrix(out, width, &mut random);
    let x = random.normals(rows * width);
    let pinned = Team::pinned(&[0, 1]);
    for isa in Isa::available() {
        let team = Team::serial().with_isa(isa);
        let y = product(&team, &x, rows, &w);
        for (index, (got, (want, magnitude))) in y.iter().zip(naive_linear(&x, rows, &w)).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= 1e-6 * magnitude + 1e-30, "{isa:?} {format:?} output {index}: {got}, expected {want}");
        }
        for row in 0..rows {
            let alone = product(&team, &x[row * width..(row + 1) * width], 1, &w);
            assert_eq!(bits(&alone), bits(&y[row * out..(row + 1) * out]), "{isa:?} row {row} alone");
        }
        if isa == Isa::detect() {
            assert_eq!(bits(&product(&pinned, &x, rows, &w)), bits(&y), "two threads");
        }
        if isa == Isa::Avx512 {
            let narrow = Team::serial().with_isa(Isa::Avx2);
            assert_eq!(bits(&product(&narrow, &x, rows, &w)), bits(&y), "AVX2");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_shape_is_right_and_batch_invariant(
        format in prop_oneof![Just(Format::F32), Just(Format::Bf16), Just(Format::Fp8)],
        rows in 1usize..20,
        out in 1usize..150,
        width in prop_oneof![1usize..300, Just(96), Just(1003), Just(1024), 1020usize..1300, 2040usize..2100],
        seed in any::<u64>(),
    ) {
        check(format, rows, out, width, seed);
    }
}

#[test]
fn many_rows_are_right_and_batch_invariant() {
    for format in [Format::F32, Format::Bf16, Format::Fp8] {
        check(format, 131, 200, 2100, 7);
    }
}

/// One output by the documented order of its sum.
fn by_definition(isa: Isa, x: &[f32], weights: &[f32]) -> f32 {
    let add_product = |x: f32, w: f32, sum: f32| if isa == Isa::Portable { x * w + sum } else { x.mul_add(w, sum) };
    let block = |x: &[f32], weights: &[f32]| {
        let mut lanes = [0.0f32; 16];
        for (index, (&x, &w)) in x.iter().zip(weights).enumerate() {
            lanes[index % 16] = add_product(x, w, lanes[index % 16]);
        }
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|lane| lanes[lane] += lanes[lane + half]);
        }
        lanes[0]
    };
    let blocks = x.chunks(1024).zip(weights.chunks(1024)).map(|(x, weights)| block(x, weights));
    blocks.reduce(|sum, block| sum + block).unwrap_or_default()
}

#[test]
fn sums_have_the_documented_order() {
    for format in [Format::F32, Format::Bf16, Format::Fp8] {
        for (rows, out, width) in [(1, 19, 96), (4, 30, 1003), (8, 7, 2500), (12, 50, 1100), (33, 30, 3000)] {
            let mut random = Random::new(width as u64);
            let w = format.matrix(out, width, &mut random);
            let x = random.normals(rows * width);
            let mut weights = vec![0.0; width];
            for isa in Isa::available() {
                let y = product(&Team::serial().with_isa(isa), &x, rows, &w);
                for (index, y) in y.iter().enumerate() {
                    w.row_into(index % out, &mut weights);
                    let want = by_definition(isa, &x[index / out * width..][..width], &weights);
                    assert_eq!(y.to_bits(), want.to_bits(), "{isa:?} {format:?} {rows}x{out}x{width} output {index}");
                }
            }
        }
    }
}

#[test]
fn all_fp8_codes_multiply_exactly_on_every_set() {
    // One non-zero input at a time: a product is then one weight, code · scale rounded once.
    let codes: Vec<u8> = (0..=255).filter(|code| code & 0x7f != 0x7f).collect();
    let width = codes.len();
    let w = Matrix::from_fp8_block(1, width, codes, vec![0.3, 1.7e-3]);
    let mut row = vec![0.0; width];
    w.row_into(0, &mut row);
    for isa in Isa::available() {
        for index in 0..width {
            let mut x = vec![0.0; width];
            x[index] = 1.0;
            assert_eq!(product(&Team::serial().with_isa(isa), &x, 1, &w), [row[index]], "{isa:?} code {index}");
        }
    }
}

#[test]
fn nan_weights_and_activations_reach_the_output() {
    for isa in Isa::available() {
        let team = Team::serial().with_isa(isa);
        for code in [0x7f, 0xff] {
            for position in [0, 15, 16, 95] {
                let mut codes = vec![0x38; 96 * 9];
                codes[4 * 96 + position] = code;
                let w = Matrix::from_fp8_block(9, 96, codes, vec![1.0]);
                for rows in [1, 9, 40] {
                    let y = product(&team, &vec![1.0; rows * 96], rows, &w);
                    for (index, y) in y.iter().enumerate() {
                        assert_eq!(y.is_nan(), index % 9 == 4, "{isa:?} output {index}");
                    }
                }
            }
        }
        let w = Matrix::from_f32(5, 33, vec![1.0; 5 * 33]);
        let mut x = vec![1.0; 3 * 33];
        x[33 + 32] = f32::NAN;
        let y = product(&team, &x, 3, &w);
        assert!(y[5..10].iter().all(|y| y.is_nan()) && y[..5].iter().chain(&y[10..]).all(|&y| y == 33.0));
    }
}
