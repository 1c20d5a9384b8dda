//! After a first round, operations allocate nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rally_kernels::attention::{AttentionScratch, mfa_attention};
use rally_kernels::dtype::StorageDtype;
use rally_kernels::kv::KvPool;
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::rope::RopeTable;
use rally_kernels::router::route;
use rally_kernels::sampling::{SamplingParams, SamplingScratch, sample};
use rally_kernels::team::Team;
use rally_kernels::{activation, norm, wire};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_second_round_allocates_nothing() {
    let team = Team::serial();
    let w = Matrix::from_f32(96, 96, vec![0.1; 96 * 96]);
    let norm_weight = vec![1.0; 96];
    let mut rope = RopeTable::new(48, 500_000.0, 65_536);
    let mut pool = KvPool::new(2, 16, 48, 48, StorageDtype::Fp8E4m3);
    let (mut attention, mut sampling) = (AttentionScratch::new(), SamplingScratch::new());
    let mut x = vec![0.5; 20 * 96];
    let (mut y, mut out) = (x.clone(), vec![0.0; 96]);
    let mut bytes = vec![0; wire::encoded_bytes(StorageDtype::Fp8E4m3, 20, 96)];
    let (mut ids, mut weights) = ([0; 40], [0.0; 40]);
    let params = SamplingParams { temperature: 1.0, top_k: 20, top_p: 0.9, ..SamplingParams::default() };
    let mut round = || {
        linear(&team, &x, 20, &w, &mut y);
        linear(&team, &x[..96], 1, &w, &mut y[..96]);
        norm::rms_norm_in_place(&mut y, 20, &norm_weight, 1e-5);
        rope.apply(&mut y[..96], 17);
        pool.write(1, 3, &y[..48], &y[48..96]);
        mfa_attention(&team, &y[..96], 2, 48, &pool, &[1, 0], 20, &mut out, &mut attention);
        route(&y, 20, 96, 2, true, &mut ids, &mut weights);
        wire::encode(StorageDtype::Fp8E4m3, &y, 20, 96, &mut bytes);
        wire::decode(StorageDtype::Fp8E4m3, &bytes, 20, 96, &mut x);
        activation::swiglu_in_place(&mut x, &y);
        sample(&y[..96], &params, 3, &mut sampling).unwrap()
    };
    round();
    let before = COUNT.get();
    round();
    assert_eq!(COUNT.get() - before, 0, "allocations of the second round");
}
