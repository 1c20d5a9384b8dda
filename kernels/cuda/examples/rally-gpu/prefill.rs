//! Attention of chunks: tests against f64 token by token, and times beside the decode kernel's on the same tokens.

use crate::bench::{Bench, measure};
use crate::data::{Random, to_bf16};
use crate::problem::{PAGE, PAGE_ELEMENTS, Problem, Scratch, step_bytes};
use crate::tests::{random_pools, upload};
use rally_cuda::chunks::{Chunk, ChunkSplit};
use rally_cuda::memory::Arena;
use rally_cuda::mfa::{HEAD_DIM, HEADS, KvPages, MfaDecode, MfaStep, PARTIAL_BYTES};
use rally_cuda::mfa_prefill::MfaPrefill;
use rally_cuda::module::Order;
use rally_cuda::split::RowPages;
use rally_cuda::stream::Stream;
use rally_cuda::{CudaError, Device};
use std::sync::Arc;

/// Positions before a chunk, and its tokens.
type Sizes = (u32, u32);

/// Chunks, and the same as rows of one token.
struct Chunks {
    chunks: Vec<Chunk>,
    /// A row for each token, which shares its pages with its neighbours.
    tokens: Problem,
    /// A row for each sequence.
    sequences: Problem,
}

impl Chunks {
    fn new(sizes: &[Sizes], free: &[i32]) -> Chunks {
        let ends: Vec<u32> = sizes.iter().map(|(before, tokens)| before + tokens).collect();
        let sequences = Problem::new(&ends, free);
        let (mut chunks, mut rows) = (Vec::new(), Vec::new());
        for ((before, tokens), sequence) in sizes.iter().zip(&sequences.rows) {
            let first = sequence.first;
            chunks.push(Chunk { row: rows.len() as u32, tokens: *tokens, first, context: before + 1 });
            rows.extend((1..=*tokens).map(|more| RowPages { first, context: before + more }));
        }
        let contexts = rows.iter().map(|row| row.context).collect();
        Chunks { chunks, tokens: Problem { contexts, pages: sequences.pages.clone(), rows }, sequences }
    }

    fn rows(&self) -> usize {
        self.tokens.rows.len()
    }

    /// Memory that [`Self::upload`] takes.
    fn bytes(&self, ctas: usize) -> usize {
        step_bytes(self.rows(), self.tokens.pages.len(), ctas)
            + Arena::bytes_for([
                ChunkSplit::words_at_most(self.rows(), ctas) * 4,
                ChunkSplit::slots_at_most(ctas) * PARTIAL_BYTES,
            ])
    }

    /// A step for the decode kernel, and one over the same memory for the chunks'. Partials are NaN.
    fn upload(
        &self,
        stream: &Stream,
        arena: &mut Arena,
        scratch: &Scratch,
        fp8: bool,
    ) -> Result<(MfaStep, MfaStep), CudaError> {
        let step = self.tokens.upload(stream, arena, scratch, fp8)?;
        let ctas = step.ctas as usize;
        let words = ChunkSplit::new(&self.chunks, ctas).words(&self.tokens.pages);
        let work = arena.take(words.len())?;
        stream.write(&words, &work)?;
        let partials = arena.take(ChunkSplit::slots_at_most(ctas) * PARTIAL_BYTES)?;
        stream.fill(&partials, 0xff)?;
        let chunked = MfaStep { work, partials, ..step.clone() };
        Ok((step, chunked))
    }
}

/// What is tested: a name and chunks.
pub fn shapes(random: &mut Random) -> Vec<(&'static str, Vec<Sizes>)> {
    let many = (0..50).map(|_| (random.below(1500) as u32, 1 + random.below(40) as u32)).collect();
    vec![
        ("one pair", vec![(0, 2)]),
        ("one token", vec![(0, 1)]),
        ("a prompt", vec![(0, 200)]),
        ("across pages' ends", vec![(63, 2), (62, 3), (64, 1), (64, 2), (127, 4), (30, 100), (15, 48), (1, 64)]),
        ("ragged", vec![(0, 5), (37, 1), (100, 63), (63, 2), (64, 65), (1000, 17), (0, 1), (700, 130)]),
        ("few tokens of a long context", vec![(20_000, 3)]),
        ("a second token on a page of its own", vec![(12_799, 2), (6_399, 2), (64, 2)]),
        ("many", many),
    ]
}

/// The worst token's error; NaN if a second launch gives other bits.
pub fn worst_error(device: &Arc<Device>, sizes: &[Sizes], fp8: bool, random: &mut Random) -> Result<f64, CudaError> {
    let used: usize = sizes.iter().map(|(before, tokens)| (before + tokens).div_ceil(PAGE as u32) as usize).sum();
    let pages = used + used / 4 + 1;
    let chunks = Chunks::new(sizes, &random.shuffled(pages));
    let pools = random_pools(&chunks.sequences, pages, random);
    let stream = Stream::new(device)?;
    let ctas = device.card().multiprocessors as usize;
    let bytes = chunks.bytes(ctas) + pages * (PAGE_ELEMENTS * 4 + 2 * PAGE * 4) + 4096;
    let mut arena = Arena::new(device, bytes)?;
    let kv = upload(&stream, &mut arena, &pools, fp8)?;
    let (_, step) = chunks.upload(&stream, &mut arena, &Scratch::new(device, &stream)?, fp8)?;
    let q: Vec<u16> = (0..step.q.len()).map(|_| to_bf16(random.normal())).collect();
    stream.write(&q, &step.q)?;
    let prefill = MfaPrefill::new(device, kv.clone())?;
    let mut results = Vec::new();
    for order in [Order::Together, Order::Overlapped] {
        stream.fill(&step.out, 0xff)?;
        prefill.prepare(MfaStep { order, ..step.clone() })?.enqueue(&stream)?;
        let mut out = vec![0u16; chunks.rows() * HEADS * HEAD_DIM];
        stream.read(&step.out, &mut out)?;
        results.push(out);
    }
    if results[0] != results[1] {
        return Ok(f64::NAN);
    }
    // Every token of a few, of many one in so many and both ends of every chunk.
    let stride = chunks.rows() / 64 + 1;
    let ends = chunks.chunks.iter().flat_map(|chunk| [chunk.row, chunk.row + chunk.tokens - 1]);
    let mut checked: Vec<usize> = (0..chunks.rows()).step_by(stride).chain(ends.map(|row| row as usize)).collect();
    checked.sort_unstable();
    checked.dedup();
    let mut worst = 0f64;
    for row in checked {
        let error = chunks.tokens.row_error(&stream, &kv, &step, row)?;
        if error.is_nan() {
            return Ok(error);
        }
        worst = worst.max(error);
    }
    Ok(worst)
}

/// Lines whose names contain `filter`; `peak` is what bf16 products reach alone, FLOP/s.
pub fn bench(bench: &mut Bench, kv: &KvPages, fp8: bool, peak: f64, filter: &str) -> Result<(), CudaError> {
    let cases: [(&str, Vec<Sizes>); 12] = [
        ("2048 tokens at 0", vec![(0, 2048)]),
        ("2048 tokens at 6K", vec![(6144, 2048)]),
        ("2048 tokens at 30K", vec![(30 << 10, 2048)]),
        ("512 tokens at 32K", vec![(32 << 10, 512)]),
        ("512 tokens at 126K", vec![(126 << 10, 512)]),
        ("64 tokens at 32K", vec![(32 << 10, 64)]),
        ("2 tokens at 32K", vec![(32 << 10, 2)]),
        ("16 x 128 tokens at 4K", vec![(4096, 128); 16]),
        ("64 x 2 tokens at 4K", vec![(4096, 2); 64]),
        ("128 x 1 token at 4K", vec![(4095, 1); 128]),
        ("128 x 1 token at 32K", vec![(32_767, 1); 128]),
        ("64 x 1 token at 1K", vec![(1023, 1); 64]),
    ];
    for (name, sizes) in cases {
        let name = format!("prefill {} {name}", if fp8 { "fp8" } else { "bf16" });
        if name.contains(filter) {
            case(bench, kv, fp8, peak, (&name, &sizes))?;
        }
    }
    Ok(())
}

fn case(
    bench: &mut Bench,
    kv: &KvPages,
    fp8: bool,
    peak: f64,
    (name, sizes): (&str, &[Sizes]),
) -> Result<(), CudaError> {
    let chunks = Chunks::new(sizes, &bench.pages());
    let (device, stream) = (bench.device().clone(), bench.stream());
    let ctas = device.card().multiprocessors as usize;
    let mut arena = Arena::new(&device, chunks.bytes(ctas) + 4096)?;
    let (rows, chunked) = chunks.upload(stream, &mut arena, bench.scratch(), fp8)?;
    bench.fill_kernel("fill_bf16", &chunked.q, chunked.q.len() as u64, 100)?;
    let call = MfaPrefill::new(&device, kv.clone())?.prepare(chunked.clone())?;
    call.enqueue(stream)?;
    let error = chunks.tokens.row_error(stream, kv, &chunked, chunks.rows() / 2)?;
    let us = measure(stream, 4, |_, stream| call.enqueue(stream))?;
    let decode = MfaDecode::new(&device, kv.clone())?.prepare(rows)?;
    let by_rows = measure(stream, 1, |_, stream| decode.enqueue(stream))?;
    let flops = chunks.tokens.tokens() as f64 * (HEADS * HEAD_DIM * 4) as f64;
    let rate = flops / us * 1e6;
    println!(
        "{name}: error {error:.1e}, {us:.1} us, {:.0} TFLOP/s; tensor cores alone {:.0}, ratio {:.3}; row by row \
         {by_rows:.1} us, {:.2} times as long",
        rate / 1e12,
        peak / 1e12,
        rate / peak,
        by_rows / us
    );
    Ok(())
}
