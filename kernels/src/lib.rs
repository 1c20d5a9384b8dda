//! Batch-invariant operations on the CPU, weight matrices as stored, KV pools and wire formats of rally.
//!
//! Owns arithmetic and the memory it runs on. Knows no model, stage, graph or schedule: a caller brings slices and
//! shapes. All slices are `f32` and row-major unless an item says otherwise.
//!
//! **Batch invariance.** A row's result depends on that row alone: not on the rows beside it, on how many there are,
//! on the number of threads, on a KV pool's page size or on how a prompt was cut into chunks. Every sum has one fixed
//! order, written where it is computed. AVX-512 and AVX2 give identical bits; the portable path rounds the product of
//! a multiply-add separately and so differs from them, but is as deterministic.
//!
//! **Shapes.** Callers guarantee them; a function that receives others panics and says which invariant was broken.

pub mod activation;
pub mod attention;
pub mod ceiling;
pub mod dtype;
pub mod isa;
pub mod kv;
pub mod linear;
pub mod matrix;
mod memory;
pub use memory::large_buffer_bytes;
pub mod norm;
pub mod prefetch;
pub mod rope;
pub mod router;
pub mod sampling;
mod simd;
pub mod team;
pub mod wire;
