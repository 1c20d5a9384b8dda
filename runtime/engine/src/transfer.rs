//! What transfer tasks do with rows: encode, pass on, decode, and sum parts of y.
//!
//! y = Σ over FFN groups, in order, of (Σ over a group's devices, in order). Each part is rounded to the edge's dtype, and so is
//! the sum of a group that has several: on rails that sum crosses, and a broadcast rounds it alike, so both give the same bits.

use crate::engine::EngineError;
use crate::remote::{Field, RemoteRows, RemoteValues};
use crate::slot::{self, Header, Slot, storage_dtype};
use crate::values::{Values, Widths};
use crate::wiring::{Forward, Moves, Outgoing, Part, Reduce, RowsOf, SharedSlot};
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::{DeviceIndex, Payload};
use rally_kernels::activation::add_in_place;
use rally_kernels::wire;
use rally_transport::{Stamp, Transport};
use std::ops::Range;
use std::sync::Arc;

/// Rows on their way from one sum to the next. A lane has one.
pub(crate) struct Scratch {
    /// A group's sum, `[rows, hidden]`.
    sum: Vec<f32>,
    /// One part of it.
    part: Vec<f32>,
    /// The sum as encoded.
    bytes: Vec<u8>,
}

impl Scratch {
    pub(crate) fn new(rows: usize, widths: Widths) -> Self {
        let wide = || vec![0.0; rows * widths.hidden];
        let bytes = |dtype: WireDtype| wire::encoded_bytes(storage_dtype(dtype), rows, widths.hidden);
        let most = bytes(WireDtype::Bf16).max(bytes(WireDtype::Fp8E4m3));
        Self { sum: wide(), part: wide(), bytes: vec![0; most] }
    }
}

/// One transfer task at work.
pub(crate) struct Transfer<'a> {
    pub(crate) values: &'a mut Values,
    /// Where the numbers are, if not in `values`.
    pub(crate) remote: Option<&'a mut dyn RemoteValues>,
    pub(crate) micro_batch: usize,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) dtype: WireDtype,
    pub(crate) payload: Payload,
    /// Step and layer; rows of this device's own batch.
    pub(crate) header: Header,
    /// The way to other hosts, where there are any.
    pub(crate) transport: Option<&'a dyn Transport>,
}

/// What a task moved.
#[derive(Clone, Copy, Default)]
pub(crate) struct Moved {
    pub(crate) rows: usize,
    /// What its time should follow.
    pub(crate) effort: usize,
    pub(crate) bytes: u64,
}

impl Moved {
    /// Rows that were carried.
    fn carried(rows: usize, bytes: u64) -> Self {
        Self { rows, effort: rows, bytes }
    }
}

impl Transfer<'_> {
    pub(crate) fn run(&mut self, moves: &Moves) -> Result<Moved, EngineError> {
        match moves {
            Moves::Nothing => Ok(Moved::default()),
            Moves::Send(outgoing) => self.send(outgoing),
            Moves::Forward(forwards) => self.forward(forwards),
            Moves::Reduce(reduces) => self.reduce(reduces),
            Moves::Gather(sources) => self.gather(sources),
            Moves::Sum(groups) => self.sum(groups),
        }
    }

    /// Lets the device wait for the rows that `moves` takes over. Whatever the slots hold: `run` looks whether it is right. Returns
    /// whether there are any.
    pub(crate) fn expect(remote: &mut dyn RemoteValues, moves: &Moves) -> Result<bool, EngineError> {
        let mut any = false;
        let mut expect = |slot: &SharedSlot| -> Result<(), EngineError> {
            any |= slot::take(slot)?.expect(remote)?;
            Ok(())
        };
        match moves {
            Moves::Nothing | Moves::Send(_) | Moves::Forward(_) => Ok(()),
            Moves::Reduce(reduces) => reduces.iter().flat_map(|reduce| &reduce.parts).try_for_each(expect),
            Moves::Gather(sources) => sources.iter().try_for_each(|(_, slot)| expect(slot)),
            Moves::Sum(groups) => groups.iter().flatten().flatten().try_for_each(|(_, slot)| expect(slot)),
        }?;
        Ok(any)
    }

    fn send(&mut self, outgoing: &[Outgoing]) -> Result<Moved, EngineError> {
        let mut bytes = 0;
        for Outgoing { rows, slot, crossing } in outgoing {
            let rows = match rows {
                RowsOf::Share(share) => share.of(self.values.rows),
                RowsOf::Origin(device) => self.rows_from(*device),
            };
            let header = Header { rows: rows.len(), ..self.header };
            let mut slot = slot::take_to_fill(slot, crossing.is_some())?;
            let (dtype, payload, widths) = (self.dtype, self.payload, self.values.widths);
            let at = RemoteRows { micro_batch: self.micro_batch, first: rows.start, rows: rows.len() };
            bytes += match &mut self.remote {
                Some(remote) => {
                    let field = if payload == Payload::Output { Field::Output } else { Field::Input };
                    slot.send_remote(&mut **remote, (field, at), widths, dtype, payload, header)?
                }
                None => slot.send(self.values, rows.start, dtype, payload, header),
            } as u64;
            drop(slot);
            self.post(*crossing, header);
        }
        Ok(Moved::carried(self.values.rows, bytes))
    }

    /// Sends a slot to the host where its other end is, if that is another one.
    fn post(&self, crossing: Option<usize>, header: Header) {
        if let (Some(slot), Some(transport)) = (crossing, self.transport) {
            let routed = self.payload == Payload::RoutedInput;
            let (layer, rows) = (header.layer as u32, header.rows as u32);
            transport.post(slot, Stamp { step: header.step, layer, rows, routed });
        }
    }

    /// y goes home: each attention device gets the rows it sent, in the order it sent them.
    fn rows_from(&self, device: DeviceIndex) -> Range<usize> {
        if self.values.origins.is_empty() {
            return 0..self.values.rows;
        }
        let origin = self.values.origins.iter().find(|origin| origin.device == device);
        origin.map_or(0..0, |origin| origin.first_row..origin.first_row + origin.rows)
    }

    fn forward(&mut self, forwards: &[Forward]) -> Result<Moved, EngineError> {
        let mut moved = Moved::default();
        for Forward { from, to } in forwards {
            let from = slot::take(from)?;
            expect_header(from.header(), self.header, None)?;
            moved.rows += from.header().rows;
            for to in to {
                let mut to = slot::take(to)?;
                moved.bytes += to.forward(&from, self.values.widths, self.dtype, self.payload) as u64;
            }
        }
        Ok(moved)
    }

    fn reduce(&mut self, reduces: &[Reduce]) -> Result<Moved, EngineError> {
        let hidden = self.values.widths.hidden;
        let mut moved = Moved::default();
        for Reduce { home, parts, to, crossing } in reduces {
            let at = self.rows_from(*home);
            let header = Header { rows: at.len(), ..self.header };
            if let Some(remote) = &mut self.remote
                && slot::take_to_fill(to, crossing.is_some())?.stays()
            {
                let at = RemoteRows { micro_batch: self.micro_batch, first: at.start, rows: at.len() };
                for (index, slot) in parts.iter().enumerate() {
                    let slot = slot::take(slot)?;
                    expect_header(slot.header(), header, Some(header.rows))?;
                    let field = if index == 0 { Field::Sum } else { Field::Part };
                    slot.receive_output_remote(&mut **remote, (field, at), hidden, self.dtype)?;
                    if index > 0 {
                        remote.add(Field::Sum, Field::Part, at)?;
                    }
                }
                let (widths, dtype, payload) = (self.values.widths, self.dtype, self.payload);
                let sent =
                    slot::take(to)?.send_remote(&mut **remote, (Field::Sum, at), widths, dtype, payload, header)?;
                moved.rows += header.rows;
                moved.bytes += sent as u64;
                continue;
            }
            let (sum, part) = (&mut self.scratch.sum, &mut self.scratch.part);
            let count = header.rows * hidden;
            for (index, slot) in parts.iter().enumerate() {
                let target = if index == 0 { &mut sum[..count] } else { &mut part[..count] };
                let slot = slot::take(slot)?;
                expect_header(slot.header(), header, Some(header.rows))?;
                slot.receive_output(target, hidden, self.dtype);
                if index > 0 {
                    add_in_place(&mut sum[..count], &part[..count]);
                }
            }
            moved.rows += header.rows;
            moved.bytes +=
                slot::take_to_fill(to, crossing.is_some())?.send_rows(sum, hidden, self.dtype, header) as u64;
            self.post(*crossing, header);
        }
        Ok(moved)
    }

    fn gather(&mut self, sources: &[(DeviceIndex, SharedSlot)]) -> Result<Moved, EngineError> {
        self.values.rows = 0;
        self.values.origins.clear();
        for (device, slot) in sources {
            let slot = slot::take(slot)?;
            expect_header(slot.header(), self.header, None)?;
            let (dtype, payload) = (self.dtype, self.payload);
            match &mut self.remote {
                Some(remote) => {
                    slot.receive_input_remote(&mut **remote, self.micro_batch, self.values, *device, dtype, payload)?;
                }
                None => slot.receive_input(self.values, *device, dtype, payload),
            }
        }
        Ok(Moved::carried(self.values.rows, 0))
    }

    fn sum(&mut self, groups: &[Vec<Part>]) -> Result<Moved, EngineError> {
        let rows = self.header.rows;
        self.values.rows = rows;
        match &mut self.remote {
            Some(remote) => {
                let at = RemoteRows { micro_batch: self.micro_batch, first: 0, rows };
                let (hidden, dtype) = (self.values.widths.hidden, self.dtype);
                sum_there(&mut **remote, at, groups, hidden, dtype, self.header)?;
            }
            None => self.sum_here(groups)?,
        }
        Ok(Moved::carried(rows, 0))
    }

    fn sum_here(&mut self, groups: &[Vec<Part>]) -> Result<(), EngineError> {
        let (rows, hidden) = (self.header.rows, self.values.widths.hidden);
        let count = rows * hidden;
        for (g, parts) in groups.iter().enumerate() {
            let Scratch { sum, part, bytes } = &mut *self.scratch;
            let target = if g == 0 { &mut self.values.y[..count] } else { &mut sum[..count] };
            for (index, sources) in parts.iter().enumerate() {
                if index == 0 {
                    receive_part(sources, target, hidden, self.dtype, self.header)?;
                } else {
                    receive_part(sources, &mut part[..count], hidden, self.dtype, self.header)?;
                    add_in_place(target, &part[..count]);
                }
            }
            if parts.len() > 1 {
                round(target, rows, hidden, self.dtype, bytes);
            }
            if g > 0 {
                add_in_place(&mut self.values.y[..count], &sum[..count]);
            }
        }
        Ok(())
    }
}

/// [`Transfer::sum_here`] where the values live elsewhere: the same sums in the same order.
fn sum_there(
    remote: &mut dyn RemoteValues,
    at: RemoteRows,
    groups: &[Vec<Part>],
    hidden: usize,
    dtype: WireDtype,
    header: Header,
) -> Result<(), EngineError> {
    for (g, parts) in groups.iter().enumerate() {
        let target = if g == 0 { Field::Output } else { Field::Sum };
        let summed =
            parts.len() > 1 && remote.sums_at_once() && sum_at_once(remote, (target, at), parts, dtype, header)?;
        for (index, sources) in parts.iter().enumerate().filter(|_| !summed) {
            let field = if index == 0 { target } else { Field::Part };
            each_share(sources, header, |rows, slot| {
                let at = RemoteRows { first: rows.start, rows: rows.len(), ..at };
                Ok(slot.receive_output_remote(remote, (field, at), hidden, dtype)?)
            })?;
            if index > 0 {
                remote.add(target, Field::Part, at)?;
            }
        }
        if parts.len() > 1 && dtype != WireDtype::F32 {
            remote.round(target, at, storage_dtype(dtype))?;
        }
        if g > 0 {
            remote.add(Field::Output, Field::Sum, at)?;
        }
    }
    Ok(())
}

/// Lets the device sum the parts of a group all at once. Returns whether it did.
fn sum_at_once(
    remote: &mut dyn RemoteValues,
    (target, at): (Field, RemoteRows),
    parts: &[Part],
    dtype: WireDtype,
    header: Header,
) -> Result<bool, EngineError> {
    let mut parcels = Vec::with_capacity(parts.len());
    for sources in parts {
        // Replicas have rows of their own each.
        let [(share, slot)] = &sources[..] else { return Ok(false) };
        let slot = slot::take(slot)?;
        expect_header(slot.header(), header, Some(share.of(header.rows).len()))?;
        let Some(parcel) = slot.offered().filter(|_| slot.header().rows == at.rows) else { return Ok(false) };
        parcels.push(Arc::clone(parcel));
    }
    Ok(remote.sum(target, at, slot::crossing(dtype, Payload::Output), &parcels)?)
}

/// Decodes a part of y into `target`, each replica's rows to their places.
fn receive_part(
    sources: &Part,
    target: &mut [f32],
    hidden: usize,
    dtype: WireDtype,
    header: Header,
) -> Result<(), EngineError> {
    each_share(sources, header, |rows, slot| {
        slot.receive_output(&mut target[rows.start * hidden..rows.end * hidden], hidden, dtype);
        Ok(())
    })
}

/// A part's slots, each with the places of its rows: those of one replica.
fn each_share(
    sources: &Part,
    header: Header,
    mut receive: impl FnMut(Range<usize>, &Slot) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    for (share, slot) in sources {
        let rows = share.of(header.rows);
        let slot = slot::take(slot)?;
        expect_header(slot.header(), header, Some(rows.len()))?;
        receive(rows, &slot)?;
    }
    Ok(())
}

/// As if the rows crossed the edge.
fn round(values: &mut [f32], rows: usize, hidden: usize, dtype: WireDtype, bytes: &mut [u8]) {
    if dtype == WireDtype::F32 {
        return;
    }
    let dtype = storage_dtype(dtype);
    let bytes = &mut bytes[..wire::encoded_bytes(dtype, rows, hidden)];
    wire::encode(dtype, values, rows, hidden, bytes);
    wire::decode(dtype, bytes, rows, hidden, values);
}

/// `rows`: how many must be there, where the destination knows.
pub(crate) fn expect_header(got: Header, want: Header, rows: Option<usize>) -> Result<(), EngineError> {
    // In the first cycle tasks that lag look into slots that nobody has filled yet.
    let nothing_yet = want.step == u64::MAX && got == Header::default();
    let right = (got.step, got.layer) == (want.step, want.layer) && rows.is_none_or(|rows| rows == got.rows);
    if right || nothing_yet { Ok(()) } else { Err(EngineError::WrongRows { got, want }) }
}
