//! The plain path's test: any shape, each storage, against f64.

use crate::data::{Random, from_bf16, from_e4m3, to_bf16};
use crate::reference::{self, Row};
use crate::tests::quantised;
use rally_cuda::memory::{Arena, Plain};
use rally_cuda::plain::{PlainDecode, PlainShape, PlainStep, PlainStorage};
use rally_cuda::stream::Stream;
use rally_cuda::{CudaError, Device};
use std::sync::Arc;

/// Numbers as a storage keeps them, and what they are then.
#[derive(Default)]
struct Stored {
    bytes: Vec<u8>,
    values: Vec<f64>,
}

impl Stored {
    fn push(&mut self, storage: PlainStorage, x: f32, scale: f32) {
        let value = match storage {
            PlainStorage::F32 => {
                self.bytes.extend(x.to_le_bytes());
                f64::from(x)
            }
            PlainStorage::Bf16 => {
                self.bytes.extend(to_bf16(x).to_le_bytes());
                from_bf16(to_bf16(x))
            }
            PlainStorage::Fp8 => {
                self.bytes.push(quantised(x, scale));
                from_e4m3(quantised(x, scale)) * f64::from(scale)
            }
        };
        self.values.push(value);
    }
}

/// One problem on the host.
struct Problem {
    shape: PlainShape,
    /// Of q and the result.
    io: PlainStorage,
    contexts: Vec<i32>,
    first: Vec<i32>,
    pages: Vec<i32>,
    /// `[pages, 2, page_tokens]`.
    scales: Vec<f32>,
    q: Stored,
    k: Stored,
    v: Stored,
}

impl Problem {
    fn new(storage: PlainStorage, shape: PlainShape, random: &mut Random) -> Problem {
        let contexts: Vec<i32> = (0..shape.rows).map(|_| random.below(400) as i32 + 1).collect();
        let counts = contexts.iter().map(|context| (*context as usize).div_ceil(shape.page_tokens) as i32);
        let (mut first, mut total) = (Vec::new(), 0);
        for count in counts {
            first.push(total);
            total += count;
        }
        let positions = total as usize * shape.page_tokens;
        let scales: Vec<f32> = (0..2 * positions).map(|_| (1.0 + random.unit() as f32) / 200.0).collect();
        let io = if storage == PlainStorage::F32 { PlainStorage::F32 } else { PlainStorage::Bf16 };
        let mut q = Stored::default();
        (0..shape.rows * shape.heads * shape.head_dim).for_each(|_| q.push(io, random.normal(), 1.0));
        let pool = |side: usize, random: &mut Random| {
            let mut stored = Stored::default();
            for i in 0..positions * shape.head_dim {
                let (page, p) = (i / shape.head_dim / shape.page_tokens, i / shape.head_dim % shape.page_tokens);
                stored.push(storage, random.normal(), scales[(page * 2 + side) * shape.page_tokens + p]);
            }
            stored
        };
        let (k, v) = (pool(0, random), pool(1, random));
        Problem { shape, io, contexts, first, pages: random.shuffled(total as usize), scales, q, k, v }
    }

    /// A pool's rows that sequence `row` sees, in order.
    fn visible(&self, pool: &Stored, row: usize) -> Vec<f64> {
        let (tokens, dim) = (self.shape.page_tokens, self.shape.head_dim);
        let position = |p: usize| {
            let page = self.pages[self.first[row] as usize + p / tokens] as usize;
            let at = (page * tokens + p % tokens) * dim;
            pool.values[at..at + dim].to_vec()
        };
        (0..self.contexts[row] as usize).flat_map(position).collect()
    }

    fn wanted(&self, row: usize) -> Vec<f64> {
        let size = self.shape.heads * self.shape.head_dim;
        let q = self.q.values[row * size..(row + 1) * size].to_vec();
        let (k, v) = (self.visible(&self.k, row), self.visible(&self.v, row));
        Row { q, k, v, dim: self.shape.head_dim, scale: f64::from(self.shape.scale) }.attend()
    }

    /// The result as the device has it, from an output of NaN.
    fn run(&self, device: &Arc<Device>, storage: PlainStorage) -> Result<Vec<u8>, CudaError> {
        let stream = Stream::new(device)?;
        let bytes = self.q.bytes.len() * 2 + self.k.bytes.len() * 2 + self.scales.len() * 4 + (1 << 16);
        let mut arena = Arena::new(device, bytes)?;
        let arena = &mut arena;
        let fp8 = storage == PlainStorage::Fp8;
        let step = PlainStep {
            q: put(&stream, arena, &self.q.bytes)?,
            k: put(&stream, arena, &self.k.bytes)?,
            v: put(&stream, arena, &self.v.bytes)?,
            scales: if fp8 { Some(put(&stream, arena, &self.scales)?) } else { None },
            out: put(&stream, arena, &vec![0xff; self.q.bytes.len()])?,
            contexts: put(&stream, arena, &self.contexts)?,
            first: put(&stream, arena, &self.first)?,
            pages: put(&stream, arena, &self.pages)?,
        };
        PlainDecode::new(device, storage)?.enqueue(&stream, self.shape, &step)?;
        let mut out = vec![0u8; self.q.bytes.len()];
        stream.read(&step.out, &mut out)?;
        Ok(out)
    }

    fn read(&self, out: &[u8]) -> Vec<f64> {
        match self.io {
            PlainStorage::F32 => {
                out.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
            }
            _ => out.chunks_exact(2).map(|b| from_bf16(u16::from_le_bytes([b[0], b[1]]))).collect(),
        }
    }
}

fn put<T: Plain>(
    stream: &Stream,
    arena: &mut Arena,
    host: &[T],
) -> Result<rally_cuda::memory::DeviceSlice<T>, CudaError> {
    let slice = arena.take(host.len())?;
    stream.write(host, &slice)?;
    Ok(slice)
}

/// The worst row's error of a random problem; NaN if anything is.
pub fn worst_error(
    device: &Arc<Device>,
    storage: PlainStorage,
    shape: PlainShape,
    random: &mut Random,
) -> Result<f64, CudaError> {
    let problem = Problem::new(storage, shape, random);
    let got = problem.read(&problem.run(device, storage)?);
    let size = shape.heads * shape.head_dim;
    let errors = (0..shape.rows).map(|row| reference::error(&got[row * size..(row + 1) * size], &problem.wanted(row)));
    Ok(errors.fold(0.0, |worst: f64, error| if error.is_nan() || worst.is_nan() { f64::NAN } else { worst.max(error) }))
}
