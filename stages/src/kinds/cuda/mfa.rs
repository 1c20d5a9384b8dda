//! Decode attention at the speed of memory, for what `rally_cuda::mfa` takes: 64 heads of 256 elements, pages of 64 positions, KV in
//! bf16 or fp8, a card of Hopper's. A row of a prompt is a row like any other there: it sees the positions up to its own.
//!
//! Which device reads which pages is planned once a step, in the first of the stage's layers.

use super::device::CudaDevice;
use rally_cuda::machine::write;
use rally_cuda::memory::DeviceSlice;
use rally_cuda::mfa::{self, HEAD_DIM, HEADS, MfaCall, MfaDecode, MfaStep, PARTIAL_BYTES};
use rally_cuda::mfa_append::{MfaAppend, Projected};
use rally_cuda::module::Order;
use rally_cuda::ops::{KvPages, Paged, Stored};
use rally_cuda::split::{self, Costs, PAGE_TOKENS, RowPages, WorkSplit};
use rally_cuda::stream::Stream;
use rally_cuda::tensor::Narrowed;
use rally_cuda::{CudaError, Device};
use rally_engine::stage::TaskContext;
use rally_graph::model::ModelShape;
use std::sync::Arc;

/// What a stage keeps for it.
pub(super) struct FastAttention {
    /// None where memory is only counted.
    card: Option<(Arc<Device>, Arc<Stream>)>,
    ctas: usize,
    costs: Costs,
    /// `[rows, 64, 256]` bf16.
    q: DeviceSlice<u8>,
    /// Zero at first: rows that pad stay so.
    out: DeviceSlice<u8>,
    /// The plan of each micro-batch's step.
    plans: Vec<DeviceSlice<i32>>,
    partials: DeviceSlice<u8>,
    arrivals: DeviceSlice<i32>,
    /// Loaded with the first layer.
    decode: Option<MfaDecode>,
    append: Option<MfaAppend>,
    rows: Vec<RowPages>,
    pages: Vec<i32>,
}

/// What it keeps of a layer.
pub(super) struct FastLayer {
    pages: mfa::KvPages,
    /// One for each micro-batch; none where memory is only counted.
    calls: Vec<MfaCall>,
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
        let plan = |_| device.buffer(WorkSplit::words_at_most(rows, ctas));
        Ok(Some(Self {
            card: device.machine().card().map(|(card, stream)| (Arc::clone(card), Arc::clone(stream))),
            ctas,
            costs: if stored == Stored::Fp8 { Costs::FP8 } else { Costs::BF16 },
            q: device.buffer(rows * HEADS * HEAD_DIM * 2)?,
            out: device.copied(&vec![0; rows * HEADS * HEAD_DIM * 2])?,
            plans: (0..micro_batches).map(plan).collect::<Result<_, _>>()?,
            partials: device.buffer(WorkSplit::slots_at_most(ctas) * PARTIAL_BYTES)?,
            arrivals,
            decode: None,
            append: None,
            rows: Vec::with_capacity(rows),
            pages: Vec::new(),
        }))
    }

    /// A layer's pages, and what is kept of it.
    pub(super) fn layer(&mut self, device: &CudaDevice, kv: KvPages) -> Result<(KvPages, FastLayer), CudaError> {
        let (kv, pages) = kv.for_mfa()?;
        let Some(decode) = self.decode(pages.clone())? else { return Ok((kv, FastLayer { pages, calls: Vec::new() })) };
        let call = |(micro_batch, work): (usize, &DeviceSlice<i32>)| {
            decode.prepare(MfaStep {
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
            })
        };
        let calls = self.plans.iter().enumerate().map(call).collect::<Result<_, _>>()?;
        Ok((kv, FastLayer { pages, calls }))
    }

    fn decode(&mut self, pages: mfa::KvPages) -> Result<Option<MfaDecode>, CudaError> {
        let Some((card, _)) = &self.card else { return Ok(None) };
        if let Some(decode) = &self.decode {
            return decode.for_pages(pages).map(Some);
        }
        self.append = Some(MfaAppend::new(card)?);
        let decode = MfaDecode::new(card, pages.clone())?;
        let again = decode.for_pages(pages)?;
        self.decode = Some(decode);
        Ok(Some(again))
    }

    /// Divides the step's pages, and sends the plan ahead of its attention.
    pub(super) fn plan(&mut self, device: &CudaDevice, task: &TaskContext<'_>) -> Result<(), CudaError> {
        self.rows.clear();
        for group in &task.batch.groups {
            let first = group.pages.start as u32;
            let context = |index: usize| (group.first_position + index) as u32 + 1;
            self.rows.extend((0..group.rows).map(|index| RowPages { first, context: context(index) }));
        }
        self.pages.clear();
        self.pages.extend(task.batch.pages.iter().map(|page| *page as i32));
        let words = split::split(&self.rows, self.ctas, self.costs).words(&self.pages);
        write(device.machine(), &words, &self.plans[task.micro_batch].part(0, words.len()))
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
        let append = self.append.as_ref().expect("loaded with the first layer");
        append.enqueue(self.stream(), rows, from, table, at, &layer.pages, &self.rotated())
    }

    /// Where rotated rows go, if not by [`Self::append`].
    pub(super) fn rotated(&self) -> DeviceSlice<u16> {
        self.q.cast()
    }

    /// Attends: the result is what [`Self::narrow`] or [`Self::widen`] take.
    pub(super) fn attend(&self, layer: &FastLayer, micro_batch: usize) -> Result<(), CudaError> {
        layer.calls[micro_batch].enqueue(self.stream())
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
