//! A machine that does nothing and counts the memory that it is asked for: to know what a device needs before anything is taken.

use crate::error::CudaError;
use crate::machine::{Launch, Machine, Mark, Place, Replay, not_kept};
use crate::memory::{ALIGNMENT, Arena, DeviceSlice, Keeper};
use crate::source::Source;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Counts. What is read from it is zero.
#[derive(Debug, Default)]
pub struct Counting {
    bytes: AtomicUsize,
    mfa_ctas: usize,
    multiprocessors: usize,
}

impl Counting {
    /// For a card of Hopper's with so many multiprocessors.
    pub fn hopper(multiprocessors: usize) -> Counting {
        Counting { bytes: AtomicUsize::new(0), mfa_ctas: multiprocessors, multiprocessors }
    }

    /// For a device that will be made on `machine`.
    pub fn of(machine: &dyn Machine) -> Counting {
        Counting {
            bytes: AtomicUsize::new(0),
            mfa_ctas: machine.mfa_ctas(),
            multiprocessors: machine.multiprocessors(),
        }
    }

    /// What [`Machine::reserve`] has to be given for all that was asked for.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// No memory.
#[derive(Debug)]
struct Nothing;

impl Keeper for Nothing {}

impl Machine for Counting {
    fn name(&self) -> String {
        "a count of a device's memory".into()
    }

    fn mfa_ctas(&self) -> usize {
        self.mfa_ctas
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn cache_bytes(&self) -> usize {
        0
    }

    fn free_bytes(&self) -> Result<Option<usize>, CudaError> {
        Ok(None)
    }

    fn reserve(&self, _bytes: usize) -> Result<(), CudaError> {
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<Arena, CudaError> {
        // As an arena hands it out.
        let first = self.bytes.fetch_add(bytes.next_multiple_of(ALIGNMENT), Ordering::Relaxed);
        Ok(Arena::over(Arc::new(Nothing), (ALIGNMENT + first) as u64, bytes))
    }

    fn kernels(&self, _source: &Source, names: &[&'static str]) -> Result<Vec<Box<dyn Launch>>, CudaError> {
        Ok(names.iter().map(|_| Box::new(Nothing) as Box<dyn Launch>).collect())
    }

    fn write_bytes(&self, _from: &[u8], _to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        Ok(())
    }

    fn read_bytes(&self, _from: &DeviceSlice<u8>, to: &mut [u8]) -> Result<(), CudaError> {
        to.fill(0);
        Ok(())
    }

    fn fill(&self, _slice: &DeviceSlice<u8>, _byte: u8) -> Result<(), CudaError> {
        Ok(())
    }

    fn place(&self) -> Place {
        Place::HOST
    }

    fn reads(&self, _there: Place) -> Result<bool, CudaError> {
        Ok(true)
    }

    fn copy_bytes(&self, _from: &DeviceSlice<u8>, _there: Place, _to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        Ok(())
    }

    fn mark(&self) -> Result<Mark, CudaError> {
        Ok(Mark::stand_in(Arc::default()))
    }

    fn record(&self, _mark: &Mark) -> Result<(), CudaError> {
        Ok(())
    }

    fn wait_for(&self, _mark: &Mark) -> Result<(), CudaError> {
        Ok(())
    }

    fn when(&self, _mark: &Mark) -> Result<Instant, CudaError> {
        Ok(Instant::now())
    }

    fn capture(&self, _enqueue: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<Box<dyn Replay>, CudaError> {
        Err(not_kept("capture"))
    }
}

impl Launch for Nothing {
    unsafe fn launch(&self, _items: u32, _arguments: *mut c_void, _bytes: usize) -> Result<(), CudaError> {
        Ok(())
    }
}
