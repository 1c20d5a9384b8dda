//! Aligned owned memory for weights, KV pages and scratch. Knows no shapes.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every buffer: one cache line, which is also one AVX-512 register.
const LINE_BYTES: usize = 64;

/// Buffers at least this large ask for huge pages, which raises one core's read rate by about a third.
const HUGE_PAGE_BYTES: usize = 2 << 20;

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
        let raw = unsafe { alloc(layout) };
        let Some(pointer) = NonNull::new(raw.cast::<T>()) else { handle_alloc_error(layout) };
        advise_huge_pages(raw, layout.size());
        // SAFETY: the allocation holds `len` elements, and zero bytes are valid elements.
        unsafe { pointer.as_ptr().write_bytes(0, len) };
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
        if self.len > 0 {
            // SAFETY: allocated in `zeroed` with the layout of the same length.
            unsafe { dealloc(self.pointer.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}

impl<T: Element> std::fmt::Debug for AlignedBuffer<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AlignedBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: *mut u8, bytes: usize) {
    if bytes >= HUGE_PAGE_BYTES {
        // SAFETY: the range is one live allocation of ours, aligned to a huge page. The call is advice: it changes
        // no content, and a refusal only costs speed.
        unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_start: *mut u8, _bytes: usize) {}

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
