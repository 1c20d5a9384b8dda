//! Streams, events and copies. Owns the order of work on a device; knows nothing of what the work is.

use crate::device::Device;
use crate::error::{Context, CudaError};
use crate::memory::{DeviceSlice, PinnedBuffer, Plain};
use crate::shares::Share;
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// Work in order. Independent of the legacy default stream.
#[derive(Debug)]
pub struct Stream {
    device: Arc<Device>,
    /// What of the device its work runs on; all of it if none.
    share: Option<Arc<Share>>,
    handle: sys::CUstream,
}

// SAFETY: the driver's calls on a stream are thread-safe.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream of the device.
    ///
    /// # Errors
    /// The driver's own.
    pub fn new(device: &Arc<Device>) -> Result<Stream, CudaError> {
        device.bind()?;
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking).during("making a stream")?;
        Ok(Stream { device: device.clone(), share: None, handle })
    }

    /// A new stream whose work runs on a share of the device alone.
    ///
    /// # Errors
    /// The driver's own.
    pub fn on(device: &Arc<Device>, share: &Arc<Share>) -> Result<Stream, CudaError> {
        device.bind()?;
        let (mut handle, flags) = (std::ptr::null_mut(), sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32);
        // SAFETY: the share is alive, and kept so; the handle is destroyed in `drop`.
        unsafe { sys::cuGreenCtxStreamCreate(&mut handle, share.handle(), flags, 0) }
            .result()
            .during("making a stream on a share of a card")?;
        Ok(Stream { device: device.clone(), share: Some(share.clone()), handle })
    }

    /// Multiprocessors that its work runs on: what kernels that fill the card are launched for.
    pub fn multiprocessors(&self) -> u32 {
        self.share.as_ref().map_or(self.device.card().multiprocessors, |share| share.multiprocessors())
    }

    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Blocks until all work so far is done.
    ///
    /// # Errors
    /// The driver's own, a kernel's fault included.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle lives as long as `self`.
        unsafe { result::stream::synchronize(self.handle) }.during("waiting for a stream")
    }

    /// Records `event` after all work so far.
    ///
    /// # Errors
    /// The driver's own.
    pub fn record(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both handles are alive.
        unsafe { result::event::record(event.handle, self.handle) }.during("recording an event")
    }

    /// Work enqueued from now on waits for `event`, on the device.
    ///
    /// # Errors
    /// The driver's own.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both handles are alive.
        unsafe { result::stream::wait_event(self.handle, event.handle, flags) }.during("waiting for an event")
    }

    /// Copies host data in and waits for it.
    ///
    /// # Errors
    /// [`CudaError::Shape`] if the lengths differ; the driver's own.
    pub fn write<T: Plain>(&self, from: &[T], to: &DeviceSlice<T>) -> Result<(), CudaError> {
        equal_lengths("write", from.len(), to.len())?;
        // SAFETY: lengths agree and the call waits before `from` is let go.
        unsafe { result::memcpy_htod_async(to.address(), from, self.handle) }.during("copying to the device")?;
        self.synchronize()
    }

    /// Copies ordinary host memory in, which may be let go at once: the driver has read it when the call returns.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub(crate) fn write_staged(&self, from: &[u8], to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        equal_lengths("write_staged", from.len(), to.len())?;
        // SAFETY: lengths agree. Pageable memory is read, or staged by the driver, before the call returns; page-locked memory
        // is only ours (`PinnedBuffer`), and is written by `enqueue_write`.
        unsafe { result::memcpy_htod_async(to.address(), from, self.handle) }.during("copying to the device")
    }

    /// Copies device data out, behind all work so far, and waits for it.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn read<T: Plain>(&self, from: &DeviceSlice<T>, to: &mut [T]) -> Result<(), CudaError> {
        equal_lengths("read", from.len(), to.len())?;
        // SAFETY: as in `write`.
        unsafe { result::memcpy_dtoh_async(to, from.address(), self.handle) }.during("copying from the device")?;
        self.synchronize()
    }

    /// Copies within the memory of its card, asynchronously.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub(crate) fn copy(&self, from: &DeviceSlice<u8>, to: &DeviceSlice<u8>) -> Result<(), CudaError> {
        equal_lengths("copy", from.len(), to.len())?;
        // SAFETY: lengths agree; whoever drops the slices waits for the work (`cuMemFree`).
        unsafe { result::memcpy_dtod_async(to.address(), from.address(), from.len(), self.handle) }
            .during("copying on the device")
    }

    /// Copies from the memory of another card, whose context `there` is, asynchronously.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub(crate) fn copy_from_peer(
        &self,
        from: &DeviceSlice<u8>,
        there: usize,
        to: &DeviceSlice<u8>,
    ) -> Result<(), CudaError> {
        equal_lengths("copy_from_peer", from.len(), to.len())?;
        self.device.reach(there);
        let (here, there) = (self.device.address() as sys::CUcontext, there as sys::CUcontext);
        // SAFETY: lengths agree, and both contexts are alive: slices keep the devices of their memory open.
        unsafe { sys::cuMemcpyPeerAsync(to.address(), here, from.address(), there, from.len(), self.handle) }
            .result()
            .during("copying from another card")
    }

    /// Sets every byte of a slice, asynchronously.
    ///
    /// # Errors
    /// The driver's own.
    pub fn fill<T: Plain>(&self, slice: &DeviceSlice<T>, byte: u8) -> Result<(), CudaError> {
        // SAFETY: the slice is in its allocation. Whoever drops that waits for the work (`cuMemFree`).
        unsafe { result::memset_d8_async(slice.address(), byte, slice.bytes(), self.handle) }
            .during("filling device memory")
    }

    /// Enqueues a copy in.
    ///
    /// # Safety
    /// `from` is neither changed nor dropped, and `to` has no other writer, until the stream has passed this point.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub unsafe fn enqueue_write<T: Plain>(&self, from: &PinnedBuffer<T>, to: &DeviceSlice<T>) -> Result<(), CudaError> {
        equal_lengths("enqueue_write", from.as_slice().len(), to.len())?;
        // SAFETY: lengths agree; the rest is the caller's.
        unsafe { result::memcpy_htod_async(to.address(), from.as_slice(), self.handle) }.during("copying to the device")
    }

    /// Enqueues a copy out.
    ///
    /// # Safety
    /// `to` is neither read, changed nor dropped until the stream has passed this point.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub unsafe fn enqueue_read<T: Plain>(
        &self,
        from: &DeviceSlice<T>,
        to: &mut PinnedBuffer<T>,
    ) -> Result<(), CudaError> {
        equal_lengths("enqueue_read", from.len(), to.as_slice().len())?;
        // SAFETY: lengths agree; the rest is the caller's.
        unsafe { result::memcpy_dtoh_async(to.as_mut_slice(), from.address(), self.handle) }
            .during("copying from the device")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made once by `new`; the driver lets queued work finish first.
        let _ = unsafe { result::stream::destroy(self.handle) };
    }
}

/// Refuses a copy between slices of two lengths.
pub(crate) fn equal_lengths(operation: &'static str, from: usize, to: usize) -> Result<(), CudaError> {
    if from == to {
        return Ok(());
    }
    Err(CudaError::Shape { operation, problem: format!("{from} elements to {to}; give slices of one length") })
}

/// A point in a stream.
#[derive(Debug)]
pub struct Event {
    handle: sys::CUevent,
    /// Keeps the context alive.
    _device: Arc<Device>,
}

// SAFETY: the driver's calls on an event are thread-safe.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that orders, and keeps no time.
    ///
    /// # Errors
    /// The driver's own.
    pub fn new(device: &Arc<Device>) -> Result<Event, CudaError> {
        Event::with(device, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event that keeps its time too, for [`Event::us_since`].
    ///
    /// # Errors
    /// The driver's own.
    pub fn timed(device: &Arc<Device>) -> Result<Event, CudaError> {
        Event::with(device, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(device: &Arc<Device>, flags: sys::CUevent_flags) -> Result<Event, CudaError> {
        device.bind()?;
        let handle = result::event::create(flags).during("making an event")?;
        Ok(Event { handle, _device: device.clone() })
    }

    /// Blocks until the recorded point is reached.
    ///
    /// # Errors
    /// The driver's own.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle lives as long as `self`.
        unsafe { result::event::synchronize(self.handle) }.during("waiting for an event")
    }

    /// Whether the recorded point is reached.
    ///
    /// # Errors
    /// The driver's own.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        // SAFETY: the handle lives as long as `self`.
        match unsafe { result::event::query(self.handle) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(error).during("asking an event"),
        }
    }

    /// Microseconds from `earlier` to this; both timed, recorded and reached.
    ///
    /// # Errors
    /// The driver's own.
    pub fn us_since(&self, earlier: &Event) -> Result<f64, CudaError> {
        // SAFETY: both handles are alive.
        let ms = unsafe { result::event::elapsed(earlier.handle, self.handle) }.during("timing events")?;
        Ok(f64::from(ms) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made once by `with`.
        let _ = unsafe { result::event::destroy(self.handle) };
    }
}
