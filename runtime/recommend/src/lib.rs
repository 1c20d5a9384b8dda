//! Which deployment to buy, and whether to disaggregate at all.
//!
//! It owns an analytic pipeline of attention and FFN instances ([`pipeline`]) with efficiencies from one published table
//! ([`calibration`]), the undivided deployment beside it ([`baseline`]), and the search over layouts ([`search`]). Specs and formulas are `rally-cost`'s.
//! It opens no device and measures nothing: what it says is what arithmetic and that table allow.

pub mod baseline;
pub mod calibration;
pub mod graph;
pub mod pipeline;
pub mod search;
