//! Decode attention at the speed of memory, for what `rally_cuda::mfa` takes: 64 heads of 256 elements, pages of 64 positions, KV in
//! bf16 or fp8, a card of Hopper's. Rows of one sequence, as a chunk of a prompt has them, read its pages together
//! (`rally_cuda::mfa_prefill`); each sees the positions up to its own.
//!
//! Which device reads which pages is planned once a step, in the first of the stage's layers.

use super::device::CudaDevice;
use rally_cuda::chunks::{self, Chunk, ChunkSplit};
use rally_cuda::machine::write;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::mfa::{self, HEAD_DIM, HEADS, MfaCall, MfaDecode, MfaStep, PARTIAL_BYTES};
use rally_cuda::mfa_append::{MfaAppend, Projected};
use rally_cuda::mfa_prefill::MfaPrefill;
use rally_cuda::module::Order;
use rally_cuda::ops::{KvPages, Paged, Stored};
use rally_cuda::split::{self, Costs, PAGE_TOKENS, RowPages, WorkSplit};
use rally_cuda::stream::Stream;
use rally_cuda::tensor::Narrowed;
use rally_cuda::{CudaError, Device};
use rally_engine::schedule::batch::RowGroup;
use rally_engine::stage::TaskContext;
use rally_graph::model::ModelShape;
use std::sync::Arc;

/// What a stage keeps for it.
pub(super) struct FastAttention {
    /// None where memory is only counted.
    card: Option<(Arc<Device>, Arc<Stream>)>,
    ctas: usize,
    costs: Costs,
    /// Tokens of a chunk.
    least: usize,
    /// `[rows, 64, 256]` bf16.
    q: DeviceSlice<u8>,
    /// Zero at first: rows that pad stay so.
    out: DeviceSlice<u8>,
    /// The plans of each micro-batch's step.
    plans: Vec<Plans>,
    partials: DeviceSlice<u8>,
    arrivals: DeviceSlice<i32>,
    /// Loaded with the first layer.
    kernels: Option<Kernels>,
    step: Step,
}

struct Kernels {
    append: MfaAppend,
    decode: MfaDecode,
    prefill: MfaPrefill,
}

/// Of one micro-batch.
struct Plans {
    rows: DeviceSlice<i32>,
    chunks: DeviceSlice<i32>,
    /// Which of them its step has.
    readers: Readers,
}

/// Who reads pages in a step: rows alone in their sequence, and chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Readers {
    rows: bool,
    chunks: bool,
}

impl Readers {
    /// A number for each of the ways in which a step's kernels can differ.
    pub(super) fn form(self) -> usize {
        usize::from(self.rows) + 2 * usize::from(self.chunks)
    }
}

/// What a step reads, on the host.
#[derive(Default)]
struct Step {
    rows: Vec<RowPages>,
    /// Where among all of the step's rows each of `rows` is.
    places: Vec<u32>,
    chunks: Vec<Chunk>,
    pages: Vec<i32>,
}

/// What it keeps of a layer.
pub(super) struct FastLayer {
    pages: mfa::KvPages,
    /// One for each micro-batch, for rows and for chunks; none where memory is only counted.
    calls: Vec<[MfaCall; 2]>,
}

impl Step {
    /// A group's rows are consecutive positions of one sequence, a chunk if they are `least`.
    fn describe(&mut self, groups: &[RowGroup], pages: &[u32], least: usize) {
        self.rows.clear();
        self.places.clear();
        self.chunks.clear();
        for group in groups {
            let (first, context) = (group.pages.start as u32, group.first_position as u32 + 1);
            if group.rows >= least {
                self.chunks.push(Chunk { row: group.first_row as u32, tokens: group.rows as u32, first, context });
                continue;
            }
            let rows = (0..group.rows as u32).map(|index| RowPages { first, context: context + index });
            self.rows.extend(rows);
            self.places.extend(group.row_range().map(|row| row as u32));
        }
        self.pages.clear();
        self.pages.extend(pages.iter().map(|page| *page as i32));
    }
}

impl FastLayer {
    /// Where keys and values go.
    pub(super) fn pages(&self) -> &mfa::KvPages {
        &self.pages
    }
}

impl FastAttention {
    /// For at most `rows` rows a micro-batch; none where shape, format or card are not what it takes.
    pub(super) fn new(
        device: &CudaDevice,
        shape: &ModelShape,
        (page_tokens, stored): (usize, Stored),
        (rows, micro_batches): (usize, usize),
    ) -> Result<Option<Self>, CudaError> {
        let fits = (shape.heads, shape.head_dim, page_tokens) == (HEADS, HEAD_DIM, PAGE_TOKENS as usize);
        let ctas = device.machine().mfa_ctas();
        if !fits || stored == Stored::F32 || ctas == 0 {
            return Ok(None);
        }
        let arrivals = device.copied(&[0])?;
        let plans = |_| {
            let alone = device.buffer(WorkSplit::words_at_most(rows, ctas))?;
            let chunks = device.buffer(ChunkSplit::words_at_most(rows, ctas))?;
            Ok(Plans { rows: alone, chunks, readers: Readers::default() })
        };
        Ok(Some(Self {
            card: device.machine().card().map(|(card, stream)| (Arc::clone(card), Arc::clone(stream))),
            ctas,
            least: chunks::least_tokens(stored == Stored::Fp8),
            costs: if stored == Stored::Fp8 { Costs::FP8 } else { Costs::BF16 },
            q: device.buffer(rows * HEADS * HEAD_DIM * 2)?,
            out: device.copied(&vec![0; rows * HEADS * HEAD_DIM * 2])?,
            plans: (0..micro_batches).map(plans).collect::<Result<_, _>>()?,
            partials: device.buffer(ChunkSplit::slots_at_most(ctas) * PARTIAL_BYTES)?,
            arrivals,
            kernels: None,
            step: Step::default(),
        }))
    }

    /// A layer's pages, and what is kept of it.
    pub(super) fn layer(&mut self, device: &CudaDevice, kv: KvPages) -> Result<(KvPages, FastLayer), CudaError> {
        let (kv, pages) = kv.for_mfa()?;
        let Some((card, _)) = &self.card else { return Ok((kv, FastLayer { pages, calls: Vec::new() })) };
        if self.kernels.is_none() {
            let (append, decode) = (MfaAppend::new(card)?, MfaDecode::new(card, pages.clone())?);
            self.kernels = Some(Kernels { append, decode, prefill: MfaPrefill::new(card, pages.clone())? });
        }
        let kernels = self.kernels.as_ref().expect("loaded before");
        let (decode, prefill) = (kernels.decode.for_pages(pages.clone())?, kernels.prefill.for_pages(pages.clone())?);
        let calls = |(micro_batch, plans): (usize, &Plans)| {
            let step = |work: &DeviceSlice<i32>| MfaStep {
                q: self.q.cast(),
                out: self.out.cast(),
                work: work.clone(),
                pages: device.values(micro_batch).paged.pages.clone(),
                partials: self.partials.clone(),
                arrivals: self.arrivals.clone(),
                ctas: self.ctas as u32,
                // Another device of the deployment may be on the same card.
                order: Order::Together,
                scale: 1.0 / (HEAD_DIM as f32).sqrt(),
            };
            Ok([decode.prepare(step(&plans.rows))?, prefill.prepare(step(&plans.chunks))?])
        };
        let calls = self.plans.iter().enumerate().map(calls).collect::<Result<_, CudaError>>()?;
        Ok((kv, FastLayer { pages, calls }))
    }

    /// Divides the step's pages, and sends the plans ahead of its attention.
    pub(super) fn plan(&mut self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), CudaError> {
        self.step.describe(&task.batch.groups, &task.batch.pages, self.least);
        let Step { rows, places, chunks, pages } = &self.step;
        let plans = &mut self.plans[task.micro_batch];
        plans.readers = Readers { rows: !rows.is_empty(), chunks: !chunks.is_empty() };
        let send = |words: Vec<i32>, to: &DeviceSlice<i32>| write(device.machine(), &words, &to.part(0, words.len()));
        if plans.readers.rows {
            send(split::split(rows, self.ctas, self.costs).for_rows(places).words(pages), &plans.rows)?;
        }
        if plans.readers.chunks {
            send(ChunkSplit::new(chunks, self.ctas).words(pages), &plans.chunks)?;
        }
        Ok(())
    }

    /// Who reads pages in a micro-batch's step, once it is planned.
    pub(super) fn readers(&self, micro_batch: usize) -> Readers {
        self.plans[micro_batch].readers
    }

    /// Rotates the rows of a step and appends their keys and values. `table` as in [`MfaAppend::enqueue`].
    pub(super) fn append(
        &self,
        layer: &FastLayer,
        rows: usize,
        from: Projected<'_>,
        table: &DeviceSlice<f32>,
        at: &Paged,
    ) -> Result<(), CudaError> {
        let kernels = self.kernels.as_ref().expect("loaded with the first layer");
        kernels.append.enqueue(self.stream(), rows, from, table, at, &layer.pages, &self.rotated())
    }

    /// Where rotated rows go, if not by [`Self::append`].
    pub(super) fn rotated(&self) -> DeviceSlice<u16> {
        self.q.cast()
    }

    /// Attends: the result is what [`Self::narrow`] or [`Self::widen`] take.
    pub(super) fn attend(&self, layer: &FastLayer, micro_batch: usize) -> Result<(), CudaError> {
        let (readers, [alone, chunks]) = (self.readers(micro_batch), &layer.calls[micro_batch]);
        if readers.rows {
            alone.enqueue(self.stream())?;
        }
        if readers.chunks {
            chunks.enqueue(self.stream())?;
        }
        Ok(())
    }

    fn stream(&self) -> &Stream {
        let (_, stream) = self.card.as_ref().expect("work is enqueued on cards alone, not where memory is counted");
        stream
    }

    /// What was attended to, `[rows, 64 · 256]`, for a product.
    pub(super) fn narrow(&self, device: &CudaDevice, rows: usize, to: &Narrowed) -> Result<(), CudaError> {
        device.tensor_ops().narrow_bf16(&self.out.cast(), rows, to)
    }

    /// The same in f32.
    pub(super) fn widen(&self, device: &CudaDevice, rows: usize, to: &DeviceSlice<f32>) -> Result<(), CudaError> {
        device.ops().decode(&self.out, rows, HEADS * HEAD_DIM, Stored::Bf16, to)
    }
}
