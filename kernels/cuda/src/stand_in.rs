//! The processor standing in for a card: plain kernels compiled as C by the system's compiler, memory of the host, and work done
//! when it is enqueued. Owns the compiled libraries. It is right, not fast: for tests without a card.

use crate::error::CudaError;
use crate::machine::{Launch, Machine};
use crate::memory::{Arena, DeviceSlice, Keeper};
use crate::source::{self, HEADERS, Source};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// The files that are C as well.
const FILES: [Source; 7] = [
    source::MATMUL,
    source::ROWS,
    source::ROPE_APPEND,
    source::ATTENTION,
    source::ROUTER,
    source::EXPERTS,
    source::WIRE,
];

/// A kernel as C: its arguments, and how many items.
type Function = unsafe extern "C" fn(*const c_void, c_int);

/// Compiled once a process.
#[derive(Debug)]
struct Libraries {
    by_file: HashMap<&'static str, libloading::Library>,
}

#[derive(Debug)]
pub(crate) struct StandIn {
    libraries: Arc<Libraries>,
}

impl StandIn {
    pub(crate) fn new() -> Result<StandIn, CudaError> {
        static COMPILED: Mutex<Option<Arc<Libraries>>> = Mutex::new(None);
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(libraries) = &*compiled {
            return Ok(StandIn { libraries: Arc::clone(libraries) });
        }
        let libraries = Arc::new(compile().map_err(|problem| CudaError::StandIn { problem })?);
        *compiled = Some(Arc::clone(&libraries));
        Ok(StandIn { libraries })
    }
}

/// All files at once, each by a compiler of its own.
fn compile() -> Result<Libraries, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).map_err(|error| format!("cannot write {name}: {error}"))
    };
    HEADERS.iter().try_for_each(|(name, text)| write(name, text))?;
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut running = Vec::new();
    for file in FILES {
        write(file.file, file.text)?;
        let mut command = Command::new(&compiler);
        command.current_dir(folder.path()).args(["-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared"]);
        if cfg!(target_arch = "x86_64") {
            // Without it a fused multiply-add is a call of the C library.
            command.arg("-march=native");
        }
        command.args(["-x", "c", file.file, "-o", &format!("{}.so", file.file), "-lm"]);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        running
            .push((file.file, child.map_err(|error| format!("the C compiler `{compiler}` cannot be run: {error}"))?));
    }
    let mut by_file = HashMap::new();
    for (file, child) in running {
        let done = child.wait_with_output().map_err(|error| format!("the C compiler was lost: {error}"))?;
        if !done.status.success() {
            return Err(format!("{file} does not compile as C: {}", String::from_utf8_lossy(&done.stderr).trim()));
        }
        let path = folder.path().join(format!("{file}.so"));
        // SAFETY: a library made from our own text a moment ago; it has no initialisers.
        let library = unsafe { libloading::Library::new(&path) };
        by_file.insert(file, library.map_err(|error| format!("{file} cannot be loaded: {error}"))?);
    }
    // The files may go: loaded libraries stay mapped.
    Ok(Libraries { by_file })
}

/// Host memory, aligned like a card's.
#[derive(Debug)]
struct Block {
    words: Box<[[u64; 32]]>,
}

impl Keeper for Block {}

impl Machine for StandIn {
    fn name(&self) -> String {
        "this processor standing in for a CUDA device".into()
    }

    fn free_bytes(&self) -> Result<Option<usize>, CudaError> {
        Ok(None)
    }

    fn allocate(&self, bytes: usize) -> Result<Arena, CudaError> {
        // Whole pieces, so that the start can be moved up to a multiple of their size.
        let count = bytes.div_ceil(256) + 1;
        let block = Block { words: vec![[0x7fc0_0000_7fc0_0000; 32]; count].into_boxed_slice() };
        let address = (block.words.as_ptr() as u64).next_multiple_of(256);
        Ok(Arena::over(Arc::new(block), address, bytes))
    }

    fn kernels(&self, source: &Source, names: &[&'static str]) -> Result<Vec<Box<dyn Launch>>, CudaError> {
        let called = |name: &&'static str| {
            let missing = || CudaError::StandIn { problem: format!("{} has no kernel `{name}` in C", source.file) };
            let library = self.libraries.by_file.get(source.file).ok_or_else(missing)?;
            // SAFETY: KERNEL in `warp.cuh` gives every kernel this type; the library is kept beside the pointer.
            let function = unsafe { library.get::<Function>(*name) }.map_err(|_| missing())?;
            Ok(Box::new(Called { function: *function, _libraries: Arc::clone(&self.libraries) }) as Box<dyn Launch>)
        };
        names.iter().map(called).collect()
    }

    fn write_bytes(&self, from: &[u8], to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        // SAFETY: the slice keeps its memory and is as long; whoever shares it orders its uses, as on a card.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.address() as *mut u8, from.len()) };
        Ok(())
    }

    fn read_bytes(&self, from: &DeviceSlice<u8>, to: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: as in `write_bytes`.
        unsafe { std::ptr::copy_nonoverlapping(from.address() as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn fill(&self, slice: &DeviceSlice<u8>, byte: u8) -> Result<(), CudaError> {
        // SAFETY: as in `write_bytes`.
        unsafe { std::ptr::write_bytes(slice.address() as *mut u8, byte, slice.len()) };
        Ok(())
    }
}

#[derive(Debug)]
struct Called {
    function: Function,
    _libraries: Arc<Libraries>,
}

impl Launch for Called {
    unsafe fn launch(&self, items: u32, arguments: *mut c_void) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { (self.function)(arguments, items as c_int) };
        Ok(())
    }
}
