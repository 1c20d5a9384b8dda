//! Wire formats: layout, rounding, and what happens to numbers that are none.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod common;

use common::Random;
use half::bf16;
use proptest::prelude::*;
use rally_kernels::dtype::{StorageDtype, bf16_to_f32, e4m3_to_f32, f32_to_bf16, f32_to_e4m3};
use rally_kernels::wire::{decode, encode, encoded_bytes};

fn round_trip(dtype: StorageDtype, values: &[f32], rows: usize, width: usize) -> Vec<f32> {
    let mut bytes = vec![0xaa; encoded_bytes(dtype, rows, width)];
    encode(dtype, values, rows, width, &mut bytes);
    let mut decoded = vec![f32::NAN; values.len()];
    decode(dtype, &bytes, rows, width, &mut decoded);
    decoded
}

/// Nearest e4m3 value by search, ties to the even code.
fn nearest_e4m3(value: f32) -> u8 {
    let codes = (0..0x7f_u8).map(|code| (code, (f64::from(e4m3_to_f32(code)) - f64::from(value.abs())).abs()));
    let best = codes.min_by(|(a, x), (b, y)| x.total_cmp(y).then((a & 1).cmp(&(b & 1)))).unwrap().0;
    best | if value.is_sign_negative() { 0x80 } else { 0 }
}

#[test]
fn sizes_count_codes_and_ragged_scale_groups() {
    assert_eq!(encoded_bytes(StorageDtype::F32, 3, 130), 3 * 130 * 4);
    assert_eq!(encoded_bytes(StorageDtype::Bf16, 3, 130), 3 * 130 * 2);
    assert_eq!(encoded_bytes(StorageDtype::Fp8E4m3, 3, 130), 3 * (130 + 2 * 4));
    assert_eq!(encoded_bytes(StorageDtype::Fp8E4m3, 0, 7168), 0);
    encode(StorageDtype::Fp8E4m3, &[], 0, 7168, &mut []);
}

#[test]
fn e4m3_saturates_and_keeps_nan() {
    for (value, code) in
        [(448.0, 0x7e), (464.0, 0x7e), (465.0, 0x7e), (1e30, 0x7e), (-1e30, 0xfe), (0.0, 0), (-0.0, 0x80)]
    {
        assert_eq!(f32_to_e4m3(value), code, "{value}");
    }
    for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(f32_to_e4m3(value) & 0x7f, 0x7f, "{value}");
    }
}

proptest! {
    #[test]
    fn e4m3_rounds_to_nearest_even(value in prop_oneof![-500.0f32..500.0, -0.05f32..0.05, any::<u8>().prop_map(|code| {
        // Half-way between two neighbours.
        let code = code & 0x7f;
        if code < 0x7e { (e4m3_to_f32(code) + e4m3_to_f32(code + 1)) / 2.0 } else { 1.0 }
    })]) {
        prop_assert_eq!(f32_to_e4m3(value), nearest_e4m3(value));
    }

    #[test]
    fn bf16_rounds_like_the_half_crate(bits in any::<u32>()) {
        let value = f32::from_bits(bits);
        let got = bf16_to_f32(f32_to_bf16(value));
        let want = bf16::from_f32(value).to_f32();
        prop_assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()));
    }

    #[test]
    fn fp8_is_within_half_a_step_and_rows_are_records(rows in 1usize..6, width in 1usize..400, seed in any::<u64>()) {
        let values = Random::new(seed).normals(rows * width);
        let decoded = round_trip(StorageDtype::Fp8E4m3, &values, rows, width);
        for (values, decoded) in values.chunks(width).zip(decoded.chunks(width)) {
            prop_assert_eq!(&round_trip(StorageDtype::Fp8E4m3, values, 1, width), decoded);
            for (values, decoded) in values.chunks(128).zip(decoded.chunks(128)) {
                let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                for (value, decoded) in values.iter().zip(decoded) {
                    // 3 fraction bits: half a step is 1/16 of a value, or of the smallest normal, 2^-6 · scale.
                    let step = (value.abs() / 16.0).max(largest / 448.0 / 1024.0) * 1.001;
                    prop_assert!((value - decoded).abs() <= step, "{} became {}", value, decoded);
                }
            }
        }
        prop_assert_eq!(round_trip(StorageDtype::F32, &values, rows, width), values);
    }
}

#[test]
fn zeros_and_tiny_groups_decode_to_what_they_were() {
    assert_eq!(round_trip(StorageDtype::Fp8E4m3, &[0.0; 300], 1, 300), [0.0; 300]);
    let tiny = round_trip(StorageDtype::Fp8E4m3, &[1e-42; 128], 1, 128);
    assert!(tiny.iter().all(|value| value.is_finite() && *value <= 1e-40));
    let huge = round_trip(StorageDtype::Fp8E4m3, &[f32::MAX / 2.0; 128], 1, 128);
    assert!(huge.iter().all(|value| (value / f32::MAX * 2.0 - 1.0).abs() < 1e-6));
}

#[test]
fn nan_and_infinity_stay_visible_and_alone() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for position in [0, 15, 127, 128, 199] {
            let mut values = Random::new(1).normals(200);
            let clean = round_trip(StorageDtype::Fp8E4m3, &values, 1, 200);
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            // The largest keeps its place, so that scales stay.
            if values[position].abs() == largest {
                continue;
            }
            values[position] = bad;
            let got = round_trip(StorageDtype::Fp8E4m3, &values, 1, 200);
            for (index, (got, clean)) in got.iter().zip(&clean).enumerate() {
                assert!(if index == position { got.is_nan() } else { (got - clean).abs() <= clean.abs() / 8.0 + 1e-3 });
            }
            let got = round_trip(StorageDtype::Bf16, &values, 1, 200);
            assert!(!got[position].is_finite());
            assert_eq!(round_trip(StorageDtype::F32, &values, 1, 200)[position].to_bits(), bad.to_bits());
        }
    }
}
