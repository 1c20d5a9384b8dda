//! Single operations against vectors computed in float64 (tests/data/ops.safetensors).

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use rally_kernels::dtype::{E4M3_VALUES, StorageDtype, e4m3_to_f32, f32_to_e4m3};
use rally_kernels::matrix::Matrix;
use rally_kernels::norm::{rms_norm, rms_norm_in_place};
use rally_kernels::rope::RopeTable;
use rally_kernels::router::route;
use rally_kernels::wire;
use safetensors::SafeTensors;

const FILE: &[u8] = include_bytes!("data/ops.safetensors");

fn bytes(name: &str) -> (Vec<usize>, Vec<u8>) {
    let file = SafeTensors::deserialize(FILE).unwrap();
    let tensor = file.tensor(name).unwrap();
    (tensor.shape().to_vec(), tensor.data().to_vec())
}

fn floats(name: &str) -> (Vec<usize>, Vec<f32>) {
    let (shape, bytes) = bytes(name);
    (shape, bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

fn check_close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(close, "element {index}: {got}, expected {want}");
    }
}

#[test]
fn every_fp8_code_has_its_value() {
    let (_, want) = floats("fp8.codes_as_f32");
    for code in 0..=255u8 {
        let (got, want) = (e4m3_to_f32(code), want[code as usize]);
        assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "code {code:#x}: {got} is {want}");
        assert_eq!(got.is_nan(), code & 0x7f == 0x7f);
        assert_eq!(f32_to_e4m3(got), code, "code {code:#x} survives a round trip");
    }
    assert_eq!(E4M3_VALUES[0x7e], 448.0);
}

#[test]
fn fp8_tiles_dequantise_exactly() {
    let (shape, codes) = bytes("fp8.w");
    let (_, scales) = floats("fp8.scale_inv");
    let (_, want) = floats("fp8.dequant");
    let matrix = Matrix::from_fp8_block(shape[0], shape[1], codes, scales);
    let mut row = vec![0.0; shape[1]];
    for (index, want) in want.chunks_exact(shape[1]).enumerate() {
        matrix.row_into(index, &mut row);
        assert_eq!(row, want, "row {index}");
    }
    assert_eq!(matrix.bytes(), shape[0] * shape[1] + 6 * 4);
}

#[test]
fn an_fp8_wire_rounds_activations_like_the_reference() {
    let (shape, x) = floats("fp8.act_x");
    let (_, want) = floats("fp8.act_fake_quant");
    let mut encoded = vec![0; wire::encoded_bytes(StorageDtype::Fp8E4m3, shape[0], shape[1])];
    wire::encode(StorageDtype::Fp8E4m3, &x, shape[0], shape[1], &mut encoded);
    let mut got = vec![f32::NAN; x.len()];
    wire::decode(StorageDtype::Fp8E4m3, &encoded, shape[0], shape[1], &mut got);
    assert_eq!(got, want);
}

#[test]
fn rope_rotates_halves_by_f64_angles() {
    let (shape, x) = floats("rope.x");
    let (_, want) = floats("rope.y");
    let (_, positions) = bytes("rope.pos");
    let mut table = RopeTable::new(256, 500_000.0, 65_536);
    for (row, position) in positions.as_chunks::<8>().0.iter().enumerate() {
        let range = row * shape[1]..(row + 1) * shape[1];
        let mut got = x[range.clone()].to_vec();
        table.apply(&mut got, i64::from_le_bytes(*position) as usize);
        check_close(&got, &want[range], 1e-6);
    }
}

#[test]
fn rms_norm_handles_rows_of_any_size() {
    let (shape, x) = floats("rms.x");
    let (_, weight) = floats("rms.w");
    let (_, want) = floats("rms.y_eps1e-5");
    let mut got = vec![0.0; x.len()];
    rms_norm(&x, shape[0], &weight, 1e-5, &mut got);
    check_close(&got, &want, 2e-6);
    let mut in_place = x;
    rms_norm_in_place(&mut in_place, shape[0], &weight, 1e-5);
    assert_eq!(in_place, got);
}

#[test]
fn the_router_chooses_and_weighs_like_the_reference() {
    let (shape, logits) = floats("router.logits");
    let (_, want_ids) = bytes("router.top3_ids");
    let want_ids: Vec<u32> = want_ids.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    for (renormalise, name) in [(false, "router.top3_weights"), (true, "router.top3_weights_renorm")] {
        let mut ids = vec![0; shape[0] * 3];
        let mut weights = vec![0.0; shape[0] * 3];
        route(&logits, shape[0], shape[1], 3, renormalise, &mut ids, &mut weights);
        assert_eq!(ids, want_ids);
        check_close(&weights, &floats(name).1, 5e-7);
    }
}
