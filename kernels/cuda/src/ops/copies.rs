//! Experts that several machines hold (`cu/copies.cu`): which of them computes a row, and the sum of what all have answered.

use super::{Ops, Routing, holds, launch};
use crate::error::CudaError;
use crate::machine::{Machine, Place, write};
use crate::memory::{Arena, DeviceSlice};
use crate::tensor::Slots;

/// Who holds which expert of a layer, by index among the machines that share it.
#[derive(Debug)]
pub struct Holders {
    /// Index of this machine.
    own: usize,
    /// Machines there are at least.
    devices: usize,
    experts: usize,
    first: DeviceSlice<i32>,
    holders: DeviceSlice<i32>,
    homes: DeviceSlice<i32>,
}

impl Holders {
    /// `holders` of each expert, ascending and at least one; `homes`, whose part of y it belongs to; `own` is this machine.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for an expert without a holder; no memory.
    pub fn new(
        machine: &dyn Machine,
        own: usize,
        holders: &[&[usize]],
        homes: impl Iterator<Item = usize>,
    ) -> Result<Holders, CudaError> {
        if let Some(expert) = holders.iter().position(|holders| holders.is_empty()) {
            let problem = format!("nobody holds expert {expert}");
            return Err(CudaError::Shape { operation: "copies", problem });
        }
        let homes: Vec<i32> = homes.map(|home| home as i32).collect();
        if homes.len() != holders.len() {
            let problem = format!("{} homes of {} experts", homes.len(), holders.len());
            return Err(CudaError::Shape { operation: "copies", problem });
        }
        let ends = holders.iter().scan(0, |end, holders| {
            *end += holders.len() as i32;
            Some(*end)
        });
        let first: Vec<i32> = std::iter::once(0).chain(ends).collect();
        let all: Vec<i32> = holders.iter().flat_map(|holders| holders.iter().map(|holder| *holder as i32)).collect();
        let last = all.iter().chain(&homes).copied().max().unwrap_or_default();
        let sizes = [first.len(), all.len(), homes.len()].map(|count| count * size_of::<i32>());
        let mut arena = machine.allocate(Arena::bytes_for(sizes))?;
        let made = Holders {
            own,
            devices: own.max(last as usize) + 1,
            experts: holders.len(),
            first: arena.take(first.len())?,
            holders: arena.take(all.len())?,
            homes: arena.take(homes.len())?,
        };
        let parts = [(&first, &made.first), (&all, &made.holders), (&homes, &made.homes)];
        parts.into_iter().try_for_each(|(from, to)| write(machine, from, to))?;
        Ok(made)
    }
}

/// Who computes what of a micro-batch's rows, `[rows × top_k]` each.
#[derive(Debug)]
pub struct Taken {
    /// Experts as this machine is to sort rows by: those that others compute have the id behind the last.
    pub here: DeviceSlice<i32>,
    /// Index of the machine that computes each.
    pub takers: DeviceSlice<i32>,
}

/// What a machine answers, `[places, hidden]` f32 by place in the routing, or `[slots, hidden]` bf16.
#[derive(Debug, Clone)]
pub enum Answered {
    /// By place.
    Places(DeviceSlice<f32>),
    /// By slot, and the slot of each place.
    Slots(DeviceSlice<u16>, DeviceSlice<i32>),
}

/// Where each machine leaves what it answers.
#[derive(Debug)]
pub struct Answers {
    places: usize,
    hidden: usize,
    /// Addresses of answers, then of the slots of places.
    table: DeviceSlice<u64>,
    /// Keeps what the table names.
    of: Vec<Answered>,
}

impl Answers {
    /// `of` each machine, in memory at the place beside it.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices of other lengths, or memory that this machine's kernels cannot read; the driver's own.
    pub fn new(
        machine: &dyn Machine,
        (places, hidden): (usize, usize),
        table: &DeviceSlice<u64>,
        of: Vec<(Place, Answered)>,
    ) -> Result<Answers, CudaError> {
        let refused = |problem: String| CudaError::Shape { operation: "copies", problem };
        for (index, (place, answered)) in of.iter().enumerate() {
            let (long, is_like) = match answered {
                Answered::Places(answers) => (answers.len() >= places * hidden, matches!(of[0].1, Answered::Places(_))),
                Answered::Slots(_, slots) => (slots.len() >= places, matches!(of[0].1, Answered::Slots(..))),
            };
            if !(long && is_like) || table.len() < 2 * of.len() {
                return Err(refused(format!(
                    "holder {index} answers to fewer than {places} places, or in another form"
                )));
            }
            if !machine.reads(*place)? {
                let problem =
                    format!("{} cannot read the memory of holder {index}: place each expert once", machine.name());
                return Err(refused(problem));
            }
        }
        let addresses = of.iter().map(|(_, answered)| match answered {
            Answered::Places(answers) => (answers.address(), 0),
            Answered::Slots(answers, slots) => (answers.address(), slots.address()),
        });
        let (answers, slots): (Vec<u64>, Vec<u64>) = addresses.unzip();
        let all = [answers, slots].concat();
        write(machine, &all, &table.part(0, all.len()))?;
        let of = of.into_iter().map(|(_, answered)| answered).collect();
        Ok(Answers { places, hidden, table: table.clone(), of })
    }
}

/// What the shared expert has answered.
#[derive(Debug, Clone, Copy)]
pub enum SharedAnswers<'a> {
    /// `[rows, hidden]`.
    Rows(&'a DeviceSlice<f32>),
    /// Among this machine's own slots.
    Slots(&'a Slots),
}

#[repr(C)]
struct Copies {
    ids: u64,
    first: u64,
    holders: u64,
    homes: u64,
    here: u64,
    takers: u64,
    weights: u64,
    answers: u64,
    slots: u64,
    shared: u64,
    head: u64,
    y: u64,
    rows: i32,
    top_k: i32,
    experts: i32,
    own: i32,
    hidden: i32,
}

impl Ops {
    /// Gives every place in the routing to one of its expert's holders.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for slices too short; the driver's own.
    pub fn share_copies(
        &self,
        routing: &Routing,
        (rows, top_k): (usize, usize),
        holders: &Holders,
        taken: &Taken,
    ) -> Result<(), CudaError> {
        let arguments = arguments(routing, (rows, top_k), holders, taken)?;
        // SAFETY: lengths were checked; ids below the experts' number are the caller's promise.
        unsafe { launch(&*self.share_copies, holders.experts, arguments) }
    }

    /// y `[rows, hidden]` of the experts at home here, of `answers` and, if there is one, the shared expert's.
    ///
    /// # Errors
    /// As [`Ops::share_copies`].
    pub fn sum_copies(
        &self,
        routing: &Routing,
        (rows, top_k): (usize, usize),
        (holders, taken): (&Holders, &Taken),
        answers: &Answers,
        shared: Option<SharedAnswers<'_>>,
        y: &DeviceSlice<f32>,
    ) -> Result<(), CudaError> {
        let hidden = answers.hidden;
        if rows * top_k > answers.places {
            let problem = format!("{} places; there are answers to {}", rows * top_k, answers.places);
            return Err(CudaError::Shape { operation: "sum_copies", problem });
        }
        holds("sum_copies", "y [rows, hidden]", y, rows * hidden)?;
        let by_slot = matches!(answers.of.first(), Some(Answered::Slots(..)));
        let shared_by_slot = shared.as_ref().map(|shared| matches!(shared, SharedAnswers::Slots(_)));
        if answers.of.len() < holders.devices || shared_by_slot.is_some_and(|shared| shared != by_slot) {
            let (given, wanted) = (answers.of.len(), holders.devices);
            let problem = format!("answers of {given} of {wanted} devices, or the shared expert's in another form");
            return Err(CudaError::Shape { operation: "sum_copies", problem });
        }
        let (shared, head) = match shared {
            Some(SharedAnswers::Rows(shared)) => {
                holds("sum_copies", "shared [rows, hidden]", shared, rows * hidden)?;
                (shared.address(), 0)
            }
            Some(SharedAnswers::Slots(slots)) => (0, slots.head().address()),
            None => (0, 0),
        };
        let arguments = Copies {
            answers: answers.table.address(),
            slots: if by_slot { answers.table.part(answers.of.len(), answers.of.len()).address() } else { 0 },
            shared,
            head,
            y: y.address(),
            hidden: hidden as i32,
            ..arguments(routing, (rows, top_k), holders, taken)?
        };
        // SAFETY: lengths were checked; takers are `share_copies`' own, each of which has answers.
        unsafe { launch(&*self.sum_copies, rows, arguments) }
    }
}

fn arguments(
    routing: &Routing,
    (rows, top_k): (usize, usize),
    holders: &Holders,
    taken: &Taken,
) -> Result<Copies, CudaError> {
    holds("copies", "ids [rows, top_k]", &routing.ids, rows * top_k)?;
    holds("copies", "weights [rows, top_k]", &routing.weights, rows * top_k)?;
    holds("copies", "here [rows, top_k]", &taken.here, rows * top_k)?;
    holds("copies", "takers [rows, top_k]", &taken.takers, rows * top_k)?;
    Ok(Copies {
        ids: routing.ids.address(),
        first: holders.first.address(),
        holders: holders.holders.address(),
        homes: holders.homes.address(),
        here: taken.here.address(),
        takers: taken.takers.address(),
        weights: routing.weights.address(),
        answers: 0,
        slots: 0,
        shared: 0,
        head: 0,
        y: 0,
        rows: rows as i32,
        top_k: top_k as i32,
        experts: holders.experts as i32,
        own: holders.own as i32,
        hidden: 0,
    })
}
