//! Benchmarks of the tensor-core path at Step-3's shapes: the expert FFN of a shard, the projections of attention.

use crate::attention_bench;
use crate::bench::{Bench, measure};
use crate::data::Random;
use crate::tensor::{Tensor, routing};
use rally_cuda::memory::DeviceSlice;
use rally_cuda::module::{Order, Shape};
use rally_cuda::ops::{Routing, Stored, Weights};
use rally_cuda::source;
use rally_cuda::stream::Stream;
use rally_cuda::tensor::{Narrowed, Slots, TensorMatrix};
use rally_cuda::{CudaError, Device};
use std::ffi::c_void;
use std::sync::Arc;

pub const HIDDEN: usize = 7168;
pub const QUERY_RANK: usize = 2048;
pub const ATTENTION: usize = 16384;
const EXPERTS: usize = 48;
const TOP_K: usize = 3;

/// FLOP/s of the tensor cores alone, over about 20 ms.
pub fn tensor_ceiling(
    device: &Arc<Device>,
    stream: &Stream,
    to: &DeviceSlice<u8>,
    is_fp8: bool,
) -> Result<f64, CudaError> {
    let (name, depth) = if is_fp8 { ("multiply_only_fp8", 128) } else { ("multiply_only_bf16", 64) };
    let kernel = device.load(&source::MEASURE_TENSOR)?.kernel(name, 1024 + 3 * 8192 + 160 * 128)?;
    let ctas = device.card().multiprocessors;
    let mut rounds = 20_000i32;
    let us = measure(stream, 2, |_, stream| {
        let mut address = to.address();
        let mut arguments: [*mut c_void; 2] = [(&raw mut rounds).cast(), (&raw mut address).cast()];
        // SAFETY: the kernel takes a count and a float's address.
        unsafe { kernel.launch(stream, Shape { grid: (ctas, 1), block: 384, order: Order::After }, &mut arguments) }
    })?;
    Ok(f64::from(ctas) * 3.0 * 2.0 * 64.0 * 160.0 * f64::from(depth) * 20_000.0 / (us * 1e-6))
}

/// Random matrices made on the device.
pub fn matrices(
    bench: &Bench,
    tensor: &Tensor,
    shape: (usize, usize, usize),
    stored: Stored,
    seed: u64,
) -> Result<TensorMatrix, CudaError> {
    let count = shape.0 * shape.1 * shape.2;
    let values = tensor.room::<u8>(count * stored.bytes())?;
    let scales = if stored == Stored::Fp8 { shape.0 * shape.1.div_ceil(128) * shape.2.div_ceil(128) } else { 0 };
    let scales = tensor.room::<f32>(scales)?;
    if stored == Stored::Fp8 {
        bench.fill_kernel("fill_e4m3", &values, count as u64, seed)?;
        bench.fill_kernel("fill_scales", &scales, scales.len() as u64, seed)?;
    } else {
        bench.fill_kernel("fill_bf16", &values, count as u64, seed)?;
    }
    bench.synchronize()?;
    let weights = Weights::over(&*tensor.machine, shape, stored, values, scales)?;
    Ok(TensorMatrix::of(tensor.ops.device(), &weights)?.expect("Step-3's shapes fit"))
}

pub fn rows(tensor: &Tensor, count: usize, random: &mut Random) -> Result<DeviceSlice<f32>, CudaError> {
    tensor.put(&(0..count).map(|_| random.normal()).collect::<Vec<f32>>())
}

/// One shard of the expert FFN.
pub struct Ffn {
    pub held: usize,
    /// With the shared expert, which every row has.
    pub shares: bool,
    pub inner: usize,
    pub gate: TensorMatrix,
    pub up: TensorMatrix,
    pub down: TensorMatrix,
    pub stored: Stored,
}

/// What a batch of it needs.
pub struct Batch {
    count: usize,
    routing: Routing,
    slots: Slots,
    x: DeviceSlice<f32>,
    narrowed: Narrowed,
    h: Narrowed,
    answers: DeviceSlice<u16>,
    y: DeviceSlice<f32>,
    /// Rows with a held expert, once for each.
    routed: usize,
}

impl Ffn {
    pub fn batch(&self, tensor: &Tensor, count: usize, random: &mut Random) -> Result<Batch, CudaError> {
        let (ids, weights) = routing(count, EXPERTS, TOP_K, random);
        let routed = ids.iter().filter(|id| (**id as usize) < self.held).count();
        let held: Vec<usize> = (0..self.held).collect();
        let slots = Slots::new(tensor.ops.stream(), count, TOP_K, EXPERTS, &held, self.shares)?;
        let narrowed = tensor.narrowed(slots.capacity_for(count), HIDDEN, self.stored)?;
        Ok(Batch {
            count,
            routing: Routing { ids: tensor.put(&ids)?, weights: tensor.put(&weights)? },
            x: rows(tensor, count * HIDDEN, random)?,
            h: tensor.narrowed(narrowed.slots(), self.inner, self.stored)?,
            answers: tensor.room(narrowed.slots() * HIDDEN)?,
            y: tensor.room(count * HIDDEN)?,
            narrowed,
            slots,
            routed,
        })
    }

    /// Step `only`, or all of them.
    pub fn enqueue(&self, tensor: &Tensor, batch: &Batch, only: Option<usize>) -> Result<(), CudaError> {
        let does = |step| only.is_none_or(|only| only == step);
        let Batch { count, routing, slots, x, narrowed, h, answers, y, .. } = batch;
        if does(0) {
            tensor.ops.place(routing, *count, slots)?;
        }
        if does(1) {
            tensor.ops.narrow(x, *count, None, Some(slots), narrowed)?;
        }
        if does(2) {
            tensor.ops.up(narrowed, slots, &self.gate, &self.up, h)?;
        }
        if does(3) {
            tensor.ops.down(h, slots, &self.down, answers)?;
        }
        if does(4) {
            tensor.ops.sum(slots, *count, HIDDEN, answers, y)?;
        }
        Ok(())
    }
}

const STEPS: [&str; 5] = ["place", "narrow", "up", "down", "sum"];

/// Runs the rows whose names contain `filter`.
pub fn run(bench: &mut Bench, filter: &str) -> Result<(), CudaError> {
    if !["tensor", "ffn", "project", "layer", "a stage"]
        .iter()
        .any(|name| name.contains(filter) || filter.contains(name))
    {
        return Ok(());
    }
    let Some(tensor) = Tensor::open()? else { return Ok(()) };
    let read = bench.ceiling(2 << 30)? * 1e9;
    for stored in [Stored::Fp8, Stored::Bf16] {
        let room = tensor.room::<u8>(4)?;
        let peak = tensor_ceiling(tensor.ops.device(), tensor.ops.stream(), &room, stored == Stored::Fp8)?;
        println!("tensor cores alone, {stored:?}: {:.0} TFLOP/s", peak / 1e12);
        // The last is the work that libraries' grouped products do.
        for (shard, held, shares) in [("TP8", 48, true), ("2A2F", 24, true), ("TP8 routed alone", 48, false)] {
            let name = format!("ffn {stored:?} {shard}");
            if !name.contains(filter) && !filter.contains("tensor") {
                continue;
            }
            let (inner, experts) = (640, held + usize::from(shares));
            let ffn = Ffn {
                held,
                shares,
                inner,
                gate: matrices(bench, &tensor, (experts, inner, HIDDEN), stored, 11)?,
                up: matrices(bench, &tensor, (experts, inner, HIDDEN), stored, 12)?,
                down: matrices(bench, &tensor, (experts, HIDDEN, inner), stored, 13)?,
                stored,
            };
            for count in [64, 256, 1024, 2048, 3072] {
                let batch = ffn.batch(&tensor, count, &mut Random(count as u64))?;
                case(&tensor, &ffn, &batch, &format!("{name} {count} tokens"), read, peak)?;
            }
        }
        if stored == Stored::Fp8 {
            attention_bench::run(bench, &tensor, filter, read)?;
        }
        let name = format!("project {stored:?}");
        if name.contains(filter) || filter.contains("tensor") {
            projections(bench, &tensor, (stored, false), read, peak)?;
        }
        if stored == Stored::Fp8 && ("project groups".contains(filter) || filter.contains("tensor")) {
            projections(bench, &tensor, (stored, true), read, peak)?;
        }
    }
    Ok(())
}

fn case(tensor: &Tensor, ffn: &Ffn, batch: &Batch, name: &str, read: f64, peak: f64) -> Result<(), CudaError> {
    let one = 3 * ffn.inner * HIDDEN;
    let shared = usize::from(ffn.shares);
    let experts = (ffn.held + shared).min(batch.routed + shared);
    let bytes = (experts * one * ffn.stored.bytes()) as f64;
    let flops = 2.0 * (batch.routed + shared * batch.count) as f64 * one as f64;
    let floor = (bytes / read).max(flops / peak) * 1e6;
    let stream = tensor.ops.stream();
    let us = measure(stream, 4, |_, _: &Stream| ffn.enqueue(tensor, batch, None))?;
    let mut parts = String::new();
    for (step, part) in STEPS.iter().enumerate() {
        let us = measure(stream, 4, |_, _: &Stream| ffn.enqueue(tensor, batch, Some(step)))?;
        parts += &format!(" {part} {us:.1}");
    }
    println!(
        "{name} ({} routed): {us:.1} us, floor {floor:.1} (bytes {:.1}, FLOPs {:.1}), {:.2} x the floor;{parts}",
        batch.routed,
        bytes / read * 1e6,
        flops / peak * 1e6,
        us / floor
    );
    Ok(())
}

fn projections(
    bench: &Bench,
    tensor: &Tensor,
    (stored, grouped): (Stored, bool),
    read: f64,
    peak: f64,
) -> Result<(), CudaError> {
    let shapes = [(QUERY_RANK + 512, HIDDEN), (ATTENTION, QUERY_RANK), (HIDDEN, ATTENTION)];
    // Two sets of 169 MB and more: none of it is in L2 when its turn comes.
    let mut sets = Vec::new();
    for set in 0..2 {
        let one = |index: usize| {
            matrices(bench, tensor, (1, shapes[index].0, shapes[index].1), stored, 20 + 3 * set + index as u64)
        };
        sets.push([one(0)?, one(1)?, one(2)?]);
    }
    for count in [64, 128, 256, 512] {
        let mut random = Random(count as u64);
        let mut inputs = Vec::new();
        for (outputs, width) in shapes {
            let x = rows(tensor, count * width, &mut random)?;
            let room = if grouped { tensor.grouped(count, width)? } else { tensor.narrowed(count, width, stored)? };
            inputs.push((x, room, tensor.room::<f32>(count * outputs)?));
        }
        let enqueue = |set: usize, index: usize, narrows: bool| {
            let (x, narrowed, y) = &inputs[index];
            if narrows {
                tensor.ops.narrow(x, count, None, None, narrowed)?;
            }
            tensor.ops.project(narrowed, count, &sets[set % 2][index], y, false)
        };
        let floor = |index: usize| {
            let elements = (shapes[index].0 * shapes[index].1) as f64;
            (elements * stored.bytes() as f64 / read).max(2.0 * count as f64 * elements / peak) * 1e6
        };
        let stream = tensor.ops.stream();
        let all = measure(stream, 8, |call, _| (0..3).try_for_each(|index| enqueue(call, index, true)))?;
        let bare = measure(stream, 8, |call, _| (0..3).try_for_each(|index| enqueue(call, index, false)))?;
        let whole: f64 = (0..3).map(floor).sum();
        let mut parts = String::new();
        for (index, (outputs, width)) in shapes.iter().enumerate() {
            let us = measure(stream, 8, |call, _| enqueue(call, index, false))?;
            parts += &format!(" {width}->{outputs} {us:.1} of {:.1}", floor(index));
        }
        println!(
            "project {stored:?}{} {count} tokens, all three: {all:.1} us with quantise ({:.2} of the roofline {whole:.1}), {bare:.1} without \
             ({:.2});{parts}",
            if grouped { " in groups" } else { "" },
            whole / all,
            whole / bare
        );
    }
    Ok(())
}
