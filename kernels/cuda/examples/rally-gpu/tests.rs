//! GPU tests: each kernel against f64 on fresh random inputs, with poisoned outputs, scratch and unused KV.

use crate::data::{Random, to_bf16, to_e4m3};
use crate::plain;
use crate::prefill;
use crate::problem::{PAGE, PAGE_ELEMENTS, Problem, Scratch, heavy_tail, step_bytes, uniform};
use crate::tensor;
use rally_cuda::memory::Arena;
use rally_cuda::mfa::{HEAD_DIM, HEADS, KvPages, MfaDecode, MfaStep, fp8_value_place};
use rally_cuda::module::Order;
use rally_cuda::plain::{PlainShape, PlainStorage};
use rally_cuda::stream::Stream;
use rally_cuda::{CudaError, Device};
use std::sync::Arc;

/// bf16 results of bf16 probabilities against f64: 2e-3 to 3e-3 (half a unit of 8 bits' significand, twice).
const BF16_ERROR: f64 = 4e-3;
/// What fp8 KV is allowed, on the same fp8 inputs.
const FP8_ERROR: f64 = 5e-3;
/// f32 arithmetic throughout, with a fast exponential.
const F32_ERROR: f64 = 1e-5;

/// Runs tests whose names contain `filter`; true if all held.
pub fn run(device: &Arc<Device>, filter: &str) -> Result<bool, CudaError> {
    let mut random = Random(0x5eed);
    let mut all = true;
    let mut report = |name: &str, worst: f64, bound: f64| {
        // NaN fails.
        let holds = worst <= bound;
        all &= holds;
        println!("{} {name}: error {worst:.2e}, bound {bound:.0e}", if holds { "ok  " } else { "FAIL" });
    };
    for (name, contexts) in shapes(&mut random) {
        for fp8 in [false, true] {
            let name = format!("mfa {} {name}", if fp8 { "fp8" } else { "bf16" });
            if device.card().is_hopper() && name.contains(filter) {
                let worst = decode(device, &contexts, fp8, &mut random)?;
                report(&name, worst, if fp8 { FP8_ERROR } else { BF16_ERROR });
            }
        }
    }
    for (name, sizes) in prefill::shapes(&mut random) {
        for fp8 in [false, true] {
            let name = format!("prefill {} {name}", if fp8 { "fp8" } else { "bf16" });
            if device.card().is_hopper() && name.contains(filter) {
                let worst = prefill::worst_error(device, &sizes, fp8, &mut random)?;
                report(&name, worst, if fp8 { FP8_ERROR } else { BF16_ERROR });
            }
        }
    }
    for storage in [PlainStorage::F32, PlainStorage::Bf16, PlainStorage::Fp8] {
        for (heads, head_dim, page_tokens) in [(5, 48, 16), (64, 256, 64), (3, 512, 7)] {
            let name = format!("plain {storage:?} {heads} heads of {head_dim}, pages of {page_tokens}");
            if name.contains(filter) {
                let shape = PlainShape { rows: 4, heads, head_dim, page_tokens, scale: (head_dim as f32).powf(-0.5) };
                let bound = if storage == PlainStorage::F32 { F32_ERROR } else { BF16_ERROR };
                report(&name, plain::worst_error(device, storage, shape, &mut random)?, bound);
            }
        }
    }
    if device.card().is_hopper() {
        tensor::run(filter, &mut random, &mut report)?;
    }
    Ok(all)
}

fn shapes(random: &mut Random) -> Vec<(&'static str, Vec<u32>)> {
    vec![
        ("one position", vec![1]),
        ("one page", vec![64]),
        ("around a page's end", vec![63, 64, 65, 127, 128, 129, 2, 17, 48, 49]),
        ("one long row", vec![20_001]),
        ("two rows a CTA", vec![70; 300]),
        ("uniform", vec![1024; 33]),
        ("ragged", uniform(77, 1500, random)),
        ("heavy tail", heavy_tail(90, 20, 30_000, random)),
    ]
}

/// KV on the host and the pools it goes to: NaN wherever no row's context reaches.
pub struct Pools {
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[pages, 2, 64]`.
    scales: Vec<f32>,
}

/// Keys that differ in size from position to position, so that scales and running maxima do.
pub fn random_pools(problem: &Problem, pages: usize, random: &mut Random) -> Pools {
    let mut pools = Pools {
        k: vec![f32::NAN; pages * PAGE_ELEMENTS],
        v: vec![f32::NAN; pages * PAGE_ELEMENTS],
        scales: vec![f32::NAN; pages * 2 * PAGE],
    };
    for row in &problem.rows {
        for p in 0..row.context as usize {
            let page = problem.pages[row.first as usize + p / PAGE] as usize;
            let at = (page * PAGE + p % PAGE) * HEAD_DIM;
            let (key, value) = (0.5 + random.unit() as f32 * 2.0, 0.2 + random.unit() as f32 * 3.0);
            pools.k[at..at + HEAD_DIM].iter_mut().for_each(|x| *x = random.normal() * key);
            pools.v[at..at + HEAD_DIM].iter_mut().for_each(|x| *x = random.normal() * value);
            for (side, pool) in [&pools.k, &pools.v].into_iter().enumerate() {
                let top = pool[at..at + HEAD_DIM].iter().fold(0f32, |top, x| top.max(x.abs()));
                pools.scales[(page * 2 + side) * PAGE + p % PAGE] = top / 448.0;
            }
        }
    }
    pools
}

pub fn quantised(x: f32, scale: f32) -> u8 {
    if x.is_nan() { 0x7f } else { to_e4m3(x / scale) }
}

pub fn upload(stream: &Stream, arena: &mut Arena, pools: &Pools, fp8: bool) -> Result<KvPages, CudaError> {
    if !fp8 {
        let mut put = |pool: &[f32]| {
            let slice = arena.take(pool.len())?;
            stream.write(&pool.iter().map(|x| to_bf16(*x)).collect::<Vec<_>>(), &slice)?;
            Ok::<_, CudaError>(slice)
        };
        return Ok(KvPages::Bf16 { k: put(&pools.k)?, v: put(&pools.v)? });
    }
    let (mut k, mut v) = (vec![0u8; pools.k.len()], vec![0u8; pools.v.len()]);
    for position in 0..pools.k.len() / HEAD_DIM {
        let (page, p) = (position / PAGE, position % PAGE);
        for d in 0..HEAD_DIM {
            let at = position * HEAD_DIM + d;
            k[at] = quantised(pools.k[at], pools.scales[page * 2 * PAGE + p]);
            let to = page * PAGE_ELEMENTS + d * PAGE + fp8_value_place(p);
            v[to] = quantised(pools.v[at], pools.scales[(page * 2 + 1) * PAGE + p]);
        }
    }
    let (keys, values, scales) = (arena.take(k.len())?, arena.take(v.len())?, arena.take(pools.scales.len())?);
    stream.write(&k, &keys)?;
    stream.write(&v, &values)?;
    stream.write(&pools.scales, &scales)?;
    Ok(KvPages::Fp8 { k: keys, v: values, scales })
}

/// The worst row's error; NaN if a second launch gives other bits.
fn decode(device: &Arc<Device>, contexts: &[u32], fp8: bool, random: &mut Random) -> Result<f64, CudaError> {
    let used: usize = contexts.iter().map(|context| context.div_ceil(PAGE as u32) as usize).sum();
    let pages = used + used / 4 + 1;
    let problem = Problem::new(contexts, &random.shuffled(pages));
    let pools = random_pools(&problem, pages, random);
    let stream = Stream::new(device)?;
    let ctas = device.card().multiprocessors as usize;
    let bytes = step_bytes(contexts.len(), used, ctas) + pages * (PAGE_ELEMENTS * 4 + 2 * PAGE * 4) + 1024;
    let mut arena = Arena::new(device, bytes)?;
    let kv = upload(&stream, &mut arena, &pools, fp8)?;
    let step = problem.upload(&stream, &mut arena, &Scratch::new(device, &stream)?, fp8)?;
    let q: Vec<u16> = (0..step.q.len()).map(|_| to_bf16(random.normal())).collect();
    stream.write(&q, &step.q)?;
    let decode = MfaDecode::new(device, kv.clone())?;
    let mut results = Vec::new();
    for order in [Order::Together, Order::Overlapped] {
        stream.fill(&step.out, 0xff)?;
        decode.prepare(MfaStep { order, ..step.clone() })?.enqueue(&stream)?;
        let mut out = vec![0u16; contexts.len() * HEADS * HEAD_DIM];
        stream.read(&step.out, &mut out)?;
        results.push(out);
    }
    if results[0] != results[1] {
        return Ok(f64::NAN);
    }
    let mut worst = 0f64;
    for row in 0..contexts.len() {
        let error = problem.row_error(&stream, &kv, &step, row)?;
        worst = if error.is_nan() { error } else { worst.max(error) };
        if worst.is_nan() {
            break;
        }
    }
    Ok(worst)
}
