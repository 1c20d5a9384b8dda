//! Rows as tensor cores multiply them, and the norm on the way there (`cu/rows_fast.cu`).

use super::experts::{MOST_TOP_K, Slots};
use super::{TensorOps, of, refused};
use crate::device::Device;
use crate::error::CudaError;
use crate::machine::Machine;
use crate::memory::{Arena, DeviceSlice};
use crate::mfa_append::{self, Appended};
use crate::module::{Kernel, Module};
use crate::ops::Stored;
use crate::tensor_map::{Blocked, TensorMap};
use std::sync::Arc;

/// Tokens that the copy engine brings at once.
const TOKEN_BOX: u32 = 32;
/// Inputs that share a scale.
pub(super) const SCALE_GROUP: usize = 128;
/// Widest row.
const WIDTH_AT_MOST: usize = 16384;
/// Widest row of [`TensorOps::narrow_appending`].
pub const WIDTH_WITH_KEYS: usize = 2048;
/// Threads of narrowing.
const THREADS: u32 = 256;
/// Threads of a sum.
const SUM_THREADS: u32 = 128;

/// Rows in e4m3 with scales, or in bf16: `[slots, width]`. [`TensorOps::narrow`] gives a row one scale, `[slots]`, and
/// [`TensorOps::up`] one each 128 elements, `[width / 128, slots]`; each product knows whose rows it takes.
#[derive(Debug)]
pub struct Narrowed {
    pub(super) codes: DeviceSlice<u8>,
    pub(super) scales: DeviceSlice<f32>,
    pub(super) slots: usize,
    pub(super) width: usize,
    pub(super) stored: Stored,
    /// Whether [`TensorOps::narrow`] gives them a scale each 128 elements, too.
    pub(super) grouped: bool,
    pub(super) map: TensorMap,
}

impl Narrowed {
    /// Room for `slots` rows.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for a width that is no multiple of 128 or above 16384, or f32; no memory.
    pub fn new(device: &Arc<Device>, slots: usize, width: usize, stored: Stored) -> Result<Narrowed, CudaError> {
        Narrowed::within(Some(&**device), slots, width, stored, |bytes| Arena::new(device, bytes))
    }

    /// The same in a machine's memory; it may only count.
    ///
    /// # Errors
    /// As [`Narrowed::new`].
    pub fn on(machine: &dyn Machine, slots: usize, width: usize, stored: Stored) -> Result<Narrowed, CudaError> {
        let device = machine.card().map(|(device, _)| &**device);
        Narrowed::within(device, slots, width, stored, |bytes| machine.allocate(bytes))
    }

    /// Room for `slots` rows in e4m3 with a scale each 128 elements, of any multiple of those, in a machine's memory; it may only
    /// count. [`TensorOps::project`] sums their products in f32.
    ///
    /// # Errors
    /// As [`Narrowed::new`].
    pub fn grouped_on(machine: &dyn Machine, slots: usize, width: usize) -> Result<Narrowed, CudaError> {
        if width == 0 || !width.is_multiple_of(SCALE_GROUP) {
            return Err(refused("narrow", format!("rows of {width} have no whole groups of {SCALE_GROUP}")));
        }
        let device = machine.card().map(|(device, _)| &**device);
        let rows = Narrowed::room(device, slots, width, Stored::Fp8, |bytes| machine.allocate(bytes))?;
        Ok(Narrowed { grouped: true, ..rows })
    }

    /// Whether rows of this width can be narrowed.
    pub fn takes(width: usize) -> bool {
        width > 0 && width.is_multiple_of(SCALE_GROUP) && width <= WIDTH_AT_MOST
    }

    fn within(
        device: Option<&Device>,
        slots: usize,
        width: usize,
        stored: Stored,
        allocate: impl FnOnce(usize) -> Result<Arena, CudaError>,
    ) -> Result<Narrowed, CudaError> {
        if !Narrowed::takes(width) || stored == Stored::F32 {
            return Err(refused(
                "narrow",
                format!("rows of {width} in {stored:?}: multiples of 128 to {WIDTH_AT_MOST}"),
            ));
        }
        Narrowed::room(device, slots, width, stored, allocate)
    }

    fn room(
        device: Option<&Device>,
        slots: usize,
        width: usize,
        stored: Stored,
        allocate: impl FnOnce(usize) -> Result<Arena, CudaError>,
    ) -> Result<Narrowed, CudaError> {
        let slots = slots.max(1).next_multiple_of(8);
        let (bytes, scales) = (slots * width * stored.bytes(), slots * width / SCALE_GROUP);
        let mut arena = allocate(Arena::bytes_for([bytes, scales * size_of::<f32>()]))?;
        let (codes, scales) = (arena.take(bytes)?, arena.take(scales)?);
        let map = Blocked {
            address: codes.address(),
            element: stored.bytes() as u32,
            rows: slots as u64,
            columns: width as u64,
            block: 128 / stored.bytes() as u32,
            box_rows: TOKEN_BOX,
            box_blocks: 1,
        };
        Ok(Narrowed { map: map.encode_on(device)?, codes, scales, slots, width, stored, grouped: false })
    }

    /// The numbers as they lie there, for tests.
    pub fn parts(&self) -> (&DeviceSlice<u8>, &DeviceSlice<f32>) {
        (&self.codes, &self.scales)
    }

    /// Rows there is room for.
    pub fn slots(&self) -> usize {
        self.slots
    }
}

/// RMS norm before rows are narrowed.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[width]`.
    pub weight: &'a DeviceSlice<f32>,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Where the normed rows go as f32 too.
    pub normed: Option<&'a DeviceSlice<f32>>,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Arguments {
    pub(super) x: u64,
    pub(super) weight: u64,
    pub(super) normed: u64,
    pub(super) codes: u64,
    pub(super) scales: u64,
    pub(super) rows: i32,
    pub(super) width: i32,
    pub(super) eps: f32,
}

/// By format, by that of x (f32, bf16), and by width.
#[derive(Debug)]
pub(super) struct NarrowKernels([[[Kernel; 3]; 2]; 2]);

impl NarrowKernels {
    pub(super) fn of(module: &Arc<Module>) -> Result<NarrowKernels, CudaError> {
        let three = |names: [&'static str; 3]| -> Result<[Kernel; 3], CudaError> {
            Ok([module.kernel(names[0], 0)?, module.kernel(names[1], 0)?, module.kernel(names[2], 0)?])
        };
        Ok(NarrowKernels([
            [
                three(["narrow_fp8_f32_2", "narrow_fp8_f32_7", "narrow_fp8_f32_16"])?,
                three(["narrow_fp8_bf16_2", "narrow_fp8_bf16_7", "narrow_fp8_bf16_16"])?,
            ],
            [
                three(["narrow_bf16_f32_2", "narrow_bf16_f32_7", "narrow_bf16_f32_16"])?,
                three(["narrow_bf16_bf16_2", "narrow_bf16_bf16_7", "narrow_bf16_bf16_16"])?,
            ],
        ]))
    }

    fn of_rows(&self, to: &Narrowed, is_narrow: bool) -> &Kernel {
        let width = match to.width {
            0..=2048 => 0,
            2049..=7168 => 1,
            _ => 2,
        };
        &self.0[usize::from(to.stored != Stored::Fp8)][usize::from(is_narrow)][width]
    }
}

#[repr(C)]
struct WithKeys {
    narrow: Arguments,
    append: mfa_append::Arguments,
}

#[repr(C)]
struct Sum {
    answers: u64,
    y: u64,
    slot_of: u64,
    head: u64,
    rows: i32,
    width: i32,
    top_k: i32,
    shares: i32,
}

impl TensorOps {
    /// Rows of x `[rows, width]`, normed or not, each to place `row`; whatever `slots` there are, products find rows there.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    pub fn narrow(
        &self,
        x: &DeviceSlice<f32>,
        rows: usize,
        norm: Option<Norm<'_>>,
        slots: Option<&Slots>,
        to: &Narrowed,
    ) -> Result<(), CudaError> {
        let most = slots.map_or(to.slots, |slots| slots.most_rows.min(to.slots));
        let arguments = narrowing(x, rows, norm, most, to)?;
        if to.grouped {
            return self.narrow_groups(arguments, None, false, to);
        }
        // SAFETY: lengths were checked.
        unsafe { self.launch(self.narrow.of_rows(to, false), rows, THREADS, arguments) }
    }

    /// The same, normed, of rows to 2048 wide, and their keys and values into their pages at the same time.
    ///
    /// # Errors
    /// As [`TensorOps::narrow`].
    pub fn narrow_appending(
        &self,
        x: &DeviceSlice<f32>,
        rows: usize,
        norm: Norm<'_>,
        to: &Narrowed,
        keys: Appended<'_>,
    ) -> Result<(), CudaError> {
        if to.width > WIDTH_WITH_KEYS || to.grouped {
            return Err(refused("narrow_append", format!("rows of {}: at most {WIDTH_WITH_KEYS}", to.width)));
        }
        let arguments = WithKeys {
            narrow: narrowing(x, rows, Some(norm), to.slots, to)?,
            append: keys.arguments(rows, "narrow_append")?,
        };
        let grid = rows + (2 * rows).div_ceil(THREADS as usize / 32);
        // SAFETY: lengths were checked; positions and page numbers within theirs are the caller's promise.
        unsafe { self.launch(of(&self.narrow_append, to.stored), grid, THREADS, arguments) }
    }

    /// The same of rows in bf16, each to slot `row`: what attention leaves.
    ///
    /// # Errors
    /// As [`TensorOps::narrow`].
    pub fn narrow_bf16(&self, x: &DeviceSlice<u16>, rows: usize, to: &Narrowed) -> Result<(), CudaError> {
        if x.len() < rows * to.width || to.slots < rows {
            let problem = format!("{} elements for {rows} rows of {}, {} slots", x.len(), to.width, to.slots);
            return Err(refused("narrow", problem));
        }
        let arguments = Arguments {
            x: x.address(),
            weight: 0,
            normed: 0,
            codes: to.codes.address(),
            scales: to.scales.address(),
            rows: rows as i32,
            width: to.width as i32,
            eps: 0.0,
        };
        if to.grouped {
            return self.narrow_groups(arguments, None, true, to);
        }
        // SAFETY: lengths were checked.
        unsafe { self.launch(self.narrow.of_rows(to, true), rows, THREADS, arguments) }
    }

    /// The sum of each row's answers `[slots, width]`, which have their weights already: y `[rows, width]`.
    ///
    /// # Errors
    /// As [`TensorOps::narrow`].
    pub fn sum(
        &self,
        slots: &Slots,
        rows: usize,
        width: usize,
        answers: &DeviceSlice<u16>,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        if y.len() < rows * width || answers.len() < slots.capacity_for(rows) * width || !width.is_multiple_of(8) {
            return Err(refused("sum_slots", format!("{} elements for {rows} rows of {width}", y.len())));
        }
        debug_assert!(slots.top_k <= MOST_TOP_K, "slots are made so");
        let arguments = Sum {
            answers: answers.address(),
            y: y.address(),
            slot_of: slots.slot_of.address(),
            head: slots.head.address(),
            rows: rows as i32,
            width: width as i32,
            top_k: slots.top_k as i32,
            shares: i32::from(slots.shares),
        };
        // SAFETY: lengths were checked; slots are `place`'s own.
        unsafe { self.launch(&self.sum, rows, SUM_THREADS, arguments) }
    }
}

/// What narrowing takes, checked.
pub(super) fn narrowing(
    x: &DeviceSlice<f32>,
    rows: usize,
    norm: Option<Norm<'_>>,
    most: usize,
    to: &Narrowed,
) -> Result<Arguments, CudaError> {
    if x.len() < rows * to.width || most < rows {
        let problem = format!("{} elements for {rows} rows of {}, {most} places", x.len(), to.width);
        return Err(refused("narrow", problem));
    }
    if let Some(norm) = norm {
        let short = norm.normed.is_some_and(|normed| normed.len() < rows * to.width);
        if norm.weight.len() != to.width || short {
            return Err(refused("narrow", format!("a norm of {} for rows of {}", norm.weight.len(), to.width)));
        }
    }
    Ok(Arguments {
        x: x.address(),
        weight: norm.map_or(0, |norm| norm.weight.address()),
        normed: norm.and_then(|norm| norm.normed).map_or(0, DeviceSlice::address),
        codes: to.codes.address(),
        scales: to.scales.address(),
        rows: rows as i32,
        width: to.width as i32,
        eps: norm.map_or(0.0, |norm| norm.eps),
    })
}
