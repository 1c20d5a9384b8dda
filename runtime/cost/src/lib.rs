//! What decoding costs in theory, before anything is measured or bought: FLOPs and bytes a token, USD per million tokens, the
//! sparsity and batch that an FFN needs, and what an accelerator can be used for (Step-3 report, arXiv 2507.19427, sections 4–6).
//!
//! It owns the specs of models and accelerators, which are data files ([`library`]) and files of the user's own, and the formulas
//! over them. It opens no device, and knows nothing of graphs, schedules or measured stage times.

#![forbid(unsafe_code)]

pub mod decode;
mod dtype;
pub mod error;
mod fields;
pub mod hardware;
pub mod library;
pub mod model;
pub mod price;
pub mod sizing;

pub use dtype::Dtype;
pub use error::SpecError;
pub use hardware::Hardware;
pub use model::Model;
