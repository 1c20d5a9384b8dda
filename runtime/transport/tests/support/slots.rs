//! Slots as tests have them.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use rally_transport::transport::{PARTS, Place};
use rally_transport::{SlotMemory, Stamp};
use std::io;
use std::sync::{Arc, Mutex};

const ROW_BYTES: usize = 12;

/// A slot of rows of 12 bytes, with 4 bytes of experts and 4 of weights.
pub struct Bytes {
    rows: usize,
    placed: bool,
    parts: Mutex<(Stamp, [Vec<u8>; PARTS])>,
}

impl Bytes {
    /// With room for so many rows, and a place that engines may use.
    pub fn new(rows: usize) -> Arc<Self> {
        Self::of(rows, true)
    }

    /// Without such a place.
    pub fn without_place(rows: usize) -> Arc<Self> {
        Self::of(rows, false)
    }

    fn of(rows: usize, placed: bool) -> Arc<Self> {
        let parts = [vec![0; rows * ROW_BYTES], vec![0; rows * 4], vec![0; rows * 4]];
        Arc::new(Self { rows, placed, parts: Mutex::new((Stamp::default(), parts)) })
    }

    /// What was last written, and the parts.
    pub fn parts(&self) -> std::sync::MutexGuard<'_, (Stamp, [Vec<u8>; PARTS])> {
        // What was sent can have arrived before the thread that sent it has let go.
        self.parts.lock().expect("nobody panics with it")
    }
}

impl SlotMemory for Bytes {
    fn lengths(&self, stamp: &Stamp) -> Option<[usize; PARTS]> {
        let rows = stamp.rows as usize;
        let routed = if stamp.routed { rows * 4 } else { 0 };
        (rows <= self.rows).then_some([rows * ROW_BYTES, routed, routed])
    }

    fn read(&self, stamp: &Stamp, take: &mut dyn FnMut([&[u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        let [a, b, c] = self.lengths(stamp).expect("it fits");
        let (_, parts) = &*self.parts();
        take([&parts[0][..a], &parts[1][..b], &parts[2][..c]])
    }

    fn place(&self) -> Option<Place> {
        self.placed.then(|| self.parts().1.each_ref().map(|part| (part.as_ptr().expose_provenance(), part.len())))
    }

    fn write(&self, stamp: &Stamp, fill: &mut dyn FnMut([&mut [u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        let [a, b, c] = self.lengths(stamp).expect("it fits");
        let Ok(mut guard) = self.parts.try_lock() else { return Err(io::ErrorKind::WouldBlock.into()) };
        let (noted, [rows, ids, weights]) = &mut *guard;
        fill([&mut rows[..a], &mut ids[..b], &mut weights[..c]])?;
        *noted = *stamp;
        Ok(())
    }
}

/// A slot whose parts are always full.
pub struct Parts {
    lengths: [usize; PARTS],
    parts: Mutex<[Vec<u8>; PARTS]>,
}

impl Parts {
    /// Of these lengths.
    pub fn new(lengths: [usize; PARTS]) -> Arc<Self> {
        Arc::new(Self { lengths, parts: Mutex::new(lengths.map(|length| vec![1; length])) })
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, [Vec<u8>; PARTS]> {
        self.parts.lock().expect("nobody panics with it")
    }
}

impl SlotMemory for Parts {
    fn lengths(&self, _: &Stamp) -> Option<[usize; PARTS]> {
        Some(self.lengths)
    }

    fn read(&self, _: &Stamp, take: &mut dyn FnMut([&[u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        take(self.parts().each_ref().map(Vec::as_slice))
    }

    fn place(&self) -> Option<Place> {
        Some(self.parts().each_ref().map(|part| (part.as_ptr().expose_provenance(), part.len())))
    }

    fn write(&self, _: &Stamp, fill: &mut dyn FnMut([&mut [u8]; PARTS]) -> io::Result<()>) -> io::Result<()> {
        fill(self.parts().each_mut().map(Vec::as_mut_slice))
    }
}
