//! GPU benchmarks: one line a case, with the figure, the ceiling measured in the same run, and their ratio.
//!
//! Every figure is the median of replays of a CUDA graph whose calls go round buffer sets larger than L2 together, so
//! that neither launches nor the cache are in it. The read ceiling at a size is the best of several plain read kernels.

use crate::data::Random;
use crate::problem::{PAGE, PAGE_ELEMENTS, Problem, Scratch, heavy_tail, step_bytes, uniform};
use rally_cuda::graph::CudaGraph;
use rally_cuda::memory::{Arena, DeviceSlice};
use rally_cuda::mfa::{KvPages, MfaDecode, MfaStep};
use rally_cuda::module::{Kernel, Module, Order, Shape};
use rally_cuda::stream::{Event, Stream};
use rally_cuda::{CudaError, Device, source};
use std::ffi::c_void;
use std::sync::Arc;

/// Pages of the bf16 pools: 2 GiB of K and 2 GiB of V.
const POOL_PAGES: usize = 65536;
/// Calls of a graph go round this many bytes at least: four times an H100's L2.
const ROTATED_BYTES: u64 = 200 << 20;

/// Microseconds a call, the median over replays of a graph of `calls` calls.
pub fn measure(
    stream: &Stream,
    calls: usize,
    mut enqueue: impl FnMut(usize, &Stream) -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    let graph = CudaGraph::capture(stream, |stream| (0..calls).try_for_each(|call| enqueue(call, stream)))?;
    let (from, to) = (Event::timed(stream.device())?, Event::timed(stream.device())?);
    let once = || {
        stream.record(&from)?;
        graph.launch(stream)?;
        stream.record(&to)?;
        to.synchronize()?;
        to.us_since(&from)
    };
    for _ in 0..2 {
        once()?;
    }
    let replays = ((60_000.0 / once()?) as usize).clamp(7, 60);
    let mut times = (0..replays).map(|_| once()).collect::<Result<Vec<f64>, CudaError>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2] / calls as f64)
}

pub struct Bench {
    device: Arc<Device>,
    stream: Stream,
    module: Arc<Module>,
    pool: DeviceSlice<u8>,
    scratch: Scratch,
    random: Random,
    /// (bytes, GB/s), the sizes measured so far.
    ceilings: Vec<(u64, f64)>,
}

/// Runs cases whose names contain `filter`.
pub fn run(device: &Arc<Device>, filter: &str) -> Result<(), CudaError> {
    let mut bench = Bench::new(device)?;
    if !device.card().is_hopper() {
        println!("no benchmark for {}: the kernels measured here are Hopper's", device.card().name);
        return Ok(());
    }
    println!("large reads: {:.0} GB/s", bench.ceiling(2 << 30)?);
    crate::tensor_bench::run(&mut bench, filter)?;
    let peak = crate::tensor_bench::tensor_ceiling(device, &bench.stream, &bench.pool, false)?;
    for fp8 in [false, true] {
        let kv = bench.fill(fp8)?;
        crate::prefill::bench(&mut bench, &kv, fp8, peak, filter)?;
        let decode = MfaDecode::new(device, kv.clone())?;
        for (name, contexts) in cases(&mut Random(7)) {
            let name = format!("{} {name}", if fp8 { "fp8" } else { "bf16" });
            if name.contains(filter) {
                bench.case(&name, &contexts, &decode, &kv, fp8)?;
            }
        }
    }
    Ok(())
}

fn cases(random: &mut Random) -> Vec<(String, Vec<u32>)> {
    let mut cases: Vec<(String, Vec<u32>)> = [
        (16, 1),
        (64, 1),
        (128, 1),
        (16, 4),
        (64, 4),
        (128, 4),
        (256, 4),
        (16, 8),
        (64, 8),
        (128, 8),
        (16, 32),
        (64, 32),
        (128, 32),
        (1, 128),
    ]
    .into_iter()
    .map(|(rows, thousand)| (format!("{rows} x {thousand}K"), vec![thousand * 1024; rows]))
    .collect();
    for (rows, most) in [(64, 8192), (128, 8192), (256, 4096), (64, 32768)] {
        cases.push((format!("{rows} x uniform to {}K", most / 1024), uniform(rows, most, random)));
    }
    for (rows, most) in [(128, 131_072), (256, 32_768)] {
        cases.push((format!("{rows} x heavy tail to {}K", most / 1024), heavy_tail(rows, 1024, most, random)));
    }
    cases
}

impl Bench {
    pub fn new(device: &Arc<Device>) -> Result<Bench, CudaError> {
        let bytes = 2 * POOL_PAGES * PAGE_ELEMENTS * 2;
        let mut arena = Arena::new(device, bytes)?;
        let stream = Stream::new(device)?;
        Ok(Bench {
            device: device.clone(),
            scratch: Scratch::new(device, &stream)?,
            stream,
            module: device.load(&source::MEASURE)?,
            pool: arena.take(bytes)?,
            random: Random(1),
            ceilings: Vec::new(),
        })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The pool's pages in random order.
    pub fn pages(&mut self) -> Vec<i32> {
        self.random.shuffled(POOL_PAGES)
    }

    /// Waits for what was enqueued.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize()
    }

    pub fn fill_kernel<T>(
        &self,
        name: &'static str,
        to: &DeviceSlice<T>,
        count: u64,
        seed: u64,
    ) -> Result<(), CudaError>
    where
        T: rally_cuda::memory::Plain,
    {
        let kernel = self.module.kernel(name, 0)?;
        let (mut address, mut count, mut seed) = (to.address(), count, seed);
        let mut arguments: [*mut c_void; 3] =
            [(&raw mut address).cast(), (&raw mut count).cast(), (&raw mut seed).cast()];
        let shape = Shape { grid: (4096, 1), block: 256, order: Order::After };
        // SAFETY: the fill kernels take an address, a count and a seed; `count` elements fit the slice.
        unsafe { kernel.launch(&self.stream, shape, &mut arguments) }
    }

    /// The pool as KV of one kind, filled.
    fn fill(&self, fp8: bool) -> Result<KvPages, CudaError> {
        let half = POOL_PAGES * PAGE_ELEMENTS;
        let kv = if fp8 {
            let scales = self.pool.part(2 * half, POOL_PAGES * 2 * PAGE * 4).cast::<f32>();
            self.fill_kernel("fill_e4m3", &self.pool, 2 * half as u64, 3)?;
            self.fill_kernel("fill_scales", &scales, scales.len() as u64, 4)?;
            KvPages::Fp8 { k: self.pool.part(0, half), v: self.pool.part(half, half), scales }
        } else {
            self.fill_kernel("fill_bf16", &self.pool, 2 * half as u64, 5)?;
            KvPages::Bf16 {
                k: self.pool.part(0, 2 * half).cast::<u16>(),
                v: self.pool.part(2 * half, 2 * half).cast::<u16>(),
            }
        };
        self.stream.synchronize()?;
        Ok(kv)
    }

    /// GB/s of reading `bytes` bytes once.
    pub fn ceiling(&mut self, bytes: u64) -> Result<f64, CudaError> {
        if let Some((_, known)) = self.ceilings.iter().find(|(size, _)| *size == bytes) {
            return Ok(*known);
        }
        let mut best = f64::INFINITY;
        let sets = (self.pool.bytes() as u64 / bytes).min(rotations(bytes)) as usize;
        for (name, block, blocks) in
            [("read_4", 512, 4), ("read_8", 512, 2), ("read_8", 256, 4), ("read_4", 256, 8), ("read_8", 512, 4)]
        {
            let kernel = self.module.kernel(name, 0)?;
            let us = measure(&self.stream, sets.max(8).next_multiple_of(sets), |call, stream| {
                self.read(&kernel, stream, (call % sets) as u64 * bytes, bytes, block, blocks)
            })?;
            best = best.min(us);
        }
        let gbs = bytes as f64 / best / 1e3;
        self.ceilings.push((bytes, gbs));
        Ok(gbs)
    }

    fn read(
        &self,
        kernel: &Kernel,
        stream: &Stream,
        offset: u64,
        bytes: u64,
        block: u32,
        blocks: u32,
    ) -> Result<(), CudaError> {
        let (mut from, mut count, mut to) = (self.pool.address() + offset, bytes / 16, self.pool.address());
        let mut arguments: [*mut c_void; 3] = [(&raw mut from).cast(), (&raw mut count).cast(), (&raw mut to).cast()];
        let grid = (self.device.card().multiprocessors * blocks, 1);
        // SAFETY: the read kernels take an address, a count of 16-byte words and a word to keep them honest.
        unsafe { kernel.launch(stream, Shape { grid, block, order: Order::After }, &mut arguments) }
    }

    fn case(
        &mut self,
        name: &str,
        contexts: &[u32],
        decode: &MfaDecode,
        kv: &KvPages,
        fp8: bool,
    ) -> Result<(), CudaError> {
        let order = self.random.shuffled(POOL_PAGES);
        let one = Problem::new(contexts, &order);
        let page_bytes = if fp8 { PAGE_ELEMENTS * 2 } else { PAGE_ELEMENTS * 4 } as u64;
        let bytes = one.tokens() * page_bytes / PAGE as u64;
        let sets = ((POOL_PAGES / one.pages.len()) as u64).min(rotations(bytes)) as usize;
        let ctas = self.device.card().multiprocessors as usize;
        let mut arena = Arena::new(&self.device, sets * step_bytes(contexts.len(), one.pages.len(), ctas))?;
        let (mut calls, mut overlapped) = (Vec::new(), Vec::new());
        for set in 0..sets {
            let problem = Problem::new(contexts, &order[set * one.pages.len()..]);
            let step = problem.upload(&self.stream, &mut arena, &self.scratch, fp8)?;
            self.fill_kernel("fill_bf16", &step.q, step.q.len() as u64, 100 + set as u64)?;
            calls.push(decode.prepare(step.clone())?);
            overlapped.push(decode.prepare(MfaStep { order: Order::Overlapped, ..step.clone() })?);
            if set == 0 {
                calls[0].enqueue(&self.stream)?;
                let row = contexts.len() / 2;
                let error = problem.row_error(&self.stream, kv, &step, row)?;
                print!("{name}: error {error:.1e}, ");
            }
        }
        let count = sets.max(8).next_multiple_of(sets);
        let alone = measure(&self.stream, count, |call, stream| calls[call % sets].enqueue(stream))?;
        let us = measure(&self.stream, count, |call, stream| overlapped[call % sets].enqueue(stream))?;
        let gbs = bytes as f64 / us / 1e3;
        let size = (bytes >> 20).max(1).next_power_of_two().min(2048) << 20;
        let (large, here) = (self.ceiling(2 << 30)?, self.ceiling(size)?);
        println!(
            "{:.0} MiB in {us:.1} us ({alone:.1} not overlapped), {gbs:.0} GB/s; read ceiling {large:.0}, ratio {:.3}; \
             at this size {here:.0}, ratio {:.3}",
            bytes as f64 / 1048576.0,
            gbs / large,
            gbs / here
        );
        Ok(())
    }
}

fn rotations(bytes: u64) -> u64 {
    ROTATED_BYTES.div_ceil(bytes).max(2)
}
