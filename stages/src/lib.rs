//! What each stage of rally computes and which weights it reads; checkpoints, configurations and tokenizers.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod deployment;
mod json;
pub mod kinds;
pub mod text;
