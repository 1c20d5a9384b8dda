//! Micro-batch policies, the step planner and KV page accounting of rally. Pure: no device, thread, socket or clock.

pub mod batch;
pub mod cost;
pub mod pages;
pub mod planner;
pub mod policy;
