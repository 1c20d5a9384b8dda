//! What NIXL needs that is `unsafe`: its library, loaded before the first call, and memory that it reads and writes by address.

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use nixl_sys::{MemType, MemoryRegion, NixlDescriptor};
use std::error::Error;
use std::ffi::OsStr;
use std::sync::Mutex;

/// Loads NIXL's library. `nixl-sys` looks for one of the same name at its first call, and finds this one; without any it would end
/// the process. `environment` is set first, as far as nothing else is: both NIXL and UCX read it while they load.
///
/// To be called while this process has no other thread that reads its environment, and before any other call into NIXL.
///
/// # Errors
/// What the system's loader says.
pub fn load(library: &OsStr, environment: &[(&str, &str)]) -> Result<(), String> {
    static LOADED: Mutex<bool> = Mutex::new(false);
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if *loaded {
        return Ok(());
    }
    for (name, value) in environment {
        if std::env::var_os(name).is_none() {
            // SAFETY: Rust's own readers take the same lock, and the contract above excludes others.
            unsafe { std::env::set_var(name, value) };
        }
    }
    // SAFETY: the initialisers of NIXL and UCX register plugins, and touch nothing of this process.
    let library = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_LOCAL) };
    // The loader's own words are behind the error's. Kept for as long as the process lives: UCX cannot be unloaded.
    let why = |error: libloading::Error| error.source().map_or_else(|| error.to_string(), ToString::to_string);
    std::mem::forget(library.map_err(why)?);
    *loaded = true;
    Ok(())
}

/// Memory of this process that NIXL may read and write once it is registered.
#[derive(Debug)]
pub struct Region {
    card: Option<u32>,
    address: usize,
    bytes: usize,
}

impl Region {
    /// `bytes` bytes from `address` on. Whoever registers it keeps the memory where it is for as long as it is registered, and orders
    /// its own use of it with what peers do: no reference to it is made here.
    pub fn new(address: usize, bytes: usize) -> Self {
        Self::on(None, address, bytes)
    }

    /// The same in the memory of a CUDA card.
    pub fn on(card: Option<u32>, address: usize, bytes: usize) -> Self {
        Self { card, address, bytes }
    }
}

impl MemoryRegion for Region {
    unsafe fn as_ptr(&self) -> *const u8 {
        std::ptr::with_exposed_provenance(self.address)
    }

    fn size(&self) -> usize {
        self.bytes
    }
}

impl NixlDescriptor for Region {
    fn mem_type(&self) -> MemType {
        if self.card.is_some() { MemType::Vram } else { MemType::Dram }
    }

    fn device_id(&self) -> u64 {
        self.card.unwrap_or(0).into()
    }
}
