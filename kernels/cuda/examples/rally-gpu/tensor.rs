//! Tests of the tensor-core products against f64 on the same narrowed inputs: random shapes, ragged experts, poisoned outputs.

use crate::data::{Random, from_bf16, from_e4m3, to_bf16};
use crate::problem::PAGE;
use crate::reference;
use rally_cuda::CudaError;
use rally_cuda::machine::{Machine, Machines};
use rally_cuda::memory::{DeviceSlice, Plain};
use rally_cuda::mfa::{self, HEAD_DIM, HEADS};
use rally_cuda::mfa_append::{Appended, MfaAppend, Projected};
use rally_cuda::ops::{KvPages, Ops, Paged, Routing, Stored, Weights};
use rally_cuda::shares::Wanted;
use rally_cuda::tensor::{Angles, Narrowed, Norm, Slots, TensorMatrix, TensorOps};
use rayon::prelude::*;
use std::sync::Arc;

const GROUP: usize = 128;

/// Kernels, and a machine for data.
pub struct Tensor {
    pub machine: Arc<dyn Machine>,
    pub ops: TensorOps,
}

impl Tensor {
    pub fn open() -> Result<Option<Tensor>, CudaError> {
        Tensor::on(Machines::Cards.open(0)?)
    }

    pub fn on(machine: Arc<dyn Machine>) -> Result<Option<Tensor>, CudaError> {
        let (device, stream) = machine.card().expect("a card");
        let ops = TensorOps::new(device, stream)?;
        Ok(ops.map(|ops| Tensor { ops, machine }))
    }

    pub fn put<T: Plain>(&self, values: &[T]) -> Result<DeviceSlice<T>, CudaError> {
        let slice = self.machine.allocate(size_of_val(values))?.take(values.len())?;
        self.ops.stream().write(values, &slice)?;
        Ok(slice)
    }

    /// Poisoned room.
    pub fn room<T: Plain>(&self, count: usize) -> Result<DeviceSlice<T>, CudaError> {
        let slice = self.machine.allocate(count * size_of::<T>())?.take(count)?;
        self.ops.stream().fill(&slice, 0xff)?;
        Ok(slice)
    }

    fn got<T: Plain + Default>(&self, slice: &DeviceSlice<T>) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); slice.len()];
        self.ops.stream().read(slice, &mut values)?;
        Ok(values)
    }

    pub fn narrowed(&self, slots: usize, width: usize, stored: Stored) -> Result<Narrowed, CudaError> {
        let rows = Narrowed::new(self.ops.device(), slots, width, stored)?;
        let (codes, scales) = rows.parts();
        self.ops.stream().fill(codes, 0xff)?;
        self.ops.stream().fill(scales, 0xff)?;
        Ok(rows)
    }

    /// The same with a scale each 128 elements.
    pub fn grouped(&self, slots: usize, width: usize) -> Result<Narrowed, CudaError> {
        let rows = Narrowed::grouped_on(&*self.machine, slots, width)?;
        let (codes, scales) = rows.parts();
        self.ops.stream().fill(codes, 0xff)?;
        self.ops.stream().fill(scales, 0xff)?;
        Ok(rows)
    }

    /// Narrowed rows as numbers; `grouped`: with a scale each 128 elements.
    fn values(&self, rows: &Narrowed, width: usize, stored: Stored, grouped: bool) -> Result<Vec<f64>, CudaError> {
        let (codes, scales) = rows.parts();
        let (codes, scales, slots) = (self.got(codes)?, self.got(scales)?, rows.slots());
        let group = |at: usize| if grouped { at % width / GROUP } else { 0 };
        Ok(match stored {
            Stored::Fp8 => (0..slots * width)
                .map(|at| from_e4m3(codes[at]) * f64::from(scales[group(at) * slots + at / width]))
                .collect(),
            _ => codes.chunks(2).map(|two| from_bf16(u16::from_le_bytes([two[0], two[1]]))).collect(),
        })
    }
}

/// Random matrices, and their values: `[count, rows, cols]`.
struct Matrices {
    on_device: Weights,
    values: Vec<f64>,
    rows: usize,
    cols: usize,
}

impl Matrices {
    fn new(
        tensor: &Tensor,
        (count, rows, cols): (usize, usize, usize),
        stored: Stored,
        random: &mut Random,
    ) -> Result<Matrices, CudaError> {
        let groups = cols.div_ceil(GROUP);
        let mut bytes = Vec::with_capacity(count * rows * cols * stored.bytes());
        let mut values = Vec::with_capacity(count * rows * cols);
        let tiles = if stored == Stored::Fp8 { rows.div_ceil(GROUP) * groups } else { 0 };
        let scales: Vec<f32> = (0..count * tiles).map(|_| (0.5 + random.unit() as f32) / 448.0).collect();
        for at in 0..count * rows * cols {
            let (row, col) = (at / cols % rows, at % cols);
            if stored == Stored::Fp8 {
                // Any number there is but NaN.
                let code = random.below(256) as u8;
                let code = if code & 127 == 127 { code ^ 1 } else { code };
                let scale = scales[at / cols / rows * tiles + row / GROUP * groups + col / GROUP];
                bytes.push(code);
                values.push(from_e4m3(code) * f64::from(scale));
            } else {
                let x = to_bf16(random.normal());
                bytes.extend(x.to_le_bytes());
                values.push(from_bf16(x));
            }
        }
        let on_device =
            Weights::over(&*tensor.machine, (count, rows, cols), stored, tensor.put(&bytes)?, tensor.put(&scales)?)?;
        Ok(Matrices { on_device, values, rows, cols })
    }

    fn tensor(&self, tensor: &Tensor) -> Result<TensorMatrix, CudaError> {
        Ok(TensorMatrix::of(tensor.ops.device(), &self.on_device)?.expect("shapes of tests fit"))
    }

    /// x · matrixᵀ.
    fn times(&self, index: usize, x: &[f64]) -> Vec<f64> {
        let matrix = &self.values[index * self.rows * self.cols..][..self.rows * self.cols];
        // Sums side by side, so that the processor need not wait for each addition.
        let dot = |row: &[f64]| -> f64 {
            let mut sums = [0f64; 16];
            for (w, x) in row.chunks(16).zip(x.chunks(16)) {
                sums.iter_mut().zip(w.iter().zip(x)).for_each(|(sum, (w, x))| *sum += w * x);
            }
            sums.iter().sum()
        };
        matrix.par_chunks(self.cols).map(dot).collect()
    }
}

fn both() -> [Stored; 2] {
    [Stored::Fp8, Stored::Bf16]
}

/// Runs tests whose names contain `filter`, each reported with its worst error and its bound.
pub fn run(filter: &str, random: &mut Random, report: &mut dyn FnMut(&str, f64, f64)) -> Result<(), CudaError> {
    let Some(tensor) = Tensor::open()? else { return Ok(()) };
    for stored in both() {
        let name = format!("rope and append {stored:?}");
        if name.contains(filter) {
            report(&name, append(&tensor, stored, random)?, 0.0);
        }
        for rows in [3, 70, 150] {
            let name = format!("tensor project {stored:?} {rows} rows, rotated; keys appended beside a norm");
            if name.contains(filter) {
                report(&name, rotated(&tensor, rows, stored, random)?, 0.0);
            }
        }
        for (rows, width, normed) in [(3, 128, false), (5, 2048, true), (2, 7168, true), (4, 16384, false)] {
            let name = format!("tensor narrow {stored:?} {rows}x{width}{}", if normed { " normed" } else { "" });
            if name.contains(filter) {
                let bound = if stored == Stored::Fp8 { 3e-2 } else { 2.5e-3 };
                report(&name, narrow(&tensor, rows, width, normed, (stored, false), random)?, bound);
            }
            let name = format!("tensor narrow groups {rows}x{width}{}", if normed { " normed" } else { "" });
            if stored == Stored::Fp8 && name.contains(filter) {
                report(&name, narrow(&tensor, rows, width, normed, (stored, true), random)?, 3e-2);
            }
        }
        for (rows, inputs, outputs) in [
            (1, 128, 128),
            (16, 256, 384),
            (17, 640, 300),
            (32, 128, 5),
            (64, 1024, 256),
            (65, 384, 640),
            (80, 2048, 129),
            (97, 7168, 256),
            (128, 256, 17000),
            (160, 512, 128),
            (161, 1280, 512),
            (256, 16384, 256),
            (330, 2048, 384),
            (650, 1024, 256),
        ] {
            let name = format!("tensor project {stored:?} {rows}x{inputs}x{outputs}");
            if name.contains(filter) {
                let bound = if stored == Stored::Fp8 { 2e-3 } else { 1e-5 };
                report(&name, project(&tensor, (rows, inputs, outputs), (stored, false), random)?, bound);
            }
            let name = format!("tensor project groups {rows}x{inputs}x{outputs}");
            if stored == Stored::Fp8 && name.contains(filter) {
                report(&name, project(&tensor, (rows, inputs, outputs), (stored, true), random)?, 1e-6);
            }
        }
        for (rows, inputs, outputs) in
            [(5, 2048, [300, 128, 72]), (100, 7168, [640, 256, 256]), (150, 256, [64, 24, 513])]
        {
            let name = format!("tensor project {stored:?} {rows}x{inputs} by three");
            if name.contains(filter) {
                report(&name, project_all(&tensor, (rows, inputs), outputs, stored, random)?, 2e-3);
            }
        }
        let name = format!("tensor project {stored:?} on shares of a card");
        if name.contains(filter) {
            report(&name, on_shares(&tensor, stored, random)?, 0.0);
        }
        for case in CASES {
            let name = format!("tensor experts {stored:?} {}", case.name);
            if name.contains(filter) {
                experts(&tensor, &case, stored, random, &name, report)?;
            }
        }
    }
    Ok(())
}

fn narrow(
    tensor: &Tensor,
    rows: usize,
    width: usize,
    normed: bool,
    (stored, grouped): (Stored, bool),
    random: &mut Random,
) -> Result<f64, CudaError> {
    let x: Vec<f32> = (0..rows * width).map(|_| random.normal() * 3.0).collect();
    let weight: Vec<f32> = (0..width).map(|_| random.normal()).collect();
    let want: Vec<f64> = x
        .chunks(width)
        .flat_map(|row| {
            let square = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            let factor = if normed { 1.0 / (square + 1e-5).sqrt() } else { 1.0 };
            let value = |(x, w): (&f32, &f32)| f64::from(*x) * factor * if normed { f64::from(*w) } else { 1.0 };
            row.iter().zip(&weight).map(value).collect::<Vec<_>>()
        })
        .collect();
    let room = if grouped { tensor.grouped(rows, width)? } else { tensor.narrowed(rows, width, stored)? };
    let (x, weight, to) = (tensor.put(&x)?, tensor.put(&weight)?, room);
    let also = tensor.room::<f32>(rows * width)?;
    let norm = Norm { weight: &weight, eps: 1e-5, normed: Some(&also) };
    tensor.ops.narrow(&x, rows, normed.then_some(norm), None, &to)?;
    let got = tensor.values(&to, width, stored, grouped)?;
    let exact: Vec<f64> = tensor.got(&also)?.iter().map(|x| f64::from(*x)).collect();
    // What is not narrowed is exact but for f32.
    if normed {
        let off = reference::error(&exact, &want);
        if off.is_nan() || off > 1e-6 {
            return Ok(f64::NAN);
        }
    }
    Ok(worst(&got[..rows * width], &want, width))
}

/// The largest error of a row.
fn worst(got: &[f64], want: &[f64], width: usize) -> f64 {
    let mut largest = 0f64;
    for (row, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let error = reference::error(got, want);
        if error.is_nan() || error > 0.1 {
            let is_near = |i: &usize| (got[*i] - want[*i]).abs() <= 0.1 * want[*i].abs() + 1e-3;
            let off = width - (0..width).filter(is_near).count();
            let at = (0..width).find(|i| !is_near(i)).unwrap_or(0);
            println!(
                "  row {row}: error {error:.2e}, {off} of {width} off, the first {at}: {} for {}",
                got[at], want[at]
            );
            return f64::NAN;
        }
        largest = largest.max(error);
    }
    largest
}

fn project(
    tensor: &Tensor,
    (rows, inputs, outputs): (usize, usize, usize),
    (stored, grouped): (Stored, bool),
    random: &mut Random,
) -> Result<f64, CudaError> {
    let w = Matrices::new(tensor, (1, outputs, inputs), stored, random)?;
    let x: Vec<f32> = (0..rows * inputs).map(|_| random.normal()).collect();
    let room = |rows| if grouped { tensor.grouped(rows, inputs) } else { tensor.narrowed(rows, inputs, stored) };
    let (x, to) = (tensor.put(&x)?, room(rows)?);
    tensor.ops.narrow(&x, rows, None, None, &to)?;
    let before: Vec<f32> = (0..rows * outputs).map(|_| random.normal()).collect();
    let (y, sum) = (tensor.room::<f32>(rows * outputs + 64)?, tensor.put(&before)?);
    let matrix = w.tensor(tensor)?;
    tensor.ops.project(&to, rows, &matrix, &y.part(0, rows * outputs), false)?;
    tensor.ops.project(&to, rows, &matrix, &sum, true)?;
    // The last row in other company has the same bits.
    let alone = room(1)?;
    let last = tensor.room::<f32>(outputs)?;
    tensor.ops.narrow(&x.part((rows - 1) * inputs, inputs), 1, None, None, &alone)?;
    tensor.ops.project(&alone, 1, &matrix, &last, false)?;
    let (narrowed, got) = (tensor.values(&to, inputs, stored, grouped)?, tensor.got(&y)?);
    let want: Vec<f64> = (0..rows).flat_map(|row| w.times(0, &narrowed[row * inputs..][..inputs])).collect();
    let (got, behind) = got.split_at(rows * outputs);
    if behind.iter().any(|x| x.to_bits() != u32::MAX) {
        println!("  written behind the output");
        return Ok(f64::NAN);
    }
    if tensor.got(&last)? != got[(rows - 1) * outputs..] {
        println!("  the last row has other bits alone");
        return Ok(f64::NAN);
    }
    let added = tensor.got(&sum)?;
    if (0..rows * outputs).any(|i| added[i] != before[i] + got[i]) {
        println!("  y += is not y and what was there");
        return Ok(f64::NAN);
    }
    Ok(worst(&got.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), &want, outputs))
}

/// Zero if heads that leave a product rotated, and keys and values that leave beside a norm, have the bits of separate kernels; NaN if not.
fn rotated(tensor: &Tensor, rows: usize, stored: Stored, random: &mut Random) -> Result<f64, CudaError> {
    let (inputs, pages, width, stream) = (256, 9, HEADS * HEAD_DIM, tensor.ops.stream());
    let w = Matrices::new(tensor, (1, width, inputs), stored, random)?.tensor(tensor)?;
    let mut numbers = |count: usize| tensor.put(&(0..count).map(|_| random.normal()).collect::<Vec<f32>>());
    let (x, weight) = (numbers(rows * inputs)?, numbers(inputs)?);
    let (k, v, table) = (numbers(rows * HEAD_DIM)?, numbers(rows * HEAD_DIM)?, numbers(200 * HEAD_DIM)?);
    let norm = Norm { weight: &weight, eps: 1e-5, normed: None };
    let at = Paged {
        positions: tensor.put(&(0..rows as i32).map(|row| row % 3 * 50 + row / 3).collect::<Vec<_>>())?,
        first: tensor.put(&(0..rows as i32).map(|row| row % 3 * 3).collect::<Vec<_>>())?,
        pages: tensor.put(&random.shuffled(pages))?,
    };
    let mut results = Vec::new();
    for is_fused in [false, true] {
        let (_, pools) = KvPages::new(&*tensor.machine, pages, PAGE, HEAD_DIM, stored)?.for_mfa()?;
        let mut all: Vec<DeviceSlice<u8>> = match &pools {
            mfa::KvPages::Bf16 { k, v } => vec![k.as_bytes(), v.as_bytes()],
            mfa::KvPages::Fp8 { k, v, scales } => vec![k.clone(), v.clone(), scales.as_bytes()],
        };
        let (narrowed, rotated) = (tensor.narrowed(rows, inputs, stored)?, tensor.room::<u16>(rows * width)?);
        all.extend([narrowed.parts().0.clone(), narrowed.parts().1.as_bytes(), rotated.as_bytes()]);
        for pool in &all {
            stream.fill(pool, 0xff)?;
        }
        if is_fused {
            let keys = Appended { k: &k, v: &v, table: &table, at: &at, kv: &pools };
            tensor.ops.narrow_appending(&x, rows, norm, &narrowed, keys)?;
            let angles = Angles { table: &table, positions: &at.positions };
            tensor.ops.project_rotated(&narrowed, rows, &w, angles, &rotated)?;
        } else {
            let q = tensor.room::<f32>(rows * width)?;
            tensor.ops.narrow(&x, rows, Some(norm), None, &narrowed)?;
            tensor.ops.project(&narrowed, rows, &w, &q, false)?;
            let from = Projected { q: &q, k: &k, v: &v };
            let append = MfaAppend::new(tensor.ops.device())?;
            append.enqueue(stream, rows, from, &table, &at, &pools, &rotated)?;
        }
        let bytes: Result<Vec<_>, _> = all.iter().map(|slice| tensor.got(slice)).collect();
        results.push(bytes?);
    }
    for (part, (apart, fused)) in results[0].iter().zip(&results[1]).enumerate() {
        let off = apart.iter().zip(fused).filter(|(apart, fused)| apart != fused).count();
        if off > 0 {
            println!("  {off} of {} bytes of part {part} differ", apart.len());
            return Ok(f64::NAN);
        }
    }
    Ok(0.0)
}

/// Several matrices at once; NaN if rows have other bits alone.
fn project_all(
    tensor: &Tensor,
    (rows, inputs): (usize, usize),
    outputs: [usize; 3],
    stored: Stored,
    random: &mut Random,
) -> Result<f64, CudaError> {
    let x: Vec<f32> = (0..rows * inputs).map(|_| random.normal()).collect();
    let (x, to) = (tensor.put(&x)?, tensor.narrowed(rows, inputs, stored)?);
    tensor.ops.narrow(&x, rows, None, None, &to)?;
    let alone = tensor.narrowed(1, inputs, stored)?;
    tensor.ops.narrow(&x.part((rows - 1) * inputs, inputs), 1, None, None, &alone)?;
    let mut of = Vec::new();
    for outputs in outputs {
        let w = Matrices::new(tensor, (1, outputs, inputs), stored, random)?;
        let matrix = w.tensor(tensor)?;
        of.push((w, matrix, tensor.room::<f32>(rows * outputs)?, tensor.room::<f32>(outputs)?));
    }
    let all: Vec<_> = of.iter().map(|(_, matrix, y, _)| (matrix, y)).collect();
    tensor.ops.project_all(&to, rows, &all, false)?;
    let last: Vec<_> = of.iter().map(|(_, matrix, _, y)| (matrix, y)).collect();
    tensor.ops.project_all(&alone, 1, &last, false)?;
    let narrowed = tensor.values(&to, inputs, stored, false)?;
    let mut largest = 0f64;
    for (w, _, y, last) in &of {
        let (got, width) = (tensor.got(y)?, w.rows);
        if tensor.got(last)? != got[(rows - 1) * width..] {
            println!("  the last row has other bits alone");
            return Ok(f64::NAN);
        }
        let want: Vec<f64> = (0..rows).flat_map(|row| w.times(0, &narrowed[row * inputs..][..inputs])).collect();
        let error = worst(&got.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), &want, width);
        largest = if error.is_nan() { error } else { largest.max(error) };
    }
    Ok(largest)
}

/// Zero if products on shares of a card, whose clusters have fewer multiprocessors to be on, have the bits of the whole; NaN if not.
fn on_shares(tensor: &Tensor, stored: Stored, random: &mut Random) -> Result<f64, CudaError> {
    // Clusters of eight: parts alone, and parts of tiles that share rows.
    for (rows, inputs, outputs) in [(70, 7168, 384), (128, 8192, 4352), (40, 2048, 2560)] {
        let w = Matrices::new(tensor, (1, outputs, inputs), stored, random)?.tensor(tensor)?;
        let x = tensor.put(&(0..rows * inputs).map(|_| random.normal()).collect::<Vec<f32>>())?;
        let narrowed = tensor.narrowed(rows, inputs, stored)?;
        tensor.ops.narrow(&x, rows, None, None, &narrowed)?;
        let y = tensor.room::<f32>(rows * outputs)?;
        tensor.ops.project(&narrowed, rows, &w, &y, false)?;
        let want = tensor.got(&y)?;
        for sizes in [&[8, 124][..], &[24, 108], &[84, 48], &[40, 40, 40]] {
            let wanted: Vec<Wanted> = sizes.iter().map(|sms| Wanted { card: Some(0), sms: Some(*sms) }).collect();
            let machines = Machines::Cards.open_all(&wanted).map_err(|(_, error)| error)?;
            for (machine, sms) in machines.into_iter().zip(sizes) {
                let share = Tensor::on(machine)?.expect("the same card");
                share.ops.stream().fill(&y, 0xff)?;
                share.ops.project(&narrowed, rows, &w, &y, false)?;
                if share.got(&y)? != want {
                    println!("  other bits on {sms} of {sizes:?}, {rows}x{inputs}x{outputs}");
                    return Ok(f64::NAN);
                }
            }
        }
    }
    Ok(0.0)
}

struct Case {
    name: &'static str,
    rows: usize,
    experts: usize,
    held: std::ops::Range<usize>,
    top_k: usize,
    shares: bool,
    hidden: usize,
    inner: usize,
}

const CASES: [Case; 8] = [
    Case { name: "one row", rows: 1, experts: 8, held: 0..8, top_k: 3, shares: true, hidden: 256, inner: 128 },
    Case { name: "half held", rows: 70, experts: 12, held: 6..12, top_k: 3, shares: true, hidden: 512, inner: 256 },
    Case { name: "not shared", rows: 300, experts: 5, held: 0..5, top_k: 2, shares: false, hidden: 768, inner: 128 },
    Case { name: "many", rows: 700, experts: 48, held: 0..48, top_k: 3, shares: true, hidden: 256, inner: 384 },
    // Runs of blocks that begin and end within items.
    Case { name: "deep", rows: 700, experts: 6, held: 0..6, top_k: 2, shares: true, hidden: 1280, inner: 1792 },
    Case {
        name: "deep and few",
        rows: 130,
        experts: 12,
        held: 2..12,
        top_k: 2,
        shares: true,
        hidden: 1536,
        inner: 1792,
    },
    Case {
        name: "one block deep",
        rows: 900,
        experts: 30,
        held: 0..30,
        top_k: 3,
        shares: true,
        hidden: 512,
        inner: 640,
    },
    Case { name: "one of few", rows: 333, experts: 3, held: 1..2, top_k: 3, shares: true, hidden: 1024, inner: 640 },
];

/// A routing without repetition.
pub fn routing(rows: usize, experts: usize, top_k: usize, random: &mut Random) -> (Vec<i32>, Vec<f32>) {
    let ids = (0..rows).flat_map(|_| random.shuffled(experts).into_iter().take(top_k)).collect();
    (ids, (0..rows * top_k).map(|_| random.unit() as f32).collect())
}

fn experts(
    tensor: &Tensor,
    case: &Case,
    stored: Stored,
    random: &mut Random,
    name: &str,
    report: &mut dyn FnMut(&str, f64, f64),
) -> Result<(), CudaError> {
    let Case { rows, experts, top_k, shares, hidden, inner, .. } = *case;
    let held: Vec<usize> = case.held.clone().collect();
    let (ids, weights) = routing(rows, experts, top_k, random);
    let count = held.len() + usize::from(shares);
    let gate = Matrices::new(tensor, (count, inner, hidden), stored, random)?;
    let up = Matrices::new(tensor, (count, inner, hidden), stored, random)?;
    let down = Matrices::new(tensor, (count, hidden, inner), stored, random)?;
    let x: Vec<f32> = (0..rows * hidden).map(|_| random.normal()).collect();
    let on_device = [gate.tensor(tensor)?, up.tensor(tensor)?, down.tensor(tensor)?];
    // Of rows `from` on: narrowed, inner, answers, sums.
    let run = |from: usize, rows: usize| -> Result<_, CudaError> {
        let slots = Slots::new(tensor.ops.stream(), rows, top_k, experts, &held, shares)?;
        assert_eq!(slots.matrices(), count);
        let capacity = slots.capacity_for(rows);
        let places = from * top_k..(from + rows) * top_k;
        let there = Routing { ids: tensor.put(&ids[places.clone()])?, weights: tensor.put(&weights[places])? };
        let x = tensor.put(&x[from * hidden..][..rows * hidden])?;
        let (narrowed, h) = (tensor.narrowed(rows, hidden, stored)?, tensor.narrowed(capacity, inner, stored)?);
        let (answers, y) = (tensor.room::<u16>(h.slots() * hidden)?, tensor.room::<f32>(rows * hidden)?);
        tensor.ops.place(&there, rows, &slots)?;
        tensor.ops.narrow(&x, rows, None, Some(&slots), &narrowed)?;
        tensor.ops.up(&narrowed, &slots, &on_device[0], &on_device[1], &h)?;
        tensor.ops.down(&h, &slots, &on_device[2], &answers)?;
        tensor.ops.sum(&slots, rows, hidden, &answers, &y)?;
        Ok((narrowed, h, answers, tensor.got(&y)?))
    };
    let (narrowed, h, answers, y) = run(0, rows)?;
    // Slots as the host would give them out.
    let (mut of_slot, mut next) = (Vec::new(), 0);
    let mut members: Vec<Vec<(usize, f32)>> = Vec::new();
    for id in &held {
        let mine = (0..rows * top_k).filter(|place| ids[*place] as usize == *id);
        members.push(mine.map(|place| (place / top_k, weights[place])).collect());
    }
    if shares {
        members.push((0..rows).map(|row| (row, 1.0)).collect());
    }
    for (expert, mine) in members.iter().enumerate() {
        of_slot.extend(mine.iter().enumerate().map(|(i, (row, weight))| (next + i, expert, *row, *weight)));
        next += mine.len().next_multiple_of(8);
    }
    let x_values = tensor.values(&narrowed, hidden, stored, false)?;
    let h_values = tensor.values(&h, inner, stored, true)?;
    let answered: Vec<f64> = tensor.got(&answers)?.iter().map(|x| from_bf16(*x)).collect();
    let (mut into, mut between, mut out) = (0f64, 0f64, 0f64);
    let mut sums = vec![0f32; rows * hidden];
    let larger = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
    for (slot, expert, row, weight) in of_slot {
        let got_x = &x_values[row * hidden..][..hidden];
        let want_x: Vec<f64> = x[row * hidden..][..hidden].iter().map(|x| f64::from(*x)).collect();
        into = larger(into, worst(got_x, &want_x, hidden));
        let (g, u) = (gate.times(expert, got_x), up.times(expert, got_x));
        let want_h: Vec<f64> = g.iter().zip(&u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let got_h = &h_values[slot * inner..][..inner];
        between = larger(between, worst(got_h, &want_h, inner));
        let want: Vec<f64> = down.times(expert, got_h).iter().map(|y| y * f64::from(weight)).collect();
        let got = &answered[slot * hidden..][..hidden];
        out = larger(out, worst(got, &want, hidden));
        if into.is_nan() || between.is_nan() || out.is_nan() {
            println!("  slot {slot}: expert {expert}, row {row}");
            break;
        }
        // In the order of slots, which is that of experts.
        sums[row * hidden..][..hidden].iter_mut().zip(got).for_each(|(sum, y)| *sum += *y as f32);
    }
    let fp8 = stored == Stored::Fp8;
    report(&format!("{name}: rows"), into, if fp8 { 3.3e-2 } else { 2.5e-3 });
    report(&format!("{name}: up"), between, if fp8 { 3.5e-2 } else { 4e-3 });
    report(&format!("{name}: down"), out, 3e-3);
    let equal = y == sums;
    report(&format!("{name}: sum"), if equal { 0.0 } else { f64::NAN }, 0.0);
    // Rows in other company, and the same ones again, have the same bits.
    let mut equal = run(0, rows)?.3 == y;
    for company in [1, 7, 100] {
        let (count, from) = (company.min(rows), random.below(rows - company.min(rows) + 1));
        equal &= run(from, count)?.3 == y[from * hidden..][..count * hidden];
    }
    report(&format!("{name}: in other company"), if equal { 0.0 } else { f64::NAN }, 0.0);
    Ok(())
}

/// Zero if q, keys, values and scales have the bits that the plain kernels give; NaN if not.
fn append(tensor: &Tensor, stored: Stored, random: &mut Random) -> Result<f64, CudaError> {
    let (rows, pages, width) = (70, 9, HEADS * HEAD_DIM);
    let plain = Ops::new(Arc::clone(&tensor.machine))?;
    let mut numbers = |count: usize| (0..count).map(|_| random.normal()).collect::<Vec<f32>>();
    let (q, k, v) = (tensor.put(&numbers(rows * width))?, numbers(rows * HEAD_DIM), numbers(rows * HEAD_DIM));
    let (k, v, table) = (tensor.put(&k)?, tensor.put(&v)?, tensor.put(&numbers(200 * HEAD_DIM))?);
    // Three sequences of three pages each, their rows' positions 130 apart at most.
    let positions: Vec<i32> = (0..rows as i32).map(|row| row % 3 * 50 + row / 3).collect();
    let at = Paged {
        positions: tensor.put(&positions)?,
        first: tensor.put(&(0..rows as i32).map(|row| row % 3 * 3).collect::<Vec<_>>())?,
        pages: tensor.put(&random.shuffled(pages))?,
    };
    let mut results = Vec::new();
    for is_fast in [false, true] {
        let (kv, pools) = KvPages::new(&*tensor.machine, pages, PAGE, HEAD_DIM, stored)?.for_mfa()?;
        let all: Vec<DeviceSlice<u8>> = match &pools {
            mfa::KvPages::Bf16 { k, v } => vec![k.as_bytes(), v.as_bytes()],
            mfa::KvPages::Fp8 { k, v, scales } => vec![k.clone(), v.clone(), scales.as_bytes()],
        };
        for pool in &all {
            tensor.ops.stream().fill(pool, 0xff)?;
        }
        let rotated = tensor.room::<u16>(rows * width)?;
        if is_fast {
            let from = Projected { q: &q, k: &k, v: &v };
            let append = MfaAppend::new(tensor.ops.device())?;
            append.enqueue(tensor.ops.stream(), rows, from, &table, &at, &pools, &rotated)?;
        } else {
            // Rotates q in place.
            let whole = tensor.put(&tensor.got(&q)?)?;
            plain.rope_append(&whole, &k, &v, &table, rows, HEADS, &at, &kv)?;
            plain.encode(&whole, rows, width, Stored::Bf16, &rotated.as_bytes())?;
        }
        let mut bytes = tensor.got(&rotated.as_bytes())?;
        for pool in &all {
            bytes.extend(tensor.got(pool)?);
        }
        results.push(bytes);
    }
    let off = results[0].iter().zip(&results[1]).filter(|(plain, fast)| plain != fast).count();
    if off > 0 {
        println!("  {off} of {} bytes differ", results[0].len());
    }
    Ok(if off == 0 { 0.0 } else { f64::NAN })
}
