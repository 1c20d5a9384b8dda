//! Real lanes, slots, transfers and the run loop of rally.

#![forbid(unsafe_code)]

// The toy model of the tests, which unit tests use from within, speaks of the crate by its name.
#[cfg(test)]
extern crate self as rally_engine;

mod build;
pub mod clock;
mod control;
mod engine;
pub mod exchange;
pub mod figures;
pub mod hosts;
#[cfg(all(loom, test))]
mod interleavings;
mod lane;
pub mod meter;
mod outbox;
mod primitives;
pub mod rehearsal;
pub mod remote;
pub mod slot;
pub mod span;
pub mod stage;
mod step_work;
mod steps;
mod sync;
#[cfg(test)]
#[path = "../tests/toy/mod.rs"]
mod toy;
mod transfer;
pub mod values;
mod wiring;

pub use control::{RunEvent, TokenReport};
pub use engine::{DeviceParts, Engine, EngineError, EngineParts, Kept, Paused, RunReport, SubmitHandle, Widths};

/// The pure half of the runtime, re-exported so that stages see batches and policies through the engine alone.
pub use rally_schedule as schedule;
