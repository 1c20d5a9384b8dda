//! CUDA for rally: what is installed, kernels from source to a loaded module, and a thin safe layer over the driver.
//!
//! Owns every call into libcuda and libnvrtc. Knows no model, stage, graph or schedule. Both libraries are loaded at run
//! time: the crate builds, and its callers start, on a machine without either, and [`probe::probe`] says what is missing.
//!
//! Kernels live in `cu/`, one operation a file with its contract at the top; they are embedded as text and compiled by
//! NVRTC for the card that is there ([`compile`]). [`ops`] are those of every stage, of any shape, on a [`machine`]: a card, or
//! the processor standing in for one. [`tensor`] are products on
//! Hopper's tensor cores, for shapes that they take. [`mfa`] is decode attention at the speed of Hopper's memory; [`split`] plans its work.

pub mod cache;
pub mod chunks;
pub mod compile;
pub mod counting;
pub mod device;
pub mod error;
pub mod graph;
pub mod machine;
pub mod memory;
pub mod mfa;
pub mod mfa_append;
pub mod mfa_prefill;
pub mod module;
pub mod nccl;
pub mod ops;
pub mod plain;
pub mod probe;
pub mod shares;
pub mod source;
pub mod split;
mod stand_in;
pub mod stream;
pub mod tensor;
mod tensor_map;
mod timeline;

pub use device::Device;
pub use error::CudaError;
