//! What is under way while its slot goes on: rows that are late are those that were sent, whatever is in the slot by then.

use crate::transport::{PARTS, Registration, SlotMemory, Stamp};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Copies of one slot, each to be sent once.
pub(super) struct Copies {
    original: Arc<dyn SlotMemory>,
    held: Mutex<VecDeque<(Stamp, [Vec<u8>; PARTS])>>,
}

impl Copies {
    /// Beside the slot of a registration; its twin sends copies.
    pub(super) fn beside(registration: &Registration) -> (Arc<Self>, Registration) {
        let copies = Arc::new(Self { original: Arc::clone(&registration.memory), held: Mutex::default() });
        let twin = Registration { memory: Arc::clone(&copies) as Arc<dyn SlotMemory>, ..registration.clone() };
        (copies, twin)
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<(Stamp, [Vec<u8>; PARTS])>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies what the slot has.
    pub(super) fn take(&self, stamp: &Stamp) -> io::Result<()> {
        loop {
            let mut copied = None;
            let read = self.original.read(stamp, &mut |parts| {
                copied = Some(parts.map(<[u8]>::to_vec));
                Ok(())
            });
            match (read, copied) {
                (Ok(()), Some(copied)) => {
                    self.held().push_back((*stamp, copied));
                    return Ok(());
                }
                // The thread that sends what was in it before has not let go yet.
                (Err(error), _) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                (Err(error), _) => return Err(error),
                (Ok(()), None) => return Err(io::Error::other("a slot showed nothing")),
            }
        }
    }
}

impl SlotMemory for Copies {
    fn lengths(&self, stamp: &Stamp) -> Option<[usize; PARTS]> {
        self.original.lengths(stamp)
    }

    fn read(&self, stamp: &Stamp, take: &mut dyn FnMut([&[u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        let mut held = self.held();
        let place = held.iter().position(|(of, _)| of == stamp);
        let copy = place.and_then(|place| held.remove(place));
        drop(held);
        let (_, [rows, ids, weights]) = copy.ok_or_else(|| io::Error::other("rows were sent that nobody copied"))?;
        take([&rows, &ids, &weights])
    }

    fn write(&self, _: &Stamp, _: &mut dyn FnMut([&mut [u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
