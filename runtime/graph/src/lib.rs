//! Deployment files of rally: parsing, diagnostics, the stage graph and the plan. Pure: opens no device.

pub mod model;
pub mod plan;
pub mod spec;
pub mod stage_graph;
