//! Attention against a float64 reference, and the equality of its bits over pages, chunks, threads and sets.

mod common;

use common::Random;
use proptest::prelude::*;
use rally_kernels::attention::{AttentionScratch, mfa_attention, mfa_attention_chunk};
use rally_kernels::dtype::{StorageDtype, bf16_to_f32, e4m3_to_f32, f32_to_bf16, f32_to_e4m3};
use rally_kernels::isa::Isa;
use rally_kernels::kv::KvPool;
use rally_kernels::team::Team;

struct Case {
    heads: usize,
    head_dim: usize,
    value_width: usize,
    context: usize,
    dtype: StorageDtype,
    keys: Vec<f32>,
    values: Vec<f32>,
    q: Vec<f32>,
}

impl Case {
    fn new(heads: usize, head_dim: usize, value_width: usize, context: usize, dtype: StorageDtype, seed: u64) -> Case {
        let mut random = Random::new(seed);
        Case {
            heads,
            head_dim,
            value_width,
            context,
            dtype,
            keys: random.normals(context * head_dim),
            values: random.normals(context * value_width),
            q: random.normals(heads * head_dim).into_iter().map(|q| q * 3.0).collect(),
        }
    }

    /// A pool with the case's tokens on shuffled pages.
    fn pool(&self, page_tokens: usize) -> (KvPool, Vec<u32>) {
        let count = self.context.div_ceil(page_tokens) as u32;
        let pages: Vec<u32> = (0..count).map(|page| (page * 2 + 1) % (2 * count + 1)).collect();
        let size = 2 * count as usize + 1;
        let mut pool = KvPool::new(size, page_tokens, self.head_dim, self.value_width, self.dtype);
        for position in 0..self.context {
            pool.write(
                pages[position / page_tokens],
                position % page_tokens,
                &self.keys[position * self.head_dim..(position + 1) * self.head_dim],
                &self.values[position * self.value_width..(position + 1) * self.value_width],
            );
        }
        (pool, pages)
    }

    fn run(&self, team: &Team, page_tokens: usize) -> Vec<f32> {
        let (pool, pages) = self.pool(page_tokens);
        let mut out = vec![f32::NAN; self.heads * self.value_width];
        let scratch = &mut AttentionScratch::new();
        mfa_attention(team, &self.q, self.heads, self.head_dim, &pool, &pages, self.context, &mut out, scratch);
        out
    }

    fn naive(&self) -> Vec<f64> {
        let keys = stored(self.dtype, &self.keys, self.head_dim);
        let values = stored(self.dtype, &self.values, self.value_width);
        let mut out = Vec::new();
        for q in self.q.chunks_exact(self.head_dim) {
            let scores: Vec<f64> = keys
                .chunks_exact(self.head_dim)
                .map(|key| {
                    let dot: f64 = q.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    dot / (self.head_dim as f64).sqrt()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
            for column in 0..self.value_width {
                let weighted = |(position, score): (usize, &f64)| {
                    (score - largest).exp() * f64::from(values[position * self.value_width + column])
                };
                out.push(scores.iter().enumerate().map(weighted).sum::<f64>() / total);
            }
        }
        out
    }
}

/// The numbers as a pool stores them.
fn stored(dtype: StorageDtype, values: &[f32], width: usize) -> Vec<f32> {
    match dtype {
        StorageDtype::F32 => values.to_vec(),
        StorageDtype::Bf16 => values.iter().map(|&value| bf16_to_f32(f32_to_bf16(value))).collect(),
        StorageDtype::Fp8E4m3 => values
            .chunks_exact(width)
            .flat_map(|row| {
                let scale = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / 448.0;
                row.iter().map(move |value| e4m3_to_f32(f32_to_e4m3(value / scale)) * scale)
            })
            .collect(),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn check(case: &Case) {
    let want = case.naive();
    let pinned = Team::pinned(&[0, 1]);
    for isa in Isa::available() {
        let team = Team::serial().with_isa(isa);
        let got = case.run(&team, 16);
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((f64::from(*got) - want).abs() <= 2e-5, "{isa:?} element {index}: {got}, expected {want}");
        }
        for page_tokens in [1, 7, 64, 1000] {
            assert_eq!(bits(&case.run(&team, page_tokens)), bits(&got), "{isa:?} pages of {page_tokens}");
        }
        if isa == Isa::detect() {
            assert_eq!(bits(&case.run(&pinned, 16)), bits(&got), "two threads");
        }
        if isa == Isa::Avx512 {
            assert_eq!(bits(&case.run(&Team::serial().with_isa(Isa::Avx2), 16)), bits(&got), "AVX2");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shape_is_right_and_bit_equal(
        heads in 1usize..20,
        head_dim in prop_oneof![Just(48usize), Just(256), (1usize..40).prop_map(|half| half * 2)],
        value_width in prop_oneof![Just(48usize), Just(256), 1usize..80],
        context in prop_oneof![1usize..70, 120usize..300],
        dtype in prop_oneof![Just(StorageDtype::F32), Just(StorageDtype::Bf16), Just(StorageDtype::Fp8E4m3)],
        seed in any::<u64>(),
    ) {
        check(&Case::new(heads, head_dim, value_width, context, dtype, seed));
    }
}

#[test]
fn step3_heads_over_a_long_context() {
    check(&Case::new(64, 256, 256, 700, StorageDtype::Bf16, 3));
}

#[test]
fn rows_together_equal_rows_alone() {
    // A prefill chunk: every row sees one position more. Chunks cross tiles and pages, are larger and smaller than what is
    // worked on together, and begin with the sequence or later.
    for (heads, rows, context) in [(13, 60, 1), (13, 8, 60), (64, 11, 60), (300, 3, 127), (1, 100, 30)] {
        let case = Case::new(heads, 64, 48, context + rows - 1, StorageDtype::Bf16, 11);
        let (pool, pages) = case.pool(16);
        let q = Random::new(5).normals(rows * heads * 64);
        for isa in Isa::available() {
            for team in [Team::serial().with_isa(isa), Team::pinned(&[0, 1]).with_isa(isa)] {
                let mut scratch = AttentionScratch::new();
                let mut together = vec![f32::NAN; rows * heads * 48];
                mfa_attention_chunk(&team, &q, rows, heads, 64, &pool, &pages, context, &mut together, &mut scratch);
                for row in 0..rows {
                    let q = &q[row * heads * 64..(row + 1) * heads * 64];
                    let mut alone = vec![f32::NAN; heads * 48];
                    mfa_attention(&team, q, heads, 64, &pool, &pages, context + row, &mut alone, &mut scratch);
                    let range = row * heads * 48..(row + 1) * heads * 48;
                    assert_eq!(bits(&alone), bits(&together[range]), "{isa:?} {heads} heads, row {row} of {rows}");
                }
            }
        }
    }
}

#[test]
fn nan_and_infinity_show_and_stay_in_their_head() {
    for dtype in [StorageDtype::F32, StorageDtype::Bf16, StorageDtype::Fp8E4m3] {
        for isa in Isa::available() {
            let team = Team::serial().with_isa(isa);
            let mut case = Case::new(8, 32, 32, 80, dtype, 1);
            case.q[3 * 32] = f32::NAN;
            for (index, value) in case.run(&team, 16).iter().enumerate() {
                assert_eq!(value.is_nan(), index / 32 == 3, "{isa:?} element {index}");
            }
            let mut case = Case::new(8, 32, 32, 80, dtype, 1);
            case.keys[70 * 32 + 5] = f32::INFINITY;
            assert!(case.run(&team, 16).iter().all(|value| value.is_nan() || *value != 0.0));
            let mut case = Case::new(8, 32, 32, 80, dtype, 1);
            case.values[70 * 32 + 5] = f32::NAN;
            for (index, value) in case.run(&team, 16).iter().enumerate() {
                assert_eq!(value.is_nan(), index % 32 == 5, "{isa:?} element {index}");
            }
        }
    }
}
