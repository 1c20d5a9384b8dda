//! The only crate besides rally-kernels that holds unsafe code: memory mapping (and, later, dlopen).
