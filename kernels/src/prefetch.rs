//! Hints to bring cache lines nearer before they are needed.

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Asks for the cache line at `address`, to be read or written soon; `address` need not be valid. No more than a hint, and on
/// processors other than x86-64 not even that.
#[inline]
pub fn prefetch(address: usize, write: bool) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        let address = address as *const i8;
        // SAFETY: a prefetch reads nothing that the program could see and faults nowhere, whatever the address.
        unsafe { if write { _mm_prefetch::<_MM_HINT_ET0>(address) } else { _mm_prefetch::<_MM_HINT_T0>(address) } }
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = (address, write);
}
