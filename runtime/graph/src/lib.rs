//! Deployment files of rally: parsing, diagnostics, the stage graph and the plan. Pure: opens no file and no device.
//!
//! ```text
//! bytes ──parse──▶ DeploymentSpec ──validate──▶ StageGraph ──▶ Plan
//! ```

#![forbid(unsafe_code)]

pub mod diagnostic;
pub mod hardware;
pub mod kinds;
pub mod memory;
pub mod model;
pub mod order;
pub mod parse;
pub mod placement;
pub mod plan;
pub mod render;
pub mod repair;
mod resolve;
pub mod routes;
pub mod schema;
pub mod shard;
pub mod source;
pub mod spec;
pub mod stage_graph;
pub mod undivided;
pub mod validate;
mod walk;
pub mod words;
