//! The built-in stages, one kind a file, and the registry that makes them.

mod combine;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod embed;
mod ffn;
mod layers;
mod mfa_attention;
mod o_proj;
mod registry;
mod router;
mod sampling;
mod spread;

pub use registry::{BuildContext, BuildError, StageRegistry};
