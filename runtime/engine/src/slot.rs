//! Slots: the preallocated buffers on an edge, one per (transfer, micro-batch, source, destination) and leg of the way, and
//! what crosses in them.
//!
//! A slot holds what would cross a wire: encoded rows, expert ids and weights, and a header. Within one process the bytes stay
//! where they are: the source encodes into the slot, the destination decodes out of it; between devices with memory of their own the
//! slot says where that is. The plan orders the two, so the lock
//! around a slot is never contended; if it is, an order is wrong, and [`SlotError::Busy`] says so instead of corrupting rows.

use crate::primitives::{Mutex, MutexGuard};
use crate::remote::{Crossing, Field, Parcel, RemoteRows, RemoteValues, Room};
use crate::stage::StageError;
use crate::values::{Origin, Values, Widths};
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::Payload;
use rally_kernels::dtype::StorageDtype;
use rally_kernels::wire;
use std::io;
use std::sync::{Arc, TryLockError};
use zerocopy::IntoBytes;

/// What precedes the rows: which rows these are. A destination that expects others has found a scheduling fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Cycle of the plan, corrected for tasks that lag a cycle behind: the step.
    pub step: u64,
    /// Layer.
    pub layer: usize,
    /// Rows that follow.
    pub rows: usize,
}

/// Contents of a slot.
#[derive(Debug, Default)]
pub struct Slot {
    header: Header,
    rows: Vec<u8>,
    expert_ids: Vec<u32>,
    expert_weights: Vec<f32>,
    /// The rows stay in the memory of devices.
    stays: bool,
    parcel: Option<Parcel>,
    /// Where the rows are instead, if a device has room for them and what carries them comes there.
    room: Option<Arc<dyn Room>>,
}

pub(crate) fn crossing(dtype: WireDtype, payload: Payload) -> Crossing {
    Crossing { dtype: storage_dtype(dtype), routed: payload == Payload::RoutedInput }
}

/// Bytes of `rows` rows that cross, their routing included.
fn crossing_bytes(rows: usize, widths: Widths, dtype: WireDtype, payload: Payload) -> usize {
    let routing = if payload == Payload::RoutedInput { rows * widths.top_k * 8 } else { 0 };
    wire::encoded_bytes(storage_dtype(dtype), rows, widths.hidden) + routing
}

/// Why a slot cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Someone else has it: a lane order is wrong.
    #[error("two tasks reached for the same slot at once: the plan is wrong")]
    Busy,
    /// A lane panicked with it in its hands: what it holds is half written.
    #[error("a slot was left half written by a lane that panicked")]
    Poisoned,
}

/// Takes the slot without waiting.
pub fn take(slot: &Mutex<Slot>) -> Result<MutexGuard<'_, Slot>, SlotError> {
    slot.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => SlotError::Busy,
        TryLockError::Poisoned(_) => SlotError::Poisoned,
    })
}

/// Takes a slot to fill it. One that crosses to another host may still be in the hands of the thread that sent what was in it: the
/// answer can be here before that thread has let go. So there, and only there, this waits.
pub(crate) fn take_to_fill(slot: &Mutex<Slot>, crosses: bool) -> Result<MutexGuard<'_, Slot>, SlotError> {
    if crosses { slot.lock().map_err(|_| SlotError::Poisoned) } else { take(slot) }
}

/// The storage format behind a name in the graph file.
pub fn storage_dtype(dtype: WireDtype) -> StorageDtype {
    match dtype {
        WireDtype::F32 => StorageDtype::F32,
        WireDtype::Bf16 => StorageDtype::Bf16,
        WireDtype::Fp8E4m3 => StorageDtype::Fp8E4m3,
    }
}

impl Slot {
    /// Room for `rows` rows.
    pub fn new(rows: usize, hidden: usize, top_k: usize, dtype: WireDtype) -> Self {
        Self {
            header: Header::default(),
            rows: vec![0; wire::encoded_bytes(storage_dtype(dtype), rows, hidden)],
            expert_ids: vec![0; rows * top_k],
            expert_weights: vec![0.0; rows * top_k],
            stays: false,
            parcel: None,
            room: None,
        }
    }

    /// Its rows are in a device's own memory from now on.
    pub(crate) fn move_to(&mut self, room: Arc<dyn Room>) {
        (self.rows, self.expert_ids, self.expert_weights) = Default::default();
        self.room = Some(room);
    }

    /// For rows that stay in the memory of devices.
    pub fn of_parcels() -> Self {
        Self { stays: true, ..Self::default() }
    }

    /// Whether the rows stay in the memory of devices.
    pub fn stays(&self) -> bool {
        self.stays
    }

    /// Encodes `header.rows` rows of `values` from `first_row` on. Returns the bytes that would cross.
    pub fn send(
        &mut self,
        values: &Values,
        first_row: usize,
        dtype: WireDtype,
        payload: Payload,
        header: Header,
    ) -> usize {
        let hidden = values.widths.hidden;
        let source = if payload == Payload::Output { &values.y } else { &values.u };
        let bytes = self.send_rows(&source[first_row * hidden..], hidden, dtype, header);
        if payload != Payload::RoutedInput {
            return bytes;
        }
        let chosen = first_row * values.widths.top_k..(first_row + header.rows) * values.widths.top_k;
        let count = chosen.len();
        self.expert_ids[..count].copy_from_slice(&values.expert_ids[chosen.clone()]);
        self.expert_weights[..count].copy_from_slice(&values.expert_weights[chosen]);
        bytes + count * 8
    }

    /// [`Slot::send`] of values that live elsewhere, `field` of them.
    pub fn send_remote(
        &mut self,
        remote: &mut dyn RemoteValues,
        (field, at): (Field, RemoteRows),
        widths: Widths,
        dtype: WireDtype,
        payload: Payload,
        header: Header,
    ) -> Result<usize, StageError> {
        self.header = header;
        if self.stays {
            if at.rows > 0 {
                remote.offer(field, at, crossing(dtype, payload), &mut self.parcel)?;
            }
            return Ok(crossing_bytes(at.rows, widths, dtype, payload));
        }
        if let Some(room) = &self.room {
            if at.rows > 0 {
                remote.fill(field, at, crossing(dtype, payload), &**room)?;
            }
            return Ok(crossing_bytes(at.rows, widths, dtype, payload));
        }
        let bytes = wire::encoded_bytes(storage_dtype(dtype), at.rows, widths.hidden);
        remote.encode(field, at, storage_dtype(dtype), &mut self.rows[..bytes])?;
        if payload == Payload::RoutedInput {
            let count = at.rows * widths.top_k;
            remote.read_routing(at, &mut self.expert_ids[..count], &mut self.expert_weights[..count])?;
        }
        Ok(crossing_bytes(at.rows, widths, dtype, payload))
    }

    /// Lets a device wait for the rows, if it is to take over what another one offers. Returns whether it is.
    pub fn expect(&self, remote: &mut dyn RemoteValues) -> Result<bool, StageError> {
        let expected = self.stays && self.header.rows > 0;
        if expected {
            remote.expect(self.parcel.as_ref())?;
        }
        Ok(expected)
    }

    /// What another device offers, if the rows stay where they are and there are any.
    pub(crate) fn offered(&self) -> Option<&Parcel> {
        self.parcel.as_ref().filter(|_| self.stays && self.header.rows > 0)
    }

    /// Encodes the first `header.rows` rows of `source`. Returns the bytes that would cross.
    pub fn send_rows(&mut self, source: &[f32], hidden: usize, dtype: WireDtype, header: Header) -> usize {
        let bytes = wire::encoded_bytes(storage_dtype(dtype), header.rows, hidden);
        let source = &source[..header.rows * hidden];
        wire::encode(storage_dtype(dtype), source, header.rows, hidden, &mut self.rows[..bytes]);
        self.header = header;
        bytes
    }

    /// Copies what `from` holds, as encoded: nothing is rounded again. Returns the bytes that would cross.
    pub fn forward(&mut self, from: &Self, widths: Widths, dtype: WireDtype, payload: Payload) -> usize {
        let bytes = wire::encoded_bytes(storage_dtype(dtype), from.header.rows, widths.hidden);
        self.header = from.header;
        if self.stays {
            self.parcel.clone_from(&from.parcel);
            return crossing_bytes(from.header.rows, widths, dtype, payload);
        }
        self.rows[..bytes].copy_from_slice(&from.rows[..bytes]);
        if payload != Payload::RoutedInput {
            return bytes;
        }
        let count = from.header.rows * widths.top_k;
        self.expert_ids[..count].copy_from_slice(&from.expert_ids[..count]);
        self.expert_weights[..count].copy_from_slice(&from.expert_weights[..count]);
        bytes + count * 8
    }

    /// Empties it for the rows that [`Slot::push_rows`] brings one after the other. `header.rows` is set to 0.
    pub fn begin(&mut self, header: Header) {
        self.header = Header { rows: 0, ..header };
    }

    /// Adds f32 rows of `width` values behind those that are there.
    pub fn push_rows(&mut self, source: &[f32], width: usize) {
        let rows = source.len() / width;
        let start = wire::encoded_bytes(StorageDtype::F32, self.header.rows, width);
        let bytes = wire::encoded_bytes(StorageDtype::F32, rows, width);
        wire::encode(StorageDtype::F32, source, rows, width, &mut self.rows[start..start + bytes]);
        self.header.rows += rows;
    }

    /// Says where `rows` rows are that stay in the memory of devices.
    pub(crate) fn leave(&mut self, rows: usize, parcel: &Parcel) {
        self.header.rows = rows;
        self.parcel = Some(Parcel::clone(parcel));
    }

    /// Where they are.
    pub(crate) fn left(&self) -> Option<Parcel> {
        self.parcel.clone()
    }

    /// Copies f32 rows of `width` values, from row `first` on, as many as `target` holds.
    pub fn read_rows(&self, first: usize, width: usize, target: &mut [f32]) {
        let rows = target.len() / width;
        let start = wire::encoded_bytes(StorageDtype::F32, first, width);
        let bytes = wire::encoded_bytes(StorageDtype::F32, rows, width);
        wire::decode(StorageDtype::F32, &self.rows[start..start + bytes], rows, width, target);
    }

    /// Where the first of what crosses is: the cache lines that a receiver misses first.
    pub(crate) fn first_lines(&self) -> [usize; 3] {
        [self.rows.as_ptr() as usize, self.expert_ids.as_ptr() as usize, self.expert_weights.as_ptr() as usize]
    }

    /// The card whose memory the rows are in, if they are in one's.
    pub(crate) fn card(&self) -> Option<u32> {
        self.room.as_ref().and_then(|room| room.card())
    }

    /// Address and bytes of rows, expert ids and weights; they stay where they are.
    pub(crate) fn place(&self) -> [(usize, usize); 3] {
        if let Some(room) = &self.room {
            return room.place();
        }
        let [rows, ids, weights] = self.first_lines();
        let bytes = |count: usize| count * size_of::<u32>();
        [(rows, self.rows.len()), (ids, bytes(self.expert_ids.len())), (weights, bytes(self.expert_weights.len()))]
    }

    /// Shows what it holds as bytes: rows, expert ids, weights; `lengths` of them.
    pub(crate) fn read_parts(
        &self,
        lengths: [usize; 3],
        take: &mut dyn FnMut([&[u8]; 3]) -> io::Result<()>,
    ) -> io::Result<()> {
        let [rows, ids, weights] = lengths;
        if let Some(room) = &self.room {
            let mut copied = lengths.map(|length| vec![0; length]);
            room.read(copied.each_mut().map(Vec::as_mut_slice)).map_err(io::Error::other)?;
            return take(copied.each_ref().map(Vec::as_slice));
        }
        take([&self.rows[..rows], &self.expert_ids.as_bytes()[..ids], &self.expert_weights.as_bytes()[..weights]])
    }

    /// Lets `fill` write the same, and takes `header` for it. Rows of a room are there already.
    pub(crate) fn write_parts(
        &mut self,
        header: Header,
        lengths: [usize; 3],
        fill: &mut dyn FnMut([&mut [u8]; 3]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.room.is_some() {
            fill([&mut [], &mut [], &mut []])?;
            self.header = header;
            return Ok(());
        }
        let [rows, ids, weights] = lengths;
        let Self { rows: bytes, expert_ids, expert_weights, .. } = self;
        let (ids, weights) = (&mut expert_ids.as_mut_bytes()[..ids], &mut expert_weights.as_mut_bytes()[..weights]);
        fill([&mut bytes[..rows], ids, weights])?;
        self.header = header;
        Ok(())
    }

    /// The header last sent.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Decodes FFN input after the rows that `values` already has, and notes where they came from.
    pub fn receive_input(&self, values: &mut Values, from: usize, dtype: WireDtype, payload: Payload) {
        let (hidden, top_k) = (values.widths.hidden, values.widths.top_k);
        let (first_row, rows) = (values.rows, self.header.rows);
        let target = &mut values.u[first_row * hidden..(first_row + rows) * hidden];
        let bytes = wire::encoded_bytes(storage_dtype(dtype), rows, hidden);
        wire::decode(storage_dtype(dtype), &self.rows[..bytes], rows, hidden, target);
        if payload == Payload::RoutedInput {
            let chosen = first_row * top_k..(first_row + rows) * top_k;
            values.expert_ids[chosen.clone()].copy_from_slice(&self.expert_ids[..rows * top_k]);
            values.expert_weights[chosen].copy_from_slice(&self.expert_weights[..rows * top_k]);
        }
        values.origins.push(Origin { device: from, first_row, rows });
        values.rows += rows;
    }

    /// [`Slot::receive_input`] where the values live elsewhere.
    pub fn receive_input_remote(
        &self,
        remote: &mut dyn RemoteValues,
        micro_batch: usize,
        values: &mut Values,
        from: usize,
        dtype: WireDtype,
        payload: Payload,
    ) -> Result<(), StageError> {
        let at = RemoteRows { micro_batch, first: values.rows, rows: self.header.rows };
        if self.stays {
            if at.rows > 0 {
                remote.accept(Field::Input, at, crossing(dtype, payload), self.parcel.as_ref())?;
            }
        } else if let Some(room) = &self.room {
            if at.rows > 0 {
                remote.empty(Field::Input, at, crossing(dtype, payload), &**room)?;
            }
        } else {
            let bytes = wire::encoded_bytes(storage_dtype(dtype), at.rows, values.widths.hidden);
            remote.decode(Field::Input, at, storage_dtype(dtype), &self.rows[..bytes])?;
            if payload == Payload::RoutedInput {
                let count = at.rows * values.widths.top_k;
                remote.write_routing(at, &self.expert_ids[..count], &self.expert_weights[..count])?;
            }
        }
        values.origins.push(Origin { device: from, first_row: at.first, rows: at.rows });
        values.rows += at.rows;
        Ok(())
    }

    /// [`Slot::receive_output`] into values that live elsewhere, `field` of them.
    pub fn receive_output_remote(
        &self,
        remote: &mut dyn RemoteValues,
        (field, at): (Field, RemoteRows),
        hidden: usize,
        dtype: WireDtype,
    ) -> Result<(), StageError> {
        let crossing = crossing(dtype, Payload::Output);
        match &self.room {
            _ if at.rows == 0 => Ok(()),
            _ if self.stays => remote.accept(field, at, crossing, self.parcel.as_ref()),
            Some(room) => remote.empty(field, at, crossing, &**room),
            None => {
                let bytes = wire::encoded_bytes(storage_dtype(dtype), at.rows, hidden);
                remote.decode(field, at, storage_dtype(dtype), &self.rows[..bytes])
            }
        }
    }

    /// Decodes FFN output into `target`, `[rows, hidden]`.
    pub fn receive_output(&self, target: &mut [f32], hidden: usize, dtype: WireDtype) {
        let bytes = wire::encoded_bytes(storage_dtype(dtype), self.header.rows, hidden);
        wire::decode(storage_dtype(dtype), &self.rows[..bytes], self.header.rows, hidden, target);
    }
}
