//! Shares of a card: where their work runs, and what attention and FFN at once give against the same work one after the other.

use crate::bench::{Bench, measure};
use crate::data::Random;
use crate::problem::{PAGE, Problem, Scratch, step_bytes};
use crate::tensor::Tensor;
use crate::tensor_bench::{ATTENTION, Batch, Ffn, HIDDEN, QUERY_RANK, matrices, rows};
use rally_cuda::graph::CudaGraph;
use rally_cuda::machine::{Machine, Machines};
use rally_cuda::memory::{Arena, DeviceSlice};
use rally_cuda::mfa::{HEAD_DIM, KvPages, MfaCall, MfaDecode};
use rally_cuda::mfa_append::{MfaAppend, Projected};
use rally_cuda::module::{Order, Shape};
use rally_cuda::ops::{self, Paged, Stored};
use rally_cuda::shares::Wanted;
use rally_cuda::source;
use rally_cuda::stream::{Event, Stream};
use rally_cuda::tensor::{Narrowed, Norm, TensorMatrix};
use rally_cuda::{CudaError, Device};
use std::ffi::c_void;
use std::sync::Arc;

/// Columns of an expert that a TP8 shard holds.
const INNER: usize = 640;
/// Layers that a measured graph goes through.
const LAYERS: usize = 12;

/// Runs the rows whose names contain `filter`; false if a share's work left it.
pub fn run(device: &Arc<Device>, bench: &mut Bench, filter: &str) -> Result<bool, CudaError> {
    let mut stays = true;
    for sizes in [
        vec![48, 84],
        vec![24, 108],
        vec![108, 24],
        vec![8, 124],
        vec![84, 48],
        vec![132],
        vec![40],
        vec![64, 32, 36],
        vec![36, 32, 64],
        vec![48, 40, 32],
        vec![40, 40, 40],
        vec![32, 32, 32, 32],
    ] {
        if "places".contains(filter) || filter.is_empty() {
            stays &= places(device, &sizes)?;
        }
    }
    for context in [4, 32, 1, 16, 8] {
        for batch in [64, 128, 256] {
            let name = format!("map {batch} x {context}K");
            if name.contains(filter) {
                map(bench, &name, batch, context * 1024)?;
            }
        }
    }
    Ok(stays)
}

fn open(sms: &[Option<u32>]) -> Result<Vec<Arc<dyn Machine>>, CudaError> {
    let wanted: Vec<Wanted> = sms.iter().map(|sms| Wanted { card: Some(0), sms: *sms }).collect();
    Machines::Cards.open_all(&wanted).map_err(|(_, error)| error)
}

/// Multiprocessors that blocks of each share ran on, launched one by one and from a graph.
fn places(device: &Arc<Device>, sizes: &[u32]) -> Result<bool, CudaError> {
    let wanted: Vec<Option<u32>> = sizes.iter().copied().map(Some).collect();
    let machines = match open(&wanted) {
        Ok(machines) => machines,
        Err(error) => {
            println!("shares {sizes:?}: {error}");
            return Ok(false);
        }
    };
    let kernel = device.load(&source::MEASURE)?.kernel("note_places", 0)?;
    let mut ran = Vec::new();
    for machine in &machines {
        let (_, stream) = machine.card().expect("a card");
        for captured in [false, true] {
            let to: DeviceSlice<u32> = machine.allocate(4096)?.take(1024)?;
            machine.fill(&to.as_bytes(), 0)?;
            let launch = |stream: &Stream| {
                let (mut address, mut ns) = (to.address(), 200_000u64);
                let mut arguments: [*mut c_void; 2] = [(&raw mut address).cast(), (&raw mut ns).cast()];
                let shape = Shape { grid: (1024, 1), block: 1024, order: Order::After };
                // SAFETY: the kernel takes an address of as many words as a card has multiprocessors, and a time.
                unsafe { kernel.launch(stream, shape, &mut arguments) }
            };
            if captured {
                CudaGraph::capture(stream, launch)?.launch(stream)?;
            } else {
                launch(stream)?;
            }
            let mut words = vec![0u32; 1024];
            stream.read(&to, &mut words)?;
            ran.push((0..1024).filter(|place| words[*place] > 0).collect::<Vec<usize>>());
        }
    }
    let counts: Vec<usize> = ran.iter().map(Vec::len).collect();
    let shared =
        (0..sizes.len()).any(|a| (0..a).any(|b| ran[2 * a + 1].iter().any(|place| ran[2 * b + 1].contains(place))));
    let right = counts.iter().enumerate().all(|(index, count)| *count == sizes[index / 2] as usize);
    println!(
        "shares {sizes:?}: ran on {counts:?} multiprocessors (one by one, from a graph), {}",
        if shared { "SOME SHARED" } else { "none shared" }
    );
    Ok(right && !shared)
}

/// A whole attention layer with fp8 projections and fp8 KV.
struct Attention {
    call: MfaCall,
    append: MfaAppend,
    count: usize,
    step_q: DeviceSlice<u16>,
    step_out: DeviceSlice<u16>,
    paged: Paged,
    pools: KvPages,
    table: DeviceSlice<f32>,
    matrices: [TensorMatrix; 5],
    norms: [DeviceSlice<f32>; 2],
    x: DeviceSlice<f32>,
    wide: [DeviceSlice<f32>; 4],
    narrowed: [Narrowed; 3],
}

impl Attention {
    fn new(bench: &Bench, tensor: &Tensor, count: usize, context: usize) -> Result<Attention, CudaError> {
        let (stored, stream, device) = (Stored::Fp8, tensor.ops.stream(), tensor.ops.device());
        let mut random = Random(context as u64);
        let pages = count * context / PAGE;
        let problem = Problem::new(&vec![context as u32; count], &random.shuffled(pages));
        let kv = ops::KvPages::new(&*tensor.machine, pages, PAGE, HEAD_DIM, stored)?;
        let (_, pools) = kv.for_mfa()?;
        if let KvPages::Fp8 { k, v, scales } = &pools {
            bench.fill_kernel("fill_e4m3", k, k.len() as u64, 31)?;
            bench.fill_kernel("fill_e4m3", v, v.len() as u64, 32)?;
            bench.fill_kernel("fill_scales", scales, scales.len() as u64, 33)?;
            bench.synchronize()?;
        }
        let scratch = Scratch::new(device, stream)?;
        let mut arena = Arena::new(device, step_bytes(count, pages, 132) + 4096)?;
        let step = problem.upload(stream, &mut arena, &scratch, true)?;
        let first: Vec<i32> = problem.rows.iter().map(|row| row.first as i32).collect();
        let matrix = |outputs, inputs, seed| matrices(bench, tensor, (1, outputs, inputs), stored, seed);
        let buffer = |width: usize| tensor.room::<f32>(count * width);
        let narrowed = |width| tensor.narrowed(count, width, stored);
        Ok(Attention {
            call: MfaDecode::new(device, pools.clone())?.prepare(step.clone())?,
            append: MfaAppend::new(device)?,
            count,
            paged: Paged {
                positions: tensor.put(&vec![context as i32 - 1; count])?,
                first: tensor.put(&first)?,
                pages: step.pages.clone(),
            },
            step_q: step.q,
            step_out: step.out,
            pools,
            table: rows(tensor, context * HEAD_DIM, &mut random)?,
            matrices: [
                matrix(QUERY_RANK, HIDDEN, 41)?,
                matrix(HEAD_DIM, HIDDEN, 43)?,
                matrix(HEAD_DIM, HIDDEN, 44)?,
                matrix(ATTENTION, QUERY_RANK, 42)?,
                matrix(HIDDEN, ATTENTION, 45)?,
            ],
            norms: [rows(tensor, HIDDEN, &mut random)?, rows(tensor, QUERY_RANK, &mut random)?],
            x: rows(tensor, count * HIDDEN, &mut random)?,
            wide: [buffer(QUERY_RANK)?, buffer(ATTENTION)?, buffer(HEAD_DIM)?, buffer(HEAD_DIM)?],
            narrowed: [narrowed(HIDDEN)?, narrowed(QUERY_RANK)?, narrowed(ATTENTION)?],
        })
    }

    fn enqueue(&self, tensor: &Tensor) -> Result<(), CudaError> {
        let (ops, stream, count) = (&tensor.ops, tensor.ops.stream(), self.count);
        let ([c, q, k, v], [normed, ranked, out]) = (&self.wide, &self.narrowed);
        let [q_proj, k_proj, v_proj, wq, o_proj] = &self.matrices;
        let norm = |weight| Some(Norm { weight, eps: 1e-5, normed: None });
        ops.narrow(&self.x, count, norm(&self.norms[0]), None, normed)?;
        ops.project(normed, count, q_proj, c, false)?;
        ops.project(normed, count, k_proj, k, false)?;
        ops.project(normed, count, v_proj, v, false)?;
        ops.narrow(c, count, norm(&self.norms[1]), None, ranked)?;
        ops.project(ranked, count, wq, q, false)?;
        self.append.enqueue(
            stream,
            count,
            Projected { q, k, v },
            &self.table,
            &self.paged,
            &self.pools,
            &self.step_q,
        )?;
        self.call.enqueue(stream)?;
        ops.narrow_bf16(&self.step_out, count, out)?;
        ops.project(out, count, o_proj, &self.x, true)
    }
}

/// Microseconds a layer of two graphs that begin together, until both have ended.
fn both(a: (&Stream, &CudaGraph), f: (&Stream, &CudaGraph)) -> Result<f64, CudaError> {
    let device = a.0.device();
    let (from, begun, ended, to) =
        (Event::timed(device)?, Event::new(device)?, Event::new(device)?, Event::timed(device)?);
    let once = || {
        a.0.record(&from)?;
        a.0.record(&begun)?;
        f.0.wait(&begun)?;
        a.1.launch(a.0)?;
        f.1.launch(f.0)?;
        f.0.record(&ended)?;
        a.0.wait(&ended)?;
        a.0.record(&to)?;
        to.synchronize()?;
        to.us_since(&from)
    };
    once()?;
    let mut times = (0..7).map(|_| once()).collect::<Result<Vec<f64>, CudaError>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2] / LAYERS as f64)
}

/// One line a split: attention of `batch` sequences beside the TP8 shard of the experts for as many tokens, as two micro-batches have it
/// that take turns, against one micro-batch of all rows, and against the two one after the other, on the whole card.
fn map(bench: &mut Bench, name: &str, batch: usize, context: usize) -> Result<(), CudaError> {
    let whole = Tensor::on(open(&[None])?.remove(0))?.expect("Hopper");
    let weights = |count, outputs, inputs, seed| matrices(bench, &whole, (count, outputs, inputs), Stored::Fp8, seed);
    let ffn = Ffn {
        shares: true,
        held: 48,
        inner: INNER,
        gate: weights(49, INNER, HIDDEN, 11)?,
        up: weights(49, INNER, HIDDEN, 12)?,
        down: weights(49, HIDDEN, INNER, 13)?,
        stored: Stored::Fp8,
    };
    let at_once = |tensor: &Tensor, count: usize| -> Result<(f64, f64), CudaError> {
        let attention = Attention::new(bench, tensor, count, context)?;
        let rows = ffn.batch(tensor, count, &mut Random(count as u64))?;
        let stream = tensor.ops.stream();
        let a = measure(stream, 4, |_, _| attention.enqueue(tensor))?;
        Ok((a, measure(stream, 4, |_, _| ffn.enqueue(tensor, &rows, None))?))
    };
    let (a, f) = at_once(&whole, batch)?;
    let (a2, f2) = at_once(&whole, 2 * batch)?;
    let (halves, one) = (2.0 * (a + f), a2 + f2);
    println!(
        "{name}: A {a:.0} F {f:.0} us; {} rows at once A {a2:.0} F {f2:.0}; whole card, two after another {halves:.0}, one micro-batch {one:.0}",
        2 * batch
    );
    for sms in [None, Some(24), Some(48), Some(64), Some(84), Some(108)] {
        let mut machines = open(&[sms, sms.map(|sms| 132 - sms)])?;
        let second = Tensor::on(machines.remove(1))?.expect("Hopper");
        let first = Tensor::on(machines.remove(0))?.expect("Hopper");
        let attention = Attention::new(bench, &first, batch, context)?;
        let rows: Batch = ffn.batch(&second, batch, &mut Random(batch as u64))?;
        let (left, right) = (first.ops.stream(), second.ops.stream());
        let a = CudaGraph::capture(left, |_| (0..LAYERS).try_for_each(|_| attention.enqueue(&first)))?;
        let f = CudaGraph::capture(right, |_| (0..LAYERS).try_for_each(|_| ffn.enqueue(&second, &rows, None)))?;
        let alone_a = measure(left, 4, |_, _| attention.enqueue(&first))?;
        let alone_f = measure(right, 4, |_, _| ffn.enqueue(&second, &rows, None))?;
        let slot = both((left, &a), (right, &f))?;
        let split = sms.map_or("both on all".to_owned(), |sms| format!("{sms}|{}", 132 - sms));
        println!(
            "  {split}: alone A {alone_a:.0} F {alone_f:.0}; at once {slot:.0} us, two micro-batches {:.0}: {:.2} x two after another, {:.2} x one",
            2.0 * slot,
            halves / (2.0 * slot),
            one / (2.0 * slot)
        );
    }
    Ok(())
}
