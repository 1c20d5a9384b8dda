//! What one write takes on either end: addresses, a request, and the notification that comes behind the rows.

use super::announce::RemotePlace;
use super::engine::failed;
use crate::checksum::{CHECK_BYTES, Checksum};
use crate::frame::{Frame, FrameError, HEADER_BYTES};
use crate::tcp::Tcp;
use crate::transport::{Event, PARTS, Peer, Place, Registration, SlotKey, Stamp, TransportError};
use nixl_sys::{Agent, MemType, NotificationMap, OptArgs, RegistrationHandle, XferDescList, XferOp, XferRequest};
use rally_ffi::nixl::Region;
use std::collections::VecDeque;
use std::time::Instant;

/// Bytes of what says that rows are there: the header that TCP would send, and its check sum. The rows themselves are not summed: that
/// would take longer than their way, and engines under NIXL check what they carry.
pub(super) const NOTE_BYTES: usize = HEADER_BYTES + CHECK_BYTES;

/// A slot that goes out.
pub(super) struct Outgoing {
    pub(super) key: SlotKey,
    pub(super) peer: Peer,
    /// Where the rows lie; `None` if they must be copied.
    pub(super) place: Option<Place>,
    /// On which card, if it is one's memory.
    pub(super) card: Option<u32>,
    pub(super) remote: Option<RemotePlace>,
    /// Used again as long as the lengths are the same.
    pub(super) request: Option<([usize; PARTS], XferRequest)>,
    /// Since when a write is under way.
    pub(super) since: Option<Instant>,
    pub(super) waiting: VecDeque<(Stamp, Option<u64>)>,
    /// What is sent of a slot that has no place, and its registration.
    pub(super) copy: Option<(Vec<u8>, RegistrationHandle)>,
}

/// Begins to write rows to `agent`. Returns whether that is under way, and not done already.
pub(super) fn write(
    own: &Agent,
    agent: &str,
    out: &mut Outgoing,
    registration: &Registration,
    stamp: Stamp,
    damage: Option<u64>,
) -> Result<bool, String> {
    let said = |error: nixl_sys::NixlError| format!("a write over NIXL failed: {error}");
    let key = out.key;
    let lengths = registration.memory.lengths(&stamp).ok_or_else(|| format!("no room for rows of {key:?}"))?;
    let bytes = (lengths.iter().sum::<usize>() + CHECK_BYTES) as u32;
    let header = Frame::Rows { key, stamp, bytes }.encode();
    let mut note = [&header[..], &Checksum::of(&[&header])].concat();
    if let Some(chosen) = damage {
        let bit = chosen as usize % (NOTE_BYTES * 8);
        note[bit / 8] ^= 1 << (bit % 8);
    }
    if lengths == [0; PARTS] {
        return own.send_notification(agent, &note, None).map(|()| false).map_err(said);
    }
    let remote = out.remote.ok_or_else(|| format!("it has no slot {key:?}"))?;
    if lengths.iter().zip(&remote.parts).any(|(length, (_, room))| *length as u64 > *room) {
        return Err(format!("its slot {key:?} has less room than is needed"));
    }
    let local = match out.place {
        Some(place) => place.map(|(address, _)| address),
        None => copy(own, out, registration, &stamp)?,
    };
    if out.request.as_ref().is_none_or(|(of, _)| *of != lengths) {
        let list = |card: Option<u32>| {
            XferDescList::new(if card.is_some() { MemType::Vram } else { MemType::Dram }).map_err(said)
        };
        let (mut from, mut to) = (list(out.card)?, list(remote.card)?);
        let number = |card: Option<u32>| u64::from(card.unwrap_or(0));
        for part in (0..PARTS).filter(|part| lengths[*part] > 0) {
            from.add_desc(local[part], lengths[part], number(out.card));
            to.add_desc(remote.parts[part].0 as usize, lengths[part], number(remote.card));
        }
        out.request = None;
        let request = own.create_xfer_req(XferOp::Write, &from, &to, agent, None).map_err(said)?;
        out.request = Some((lengths, request));
    }
    let mut options = OptArgs::new().map_err(said)?;
    options.set_has_notification(true).and_then(|()| options.set_notification_message(&note)).map_err(said)?;
    let (_, request) = out.request.as_ref().ok_or("a write over NIXL was lost")?;
    own.post_xfer_req(request, Some(&options)).map_err(said)
}

/// Copies rows that have no place of their own to where NIXL can read them. Returns where the parts are.
fn copy(own: &Agent, out: &mut Outgoing, registration: &Registration, stamp: &Stamp) -> Result<[usize; PARTS], String> {
    let mut bytes = Vec::new();
    let mut starts = [0; PARTS];
    let read = registration.memory.read(stamp, &mut |parts| {
        for (start, part) in starts.iter_mut().zip(parts) {
            *start = bytes.len();
            bytes.extend_from_slice(part);
        }
        Ok(())
    });
    read.map_err(|error| error.to_string())?;
    // The request of the copy before goes with it.
    (out.request, out.copy) = (None, None);
    let address = bytes.as_ptr().expose_provenance();
    let registered = own.register_memory(&Region::new(address, bytes.len()), None);
    let registered = failed("registering rows with NIXL", registered).map_err(|error| error.to_string())?;
    out.copy = Some((bytes, registered));
    Ok(starts.map(|start| address + start))
}

/// What has come for this agent: from whom, and what.
pub(super) fn notes(agent: &Agent) -> Result<Vec<(String, Vec<u8>)>, nixl_sys::NixlError> {
    let mut map = NotificationMap::new()?;
    agent.get_notifications(&mut map, None)?;
    let mut heard = Vec::new();
    for other in map.agents() {
        let other = other?;
        for note in map.get_notifications(other)? {
            heard.push((other.to_owned(), note?));
        }
    }
    Ok(heard)
}

/// Rows of `peer` have landed, as `note` says; nothing if they are no news.
pub(super) fn arrive(links: &Tcp, peer: Peer, note: &[u8]) -> Result<Option<Event>, TransportError> {
    let garbled = || TransportError::BadFrame(FrameError::Garbled);
    let (header, check) = note.split_first_chunk::<HEADER_BYTES>().ok_or_else(garbled)?;
    if check != Checksum::of(&[header]) {
        return Err(garbled());
    }
    let Frame::Rows { key, stamp, bytes } = Frame::decode(header)? else { return Err(TransportError::OutOfTurn) };
    let (slot, registration) = links.slot(peer, key).ok_or(FrameError::Slot(key))?;
    let right = |lengths: &[usize; PARTS]| lengths.iter().sum::<usize>() + CHECK_BYTES == bytes as usize;
    if registration.memory.lengths(&stamp).filter(right).is_none() {
        return Err(FrameError::Length { key, rows: stamp.rows, bytes }.into());
    }
    if !links.is_news(slot, &stamp) {
        tracing::debug!(peer, ?key, ?stamp, "rows came again, or late");
        return Ok(None);
    }
    // The rows are there; the slot takes note of what they are.
    registration.memory.write(&stamp, &mut |_| Ok(())).map_err(|_| TransportError::SlotBusy)?;
    Ok(Some(Event::Arrived { slot, stamp }))
}
