//! Memory on the device and pinned memory on the host. Owns allocation; copies are a stream's.

use crate::device::Device;
use crate::error::{Context, CudaError};
use cudarc::driver::{result, sys};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

/// What every slice of an arena begins at a multiple of: enough for copy-engine descriptors and whole cache lines.
pub const ALIGNMENT: usize = 256;

/// Types that any bytes are a value of, so that they may come from and go to a device.
///
/// # Safety
/// No padding, no invalid bit patterns, no pointers.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: integers and floats are valid whatever their bits.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

/// One allocation of device memory, freed with its last slice.
#[derive(Debug)]
struct Allocation {
    device: Arc<Device>,
    address: sys::CUdeviceptr,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated once by `Arena::new`. cuMemFree waits for work that still uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// What keeps memory from being freed.
pub(crate) trait Keeper: std::fmt::Debug + Send + Sync {}
impl Keeper for Allocation {}

/// A device's memory, taken at once and handed out from the front. Nothing is given back before the whole arena is.
#[derive(Debug)]
pub struct Arena {
    allocation: Arc<dyn Keeper>,
    address: u64,
    used: usize,
    bytes: usize,
}

impl Arena {
    /// Takes `bytes` of the device's memory.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] with both numbers if less is free.
    pub fn new(device: &Arc<Device>, bytes: usize) -> Result<Arena, CudaError> {
        let (free, _) = device.memory()?;
        if bytes > free {
            return Err(CudaError::OutOfMemory { wanted: bytes, free });
        }
        // SAFETY: freed in `Allocation::drop`.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.during("allocating device memory")?;
        let allocation = Arc::new(Allocation { device: device.clone(), address });
        Ok(Arena::over(allocation, address, bytes))
    }

    /// Over memory that `allocation` keeps.
    pub(crate) fn over(allocation: Arc<dyn Keeper>, address: u64, bytes: usize) -> Arena {
        Arena { allocation, address, used: 0, bytes }
    }

    /// Of memory that someone has already taken.
    pub(crate) fn within(slice: &DeviceSlice<u8>) -> Arena {
        Arena::over(slice.allocation.clone(), slice.address, slice.count)
    }

    /// The next `count` elements, uninitialised, aligned to [`ALIGNMENT`].
    ///
    /// # Errors
    /// [`CudaError::Arena`] if they do not fit.
    pub fn take<T: Plain>(&mut self, count: usize) -> Result<DeviceSlice<T>, CudaError> {
        let start = self.used.next_multiple_of(ALIGNMENT);
        let left = self.bytes.saturating_sub(start);
        let wanted = count.saturating_mul(size_of::<T>());
        if wanted > left {
            return Err(CudaError::Arena { wanted, left, total: self.bytes });
        }
        self.used = start + wanted;
        let address = self.address + start as u64;
        Ok(DeviceSlice { allocation: self.allocation.clone(), address, count, elements: PhantomData })
    }

    /// Bytes an arena needs to hand out slices of these sizes in this order.
    pub fn bytes_for(sizes: impl IntoIterator<Item = usize>) -> usize {
        sizes.into_iter().fold(0, |used, bytes| used.next_multiple_of(ALIGNMENT) + bytes)
    }
}

/// Memory that a machine has taken ahead of those who ask it for some.
#[derive(Debug, Default)]
pub(crate) struct Reserve(Mutex<Option<Arena>>);

impl Reserve {
    /// What is asked for from now on comes out of `arena`.
    pub(crate) fn put(&self, arena: Arena) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(arena);
    }

    /// `bytes` of it, or nothing if there is none, or no more of it.
    pub(crate) fn take(&self, bytes: usize) -> Option<Arena> {
        let mut reserve = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slice = reserve.as_mut()?.take::<u8>(bytes).ok()?;
        Some(Arena::within(&slice))
    }
}

/// `count` elements of an arena. Clones are the same memory: ordering its users is the caller's, by streams and events.
#[derive(Debug, Clone)]
pub struct DeviceSlice<T> {
    allocation: Arc<dyn Keeper>,
    address: u64,
    count: usize,
    elements: PhantomData<T>,
}

impl<T: Plain> DeviceSlice<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.count * size_of::<T>()
    }

    /// Where it lies, for kernels' arguments.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Elements `start..start + count` of it.
    ///
    /// # Panics
    /// If they are not all in it.
    #[must_use]
    pub fn part(&self, start: usize, count: usize) -> DeviceSlice<T> {
        assert!(start + count <= self.count, "a part lies within its slice");
        let address = self.address + (start * size_of::<T>()) as u64;
        DeviceSlice { allocation: self.allocation.clone(), address, count, elements: PhantomData }
    }

    /// The same memory as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> DeviceSlice<u8> {
        let (allocation, address, count) = (self.allocation.clone(), self.address, self.bytes());
        DeviceSlice { allocation, address, count, elements: PhantomData }
    }
}

/// The bytes of plain elements.
pub fn bytes_of<T: Plain>(elements: &[T]) -> &[u8] {
    // SAFETY: plain types have no padding, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// The bytes of plain elements, to be written.
pub(crate) fn bytes_of_mut<T: Plain>(elements: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes are a value of a plain type.
    unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), size_of_val(elements)) }
}

impl DeviceSlice<u8> {
    /// The same bytes as elements of another type.
    ///
    /// # Panics
    /// If they are no whole number of elements, or not aligned as one.
    pub fn cast<T: Plain>(&self) -> DeviceSlice<T> {
        assert!(self.count.is_multiple_of(size_of::<T>()), "bytes make up whole elements");
        assert!(self.address.is_multiple_of(align_of::<T>() as u64), "elements are aligned");
        DeviceSlice {
            allocation: self.allocation.clone(),
            address: self.address,
            count: self.count / size_of::<T>(),
            elements: PhantomData,
        }
    }
}

/// Page-locked host memory, which copies asynchronously and at full speed. Ordinary cached memory: the host may read it.
#[derive(Debug)]
pub struct PinnedBuffer<T> {
    device: Arc<Device>,
    pointer: *mut T,
    count: usize,
}

// SAFETY: plain memory that only its owner reaches.
unsafe impl<T: Plain> Send for PinnedBuffer<T> {}

impl<T: Plain> PinnedBuffer<T> {
    /// `count` elements, all bits zero.
    ///
    /// # Errors
    /// The driver's own.
    pub fn new(device: &Arc<Device>, count: usize) -> Result<PinnedBuffer<T>, CudaError> {
        device.bind()?;
        let bytes = (count * size_of::<T>()).max(1);
        // SAFETY: freed in `drop`; flags 0 is cached memory. Its first `bytes` bytes are then written.
        let pointer = unsafe {
            let pointer = result::malloc_host(bytes, 0).during("allocating pinned memory")?;
            pointer.cast::<u8>().write_bytes(0, bytes);
            pointer.cast()
        };
        Ok(PinnedBuffer { device: device.clone(), pointer, count })
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `count` initialised elements that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.count) }
    }

    /// The elements, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.count) }
    }
}

impl<T> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated once by `new`.
            let _ = unsafe { result::free_host(self.pointer.cast()) };
        }
    }
}
