//! Deployment files of rally: parsing, diagnostics, the stage graph and the plan. Pure: opens no device.

pub mod model;
pub mod spec;
