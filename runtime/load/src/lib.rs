//! What a benchmark asks for and how it reads what came: loads (synthetic, or from a trace file), arrivals, latency statistics.
//!
//! Pure: it submits nothing and reads no clock. Whoever drives an engine, virtual lanes or a server takes a [`Load`] and
//! hands back a [`summary::RequestTiming`] for each of its requests.

#![forbid(unsafe_code)]

pub mod arrival;
pub mod goodput;
pub mod prompt;
pub mod random;
mod request;
pub mod statistics;
pub mod summary;
pub mod synthetic;
pub mod trace_file;

pub use request::{Load, LoadLimits, LoadRequest, TooLong};
