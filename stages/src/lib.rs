//! What each stage of rally computes and which weights it reads; checkpoints, configurations and tokenizers.

pub mod checkpoint;
pub mod config;
mod json;
pub mod text;
