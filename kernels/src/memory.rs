//! Aligned owned memory for weights, KV pages and scratch. Knows no shapes.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Alignment of every buffer: one cache line, which is also one AVX-512 register.
const LINE_BYTES: usize = 64;

/// Buffers at least this large ask for huge pages, which raises one core's read rate by about a third.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes of large buffers, which the system maps and the allocator never sees.
static LARGE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Bytes of all large buffers (2 MiB or more) that exist, touched or not. On systems other than Linux the allocator has them.
pub fn large_buffer_bytes() -> usize {
    LARGE_BYTES.load(Ordering::Relaxed)
}

/// Plain numbers whose all-zero bit pattern is zero.
///
/// # Safety
///
/// Any bit pattern, all zeros included, must be a valid value, and dropping must do nothing.
pub(crate) unsafe trait Element: Copy + Send + Sync + 'static {}

// SAFETY: plain integers and floats are valid for every bit pattern.
unsafe impl Element for f32 {}
// SAFETY: as above.
unsafe impl Element for u16 {}
// SAFETY: as above.
unsafe impl Element for u8 {}

/// A fixed number of elements, zeroed at birth and aligned to a cache line.
///
/// A large buffer comes from the system page by page as it is touched: KV pages and tables that are never reached cost nothing,
/// and loading waits for no zeroing.
pub(crate) struct AlignedBuffer<T: Element> {
    pointer: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer owns its memory exclusively, like a `Vec` of `Send` elements.
unsafe impl<T: Element> Send for AlignedBuffer<T> {}
// SAFETY: shared access only hands out `&[T]` of `Sync` elements.
unsafe impl<T: Element> Sync for AlignedBuffer<T> {}

impl<T: Element> AlignedBuffer<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return AlignedBuffer { pointer: NonNull::dangling(), len: 0 };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size above zero, as `len` is and elements are not zero-sized.
        let raw = unsafe { if layout.size() >= HUGE_PAGE_BYTES { map(layout) } else { alloc_zeroed(layout) } };
        let Some(pointer) = NonNull::new(raw.cast::<T>()) else { handle_alloc_error(layout) };
        AlignedBuffer { pointer, len }
    }

    /// Makes the buffer hold at least `len` elements, all zero if it had to grow; shorter requests change nothing.
    pub(crate) fn grow(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(len);
        }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer's bytes fit the address space");
        let align = if bytes >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { LINE_BYTES };
        Layout::from_size_align(bytes, align).expect("a buffer's bytes fit the address space")
    }
}

impl<T: Element> Default for AlignedBuffer<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Element> Deref for AlignedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `pointer` is valid for `len` initialised elements (dangling and aligned when there are none).
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Element> DerefMut for AlignedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Element> Drop for AlignedBuffer<T> {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        let (raw, layout) = (self.pointer.as_ptr().cast(), Self::layout(self.len));
        // SAFETY: allocated in `zeroed` in the same way, with the layout of the same length.
        unsafe { if layout.size() >= HUGE_PAGE_BYTES { unmap(raw, layout) } else { dealloc(raw, layout) } }
    }
}

impl<T: Element> std::fmt::Debug for AlignedBuffer<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AlignedBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Zeroed memory that the system hands over as it is touched, in huge pages where it can; null if there is none. An allocator
/// asked for this alignment would write the zeros itself, and so take every page at once.
///
/// # Safety
///
/// The layout's size is above zero and its alignment that of a huge page; whoever frees the memory calls `unmap`.
#[cfg(target_os = "linux")]
unsafe fn map(layout: Layout) -> *mut u8 {
    let bytes = mapped_bytes(layout);
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, a huge page too long, touches nothing that exists; what lies before and after the first aligned
    // stretch of it goes back. The advice changes no content, and a refusal only costs speed.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), bytes + HUGE_PAGE_BYTES, access, kind, -1, 0);
        if start == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        let start = start.cast::<u8>();
        let before = start.align_offset(HUGE_PAGE_BYTES);
        if before > 0 {
            libc::munmap(start.cast(), before);
        }
        let aligned = start.add(before);
        libc::munmap(aligned.add(bytes).cast(), HUGE_PAGE_BYTES - before);
        libc::madvise(aligned.cast(), bytes, libc::MADV_HUGEPAGE);
        LARGE_BYTES.fetch_add(bytes, Ordering::Relaxed);
        aligned
    }
}

/// # Safety
///
/// `raw` came from `map` with this layout and is not used any more.
#[cfg(target_os = "linux")]
unsafe fn unmap(raw: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(raw.cast(), mapped_bytes(layout)) };
    LARGE_BYTES.fetch_sub(mapped_bytes(layout), Ordering::Relaxed);
}

/// Whole pages. Not whole huge ones: a matrix slightly larger than one would take two.
#[cfg(target_os = "linux")]
fn mapped_bytes(layout: Layout) -> usize {
    /// A multiple of every page size in use.
    const PAGES: usize = 64 << 10;
    layout.size().next_multiple_of(PAGES)
}

/// # Safety
///
/// The layout's size is above zero.
#[cfg(not(target_os = "linux"))]
unsafe fn map(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { alloc_zeroed(layout) }
}

/// # Safety
///
/// `raw` came from `map` with this layout and is not used any more.
#[cfg(not(target_os = "linux"))]
unsafe fn unmap(raw: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    unsafe { dealloc(raw, layout) }
}

/// A raw pointer that threads share while they write disjoint elements.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: whoever dereferences it promises, at that place, that no two threads touch the same element.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(slice: &mut [f32]) -> Self {
        SharedMut(slice.as_mut_ptr())
    }

    pub(crate) fn pointer(self) -> *mut f32 {
        self.0
    }
}
