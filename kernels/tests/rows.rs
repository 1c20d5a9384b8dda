//! Norms, rotations, activations, routing and KV pools against float64 definitions on random rows.

mod common;

use common::Random;
use proptest::prelude::*;
use rally_kernels::activation::{add_in_place, axpy, swiglu_in_place};
use rally_kernels::dtype::StorageDtype;
use rally_kernels::kv::KvPool;
use rally_kernels::norm::rms_norm;
use rally_kernels::rope::RopeTable;
use rally_kernels::router::route;
use rally_kernels::team::Team;

fn close(got: f32, want: f64, tolerance: f64) -> bool {
    (f64::from(got) - want).abs() <= tolerance * want.abs().max(1.0)
}

proptest! {
    #[test]
    fn rms_norm_is_its_definition(rows in 1usize..5, width in 1usize..300, seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let (x, weight) = (random.normals(rows * width), random.normals(width));
        let mut got = vec![f32::NAN; x.len()];
        rms_norm(&x, rows, &weight, 1e-5, &mut got);
        for (x, got) in x.chunks(width).zip(got.chunks(width)) {
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
            for ((&x, &weight), &got) in x.iter().zip(&weight).zip(got) {
                let want = f64::from(x) / (mean + 1e-5).sqrt() * f64::from(weight);
                prop_assert!(close(got, want, 1e-6));
            }
        }
    }

    #[test]
    fn rope_is_its_definition(heads in 1usize..4, half in 1usize..40, position in 0usize..70_000, seed in any::<u64>()) {
        let head_dim = 2 * half;
        let x = Random::new(seed).normals(heads * head_dim);
        let mut got = x.clone();
        RopeTable::new(head_dim, 500_000.0, 70_000).apply(&mut got, position);
        for (x, got) in x.chunks(head_dim).zip(got.chunks(head_dim)) {
            for j in 0..half {
                let angle = position as f64 * 500_000f64.powf(-2.0 * j as f64 / head_dim as f64);
                let (low, high) = (f64::from(x[j]), f64::from(x[j + half]));
                prop_assert!(close(got[j], low * angle.cos() - high * angle.sin(), 1e-6));
                prop_assert!(close(got[j + half], high * angle.cos() + low * angle.sin(), 1e-6));
            }
        }
    }

    #[test]
    fn swiglu_is_its_definition(width in 1usize..200, seed in any::<u64>()) {
        let mut random = Random::new(seed);
        let gate: Vec<f32> = random.normals(width).into_iter().map(|value| value * 30.0).collect();
        let up = random.normals(width);
        let mut got = gate.clone();
        swiglu_in_place(&mut got, &up);
        for ((gate, up), got) in gate.iter().zip(&up).zip(got) {
            let (gate, up) = (f64::from(*gate), f64::from(*up));
            prop_assert!(close(got, gate / (1.0 + (-gate).exp()) * up, 1e-6));
        }
    }

    #[test]
    fn route_chooses_the_largest(experts in 1usize..60, share in 0.0f64..1.0, renormalise: bool, seed in any::<u64>()) {
        let top_k = 1 + (share * (experts - 1) as f64) as usize;
        // Few distinct values, so that ties happen.
        let logits: Vec<f32> = Random::new(seed).normals(experts).iter().map(|value| (value * 3.0).round() + 0.0).collect();
        let (mut ids, mut weights) = (vec![u32::MAX; top_k], vec![f32::NAN; top_k]);
        route(&logits, 1, experts, top_k, renormalise, &mut ids, &mut weights);
        let mut order: Vec<u32> = (0..experts as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        prop_assert_eq!(&ids[..], &order[..top_k]);
        let odds = |id: &u32| f64::from(logits[*id as usize]).exp();
        let total: f64 = if renormalise { ids.iter().map(odds).sum() } else { order.iter().map(odds).sum() };
        for (id, weight) in ids.iter().zip(weights) {
            prop_assert!(close(weight, odds(id) / total, 1e-6));
        }
    }
}

#[test]
fn activations_let_nan_and_infinity_through() {
    let mut gate = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -200.0, 200.0];
    swiglu_in_place(&mut gate, &[1.0; 5]);
    assert!(gate[0].is_nan() && gate[1] == f32::INFINITY && gate[2].is_nan());
    assert_eq!(gate[3..], [0.0, 200.0]);
}

#[test]
fn a_router_row_with_nan_shows_it_and_keeps_valid_ids() {
    let mut logits = vec![0.0; 12];
    (logits[1], logits[7]) = (f32::NAN, 2.0);
    let (mut ids, mut weights) = ([9; 6], [0.5; 6]);
    route(&logits, 2, 6, 3, false, &mut ids, &mut weights);
    assert_eq!(ids, [0, 2, 3, 1, 0, 2]);
    assert!(weights[..3].iter().all(|weight| weight.is_nan()));
    assert!(weights[3..].iter().all(|weight| weight.is_finite()));
}

#[test]
fn sums_of_rows_are_element_by_element() {
    let mut to = [1.0, 2.0];
    add_in_place(&mut to, &[10.0, 20.0]);
    axpy(0.5, &[4.0, 8.0], &mut to);
    assert_eq!(to, [13.0, 26.0]);
}

#[test]
fn a_pool_counts_its_scales() {
    let bytes = |dtype| KvPool::new(3, 4, 48, 16, dtype).bytes();
    assert_eq!(bytes(StorageDtype::F32), 12 * 64 * 4);
    assert_eq!(bytes(StorageDtype::Bf16), 12 * 64 * 2);
    assert_eq!(bytes(StorageDtype::Fp8E4m3), 12 * (64 + 2 * 4));
    assert_eq!(KvPool::new(0, 4, 48, 16, StorageDtype::F32).bytes(), 0);
}

#[test]
#[should_panic(expected = "page 3 is one of the pool's 3")]
fn a_page_beyond_the_pool_is_refused() {
    KvPool::new(3, 4, 2, 2, StorageDtype::F32).write(3, 0, &[0.0; 2], &[0.0; 2]);
}

#[test]
fn teams_count_their_threads() {
    assert_eq!(Team::serial().threads(), 1);
    assert_eq!(Team::pinned(&[0]).threads(), 1);
    assert_eq!(Team::pinned(&[0, 1]).threads(), 2);
    assert_eq!(Team::pinned(&[0, 1_000_000]).threads(), 2);
}
