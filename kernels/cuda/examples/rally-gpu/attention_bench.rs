//! What an attention stage of Step-3 takes: all of its kernels in one CUDA graph, and what each of them adds.

use crate::bench::{Bench, measure};
use crate::data::Random;
use crate::problem::{PAGE, Problem, Scratch, step_bytes};
use crate::tensor::Tensor;
use crate::tensor_bench::{ATTENTION, HIDDEN, QUERY_RANK, matrices, rows};
use rally_cuda::CudaError;
use rally_cuda::memory::{Arena, DeviceSlice};
use rally_cuda::mfa::{self, HEAD_DIM, MfaCall, MfaDecode};
use rally_cuda::mfa_append::Appended;
use rally_cuda::ops::{KvPages, Paged, Stored};
use rally_cuda::tensor::{Angles, Narrowed, Norm, TensorMatrix};

/// Sets of weights that calls go round: together they are larger than L2.
const SETS: usize = 4;

/// Runs the cases whose names contain `filter`.
pub fn run(bench: &Bench, tensor: &Tensor, filter: &str, read: f64) -> Result<(), CudaError> {
    let cases = [
        ("a stage", 128, 4, Stored::Fp8, ATTENTION / 8),
        ("a stage", 128, 4, Stored::Fp8, ATTENTION),
        ("layer", 64, 8, Stored::Bf16, ATTENTION),
        ("layer", 64, 32, Stored::Bf16, ATTENTION),
    ];
    for (name, count, thousand, kv, out) in cases {
        if name.contains(filter) || filter.contains("tensor") {
            let layer = Layer::new(bench, tensor, (count, thousand * 1024), kv, out)?;
            layer.case(&format!("{name} {count} x {thousand}K, {kv:?} KV, o_proj of {out}"), read)?;
        }
    }
    Ok(())
}

struct Weights {
    /// q's down-projection, k's, v's.
    of_hidden: [TensorMatrix; 3],
    wq: TensorMatrix,
    o_proj: TensorMatrix,
}

struct Layer<'a> {
    tensor: &'a Tensor,
    count: usize,
    context: usize,
    stored: Stored,
    out_width: usize,
    sets: Vec<Weights>,
    norms: [DeviceSlice<f32>; 3],
    x: DeviceSlice<f32>,
    u: DeviceSlice<f32>,
    compressed: DeviceSlice<f32>,
    k: DeviceSlice<f32>,
    v: DeviceSlice<f32>,
    normed: Narrowed,
    ranked: Narrowed,
    out: Narrowed,
    table: DeviceSlice<f32>,
    paged: Paged,
    pools: mfa::KvPages,
    rotated: DeviceSlice<u16>,
    attended: DeviceSlice<u16>,
    call: MfaCall,
    /// Keeps what the call writes to.
    _scratch: (Scratch, Arena),
}

/// What the stage enqueues, in order.
const STEPS: [&str; 8] =
    ["norm", "q, k, v", "norm of q and append", "wq and rope", "core", "narrow", "o_proj", "norm to u"];
const CORE: usize = 4;

impl<'a> Layer<'a> {
    fn new(
        bench: &Bench,
        tensor: &'a Tensor,
        (count, context): (usize, usize),
        stored: Stored,
        out_width: usize,
    ) -> Result<Layer<'a>, CudaError> {
        let (device, stream) = (tensor.ops.device(), tensor.ops.stream());
        let mut random = Random(context as u64);
        let pages = count * context / PAGE;
        let problem = Problem::new(&vec![context as u32; count], &random.shuffled(pages));
        let (_, pools) = KvPages::new(&*tensor.machine, pages, PAGE, HEAD_DIM, stored)?.for_mfa()?;
        match &pools {
            mfa::KvPages::Bf16 { k, v } => {
                bench.fill_kernel("fill_bf16", k, k.len() as u64, 31)?;
                bench.fill_kernel("fill_bf16", v, v.len() as u64, 32)?;
            }
            mfa::KvPages::Fp8 { k, v, scales } => {
                bench.fill_kernel("fill_e4m3", k, k.len() as u64, 31)?;
                bench.fill_kernel("fill_e4m3", v, v.len() as u64, 32)?;
                bench.fill_kernel("fill_scales", scales, scales.len() as u64, 33)?;
            }
        }
        bench.synchronize()?;
        let scratch = Scratch::new(device, stream)?;
        let ctas = device.card().multiprocessors as usize;
        let mut arena = Arena::new(device, step_bytes(count, pages, ctas) + 4096)?;
        let step = problem.upload(stream, &mut arena, &scratch, stored == Stored::Fp8)?;
        let first: Vec<i32> = problem.rows.iter().map(|row| row.first as i32).collect();
        let set = |set: usize| -> Result<Weights, CudaError> {
            let matrix = |outputs, inputs, seed: usize| {
                matrices(bench, tensor, (1, outputs, inputs), Stored::Fp8, (seed + 8 * set) as u64)
            };
            Ok(Weights {
                of_hidden: [
                    matrix(QUERY_RANK, HIDDEN, 41)?,
                    matrix(HEAD_DIM, HIDDEN, 43)?,
                    matrix(HEAD_DIM, HIDDEN, 44)?,
                ],
                wq: matrix(ATTENTION, QUERY_RANK, 42)?,
                o_proj: matrix(HIDDEN, out_width, 45)?,
            })
        };
        let buffer = |width: usize| tensor.room::<f32>(count * width);
        let narrowed = |width| tensor.narrowed(count, width, Stored::Fp8);
        Ok(Layer {
            tensor,
            count,
            context,
            stored,
            out_width,
            sets: (0..SETS).map(set).collect::<Result<_, _>>()?,
            norms: [
                rows(tensor, HIDDEN, &mut random)?,
                rows(tensor, QUERY_RANK, &mut random)?,
                rows(tensor, HIDDEN, &mut random)?,
            ],
            x: rows(tensor, count * HIDDEN, &mut random)?,
            u: buffer(HIDDEN)?,
            compressed: buffer(QUERY_RANK)?,
            k: buffer(HEAD_DIM)?,
            v: buffer(HEAD_DIM)?,
            normed: narrowed(HIDDEN)?,
            ranked: narrowed(QUERY_RANK)?,
            out: narrowed(out_width)?,
            table: rows(tensor, context * HEAD_DIM, &mut random)?,
            paged: Paged {
                positions: tensor.put(&vec![context as i32 - 1; count])?,
                first: tensor.put(&first)?,
                pages: step.pages.clone(),
            },
            rotated: step.q.clone(),
            attended: step.out.clone(),
            call: MfaDecode::new(device, pools.clone())?.prepare(step)?,
            pools,
            _scratch: (scratch, arena),
        })
    }

    fn enqueue(&self, set: usize, step: usize) -> Result<(), CudaError> {
        let (ops, count) = (&self.tensor.ops, self.count);
        let weights = &self.sets[set % SETS];
        let norm = |index: usize, normed| Some(Norm { weight: &self.norms[index], eps: 1e-5, normed });
        match step {
            0 => ops.narrow(&self.x, count, norm(0, None), None, &self.normed),
            1 => {
                let [q, k, v] = &weights.of_hidden;
                ops.project_all(&self.normed, count, &[(q, &self.compressed), (k, &self.k), (v, &self.v)], false)
            }
            2 => {
                let (table, at, kv) = (&self.table, &self.paged, &self.pools);
                let keys = Appended { k: &self.k, v: &self.v, table, at, kv };
                let norm = Norm { weight: &self.norms[1], eps: 1e-5, normed: None };
                ops.narrow_appending(&self.compressed, count, norm, &self.ranked, keys)
            }
            3 => {
                let angles = Angles { table: &self.table, positions: &self.paged.positions };
                ops.project_rotated(&self.ranked, count, &weights.wq, angles, &self.rotated)
            }
            CORE => self.call.enqueue(ops.stream()),
            5 => ops.narrow_bf16(&self.attended.part(0, count * self.out_width), count, &self.out),
            6 => ops.project(&self.out, count, &weights.o_proj, &self.x, true),
            _ => ops.narrow(&self.x, count, norm(2, Some(&self.u)), None, &self.normed),
        }
    }

    /// Microseconds of the steps that `takes`.
    fn measured(&self, takes: impl Fn(usize) -> bool) -> Result<f64, CudaError> {
        let steps: Vec<usize> = (0..STEPS.len()).filter(|step| takes(*step)).collect();
        measure(self.tensor.ops.stream(), 2 * SETS, |call, _| {
            steps.iter().try_for_each(|step| self.enqueue(call, *step))
        })
    }

    fn case(&self, name: &str, read: f64) -> Result<(), CudaError> {
        let kv = self.count * self.context * HEAD_DIM * 2 * self.stored.bytes();
        let weights = (QUERY_RANK + 2 * HEAD_DIM) * HIDDEN + ATTENTION * QUERY_RANK + HIDDEN * self.out_width;
        let floor = (kv + weights) as f64 / read * 1e6;
        let whole = self.measured(|_| true)?;
        let (core, rest) = (self.measured(|step| step == CORE)?, self.measured(|step| step != CORE)?);
        let mut parts = String::new();
        let mut before = 0.0;
        for (index, step) in STEPS.iter().enumerate() {
            let (alone, until) = (self.measured(|at| at == index)?, self.measured(|at| at <= index)?);
            parts += &format!("; {step} {alone:.1} ({:.1})", until - before);
            before = until;
        }
        println!(
            "{name}: {whole:.1} us, floor {floor:.1}, {:.2} x the floor; core {core:.1}, all else {rest:.1}; each alone (and what it \
             adds to those before){parts}",
            whole / floor
        );
        Ok(())
    }
}
