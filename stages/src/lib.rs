//! What each stage of rally computes and which weights it reads; checkpoints, configurations and tokenizers.

pub mod checkpoint;
pub mod config;
pub mod deployment;
mod json;
pub mod kinds;
pub mod text;
