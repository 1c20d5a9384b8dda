//! Faults on purpose: a plan of what goes wrong, as JSON, and a transport that does it to a real one.
//!
//! Whether an event meets a fault is a function of the plan, its seed and the event (edge, devices, micro-batch, step, layer, membership
//! epoch), never of a clock: the same plan hits the same events again. What is late, lost or changed is so on the sender's side; who
//! receives cannot tell it from a network that did it.

mod copies;
mod faulty;
mod later;
mod plan;

pub use faulty::{Faults, ProcessFault};
pub use plan::{CONTROL, Fault, FaultKind, FaultPlan, PlanError, Sent, StepRange, share_of};
