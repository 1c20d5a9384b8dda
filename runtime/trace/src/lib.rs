//! What spans say: where a decode step's time went, why lanes stood idle, what bounds the step, who is slow, and files that show
//! it. Pure: it reads reports of real or virtual lanes, and writes nothing but to the `Write` it is handed.
//!
//! Start at [`Recording`] (a plan with what its lanes left behind) and [`Analysis::of`].

#![forbid(unsafe_code)]

pub mod analysis;
mod baseline;
pub mod bubbles;
pub mod chrome;
pub mod digest;
pub mod html;
mod overlap;
pub mod path;
pub mod recording;
pub mod replan;
pub mod stages;
pub mod stragglers;
pub mod window;
pub mod work;

pub use analysis::Analysis;
pub use recording::Recording;
pub use window::Window;
pub use work::{Cause, Side, Work};
