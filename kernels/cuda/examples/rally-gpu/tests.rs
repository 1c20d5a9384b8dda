//! GPU tests: each kernel against f64 on fresh random inputs, with poisoned outputs, scratch and unused KV.

use crate::data::{Random, from_bf16, from_e4m3, to_bf16, to_e4m3};
use crate::problem::{PAGE, PAGE_ELEMENTS, Problem, Scratch, heavy_tail, step_bytes, uniform};
use crate::reference::{self, Row};
use rally_cuda::memory::{Arena, DeviceSlice};
use rally_cuda::mfa::{HEAD_DIM, HEADS, KvPages, MfaDecode, MfaStep, fp8_value_place};
use rally_cuda::module::Order;
use rally_cuda::plain::{PlainDecode, PlainShape, PlainStep, PlainStorage};
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
    for storage in [PlainStorage::F32, PlainStorage::Bf16, PlainStorage::Fp8] {
        for (heads, head_dim, page_tokens) in [(5, 48, 16), (64, 256, 64), (3, 512, 7)] {
            let name = format!("plain {storage:?} {heads} heads of {head_dim}, pages of {page_tokens}");
            if name.contains(filter) {
                let shape = PlainShape { rows: 4, heads, head_dim, page_tokens, scale: (head_dim as f32).powf(-0.5) };
                let bound = if storage == PlainStorage::F32 { F32_ERROR } else { BF16_ERROR };
                report(&name, plain(device, storage, shape, &mut random)?, bound);
            }
        }
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
struct Pools {
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[pages, 2, 64]`.
    scales: Vec<f32>,
}

/// Keys that differ in size from position to position, so that scales and running maxima do.
fn random_pools(problem: &Problem, pages: usize, random: &mut Random) -> Pools {
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

fn quantised(x: f32, scale: f32) -> u8 {
    if x.is_nan() { 0x7f } else { to_e4m3(x / scale) }
}

fn upload(stream: &Stream, arena: &mut Arena, pools: &Pools, fp8: bool) -> Result<KvPages, CudaError> {
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

/// Bytes of numbers in a storage, and what they then are.
fn stored(storage: PlainStorage, x: f32, scale: f32, bytes: &mut Vec<u8>) -> f64 {
    match storage {
        PlainStorage::F32 => {
            bytes.extend(x.to_le_bytes());
            f64::from(x)
        }
        PlainStorage::Bf16 => {
            bytes.extend(to_bf16(x).to_le_bytes());
            from_bf16(to_bf16(x))
        }
        PlainStorage::Fp8 => {
            bytes.push(quantised(x, scale));
            from_e4m3(quantised(x, scale)) * f64::from(scale)
        }
    }
}

fn plain(
    device: &Arc<Device>,
    storage: PlainStorage,
    shape: PlainShape,
    random: &mut Random,
) -> Result<f64, CudaError> {
    let contexts: Vec<i32> = (0..shape.rows).map(|_| random.below(400) as i32 + 1).collect();
    let pages: Vec<usize> = contexts.iter().map(|context| (*context as usize).div_ceil(shape.page_tokens)).collect();
    let first: Vec<i32> = pages.iter().scan(0, |at, pages| Some(std::mem::replace(at, *at + *pages as i32))).collect();
    let numbers = random.shuffled(pages.iter().sum());
    let io = if storage == PlainStorage::F32 { PlainStorage::F32 } else { PlainStorage::Bf16 };
    let positions = numbers.len() * shape.page_tokens;
    let scales: Vec<f32> = (0..2 * positions).map(|_| (1.0 + random.unit() as f32) / 200.0).collect();
    let scale_of = |position: usize, side: usize| {
        let (page, p) = (position / shape.page_tokens, position % shape.page_tokens);
        scales[(page * 2 + side) * shape.page_tokens + p]
    };
    let (mut raw, mut values) = ([vec![], vec![], vec![]], [vec![], vec![], vec![]]);
    for i in 0..shape.rows * shape.heads * shape.head_dim {
        let _ = i;
        let x = stored(io, random.normal(), 1.0, &mut raw[0]);
        values[0].push(x);
    }
    for side in 0..2 {
        for i in 0..positions * shape.head_dim {
            let x = stored(storage, random.normal(), scale_of(i / shape.head_dim, side), &mut raw[1 + side]);
            values[1 + side].push(x);
        }
    }
    let stream = Stream::new(device)?;
    let mut arena = Arena::new(device, raw.iter().map(Vec::len).sum::<usize>() * 2 + scales.len() * 4 + (1 << 20))?;
    let mut put = |bytes: &[u8]| {
        let slice: DeviceSlice<u8> = arena.take(bytes.len())?;
        stream.write(bytes, &slice)?;
        Ok::<_, CudaError>(slice)
    };
    let (q, k, v) = (put(&raw[0])?, put(&raw[1])?, put(&raw[2])?);
    let out = put(&vec![0xff; raw[0].len()])?;
    let mut numbers_on_device = |numbers: &[i32]| {
        let slice = arena.take(numbers.len())?;
        stream.write(numbers, &slice)?;
        Ok::<_, CudaError>(slice)
    };
    let (on_contexts, on_first, on_pages) =
        (numbers_on_device(&contexts)?, numbers_on_device(&first)?, numbers_on_device(&numbers)?);
    let on_scales = if storage == PlainStorage::Fp8 {
        let slice = arena.take(scales.len())?;
        stream.write(&scales, &slice)?;
        Some(slice)
    } else {
        None
    };
    let step = PlainStep { q, k, v, scales: on_scales, out, contexts: on_contexts, first: on_first, pages: on_pages };
    PlainDecode::new(device, storage)?.enqueue(&stream, shape, &step)?;
    let mut got = vec![0u8; raw[0].len()];
    stream.read(&step.out, &mut got)?;
    let got: Vec<f64> = match io {
        PlainStorage::F32 => {
            got.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        }
        _ => got.chunks_exact(2).map(|b| from_bf16(u16::from_le_bytes([b[0], b[1]]))).collect(),
    };
    let size = shape.heads * shape.head_dim;
    let mut worst = 0f64;
    for row in 0..shape.rows {
        let rows_of = |pool: &[f64]| -> Vec<f64> {
            (0..contexts[row] as usize)
                .flat_map(|p| {
                    let page = numbers[first[row] as usize + p / shape.page_tokens] as usize;
                    let at = (page * shape.page_tokens + p % shape.page_tokens) * shape.head_dim;
                    pool[at..at + shape.head_dim].to_vec()
                })
                .collect()
        };
        let q = values[0][row * size..(row + 1) * size].to_vec();
        let (k, v) = (rows_of(&values[1]), rows_of(&values[2]));
        let want = Row { q, k, v, dim: shape.head_dim, scale: f64::from(shape.scale) }.attend();
        let error = reference::error(&got[row * size..(row + 1) * size], &want);
        worst = if error.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(error) };
    }
    Ok(worst)
}
