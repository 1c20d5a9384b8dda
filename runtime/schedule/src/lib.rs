//! Micro-batch policies, the step planner, KV page accounting and virtual lanes of rally. Pure: no device, thread, socket or
//! clock.

#![forbid(unsafe_code)]

pub mod batch;
pub mod cost;
pub mod cost_table;
pub mod costs;
pub mod greedy;
pub mod pages;
pub mod planner;
pub mod policy;
pub mod prefix;
pub mod span;
pub mod straggler;
pub mod virtual_lanes;
