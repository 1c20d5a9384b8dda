//! What a deployment will do under a load, before it does it: the same plan and the same step planner as in a run, on virtual lanes,
//! with durations that were measured or follow from a machine's figures.
//!
//! Pure: it opens no file, device or clock, and the same inputs and seed give the same prediction.

#![forbid(unsafe_code)]

pub mod durations;
pub mod experts;
pub mod fold;
pub mod measured;
mod prediction;
pub mod roofline;
pub mod table;

pub use prediction::{PredictError, Prediction, Setting};
