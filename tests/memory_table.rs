//! The bytes that `rally check` counts are those that a run allocates.
//!
//! A test of its own in a program of its own: the count is of the whole process.

mod support;

use rally::graph::hardware::Machine;
use rally::graph::kinds::KindRegistry;
use rally::graph::memory::device_memory;
use rally::graph::model::{ModelShape, WeightFormat};
use rally::kernels::large_buffer_bytes;
use rally::stages::checkpoint::RandomWeights;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use support::{Layout, Places, small_shape, start};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Norms are f32 in memory however they are stored; plan, planner, metrics and the ring of events take about a megabyte, so the model
/// must not be too small.
const WITHIN: f64 = 0.02;

#[test]
fn a_run_allocates_what_the_table_says() {
    let shape = ModelShape { hidden: 1024, heads: 16, head_dim: 64, weight_format: WeightFormat::F32, ..small_shape() };
    let apart = Places { a: vec![2], f: vec![2], expert: [2, 1, 1], dense: [2, 1], ..Places::default() };
    let places = [
        Places { a: vec![1], f: vec![1], expert: [1, 1, 1], dense: [1, 1], ..Places::default() },
        apart.clone(),
        Places { o_proj: 2, ..apart.clone() },
        Places { placement: Some(vec![vec![0, 1, 2], vec![2, 3, 0]]), ..apart.clone() },
        Places { a: vec![2, 2], rail: true, ..apart.clone() },
        Places { f: vec![], ..apart },
    ];
    let mut worst: f64 = 0.0;
    for places in places {
        let name = format!("{places:?}");
        let layout = Layout { places: Some(places), rows: 256, a2f: "fp8_e4m3", f2a: "bf16", ..Layout::default() };
        let spec = layout.spec();
        let counted = device_memory(&spec, &shape, KindRegistry::shared(), Machine::default());
        let counted: u64 = counted.iter().map(|device| device.needed_bytes()).sum();
        let (region, large_before) = (Region::new(ALLOCATOR), large_buffer_bytes());
        let engine = start(&spec, &shape, &RandomWeights::new(3, shape.weight_format), None);
        let change = region.change();
        let large = large_buffer_bytes() - large_before;
        let allocated = (large + change.bytes_allocated) as f64 - change.bytes_deallocated as f64;
        drop(engine);
        let off = (allocated - counted as f64) / allocated;
        println!("{name}: counted {counted}, allocated {allocated}: {:.2} % short", off * 100.0);
        worst = worst.max(off.abs());
    }
    assert!(worst <= WITHIN, "{worst}");
}
