//! Atomics, locks and threads under the hand-written waiting: the standard library's, or, built with `--cfg loom`, loom's, which run
//! a test through every interleaving (`interleavings.rs`).

#[cfg(not(loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering, fence},
    sync::{Condvar, Mutex, MutexGuard},
    thread::{Thread, current, park_timeout, yield_now},
};

#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering, fence},
    sync::{Condvar, Mutex, MutexGuard},
    thread::{Thread, current, yield_now},
};

/// There no time passes: a wake that only the time limit would mend is a deadlock, and found.
#[cfg(loom)]
pub(crate) fn park_timeout(_: std::time::Duration) {
    loom::thread::park();
}
