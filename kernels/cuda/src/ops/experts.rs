//! Choosing experts, sorting rows by them, and summing what they answer (`cu/router.cu`, `cu/experts.cu`).

use super::{Ops, TILE_ROWS, holds, launch};
use crate::error::CudaError;
use crate::machine::{Machine, write};
use crate::memory::{Arena, DeviceSlice};

/// Chosen experts of rows and their weights, `[rows, top_k]`, best first.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Expert ids.
    pub ids: DeviceSlice<i32>,
    /// Their weights.
    pub weights: DeviceSlice<f32>,
}

/// Rows sorted by the experts that a machine holds. Buffers are reused.
#[derive(Debug)]
pub struct Sorted {
    top_k: usize,
    held: usize,
    most_rows: usize,
    /// Index among the held ones by expert id, or -1.
    local: DeviceSlice<i32>,
    counts: DeviceSlice<i32>,
    pub(super) tiles: DeviceSlice<i32>,
    pub(super) members: DeviceSlice<i32>,
}

impl Sorted {
    /// For at most `rows` rows; `held` are the ids of the experts that are here, ascending, of `experts`.
    ///
    /// # Errors
    /// No memory.
    pub fn new(
        machine: &dyn Machine,
        rows: usize,
        top_k: usize,
        experts: usize,
        held: &[usize],
    ) -> Result<Sorted, CudaError> {
        let mut local = vec![-1; experts];
        held.iter().enumerate().for_each(|(index, id)| local[*id] = index as i32);
        let tiles = most_tiles(rows, top_k, held.len()) * 3;
        let sizes = [experts, held.len(), tiles, rows * top_k];
        let mut arena = machine.allocate(Arena::bytes_for(sizes.map(|count| count * size_of::<i32>())))?;
        let on_device = arena.take(experts)?;
        write(machine, &local, &on_device)?;
        Ok(Sorted {
            top_k,
            held: held.len(),
            most_rows: rows,
            local: on_device,
            counts: arena.take(held.len())?,
            tiles: arena.take(tiles)?,
            members: arena.take(rows * top_k)?,
        })
    }

    /// Experts of a row.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Experts held.
    pub fn held(&self) -> usize {
        self.held
    }

    pub(super) fn tiles_for(&self, rows: usize) -> usize {
        most_tiles(rows, self.top_k, self.held)
    }
}

/// However rows are spread: each expert but for its last tile fills its tiles.
fn most_tiles(rows: usize, top_k: usize, held: usize) -> usize {
    if held == 0 { 0 } else { (rows * top_k / TILE_ROWS + held).min(rows * top_k) }
}

#[repr(C)]
struct Route {
    logits: u64,
    ids: u64,
    weights: u64,
    experts: i32,
    top_k: i32,
    renormalises: i32,
}

#[repr(C)]
struct Experts {
    ids: u64,
    local: u64,
    counts: u64,
    tiles: u64,
    members: u64,
    weights: u64,
    answers: u64,
    shared: u64,
    y: u64,
    rows: i32,
    top_k: i32,
    held: i32,
    most_tiles: i32,
    hidden: i32,
}

impl Sorted {
    fn arguments(&self, routing: &Routing, rows: usize) -> Result<Experts, CudaError> {
        holds("experts", "ids [rows, top_k]", &routing.ids, rows * self.top_k)?;
        holds("experts", "weights [rows, top_k]", &routing.weights, rows * self.top_k)?;
        if rows > self.most_rows {
            let problem = format!("{rows} rows; buffers hold {}", self.most_rows);
            return Err(CudaError::Shape { operation: "experts", problem });
        }
        Ok(Experts {
            ids: routing.ids.address(),
            local: self.local.address(),
            counts: self.counts.address(),
            tiles: self.tiles.address(),
            members: self.members.address(),
            weights: routing.weights.address(),
            answers: 0,
            shared: 0,
            y: 0,
            rows: rows as i32,
            top_k: self.top_k as i32,
            held: self.held as i32,
            most_tiles: self.tiles_for(rows) as i32,
            hidden: 0,
        })
    }
}

impl Ops {
    /// Router logits `[rows, experts]` to experts and weights.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    pub fn route(
        &self,
        logits: &DeviceSlice<f32>,
        rows: usize,
        experts: usize,
        top_k: usize,
        renormalises: bool,
        routing: &Routing,
    ) -> Result<(), CudaError> {
        holds("route", "logits [rows, experts]", logits, rows * experts)?;
        holds("route", "ids [rows, top_k]", &routing.ids, rows * top_k)?;
        holds("route", "weights [rows, top_k]", &routing.weights, rows * top_k)?;
        let arguments = Route {
            logits: logits.address(),
            ids: routing.ids.address(),
            weights: routing.weights.address(),
            experts: experts as i32,
            top_k: top_k as i32,
            renormalises: i32::from(renormalises),
        };
        // SAFETY: lengths were checked.
        unsafe { launch(&*self.route, rows, arguments) }
    }

    /// Sorts rows by held expert, in row order. No count comes back.
    ///
    /// # Errors
    /// As [`Ops::route`].
    pub fn sort_experts(&self, routing: &Routing, rows: usize, sorted: &Sorted) -> Result<(), CudaError> {
        // SAFETY: lengths were checked; ids below the experts' number are the caller's promise.
        unsafe {
            launch(&*self.count_experts, sorted.held, sorted.arguments(routing, rows)?)?;
            launch(&*self.place_experts, sorted.held, sorted.arguments(routing, rows)?)
        }
    }

    /// y `[rows, hidden]`: from zero, weight × answer in ascending id of the held experts, then `shared` `[rows, hidden]`. `answers`
    /// are `[rows × top_k, hidden]` by place in the routing.
    ///
    /// # Errors
    /// As [`Ops::route`].
    #[expect(
        clippy::too_many_arguments,
        reason = "the operation's own shape; every argument differs in type or meaning"
    )]
    pub fn sum_experts(
        &self,
        routing: &Routing,
        sorted: &Sorted,
        answers: &DeviceSlice<f32>,
        shared: Option<&DeviceSlice<f32>>,
        rows: usize,
        hidden: usize,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        holds("sum_experts", "answers [rows × top_k, hidden]", answers, rows * sorted.top_k * hidden)?;
        holds("sum_experts", "y [rows, hidden]", y, rows * hidden)?;
        if let Some(shared) = shared {
            holds("sum_experts", "shared [rows, hidden]", shared, rows * hidden)?;
        }
        let arguments = Experts {
            answers: answers.address(),
            shared: shared.map_or(0, DeviceSlice::address),
            y: y.address(),
            hidden: hidden as i32,
            ..sorted.arguments(routing, rows)?
        };
        // SAFETY: lengths were checked.
        unsafe { launch(&*self.sum_experts, rows, arguments) }
    }
}
