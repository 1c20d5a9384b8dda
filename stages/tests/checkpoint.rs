//! Reading checkpoints: layouts, spellings, types, slices; and weights from a seed.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering;

use rally_graph::model::WeightFormat;
use rally_kernels::dtype::e4m3_to_f32;
use rally_kernels::matrix::Matrix;
use rally_stages::checkpoint::{Checkpoint, Part, RandomWeights, WeightSource};
use support::{Tensor, write_shards, write_single};
use tempfile::tempdir;

fn values(matrix: &Matrix) -> Vec<f32> {
    let mut all = vec![0.0; matrix.rows() * matrix.cols()];
    all.chunks_mut(matrix.cols()).enumerate().for_each(|(row, out)| matrix.row_into(row, out));
    all
}

/// `count` numbers that bf16 and f16 hold exactly.
fn counting(count: usize) -> Vec<f32> {
    (0..count).map(|index| (index % 200) as f32 - 100.0).collect()
}

/// The part of a whole `[_, cols]` matrix.
fn cut(whole: &[f32], cols: usize, part: &Part) -> Vec<f32> {
    part.rows.clone().flat_map(|row| whole[row * cols..][part.cols.clone()].to_vec()).collect()
}

#[test]
fn every_plain_type_is_read_exactly() {
    let dir = tempdir().unwrap();
    let numbers = counting(6 * 5);
    write_single(
        dir.path(),
        &[
            Tensor::bf16("model.a.weight", &[6, 5], &numbers),
            Tensor::f32("model.b.weight", &[6, 5], &numbers),
            Tensor::f16("model.c.weight", &[6, 5], &numbers),
            Tensor::bf16("model.norm.weight", &[4], &numbers[..4]),
            Tensor::bf16("vision_model.x", &[2], &[f32::NAN, 1.0]),
        ],
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let part = Part { rows: 2..5, cols: 1..4 };
    for name in ["model.a.weight", "model.b.weight", "model.c.weight"] {
        assert_eq!(values(&checkpoint.matrix(name, 6, 5, Part::all(6, 5)).unwrap()), numbers, "{name}");
        assert_eq!(values(&checkpoint.matrix(name, 6, 5, part.clone()).unwrap()), cut(&numbers, 5, &part), "{name}");
    }
    assert_eq!(checkpoint.vector("model.norm.weight", 4).unwrap(), numbers[..4]);
    assert!(checkpoint.contains("model.norm.weight") && !checkpoint.contains("lm_head.weight"));
}

#[test]
fn only_the_slice_is_counted_as_read() {
    let dir = tempdir().unwrap();
    write_single(dir.path(), &[Tensor::bf16("model.a.weight", &[6, 5], &counting(30))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let bytes_read = checkpoint.bytes_read();
    checkpoint.matrix("model.a.weight", 6, 5, Part { rows: 1..3, cols: 0..2 }).unwrap();
    assert_eq!(bytes_read.load(Ordering::Relaxed), 2 * 2 * 2);
    assert!(checkpoint.total_bytes() > 60);
}

#[test]
fn all_spellings_of_names_are_found() {
    for (weight, head) in [
        ("model.layers.0.x.weight", "lm_head.weight"),
        ("language_model.model.layers.0.x.weight", "language_model.lm_head.weight"),
        ("model.language_model.layers.0.x.weight", "lm_head.weight"),
    ] {
        let dir = tempdir().unwrap();
        let numbers = counting(6);
        write_single(dir.path(), &[Tensor::bf16(weight, &[2, 3], &numbers), Tensor::f32(head, &[2, 3], &numbers)]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        for name in ["model.layers.0.x.weight", "lm_head.weight"] {
            assert_eq!(values(&checkpoint.matrix(name, 2, 3, Part::all(2, 3)).unwrap()), numbers, "{weight} {name}");
            assert!(checkpoint.contains(name), "{weight} {name}");
        }
    }
}

#[test]
fn experts_are_read_stacked_or_one_by_one() {
    const NAME: &str = "model.layers.1.moe.gate_proj.weight";
    let numbers = counting(3 * 4 * 2);
    let stacked = tempdir().unwrap();
    write_single(stacked.path(), &[Tensor::bf16(NAME, &[3, 4, 2], &numbers)]);
    let single = tempdir().unwrap();
    let tensors: Vec<Tensor> = (0..3)
        .map(|expert| {
            let name = format!("language_model.model.layers.1.moe.experts.{expert}.gate_proj.weight");
            Tensor::bf16(&name, &[4, 2], &numbers[expert * 8..][..8])
        })
        .collect();
    write_shards(single.path(), &[&tensors[..2], &tensors[2..]]);
    for dir in [stacked, single] {
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert!(checkpoint.contains(NAME));
        let part = Part::rows(1..3, 2);
        for expert in 0..3 {
            let got = checkpoint.expert_matrix(NAME, expert, 3, 4, 2, part.clone()).unwrap();
            assert_eq!(values(&got), cut(&numbers[expert * 8..][..8], 2, &part));
        }
    }
}

/// Dequantises as the format says: code × scale of its tile.
fn dequantised(codes: &[u8], scales: &[f32], cols: usize) -> Vec<f32> {
    let across = cols.div_ceil(128);
    let value =
        |(index, code): (usize, &u8)| e4m3_to_f32(*code) * scales[index / cols / 128 * across + index % cols / 128];
    codes.iter().enumerate().map(value).collect()
}

#[test]
fn fp8_tiles_are_cut_with_their_scales() {
    // Ragged last tiles in both directions, and two matrices in a stack.
    let (rows, cols) = (300, 200);
    let scales: Vec<f32> = (0..2 * 3 * 2).map(|index| 0.5 + index as f32).collect();
    let (single, stack) = ("model.a.weight", "model.layers.0.moe.up_proj.weight");
    let tensors = [
        Tensor::fp8(single, &[rows, cols]),
        Tensor::f32("model.a.weight_scale_inv", &[3, 2], &scales[..6]),
        Tensor::fp8(stack, &[2, rows, cols]),
        Tensor::f32("model.layers.0.moe.up_proj.weight_scale_inv", &[2, 3, 2], &scales),
    ];
    let dir = tempdir().unwrap();
    write_single(dir.path(), &tensors);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    for part in [Part::all(rows, cols), Part { rows: 128..300, cols: 0..128 }, Part { rows: 0..128, cols: 128..200 }] {
        let whole = dequantised(&tensors[0].bytes, &scales[..6], cols);
        let got = checkpoint.matrix(single, rows, cols, part.clone()).unwrap();
        assert_eq!(values(&got), cut(&whole, cols, &part), "{part}");
        assert_eq!(got.bytes(), got.rows() * got.cols() + got.rows().div_ceil(128) * got.cols().div_ceil(128) * 4);
        let whole = dequantised(&tensors[2].bytes[rows * cols..], &scales[6..], cols);
        let got = checkpoint.expert_matrix(stack, 1, 2, rows, cols, part.clone()).unwrap();
        assert_eq!(values(&got), cut(&whole, cols, &part), "{part}");
    }
}

#[test]
fn shards_are_opened_when_needed() {
    let dir = tempdir().unwrap();
    let (one, two) =
        ([Tensor::f32("model.a.weight", &[1, 2], &[1.0, 2.0])], [Tensor::f32("lm_head.weight", &[1], &[3.0])]);
    write_shards(dir.path(), &[&one, &two]);
    std::fs::write(dir.path().join("model-1.safetensors"), b"broken").unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(values(&checkpoint.matrix("model.a.weight", 1, 2, Part::all(1, 2)).unwrap()), [1.0, 2.0]);
    assert!(checkpoint.vector("lm_head.weight", 1).is_err());
}

/// Large matrices are made by several threads.
#[test]
fn random_weights_do_not_depend_on_who_makes_them() {
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Fp8Block] {
        let weights = RandomWeights::new(3, format);
        let (rows, cols) = (1_500, 1_024);
        let whole = values(&weights.matrix("model.a.weight", rows, cols, Part::all(rows, cols)).unwrap());
        for first in (0..rows).step_by(128) {
            let part = Part::rows(first..rows.min(first + 128), cols);
            let got = values(&weights.matrix("model.a.weight", rows, cols, part.clone()).unwrap());
            assert!(got == cut(&whole, cols, &part), "{format:?}, from row {first} on");
        }
    }
}

#[test]
fn random_weights_do_not_depend_on_the_part() {
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Fp8Block] {
        let weights = RandomWeights::parse("random:7", format).unwrap();
        let (rows, cols) = (300, 200);
        let whole = values(&weights.matrix("model.a.weight", rows, cols, Part::all(rows, cols)).unwrap());
        let part = Part { rows: 128..300, cols: 128..200 };
        let got = values(&weights.matrix("model.a.weight", rows, cols, part.clone()).unwrap());
        assert_eq!(got, cut(&whole, cols, &part), "{format:?}");

        // A few fp8 tiles with scales of their own make for some spread.
        let mean = whole.iter().sum::<f32>() / whole.len() as f32;
        let variance = whole.iter().map(|value| value * value).sum::<f32>() / whole.len() as f32;
        assert!(mean.abs() < 1e-3 && (0.75..1.25).contains(&(variance * cols as f32)), "{format:?} {mean} {variance}");

        let other = RandomWeights::parse("random:8", format).unwrap();
        assert_ne!(values(&other.matrix("model.a.weight", rows, cols, Part::all(rows, cols)).unwrap()), whole);
        assert_ne!(values(&weights.matrix("model.b.weight", rows, cols, Part::all(rows, cols)).unwrap()), whole);
        let expert = |expert| {
            let name = "model.layers.0.moe.up_proj.weight";
            values(&weights.expert_matrix(name, expert, 2, 128, 128, Part::all(128, 128)).unwrap())
        };
        assert_ne!(expert(0), expert(1));
        let norm = weights.vector("model.norm.weight", 64).unwrap();
        assert!(norm.iter().all(|value| (value - 1.0).abs() < 0.06));
    }
}

#[test]
fn random_weights_have_the_size_of_their_format() {
    let bytes =
        |format, name| RandomWeights::new(1, format).matrix(name, 128, 256, Part::all(128, 256)).unwrap().bytes();
    assert_eq!(bytes(WeightFormat::F32, "model.a.weight"), 128 * 256 * 4);
    assert_eq!(bytes(WeightFormat::Bf16, "model.a.weight"), 128 * 256 * 2);
    assert_eq!(bytes(WeightFormat::Fp8Block, "model.layers.0.moe.gate_proj.weight"), 128 * 256 + 2 * 4);
    for name in ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.moe.gate.weight"] {
        assert_eq!(bytes(WeightFormat::Fp8Block, name), 128 * 256 * 2, "{name}");
    }
}
