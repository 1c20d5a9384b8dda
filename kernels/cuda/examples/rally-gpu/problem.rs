//! MFA decode problems on a device: KV pools, steps over random pages of them, and a check of single rows.

use crate::data::{Random, from_bf16, from_e4m3};
use crate::reference::{self, Row};
use rally_cuda::memory::{Arena, DeviceSlice};
use rally_cuda::mfa::{HEAD_DIM, HEADS, KvPages, MfaStep, PARTIAL_BYTES, fp8_value_place};
use rally_cuda::module::Order;
use rally_cuda::split::{self, Costs, PAGE_TOKENS, RowPages, WorkSplit};
use rally_cuda::stream::Stream;
use rally_cuda::{CudaError, Device};
use std::sync::Arc;

pub const PAGE: usize = PAGE_TOKENS as usize;
pub const PAGE_ELEMENTS: usize = PAGE * HEAD_DIM;
/// Step-3's `256^-0.5`.
pub const SCALE: f32 = 0.0625;

/// Memory of one step of up to `rows` rows and `pages` page numbers.
pub fn step_bytes(rows: usize, pages: usize, ctas: usize) -> usize {
    let row_bytes = rows * HEADS * HEAD_DIM * 2;
    Arena::bytes_for([row_bytes, row_bytes, WorkSplit::words_at_most(rows, ctas) * 4, pages * 4, 256])
}

/// What steps share on a device, as a model's layers do: it is a step's own only while the step runs.
pub struct Scratch {
    pub partials: DeviceSlice<u8>,
    pub arrivals: DeviceSlice<i32>,
}

impl Scratch {
    /// Partials are NaN.
    pub fn new(device: &Arc<Device>, stream: &Stream) -> Result<Scratch, CudaError> {
        let bytes = WorkSplit::slots_at_most(device.card().multiprocessors as usize) * PARTIAL_BYTES;
        let mut arena = Arena::new(device, bytes + 512)?;
        let scratch = Scratch { partials: arena.take(bytes)?, arrivals: arena.take(1)? };
        stream.fill(&scratch.partials, 0xff)?;
        stream.fill(&scratch.arrivals, 0)?;
        Ok(scratch)
    }
}

/// A step's host side: contexts and the page numbers of its rows, back to back.
pub struct Problem {
    pub contexts: Vec<u32>,
    pub pages: Vec<i32>,
    pub rows: Vec<RowPages>,
}

impl Problem {
    /// Rows of these contexts on the first pages of `free`.
    pub fn new(contexts: &[u32], free: &[i32]) -> Problem {
        let mut first = 0;
        let rows = contexts
            .iter()
            .map(|context| {
                let row = RowPages { first, context: *context };
                first += context.div_ceil(PAGE_TOKENS);
                row
            })
            .collect();
        Problem { contexts: contexts.to_vec(), pages: free[..first as usize].to_vec(), rows }
    }

    pub fn tokens(&self) -> u64 {
        self.contexts.iter().map(|context| u64::from(*context)).sum()
    }

    /// Uploads the step; outputs are NaN, q is the caller's to fill.
    pub fn upload(
        &self,
        stream: &Stream,
        arena: &mut Arena,
        scratch: &Scratch,
        fp8: bool,
    ) -> Result<MfaStep, CudaError> {
        let ctas = stream.multiprocessors() as usize;
        let costs = if fp8 { Costs::FP8 } else { Costs::BF16 };
        let words = split::split(&self.rows, ctas, costs).words(&self.pages);
        let rows = self.rows.len();
        let step = MfaStep {
            q: arena.take(rows * HEADS * HEAD_DIM)?,
            out: arena.take(rows * HEADS * HEAD_DIM)?,
            work: arena.take(words.len())?,
            pages: arena.take(self.pages.len())?,
            partials: scratch.partials.clone(),
            arrivals: scratch.arrivals.clone(),
            ctas: ctas as u32,
            order: Order::Together,
            scale: SCALE,
        };
        stream.write(&words, &step.work)?;
        stream.write(&self.pages, &step.pages)?;
        stream.fill(&step.out, 0xff)?;
        Ok(step)
    }

    /// Relative error of one row of the step's output against f64 on the same inputs.
    pub fn row_error(&self, stream: &Stream, kv: &KvPages, step: &MfaStep, row: usize) -> Result<f64, CudaError> {
        let size = HEADS * HEAD_DIM;
        let mut q = vec![0u16; size];
        let mut out = vec![0u16; size];
        stream.read(&step.q.part(row * size, size), &mut q)?;
        stream.read(&step.out.part(row * size, size), &mut out)?;
        let (mut k, mut v) = (Vec::new(), Vec::new());
        let first = self.rows[row].first as usize;
        let context = self.contexts[row] as usize;
        for page in &self.pages[first..first + context.div_ceil(PAGE)] {
            read_page(stream, kv, *page as usize, &mut k, &mut v)?;
        }
        k.truncate(context * HEAD_DIM);
        v.truncate(context * HEAD_DIM);
        let q = q.iter().map(|x| from_bf16(*x)).collect();
        let want = Row { q, k, v, dim: HEAD_DIM, scale: f64::from(SCALE) }.attend();
        let got: Vec<f64> = out.iter().map(|x| from_bf16(*x)).collect();
        Ok(reference::error(&got, &want))
    }
}

fn page_of<T: rally_cuda::memory::Plain + Default>(
    stream: &Stream,
    pool: &DeviceSlice<T>,
    page: usize,
    elements: usize,
) -> Result<Vec<T>, CudaError> {
    let mut host = vec![T::default(); elements];
    stream.read(&pool.part(page * elements, elements), &mut host)?;
    Ok(host)
}

/// Appends a page's K and V as f64 rows.
fn read_page(stream: &Stream, kv: &KvPages, page: usize, k: &mut Vec<f64>, v: &mut Vec<f64>) -> Result<(), CudaError> {
    match kv {
        KvPages::Bf16 { k: keys, v: values } => {
            k.extend(page_of(stream, keys, page, PAGE_ELEMENTS)?.iter().map(|x| from_bf16(*x)));
            v.extend(page_of(stream, values, page, PAGE_ELEMENTS)?.iter().map(|x| from_bf16(*x)));
        }
        KvPages::Fp8 { k: keys, v: values, scales } => {
            let scales = page_of(stream, scales, page, 2 * PAGE)?;
            let keys = page_of(stream, keys, page, PAGE_ELEMENTS)?;
            let values = page_of(stream, values, page, PAGE_ELEMENTS)?;
            for p in 0..PAGE {
                let (key, value) = (f64::from(scales[p]), f64::from(scales[PAGE + p]));
                k.extend(keys[p * HEAD_DIM..(p + 1) * HEAD_DIM].iter().map(|x| from_e4m3(*x) * key));
                v.extend((0..HEAD_DIM).map(|d| from_e4m3(values[d * PAGE + fp8_value_place(p)]) * value));
            }
        }
    }
    Ok(())
}

/// Lengths uniform in 1 to `most`.
pub fn uniform(rows: usize, most: u32, random: &mut Random) -> Vec<u32> {
    (0..rows).map(|_| random.below(most as usize) as u32 + 1).collect()
}

/// A heavy tail: Pareto with exponent 1 from `least`, cut at `most`.
pub fn heavy_tail(rows: usize, least: u32, most: u32, random: &mut Random) -> Vec<u32> {
    (0..rows).map(|_| ((f64::from(least) / (1.0 - random.unit())) as u32).min(most)).collect()
}
