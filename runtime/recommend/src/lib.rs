//! Which deployment to buy, and whether to disaggregate at all.
//!
//! It owns an analytic pipeline of attention and FFN instances ([`pipeline`]) with efficiencies from one published table
//! ([`calibration`]), the undivided deployment beside it ([`baseline`]), the search over layouts ([`search`]), and what virtual lanes make
//! of those it found ([`simulate`]). Specs and formulas are `rally-cost`'s, virtual lanes `rally-predict`'s.
//! It opens no device and measures nothing: what it says is what arithmetic and that table allow.

#![forbid(unsafe_code)]

pub mod baseline;
pub mod calibration;
pub mod demand;
pub mod finalists;
pub mod graph;
pub mod pipeline;
pub mod search;
pub mod simulate;
pub mod sweeps;
