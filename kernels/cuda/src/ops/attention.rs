//! Keys and values in pages, and attention over them (`cu/rope_append.cu`, `cu/attention.cu`).

use super::{HEAD_DIM_AT_MOST, Ops, Stored, holds, launch};
use crate::error::CudaError;
use crate::machine::Machine;
use crate::memory::{Arena, DeviceSlice};
use crate::mfa;
use crate::split::PAGE_TOKENS;

/// One layer's pages of keys and values, `[pages, page_tokens, head_dim]` each.
#[derive(Debug)]
pub struct KvPages {
    keys: DeviceSlice<u8>,
    values: DeviceSlice<u8>,
    /// `[pages, 2, page_tokens]`, for fp8.
    scales: DeviceSlice<f32>,
    page_tokens: usize,
    head_dim: usize,
    stored: Stored,
    /// Whether fp8 values lie as [`crate::mfa`] reads them.
    turned: bool,
}

impl KvPages {
    /// Room for `pages` pages.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for heads too wide or of an odd width; no memory.
    pub fn new(
        machine: &dyn Machine,
        pages: usize,
        page_tokens: usize,
        head_dim: usize,
        stored: Stored,
    ) -> Result<KvPages, CudaError> {
        if head_dim == 0 || head_dim > HEAD_DIM_AT_MOST || !head_dim.is_multiple_of(2) {
            let problem = format!("heads of {head_dim} elements; even widths to {HEAD_DIM_AT_MOST} are possible");
            return Err(CudaError::Shape { operation: "attention", problem });
        }
        let bytes = pages * page_tokens * head_dim * stored.bytes();
        let scales = if stored == Stored::Fp8 { pages * page_tokens * 2 } else { 0 };
        let mut arena = machine.allocate(Arena::bytes_for([bytes, bytes, scales * size_of::<f32>()]))?;
        let (keys, values, scales) = (arena.take(bytes)?, arena.take(bytes)?, arena.take(scales)?);
        Ok(KvPages { keys, values, scales, page_tokens, head_dim, stored, turned: false })
    }

    /// The same for [`crate::mfa`], before anything is written: [`Ops::rope_append`] then writes fp8 values turned, and
    /// [`Ops::attention`] does not read them.
    ///
    /// # Errors
    /// [`CudaError::Shape`] unless pages are of 64 positions of 256 elements, in bf16 or fp8.
    pub fn for_mfa(mut self) -> Result<(KvPages, mfa::KvPages), CudaError> {
        if (self.page_tokens, self.head_dim) != (PAGE_TOKENS as usize, mfa::HEAD_DIM) || self.stored == Stored::F32 {
            let problem = format!("pages of {} x {} {:?}", self.page_tokens, self.head_dim, self.stored);
            return Err(CudaError::Shape { operation: "mfa_decode", problem });
        }
        self.turned = self.stored == Stored::Fp8;
        let pages = match self.stored {
            Stored::Fp8 => {
                mfa::KvPages::Fp8 { k: self.keys.clone(), v: self.values.clone(), scales: self.scales.clone() }
            }
            _ => mfa::KvPages::Bf16 { k: self.keys.cast(), v: self.values.cast() },
        };
        Ok((self, pages))
    }

    /// Writes small numbers everywhere, in place of keys and values of sequences, for whoever measures what reading them takes.
    ///
    /// # Errors
    /// The driver's own.
    pub fn pretend(&self, machine: &dyn Machine) -> Result<(), CudaError> {
        // 0.0115 in f32 and bf16; in fp8 1.5 with that for a scale.
        const BYTE: u8 = 0x3c;
        [&self.keys, &self.values, &self.scales.as_bytes()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .try_for_each(|part| machine.fill(part, BYTE))
    }
}

/// Where a batch's rows stand in their sequences.
#[derive(Debug, Clone)]
pub struct Paged {
    /// Position of each row.
    pub positions: DeviceSlice<i32>,
    /// Where each row's page numbers begin in `pages`.
    pub first: DeviceSlice<i32>,
    /// Page numbers.
    pub pages: DeviceSlice<i32>,
}

#[repr(C)]
struct Append {
    q: u64,
    k: u64,
    v: u64,
    table: u64,
    positions: u64,
    first: u64,
    pages: u64,
    keys: u64,
    values: u64,
    scales: u64,
    heads: i32,
    head_dim: i32,
    page_tokens: i32,
    stored: i32,
    is_turned: i32,
}

#[repr(C)]
struct Attention {
    q: u64,
    out: u64,
    keys: u64,
    values: u64,
    scales: u64,
    positions: u64,
    first: u64,
    pages: u64,
    heads: i32,
    head_dim: i32,
    page_tokens: i32,
    stored: i32,
    scale: f32,
}

impl Ops {
    /// Rotates q `[rows, heads, head_dim]` in place, and writes the rotated k and v, `[rows, head_dim]`, to their pages. `table` is
    /// `[positions, head_dim]`: the cosines of a position's pairs, then the sines.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    #[expect(
        clippy::too_many_arguments,
        reason = "the operation's own shape; every argument differs in type or meaning"
    )]
    pub fn rope_append(
        &self,
        q: &DeviceSlice<f32>,
        k: &DeviceSlice<f32>,
        v: &DeviceSlice<f32>,
        table: &DeviceSlice<f32>,
        rows: usize,
        heads: usize,
        at: &Paged,
        kv: &KvPages,
    ) -> Result<(), CudaError> {
        let d = kv.head_dim;
        holds("rope_append", "q [rows, heads, head_dim]", q, rows * heads * d)?;
        holds("rope_append", "k [rows, head_dim]", k, rows * d)?;
        holds("rope_append", "v [rows, head_dim]", v, rows * d)?;
        holds("rope_append", "positions [rows]", &at.positions, rows)?;
        holds("rope_append", "first [rows]", &at.first, rows)?;
        let arguments = Append {
            q: q.address(),
            k: k.address(),
            v: v.address(),
            table: table.address(),
            positions: at.positions.address(),
            first: at.first.address(),
            pages: at.pages.address(),
            keys: kv.keys.address(),
            values: kv.values.address(),
            scales: kv.scales.address(),
            heads: heads as i32,
            head_dim: d as i32,
            page_tokens: kv.page_tokens as i32,
            stored: kv.stored as i32,
            is_turned: i32::from(kv.turned),
        };
        // SAFETY: lengths were checked; positions and pages within theirs are the caller's promise.
        unsafe { launch(&*self.rope_append, rows * (heads + 2), arguments) }
    }

    /// `out = softmax(q · Kᵀ / sqrt(head_dim)) · V` of each head: q and out `[rows, heads, head_dim]`. A row sees the positions up to
    /// its own.
    ///
    /// # Errors
    /// As [`Ops::rope_append`].
    pub fn attention(
        &self,
        q: &DeviceSlice<f32>,
        rows: usize,
        heads: usize,
        at: &Paged,
        kv: &KvPages,
        out: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        let d = kv.head_dim;
        if kv.turned {
            let problem = "these values lie as mfa_decode reads them".to_owned();
            return Err(CudaError::Shape { operation: "attention", problem });
        }
        holds("attention", "q [rows, heads, head_dim]", q, rows * heads * d)?;
        holds("attention", "out [rows, heads, head_dim]", out, rows * heads * d)?;
        holds("attention", "positions [rows]", &at.positions, rows)?;
        holds("attention", "first [rows]", &at.first, rows)?;
        let arguments = Attention {
            q: q.address(),
            out: out.address(),
            keys: kv.keys.address(),
            values: kv.values.address(),
            scales: kv.scales.address(),
            positions: at.positions.address(),
            first: at.first.address(),
            pages: at.pages.address(),
            heads: heads as i32,
            head_dim: d as i32,
            page_tokens: kv.page_tokens as i32,
            stored: kv.stored as i32,
            scale: 1.0 / (d as f32).sqrt(),
        };
        // SAFETY: lengths were checked; positions and pages within theirs are the caller's promise.
        unsafe { launch(&*self.attention[kv.stored as usize], rows * heads, arguments) }
    }
}
