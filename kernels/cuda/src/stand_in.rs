//! The processor standing in for a card: plain kernels compiled as C by the system's compiler, memory of the host, and a thread that
//! does what was enqueued, in order and later, so that work which is ordered by nothing shows. It is right, not fast: for tests
//! without a card. Compiling is `stand_in/compile.rs`'.

mod compile;
mod queue;

use crate::error::CudaError;
use crate::machine::{Launch, Machine, Mark, Place, Replay, STAND_IN};
use crate::memory::{Arena, DeviceSlice, Keeper, Reserve};
use crate::source::Source;
use compile::{Function, Libraries};
pub(crate) use queue::Flag;
use queue::{Call, Job, Queue};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct StandIn {
    libraries: Arc<Libraries>,
    queue: Arc<Queue>,
    reserve: Reserve,
    /// Multiprocessors that it would have of a card: told, and without any effect.
    sms: Option<u32>,
}

impl StandIn {
    pub(crate) fn new(sms: Option<u32>) -> Result<StandIn, CudaError> {
        let failed = |problem| CudaError::StandIn { problem };
        let libraries = compile::once().map_err(failed)?;
        let queue = Queue::new().map_err(|error| failed(format!("no thread: {error}")))?;
        Ok(StandIn { libraries, queue: Arc::new(queue), reserve: Reserve::default(), sms })
    }
}

/// Host memory, aligned like a card's.
#[derive(Debug)]
struct Block {
    words: Box<[[u64; 32]]>,
    queue: Arc<Queue>,
}

impl Keeper for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // As cuMemFree does: what is enqueued may still use it.
        let words = std::mem::take(&mut self.words);
        self.queue.outlive(words);
    }
}

impl Machine for StandIn {
    fn name(&self) -> String {
        match self.sms {
            None => STAND_IN.into(),
            Some(sms) => format!("{STAND_IN}, {sms} multiprocessors of one"),
        }
    }

    fn multiprocessors(&self) -> usize {
        self.sms.unwrap_or(0) as usize
    }

    fn cache_bytes(&self) -> usize {
        // Of a core: those that are shared, others work in as well.
        1 << 20
    }

    fn free_bytes(&self) -> Result<Option<usize>, CudaError> {
        Ok(None)
    }

    fn reserve(&self, bytes: usize) -> Result<(), CudaError> {
        self.reserve.put(self.allocate(bytes)?);
        Ok(())
    }

    fn allocate(&self, bytes: usize) -> Result<Arena, CudaError> {
        if let Some(arena) = self.reserve.take(bytes) {
            return Ok(arena);
        }
        // Whole pieces, so that the start can be moved up to a multiple of their size.
        let count = bytes.div_ceil(256) + 1;
        let words = vec![[0x7fc0_0000_7fc0_0000; 32]; count].into_boxed_slice();
        let address = (words.as_ptr() as u64).next_multiple_of(256);
        Ok(Arena::over(Arc::new(Block { words, queue: Arc::clone(&self.queue) }), address, bytes))
    }

    fn kernels(&self, source: &Source, names: &[&'static str]) -> Result<Vec<Box<dyn Launch>>, CudaError> {
        let called = |name: &&'static str| {
            let problem = format!("{} has no kernel `{name}` in C", source.file);
            let function = self.libraries.function(source.file, name).ok_or(CudaError::StandIn { problem })?;
            let (queue, _libraries) = (Arc::clone(&self.queue), Arc::clone(&self.libraries));
            Ok(Box::new(Called { function, queue, _libraries }) as Box<dyn Launch>)
        };
        names.iter().map(called).collect()
    }

    fn write_bytes(&self, from: &[u8], to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        self.queue.push(Job::Write { bytes: from.into(), to: to.clone() })
    }

    fn read_bytes(&self, from: &DeviceSlice<u8>, to: &mut [u8]) -> Result<(), CudaError> {
        self.queue.finish()?;
        // SAFETY: the slice keeps its memory and is as long; nothing enqueued is left, and whoever shares it orders its uses.
        unsafe { std::ptr::copy_nonoverlapping(from.address() as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn fill(&self, slice: &DeviceSlice<u8>, byte: u8) -> Result<(), CudaError> {
        self.queue.push(Job::Fill { slice: slice.clone(), byte })
    }

    fn place(&self) -> Place {
        Place::HOST
    }

    fn reads(&self, _there: Place) -> Result<bool, CudaError> {
        Ok(true)
    }

    fn copy_bytes(&self, from: &DeviceSlice<u8>, _there: Place, to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        self.queue.push(Job::Copy { from: from.clone(), to: to.clone() })
    }

    fn mark(&self) -> Result<Mark, CudaError> {
        Ok(Mark::stand_in(Arc::default()))
    }

    fn record(&self, mark: &Mark) -> Result<(), CudaError> {
        let flag = mark.flag()?;
        self.queue.push(Job::Reach { flag: Arc::clone(flag), turn: flag.recorded() })
    }

    fn wait_for(&self, mark: &Mark) -> Result<(), CudaError> {
        let flag = mark.flag()?;
        self.queue.push(Job::Wait { flag: Arc::clone(flag), turn: flag.turn() })
    }

    fn capture(&self, enqueue: &mut dyn FnMut() -> Result<(), CudaError>) -> Result<Box<dyn Replay>, CudaError> {
        self.queue.begin_capture();
        let enqueued = enqueue();
        let launches = self.queue.end_capture();
        enqueued?;
        Ok(Box::new(Captured { launches, queue: Arc::clone(&self.queue), _libraries: Arc::clone(&self.libraries) }))
    }

    fn when(&self, mark: &Mark) -> Result<Instant, CudaError> {
        Ok(mark.flag()?.at())
    }
}

/// Launches to be repeated.
#[derive(Debug)]
struct Captured {
    launches: Vec<Call>,
    queue: Arc<Queue>,
    _libraries: Arc<Libraries>,
}

impl Replay for Captured {
    fn launch(&self) -> Result<(), CudaError> {
        self.launches.iter().try_for_each(|launch| self.queue.push(Job::Run(launch.clone())))
    }
}

#[derive(Debug)]
struct Called {
    function: Function,
    queue: Arc<Queue>,
    _libraries: Arc<Libraries>,
}

impl Launch for Called {
    unsafe fn launch(&self, items: u32, arguments: *mut c_void, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.queue.launch(self.function, items, arguments, bytes) }
    }
}
