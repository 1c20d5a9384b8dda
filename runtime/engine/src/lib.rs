//! Real lanes, slots, transfers and the run loop of rally.

mod control;
mod engine;
mod lane;
mod meter;
pub mod slot;
pub mod span;
pub mod stage;
mod sync;
mod telemetry;
mod transfer;
pub mod values;
mod wiring;

pub use control::{RunEvent, TokenReport};
pub use engine::{DeviceParts, Engine, EngineError, EngineParts, RunReport, SubmitHandle, Widths};

/// The pure half of the runtime, re-exported so that stages see batches and policies through the engine alone.
pub use rally_schedule as schedule;
