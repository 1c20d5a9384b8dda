//! The order of work of a stand-in: a thread that does one job after another, and flags that order two of them.

use super::compile::Function;
use crate::error::CudaError;
use crate::machine::not_kept;
use crate::memory::DeviceSlice;
use std::ffi::{c_int, c_void};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A kernel's launch.
#[derive(Debug, Clone)]
pub(super) struct Call {
    function: Function,
    items: c_int,
    arguments: Box<[u64]>,
}

/// Something to do.
pub(super) enum Job {
    Run(Call),
    Write {
        bytes: Box<[u8]>,
        to: DeviceSlice<u8>,
    },
    Copy {
        from: DeviceSlice<u8>,
        to: DeviceSlice<u8>,
    },
    Fill {
        slice: DeviceSlice<u8>,
        byte: u8,
    },
    Reach {
        flag: Arc<Flag>,
        turn: u64,
    },
    Wait {
        flag: Arc<Flag>,
        turn: u64,
    },
    /// Memory that nobody has any more.
    Free {
        _words: Box<[[u64; 32]]>,
    },
}

impl Job {
    fn run(self) {
        // SAFETY of all three copies: slices keep their memory and lengths agree; whoever shares memory orders its uses by flags.
        match self {
            // SAFETY: `Queue::launch`'s caller promised it.
            Job::Run(call) => unsafe { (call.function)(call.arguments.as_ptr().cast(), call.items) },
            Job::Write { bytes, to } => {
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.address() as *mut u8, bytes.len()) }
            }
            Job::Copy { from, to } => {
                // SAFETY: as above; a slice may be copied onto itself.
                unsafe { std::ptr::copy(from.address() as *const u8, to.address() as *mut u8, from.len()) }
            }
            Job::Fill { slice, byte } => {
                // SAFETY: as above.
                unsafe { std::ptr::write_bytes(slice.address() as *mut u8, byte, slice.len()) }
            }
            Job::Reach { flag, turn } => flag.reach(turn),
            Job::Wait { flag, turn } => flag.wait_until(turn),
            Job::Free { .. } => {}
        }
    }
}

/// Jobs on their way to the thread, which ends behind the last once this is dropped.
#[derive(Debug)]
pub(super) struct Queue {
    jobs: Sender<Job>,
    /// Launches that are kept instead of done, while a capture lasts.
    captured: Mutex<Option<Vec<Call>>>,
}

impl Queue {
    pub(super) fn new() -> std::io::Result<Queue> {
        let (jobs, enqueued) = channel::<Job>();
        let thread = std::thread::Builder::new().name("stand-in".into());
        thread.spawn(move || enqueued.into_iter().for_each(Job::run))?;
        Ok(Queue { jobs, captured: Mutex::default() })
    }

    fn captured(&self) -> MutexGuard<'_, Option<Vec<Call>>> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin_capture(&self) {
        *self.captured() = Some(Vec::new());
    }

    pub(super) fn end_capture(&self) -> Vec<Call> {
        self.captured().take().unwrap_or_default()
    }

    pub(super) fn push(&self, job: Job) -> Result<(), CudaError> {
        match (&mut *self.captured(), job) {
            (Some(captured), Job::Run(call)) => captured.push(call),
            (Some(_), _) => return Err(not_kept("enqueue")),
            (None, job) => self.send(job),
        }
        Ok(())
    }

    fn send(&self, job: Job) {
        // The thread ends only when nobody can push any more, or when a kernel has brought the process down.
        let _ = self.jobs.send(job);
    }

    /// # Safety
    /// As `Launch::launch`.
    pub(super) unsafe fn launch(
        &self,
        function: Function,
        items: u32,
        arguments: *mut c_void,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let mut words = vec![0u64; bytes.div_ceil(8)].into_boxed_slice();
        // SAFETY: that many bytes are there, and there is room for them.
        unsafe { std::ptr::copy_nonoverlapping(arguments.cast::<u8>(), words.as_mut_ptr().cast(), bytes) };
        self.push(Job::Run(Call { function, items: items as c_int, arguments: words }))
    }

    /// Blocks until all is done.
    pub(super) fn finish(&self) -> Result<(), CudaError> {
        let flag = Arc::<Flag>::default();
        self.push(Job::Reach { flag: Arc::clone(&flag), turn: flag.recorded() })?;
        flag.wait();
        Ok(())
    }

    /// Frees memory behind what is enqueued.
    pub(super) fn outlive(&self, words: Box<[[u64; 32]]>) {
        self.send(Job::Free { _words: words });
    }
}

/// A point in a stand-in's work.
#[derive(Debug)]
pub(crate) struct Flag {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// How often it was recorded, and which of these have been reached.
    recorded: u64,
    reached: u64,
    at: Instant,
}

impl Default for Flag {
    fn default() -> Self {
        let state = State { recorded: 0, reached: 0, at: Instant::now() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Flag {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is recorded once more. Returns how often it was.
    pub(super) fn recorded(&self) -> u64 {
        let mut state = self.state();
        state.recorded += 1;
        state.recorded
    }

    /// How often it was recorded.
    pub(super) fn turn(&self) -> u64 {
        self.state().recorded
    }

    fn reach(&self, turn: u64) {
        let mut state = self.state();
        (state.reached, state.at) = (turn, Instant::now());
        self.changed.notify_all();
    }

    fn wait_until(&self, turn: u64) {
        let mut state = self.state();
        while state.reached < turn {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn is_reached(&self) -> bool {
        let state = self.state();
        state.reached == state.recorded
    }

    pub(crate) fn wait(&self) {
        self.wait_until(self.turn());
    }

    /// When it was reached last.
    pub(crate) fn at(&self) -> Instant {
        self.state().at
    }
}
