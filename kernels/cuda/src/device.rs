//! One card opened: its context, and the kernels compiled for it. Owns the primary context's reference.

use crate::cache::CubinCache;
use crate::error::{Context, CudaError};
use crate::module::Module;
use crate::probe::{self, Card};
use crate::source::Source;
use cudarc::driver::{result, sys};
use std::sync::{Arc, Mutex, PoisonError};

/// An open card. Shared by everything made on it, which keeps it open.
#[derive(Debug)]
pub struct Device {
    card: Card,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    cache: Option<CubinCache>,
    /// Contexts of other cards that rows have come from, and whether their memory can be read.
    peers: Mutex<Vec<(usize, bool)>>,
}

// SAFETY: a context may be used from any thread that has made it current, which `bind` does.
unsafe impl Send for Device {}
// SAFETY: the driver's own calls are thread-safe.
unsafe impl Sync for Device {}

impl Device {
    /// Opens a card and makes it this thread's; other threads call [`Device::bind`] first.
    ///
    /// # Errors
    /// What [`probe::cards`] says, [`CudaError::Ordinal`], or the driver's own.
    pub fn open(ordinal: usize) -> Result<Arc<Device>, CudaError> {
        let cards = probe::cards()?;
        let count = cards.len();
        let card = cards.into_iter().nth(ordinal).ok_or(CudaError::Ordinal { ordinal, count })?;
        let handle = result::device::get(ordinal as i32).during("opening a device")?;
        // SAFETY: the handle is the driver's; released in `drop`.
        let context = unsafe { result::primary_ctx::retain(handle) }.during("opening a device's context")?;
        let device = Arc::new(Device { card, handle, context, cache: CubinCache::for_user(), peers: Mutex::default() });
        device.bind()?;
        Ok(device)
    }

    /// What the card is.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Makes the device current on this thread: once, before the thread's first call for it.
    ///
    /// # Errors
    /// The driver's own.
    pub fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.during("making a device current")
    }

    pub(crate) fn handle(&self) -> sys::CUdevice {
        self.handle
    }

    /// Its context, which tells it from other cards.
    pub(crate) fn address(&self) -> usize {
        self.context as usize
    }

    /// Lets copies from the card with this context come directly, and kernels read its memory, where the two cards can: returns whether.
    /// Where they cannot, the driver takes copies through the host. The device is current.
    pub(crate) fn reach(&self, context: usize) -> bool {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, reached)) = peers.iter().find(|(peer, _)| *peer == context) {
            return *reached;
        }
        // SAFETY: the caller has memory of that context, so it is alive.
        let enabled = unsafe { sys::cuCtxEnablePeerAccess(context as sys::CUcontext, 0) };
        let reached =
            matches!(enabled, sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
        peers.push((context, reached));
        reached
    }

    /// Compiles several kernel files at once that are not in the cache yet; [`Device::load`] tells what fails.
    pub(crate) fn prepare(&self, sources: &[&Source]) {
        if let Some(cache) = &self.cache {
            crate::compile::prepare(sources, &self.card.arch(), cache);
        }
    }

    /// Compiles (or takes from the cache) and loads one kernel file.
    ///
    /// # Errors
    /// As [`crate::compile::cubin`], or the driver's own.
    pub fn load(self: &Arc<Self>, source: &Source) -> Result<Arc<Module>, CudaError> {
        let cubin = crate::compile::cubin(source, &self.card.arch(), self.cache.as_ref())?;
        Module::load(self, &cubin)
    }

    /// Bytes free and in all, now.
    ///
    /// # Errors
    /// The driver's own.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        result::mem_get_info().during("asking for free memory")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`. A failure here has nobody left to tell.
        let _ = unsafe { result::primary_ctx::release(self.handle) };
    }
}
