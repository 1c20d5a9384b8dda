//! Slots whose other end is on another host, and the signals that say that something has come.

use crate::primitives::Mutex;
use crate::slot::{self, Header, Slot, SlotError, storage_dtype};
use crate::values::Widths;
use crate::wiring::SharedSlot;
use rally_graph::plan::Plan;
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::{DeviceIndex, StageGraph};
use rally_kernels::wire;
use rally_transport::transport::{PARTS, Place};
use rally_transport::{Direction, Peer, Registration, SlotKey, SlotMemory, Stamp};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

/// A slot as a transport sees it.
struct Crossing {
    slot: SharedSlot,
    rows: usize,
    widths: Widths,
    dtype: WireDtype,
    layers: usize,
}

impl SlotMemory for Crossing {
    fn lengths(&self, stamp: &Stamp) -> Option<[usize; PARTS]> {
        let rows = stamp.rows as usize;
        let fits = rows <= self.rows && (stamp.layer as usize) < self.layers;
        let routed = if stamp.routed { rows * self.widths.top_k * size_of::<u32>() } else { 0 };
        fits.then(|| [wire::encoded_bytes(storage_dtype(self.dtype), rows, self.widths.hidden), routed, routed])
    }

    fn read(&self, stamp: &Stamp, take: &mut dyn FnMut([&[u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        let lengths = self.lengths(stamp).ok_or(io::ErrorKind::InvalidInput)?;
        lend(&self.slot)?.read_parts(lengths, take)
    }

    fn place(&self) -> Option<Place> {
        let slot = self.slot.lock().ok()?;
        (!slot.stays()).then(|| slot.place())
    }

    fn card(&self) -> Option<u32> {
        self.slot.lock().ok()?.card()
    }

    fn write(&self, stamp: &Stamp, fill: &mut dyn FnMut([&mut [u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        let lengths = self.lengths(stamp).ok_or(io::ErrorKind::InvalidInput)?;
        let header = Header { step: stamp.step, layer: stamp.layer as usize, rows: stamp.rows as usize };
        lend(&self.slot)?.write_parts(header, lengths, fill)
    }
}

fn lend(slot: &Mutex<Slot>) -> io::Result<crate::primitives::MutexGuard<'_, Slot>> {
    slot::take(slot).map_err(|error| match error {
        SlotError::Busy => io::ErrorKind::WouldBlock.into(),
        SlotError::Poisoned => io::Error::other(error.to_string()),
    })
}

/// The slots of a run that cross, found while the lanes are wired.
pub(crate) struct Crossings {
    host: Peer,
    layers: usize,
    slots: Vec<Registration>,
    /// What they are slots of.
    shared: Vec<SharedSlot>,
    /// By slot, the device that waits for it; none for those that go out.
    index: HashMap<SlotKey, usize>,
    /// Slots that come in and that the task being wired reads, each with the device that fills it.
    pub(crate) touched: Vec<(usize, DeviceIndex)>,
}

impl Crossings {
    pub(crate) fn new(host: Peer, layers: usize) -> Self {
        Self { host, layers, slots: Vec::new(), shared: Vec::new(), index: HashMap::new(), touched: Vec::new() }
    }

    /// What the slot of `key` is to this host: its index if it goes out; one that comes in is noted as touched.
    pub(crate) fn note(
        &mut self,
        graph: &StageGraph,
        key: SlotKey,
        slot: &SharedSlot,
        (rows, widths, dtype): (usize, Widths, WireDtype),
    ) -> Option<usize> {
        let on = |device: u16| graph.devices[usize::from(device)].host;
        let (Some(from), Some(to)) = (on(key.from), on(key.to)) else { return None };
        if from == to {
            return None;
        }
        let direction = if from == self.host { Direction::Out } else { Direction::In };
        let peer = if from == self.host { to } else { from };
        let index = *self.index.entry(key).or_insert_with(|| {
            let memory = Arc::new(Crossing { slot: Arc::clone(slot), rows, widths, dtype, layers: self.layers });
            self.shared.push(Arc::clone(slot));
            self.slots.push(Registration { key, peer, direction, memory });
            self.slots.len() - 1
        });
        if direction == Direction::In {
            self.touched.push((index, usize::from(key.from)));
        }
        (direction == Direction::Out).then_some(index)
    }

    /// All that were noted.
    pub(crate) fn into_slots(self) -> Vec<Registration> {
        self.slots
    }

    pub(crate) fn slots(&self) -> &[Registration] {
        &self.slots
    }

    /// By slot, what it is a slot of.
    pub(crate) fn shared(&self) -> &[SharedSlot] {
        &self.shared
    }
}

/// Where a run's signals are among its progress counters, and what they count.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    lanes: usize,
    slots: usize,
    micro_batches: usize,
    layers: u64,
    /// By micro-batch, the first step that is planned; the one before it has no rows anywhere.
    first_planned: Vec<u64>,
}

impl Signals {
    pub(crate) fn new(plan: &Plan, layers: usize, slots: usize) -> Self {
        let lags = |m: usize| {
            let mut exits = plan.lanes.iter().flat_map(|lane| &lane.tasks);
            exits.any(|task| task.micro_batch == m && task.behind && plan.table.exits.contains(&task.task))
        };
        let first_planned = (0..plan.micro_batches).map(|m| u64::from(!lags(m))).collect();
        Self { lanes: plan.lanes.len(), slots, micro_batches: plan.micro_batches, layers: layers as u64, first_planned }
    }

    /// Progress counters in all, those of the lanes included.
    pub(crate) fn counters(&self) -> usize {
        self.lanes + self.slots + self.micro_batches
    }

    pub(crate) fn slot(&self, slot: usize) -> usize {
        self.lanes + slot
    }

    pub(crate) fn planned(&self, micro_batch: usize) -> usize {
        self.lanes + self.slots + micro_batch
    }

    /// What a slot's signal says when rows of `layer` in `step` are there.
    pub(crate) fn arrival(&self, step: u64, layer: usize) -> u64 {
        step.wrapping_mul(self.layers).wrapping_add(layer as u64 + 1)
    }

    /// What a micro-batch's signal must say for `step` to begin.
    pub(crate) fn step(&self, micro_batch: usize, step: u64) -> u64 {
        if step < self.first_planned[micro_batch] { 0 } else { step.wrapping_add(1) }
    }
}
