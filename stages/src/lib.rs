//! What each stage of rally computes and which weights it reads; checkpoints, configurations and tokenizers.

pub mod deployment;
pub mod kinds;
