//! Rows sorted by expert into slots (`cu/slots.cu`).

use super::{TILE_STEP, TensorOps, refused};
use crate::error::CudaError;
use crate::machine::{Machine, write};
use crate::memory::{Arena, DeviceSlice};
use crate::ops::Routing;
use crate::stream::Stream;

/// Experts of a row at most.
pub(super) const MOST_TOP_K: usize = 8;
/// Experts held at most.
const MOST_HELD: usize = 512;
/// Threads of the kernel.
const THREADS: u32 = 512;
/// What an expert's slots begin at a multiple of.
const ALIGNED: usize = 8;

/// Where rows stand by expert, and the tiles that they make. Buffers are reused; `place` fills them.
#[derive(Debug)]
pub struct Slots {
    pub(super) top_k: usize,
    pub(super) held: usize,
    pub(super) shares: bool,
    pub(super) most_rows: usize,
    /// Index among the held ones by expert id, or -1.
    local: DeviceSlice<i32>,
    pub(super) slot_of: DeviceSlice<i32>,
    pub(super) slot_weights: DeviceSlice<f32>,
    /// Whose row a slot is.
    pub(super) row_of: DeviceSlice<i32>,
    pub(super) tiles: DeviceSlice<i32>,
    /// What products with the tiles before each take.
    pub(super) costs: DeviceSlice<i32>,
    /// Tiles, and the shared expert's first slot.
    pub(super) head: DeviceSlice<i32>,
}

impl Slots {
    /// For at most `rows` rows; `held` are the ids of the experts that are here, ascending, of `experts`. `shares`: one more expert,
    /// behind them, that every row has.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for more than 8 experts a row or 512 held; no memory.
    pub fn new(
        stream: &Stream,
        rows: usize,
        top_k: usize,
        experts: usize,
        held: &[usize],
        shares: bool,
    ) -> Result<Slots, CudaError> {
        let (local, slots) =
            Slots::within((rows, top_k, experts), held, shares, |bytes| Arena::new(stream.device(), bytes))?;
        stream.write(&local, &slots.local)?;
        Ok(slots)
    }

    /// The same in a machine's memory; it may only count. The first of `shape` are rows, then experts a row, then all experts.
    ///
    /// # Errors
    /// As [`Slots::new`].
    pub fn on(
        machine: &dyn Machine,
        shape: (usize, usize, usize),
        held: &[usize],
        shares: bool,
    ) -> Result<Slots, CudaError> {
        let (local, slots) = Slots::within(shape, held, shares, |bytes| machine.allocate(bytes))?;
        write(machine, &local, &slots.local)?;
        Ok(slots)
    }

    /// Whether so many experts can be sorted by.
    pub fn takes(top_k: usize, held: usize) -> bool {
        top_k <= MOST_TOP_K && held <= MOST_HELD
    }

    /// What `local` is to hold, and the rest.
    fn within(
        (rows, top_k, experts): (usize, usize, usize),
        held: &[usize],
        shares: bool,
        allocate: impl FnOnce(usize) -> Result<Arena, CudaError>,
    ) -> Result<(Vec<i32>, Slots), CudaError> {
        if !Slots::takes(top_k, held.len()) {
            let problem = format!("{top_k} of {} experts; {MOST_TOP_K} of {MOST_HELD} are possible", held.len());
            return Err(refused("slots", problem));
        }
        let mut local = vec![-1; experts];
        held.iter().enumerate().for_each(|(index, id)| local[*id] = index as i32);
        let capacity = capacity(rows, top_k, held.len(), shares);
        let tiles = capacity / TILE_STEP + held.len() + 1;
        let sizes = [experts, rows * top_k, capacity, capacity, 4 * tiles, tiles + 1, 2];
        let mut arena = allocate(Arena::bytes_for(sizes.map(|count| count * 4)))?;
        let slots = Slots {
            top_k,
            held: held.len(),
            shares,
            most_rows: rows,
            local: arena.take(experts)?,
            slot_of: arena.take(rows * top_k)?,
            slot_weights: arena.take(capacity)?,
            row_of: arena.take(capacity)?,
            tiles: arena.take(4 * tiles)?,
            costs: arena.take(tiles + 1)?,
            head: arena.take(2)?,
        };
        Ok((local, slots))
    }

    /// Slots that so many rows may need.
    pub fn capacity_for(&self, rows: usize) -> usize {
        capacity(rows, self.top_k, self.held, self.shares)
    }

    /// Slot of each place in the routing, `[rows, top_k]`, or -1.
    pub fn slot_of(&self) -> &DeviceSlice<i32> {
        &self.slot_of
    }

    /// Whether there is a shared expert behind those held.
    pub fn has_shared(&self) -> bool {
        self.shares
    }

    pub(crate) fn head(&self) -> &DeviceSlice<i32> {
        &self.head
    }

    /// Matrices that [`TensorOps::up`] and [`TensorOps::down`] expect: of the experts held, and the shared one's.
    pub fn matrices(&self) -> usize {
        self.held + usize::from(self.shares)
    }
}

fn capacity(rows: usize, top_k: usize, held: usize, shares: bool) -> usize {
    let aligned = rows * top_k + held * (ALIGNED - 1) + if shares { rows } else { 0 };
    aligned.next_multiple_of(ALIGNED)
}

#[repr(C)]
struct Arguments {
    ids: u64,
    local: u64,
    weights: u64,
    slot_of: u64,
    slot_weights: u64,
    row_of: u64,
    tiles: u64,
    costs: u64,
    head: u64,
    rows: i32,
    top_k: i32,
    held: i32,
    shares: i32,
}

impl TensorOps {
    /// Sorts the rows of a routing.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for more rows than there is room for; the driver's own.
    pub fn place(&self, routing: &Routing, rows: usize, slots: &Slots) -> Result<(), CudaError> {
        let places = rows * slots.top_k;
        if rows > slots.most_rows || routing.ids.len() < places || routing.weights.len() < places {
            return Err(refused("place_slots", format!("{rows} rows; buffers hold {}", slots.most_rows)));
        }
        let arguments = Arguments {
            ids: routing.ids.address(),
            local: slots.local.address(),
            weights: routing.weights.address(),
            slot_of: slots.slot_of.address(),
            slot_weights: slots.slot_weights.address(),
            row_of: slots.row_of.address(),
            tiles: slots.tiles.address(),
            costs: slots.costs.address(),
            head: slots.head.address(),
            rows: rows as i32,
            top_k: slots.top_k as i32,
            held: slots.held as i32,
            shares: i32::from(slots.shares),
        };
        // SAFETY: buffers are made for as many rows; ids below the number of experts are the caller's promise.
        unsafe { self.launch(&self.place, slots.held + 1, THREADS, arguments) }
    }
}
