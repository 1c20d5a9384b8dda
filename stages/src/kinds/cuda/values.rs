//! The values of a CUDA device where rows of theirs cross an edge.
//!
//! To and from the host they cross as bytes. Between CUDA devices nobody waits: what is offered stays where it is, encoded if it
//! crosses encoded, with a mark behind it; who accepts it lets its own work wait for the mark, and copies.

use super::device::{CudaDevice, MicroBatch};
use super::load::stored;
use rally_cuda::CudaError;
use rally_cuda::machine::{Machine, Mark, copy, read, write};
use rally_cuda::memory::DeviceSlice;
use rally_cuda::nccl::{Choice, Fabric, Number, PartAt};
use rally_cuda::ops::{Stored, record_bytes};
use rally_engine::remote::{Crossing, Field, Moment, Parcel, RemoteRows, RemoteValues, Room};
use rally_engine::stage::StageError;
use rally_engine::values::Values;
use rally_kernels::dtype::StorageDtype;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What the engine gets of a device.
pub(crate) struct CudaValues {
    device: Arc<CudaDevice>,
    /// Expert ids as the device has them.
    ids: Vec<i32>,
    /// Moments by number, and the numbers of those that nobody asks for any more.
    moments: Vec<Mark>,
    free: Vec<usize>,
    /// What a sweep writes over, made by the first.
    swept: Option<DeviceSlice<u8>>,
    /// The end of its last turn, where devices take turns.
    turn: Option<Arc<Mark>>,
    /// When sums go through NCCL.
    nccl: Choice,
    /// What was encoded last, and nothing has been asked since but to offer it to others.
    encoded: Option<(Field, RemoteRows, StorageDtype)>,
}

/// Times the cache's size: what is written is not told apart from what stays by all caches alike.
const SWEPT_CACHES: usize = 2;

/// Moments that a device begins with: more are made when so many are in flight.
const MOMENTS: usize = 512;

/// Rows of one slot, for another device.
struct Offer {
    device: Arc<CudaDevice>,
    field: Field,
    micro_batch: usize,
    /// First row, written before the lane says that it has sent.
    first: AtomicUsize,
    /// Behind the last that was done for these rows.
    mark: Mark,
}

/// Place in [`MicroBatch::offered`].
fn offered(values: &MicroBatch, field: Field) -> Option<&DeviceSlice<u8>> {
    match field {
        Field::Input => Some(&values.offered[0]),
        Field::Output => Some(&values.offered[1]),
        Field::Sum => Some(&values.offered[2]),
        Field::Part => None,
    }
}

fn no_room(field: Field) -> CudaError {
    let problem = format!("{field:?} is offered, and no room was made for it: a fault of ours");
    CudaError::Shape { operation: "offer", problem }
}

/// Rows of one slot, where what carries them between hosts comes for them.
#[derive(Debug)]
struct CudaRoom {
    machine: Arc<dyn Machine>,
    rows: DeviceSlice<u8>,
    ids: DeviceSlice<i32>,
    weights: DeviceSlice<f32>,
}

impl CudaRoom {
    fn new(device: &CudaDevice, rows: usize, crossing: Crossing) -> Result<Self, CudaError> {
        let chosen = if crossing.routed { rows * device.widths.top_k } else { 0 };
        Ok(Self {
            machine: Arc::clone(device.ops().machine()),
            rows: device.buffer(rows * record_bytes(stored(crossing.dtype), device.widths.hidden))?,
            ids: device.buffer(chosen)?,
            weights: device.buffer(chosen)?,
        })
    }

    fn parts(&self) -> [DeviceSlice<u8>; 3] {
        [self.rows.clone(), self.ids.as_bytes(), self.weights.as_bytes()]
    }
}

impl Room for CudaRoom {
    fn place(&self) -> [(usize, usize); 3] {
        self.parts().map(|part| (part.address() as usize, part.len()))
    }

    fn card(&self) -> Option<u32> {
        self.machine.card().map(|(device, _)| device.card().ordinal as u32)
    }

    fn read(&self, parts: [&mut [u8]; 3]) -> Result<(), StageError> {
        let mut copies = self.parts().into_iter().zip(parts);
        let fault = |error: CudaError| StageError::Device { device: self.machine.name(), message: error.to_string() };
        copies.try_for_each(|(from, to)| read(&*self.machine, &from.part(0, to.len()), to)).map_err(fault)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl CudaValues {
    pub(crate) fn new(device: Arc<CudaDevice>) -> Self {
        Self {
            device,
            ids: Vec::new(),
            moments: Vec::with_capacity(MOMENTS),
            free: Vec::with_capacity(MOMENTS),
            swept: None,
            turn: None,
            nccl: Choice::from_environment(),
            encoded: None,
        }
    }

    fn try_note(&mut self, again: Option<Moment>) -> Result<Moment, CudaError> {
        let machine = self.device.machine();
        let number = match again.map(|moment| moment.0).or_else(|| self.free.pop()) {
            Some(number) => number,
            None => {
                self.moments.push(machine.mark()?);
                self.moments.len() - 1
            }
        };
        machine.record(&self.moments[number])?;
        Ok(Moment(number))
    }

    fn try_when(&mut self, number: usize) -> Result<Option<Instant>, CudaError> {
        let mark = &self.moments[number];
        if !mark.is_reached()? {
            return Ok(None);
        }
        let at = self.device.machine().when(mark)?;
        self.free.push(number);
        Ok(Some(at))
    }

    fn try_end_turn(&mut self) -> Result<Arc<Mark>, CudaError> {
        let machine = self.device.machine();
        let mark = match &self.turn {
            Some(mark) => Arc::clone(mark),
            None => Arc::clone(self.turn.insert(Arc::new(machine.mark()?))),
        };
        // Who waited for it waits for where it stood then.
        machine.record(&mark)?;
        Ok(mark)
    }

    fn try_sweep(&mut self) -> Result<(), CudaError> {
        let machine = self.device.machine();
        let swept = match self.swept.take() {
            Some(swept) => swept,
            None => self.device.buffer(SWEPT_CACHES * machine.cache_bytes())?,
        };
        machine.fill(&swept, 0)?;
        self.swept = Some(swept);
        Ok(())
    }

    /// Each card has a part, or none: so it cannot be done where two devices of one card have parts, or where nobody connected the cards.
    fn try_sum(&self, to: Field, at: RemoteRows, crossing: Crossing, offers: &[&Offer]) -> Result<bool, CudaError> {
        let (device, hidden, dtype) = (&self.device, self.device.widths.hidden, stored(crossing.dtype));
        let number = match dtype {
            Stored::F32 => Number::F32,
            Stored::Bf16 => Number::Bf16,
            Stored::Fp8 => return Ok(false),
        };
        let (Some((_, main)), Some(root)) = (device.machine().card(), device.card()) else { return Ok(false) };
        let (record, count) = (record_bytes(dtype, hidden), at.rows * hidden);
        let mut parts = Vec::with_capacity(offers.len() + 1);
        for offer in offers {
            let Some(card) = offer.device.card() else { return Ok(false) };
            let first = offer.first.load(Ordering::Relaxed);
            let source = RemoteRows { micro_batch: offer.micro_batch, first, ..at };
            let rows = match dtype {
                Stored::F32 => rows(&offer.device, offer.field, source).as_bytes(),
                _ => {
                    let room = offered(offer.device.values(source.micro_batch), offer.field);
                    room.ok_or_else(|| no_room(offer.field))?.part(first * record, at.rows * record)
                }
            };
            parts.push(PartAt { card, rows });
        }
        let adds_nothing = parts.iter().all(|part| part.card != root);
        if adds_nothing {
            parts.push(PartAt { card: root, rows: device.part.as_bytes() });
        }
        let has_all = |fabric: &&Arc<Fabric>| {
            let cards = fabric.cards();
            cards.len() == parts.len() && cards.into_iter().all(|card| parts.iter().any(|part| part.card == card))
        };
        let Some(fabric) = device.fabrics().iter().find(has_all) else { return Ok(false) };
        if !self.nccl.takes(parts.len(), at.rows * record) {
            return Ok(false);
        }
        if adds_nothing {
            device.machine().fill(&device.part.part(0, count).as_bytes(), 0)?;
        }
        let wire = device.wire.part(0, at.rows * record);
        // Parts are expected before, and stay until rows have come back along their way.
        fabric.sum(main, root, &parts, &wire, number)?;
        let target = self.rows(to, at);
        match dtype {
            Stored::F32 => copy(device.machine(), &wire, device.machine().place(), &target.as_bytes())?,
            _ => device.ops().decode(&wire, at.rows, hidden, dtype, &target)?,
        }
        Ok(true)
    }

    fn rows(&self, field: Field, at: RemoteRows) -> DeviceSlice<f32> {
        rows(&self.device, field, at)
    }

    fn try_offer(&mut self, field: Field, at: RemoteRows, crossing: Crossing, mark: &Mark) -> Result<(), CudaError> {
        let hidden = self.device.widths.hidden;
        let dtype = stored(crossing.dtype);
        // Offered to several devices one after the other, rows are encoded once.
        let encoded = self.encoded.replace((field, at, crossing.dtype));
        if dtype != Stored::F32 && encoded != self.encoded {
            let room = offered(self.device.values(at.micro_batch), field).filter(|room| !room.is_empty());
            let record = record_bytes(dtype, hidden);
            let bytes = room.ok_or_else(|| no_room(field))?.part(at.first * record, at.rows * record);
            self.device.ops().encode(&self.rows(field, at), at.rows, hidden, dtype, &bytes)?;
        }
        self.device.machine().record(mark)
    }

    fn try_fill(&self, field: Field, at: RemoteRows, crossing: Crossing, room: &CudaRoom) -> Result<(), CudaError> {
        let (machine, hidden, dtype) = (self.device.machine(), self.device.widths.hidden, stored(crossing.dtype));
        let (from, to) = (self.rows(field, at), room.rows.part(0, at.rows * record_bytes(dtype, hidden)));
        match dtype {
            Stored::F32 => copy(machine, &from.as_bytes(), machine.place(), &to)?,
            dtype => self.device.ops().encode(&from, at.rows, hidden, dtype, &to)?,
        }
        if crossing.routed {
            let (routing, top_k) = (&self.device.values(at.micro_batch).routing, self.device.widths.top_k);
            let (first, count) = (at.first * top_k, at.rows * top_k);
            copy(machine, &routing.ids.part(first, count), machine.place(), &room.ids.part(0, count))?;
            copy(machine, &routing.weights.part(first, count), machine.place(), &room.weights.part(0, count))?;
        }
        // What carries them is not in the device's order: it is told when they are there.
        read(machine, &to.part(0, 1), &mut [0])
    }

    fn try_empty(&self, field: Field, at: RemoteRows, crossing: Crossing, room: &CudaRoom) -> Result<(), CudaError> {
        let (machine, hidden, dtype) = (self.device.machine(), self.device.widths.hidden, stored(crossing.dtype));
        let (from, to) = (room.rows.part(0, at.rows * record_bytes(dtype, hidden)), self.rows(field, at));
        match dtype {
            Stored::F32 => copy(machine, &from, machine.place(), &to.as_bytes())?,
            dtype => self.device.ops().decode(&from, at.rows, hidden, dtype, &to)?,
        }
        if crossing.routed {
            let (routing, top_k) = (&self.device.values(at.micro_batch).routing, self.device.widths.top_k);
            let (first, count) = (at.first * top_k, at.rows * top_k);
            copy(machine, &room.ids.part(0, count), machine.place(), &routing.ids.part(first, count))?;
            copy(machine, &room.weights.part(0, count), machine.place(), &routing.weights.part(first, count))?;
        }
        Ok(())
    }

    fn try_accept(&self, field: Field, at: RemoteRows, crossing: Crossing, offer: &Offer) -> Result<(), CudaError> {
        let (machine, there) = (self.device.machine(), offer.device.machine().place());
        let (hidden, top_k, dtype) = (self.device.widths.hidden, self.device.widths.top_k, stored(crossing.dtype));
        let source = RemoteRows { micro_batch: offer.micro_batch, first: offer.first.load(Ordering::Relaxed), ..at };
        let target = self.rows(field, at);
        let record = record_bytes(dtype, hidden);
        let bytes = match dtype {
            Stored::F32 => rows(&offer.device, offer.field, source).as_bytes(),
            _ => {
                let room = offered(offer.device.values(source.micro_batch), offer.field);
                room.ok_or_else(|| no_room(offer.field))?.part(source.first * record, at.rows * record)
            }
        };
        let wire = if dtype == Stored::F32 { target.as_bytes() } else { self.device.wire.part(0, bytes.len()) };
        let (from, to) =
            (&offer.device.values(source.micro_batch).routing, &self.device.values(at.micro_batch).routing);
        let [first, here, count] =
            [source.first, at.first, at.rows].map(|rows| if crossing.routed { rows * top_k } else { 0 });
        let parts = [
            (bytes, wire.clone()),
            (from.ids.part(first, count).as_bytes(), to.ids.part(here, count).as_bytes()),
            (from.weights.part(first, count).as_bytes(), to.weights.part(here, count).as_bytes()),
        ];
        if there == machine.place() && dtype != Stored::F32 {
            // One kernel in place of three copies. From card to card the copy engine's were measured, and a kernel's have yet to be; rows
            // that cross as they are may come from y to y.
            self.device.ops().take(&parts.each_ref().map(|(from, to)| (from, to)))?;
        } else {
            parts.iter().try_for_each(|(from, to)| copy(machine, from, there, to))?;
        }
        if dtype != Stored::F32 {
            self.device.ops().decode(&wire, at.rows, hidden, dtype, &target)?;
        }
        Ok(())
    }
}

/// Rows of a field of a device's values.
fn rows(device: &CudaDevice, field: Field, at: RemoteRows) -> DeviceSlice<f32> {
    let (values, hidden) = (device.values(at.micro_batch), device.widths.hidden);
    let whole = match field {
        Field::Input => &values.u,
        Field::Output => &values.y,
        Field::Sum => &values.sum,
        Field::Part => &device.part,
    };
    whole.part(at.first * hidden, at.rows * hidden)
}

impl RemoteValues for CudaValues {
    fn name(&self) -> String {
        self.device.name()
    }

    fn encode(
        &mut self,
        field: Field,
        at: RemoteRows,
        dtype: StorageDtype,
        bytes: &mut [u8],
    ) -> Result<(), StageError> {
        let (rows, wire) = (self.rows(field, at), self.device.wire.part(0, bytes.len()));
        let done = match stored(dtype) {
            Stored::F32 => read(self.device.machine(), &rows.as_bytes(), bytes),
            dtype => self
                .device
                .ops()
                .encode(&rows, at.rows, self.device.widths.hidden, dtype, &wire)
                .and_then(|()| read(self.device.machine(), &wire, bytes)),
        };
        done.map_err(self.device.fault())
    }

    fn decode(&mut self, field: Field, at: RemoteRows, dtype: StorageDtype, bytes: &[u8]) -> Result<(), StageError> {
        self.encoded = None;
        let (rows, wire) = (self.rows(field, at), self.device.wire.part(0, bytes.len()));
        let done = match stored(dtype) {
            Stored::F32 => write(self.device.machine(), bytes, &rows.as_bytes()),
            dtype => write(self.device.machine(), bytes, &wire)
                .and_then(|()| self.device.ops().decode(&wire, at.rows, self.device.widths.hidden, dtype, &rows)),
        };
        done.map_err(self.device.fault())
    }

    fn offer(
        &mut self,
        field: Field,
        at: RemoteRows,
        crossing: Crossing,
        parcel: &mut Option<Parcel>,
    ) -> Result<(), StageError> {
        let made = match parcel.take() {
            Some(made) => made,
            None => {
                let mark = self.device.machine().mark().map_err(self.device.fault())?;
                let device = Arc::clone(&self.device);
                Arc::new(Offer { device, field, micro_batch: at.micro_batch, first: AtomicUsize::new(0), mark })
            }
        };
        let offer = offer(Some(&made))?;
        offer.first.store(at.first, Ordering::Relaxed);
        let mark = &offer.mark;
        self.try_offer(field, at, crossing, mark).map_err(self.device.fault())?;
        *parcel = Some(made);
        Ok(())
    }

    fn expect(&mut self, parcel: Option<&Parcel>) -> Result<(), StageError> {
        self.encoded = None;
        self.device.machine().wait_for(&offer(parcel)?.mark).map_err(self.device.fault())
    }

    fn accept(
        &mut self,
        field: Field,
        at: RemoteRows,
        crossing: Crossing,
        parcel: Option<&Parcel>,
    ) -> Result<(), StageError> {
        self.encoded = None;
        self.try_accept(field, at, crossing, offer(parcel)?).map_err(self.device.fault())
    }

    fn room(&mut self, rows: usize, crossing: Crossing) -> Result<Arc<dyn Room>, StageError> {
        Ok(Arc::new(CudaRoom::new(&self.device, rows, crossing).map_err(self.device.fault())?))
    }

    fn fill(&mut self, field: Field, at: RemoteRows, crossing: Crossing, room: &dyn Room) -> Result<(), StageError> {
        self.try_fill(field, at, crossing, own(room)?).map_err(self.device.fault())
    }

    fn empty(&mut self, field: Field, at: RemoteRows, crossing: Crossing, room: &dyn Room) -> Result<(), StageError> {
        self.try_empty(field, at, crossing, own(room)?).map_err(self.device.fault())
    }

    fn add(&mut self, to: Field, from: Field, at: RemoteRows) -> Result<(), StageError> {
        self.encoded = None;
        let (to, from) = (self.rows(to, at), self.rows(from, at));
        self.device.ops().add(&to, &from, at.rows, self.device.widths.hidden).map_err(self.device.fault())
    }

    fn sums_at_once(&self) -> bool {
        !self.device.fabrics().is_empty()
    }

    fn sum(&mut self, to: Field, at: RemoteRows, crossing: Crossing, parcels: &[Parcel]) -> Result<bool, StageError> {
        self.encoded = None;
        let offers = parcels.iter().map(|parcel| offer(Some(parcel))).collect::<Result<Vec<_>, _>>()?;
        self.try_sum(to, at, crossing, &offers).map_err(self.device.fault())
    }

    fn round(&mut self, field: Field, at: RemoteRows, dtype: StorageDtype) -> Result<(), StageError> {
        self.encoded = None;
        let (rows, hidden, dtype) = (self.rows(field, at), self.device.widths.hidden, stored(dtype));
        let (ops, wire) = (self.device.ops(), self.device.wire.part(0, at.rows * record_bytes(dtype, hidden)));
        let rounded = ops
            .encode(&rows, at.rows, hidden, dtype, &wire)
            .and_then(|()| ops.decode(&wire, at.rows, hidden, dtype, &rows));
        rounded.map_err(self.device.fault())
    }

    fn read_routing(&mut self, at: RemoteRows, ids: &mut [u32], weights: &mut [f32]) -> Result<(), StageError> {
        let routing = &self.device.values(at.micro_batch).routing;
        let first = at.first * self.device.widths.top_k;
        self.ids.resize(ids.len(), 0);
        let done = read(self.device.machine(), &routing.ids.part(first, ids.len()), &mut self.ids)
            .and_then(|()| read(self.device.machine(), &routing.weights.part(first, weights.len()), weights));
        ids.iter_mut().zip(&self.ids).for_each(|(to, from)| *to = *from as u32);
        done.map_err(self.device.fault())
    }

    fn write_routing(&mut self, at: RemoteRows, ids: &[u32], weights: &[f32]) -> Result<(), StageError> {
        let routing = &self.device.values(at.micro_batch).routing;
        let first = at.first * self.device.widths.top_k;
        self.ids.clear();
        self.ids.extend(ids.iter().map(|id| *id as i32));
        let done = write(self.device.machine(), &self.ids, &routing.ids.part(first, ids.len()))
            .and_then(|()| write(self.device.machine(), weights, &routing.weights.part(first, weights.len())));
        done.map_err(self.device.fault())
    }

    fn note(&mut self, again: Option<Moment>) -> Result<Moment, StageError> {
        self.encoded = None;
        self.try_note(again).map_err(self.device.fault())
    }

    fn is_over(&mut self, moment: Moment) -> Result<bool, StageError> {
        self.moments[moment.0].is_reached().map_err(self.device.fault())
    }

    fn when(&mut self, moment: Moment) -> Result<Option<Instant>, StageError> {
        self.try_when(moment.0).map_err(self.device.fault())
    }

    fn sweep(&mut self) -> Result<(), StageError> {
        self.try_sweep().map_err(self.device.fault())
    }

    fn await_turn(&mut self, before: Option<&Parcel>) -> Result<(), StageError> {
        let Some(before) = before else { return Ok(()) };
        let mark: &Mark = before.downcast_ref().ok_or_else(another_kind)?;
        self.device.machine().wait_for(mark).map_err(self.device.fault())
    }

    fn end_turn(&mut self) -> Result<Parcel, StageError> {
        Ok(self.try_end_turn().map_err(self.device.fault())?)
    }

    fn fetch(&mut self, micro_batch: usize, values: &mut Values) -> Result<(), StageError> {
        let at = RemoteRows { micro_batch, first: 0, rows: values.rows };
        let (wide, chosen) = (values.rows * values.widths.hidden, values.rows * values.widths.top_k);
        let device = self.device.values(micro_batch);
        for (from, to) in [(&device.x, &mut values.x), (&device.u, &mut values.u), (&device.y, &mut values.y)] {
            read(self.device.machine(), &from.part(0, wide), &mut to[..wide]).map_err(self.device.fault())?;
        }
        self.read_routing(at, &mut values.expert_ids[..chosen], &mut values.expert_weights[..chosen])
    }
}

/// A room that a device of this kind has made.
fn own(room: &dyn Room) -> Result<&CudaRoom, StageError> {
    room.as_any().downcast_ref().ok_or_else(another_kind)
}

/// What is in a parcel. Devices of one run that have memory of their own are all of this kind.
fn offer(parcel: Option<&Parcel>) -> Result<&Offer, StageError> {
    let nothing = || StageError::Other("rows are due from a device that has offered none: a fault of ours".into());
    parcel.ok_or_else(nothing)?.downcast_ref().ok_or_else(another_kind)
}

fn another_kind() -> StageError {
    StageError::Other("what a device of another kind left in its memory cannot be taken from there".into())
}
