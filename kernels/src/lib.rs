//! Batch-invariant operations on the CPU, weight matrices as stored, KV pools and wire formats of rally.
