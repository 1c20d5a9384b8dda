//! The metrics of rally: the table of their names, what may stand in their labels, and how they leave the process.
//!
//! Nothing else in the workspace depends on the `metrics` façade, so a metric that is not in [`names`] cannot be emitted.
//! There are two ways out of a process, and both end in one page ([`Exporter::render`]):
//!
//! * what the owner of a run sees (requests, tokens, latencies) goes through the façade, by handles made beforehand;
//! * what lanes and the planner count lies in plain atomics of theirs ([`AtomicHistogram`] among them) and is read when someone
//!   asks ([`Source`]). A lane pays a store for it, and nothing grows between two scrapes. The façade could not carry these: its
//!   counters are whole numbers, and its histograms keep every sample until the next scrape.

#![forbid(unsafe_code)]

mod exporter;
mod exposition;
mod family;
mod histogram;
mod label;
pub mod names;
mod server;

pub use exporter::{Exporter, ExporterError, Health, Source};
pub use exposition::{Exposition, HistogramSamples, Samples};
pub use family::{
    Counter, CounterHandle, Family, Histogram, HistogramHandle, Identity, SampledCounter, SampledGauge,
    SampledHistogram, Unit,
};
pub use histogram::AtomicHistogram;
pub use label::{Bound, BubbleCause, Label, StragglerCause};
pub use server::{MetricsServer, ServerError};
