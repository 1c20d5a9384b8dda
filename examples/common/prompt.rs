//! A request made from a prompt, for the examples that decode text.

use rally::engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally::stages::deployment::Deployment;
use std::sync::Arc;

/// A greedy request of at most `tokens` tokens for a text prompt.
pub fn request(deployment: &Deployment, id: u64, prompt: &str, tokens: usize) -> anyhow::Result<SequenceRequest> {
    let codec = deployment.codec.as_ref().ok_or_else(|| anyhow::anyhow!("the model has no tokenizer"))?;
    Ok(SequenceRequest {
        generated: std::sync::Arc::default(),
        id,
        prompt: Arc::from(codec.encode(prompt, true)?),
        max_new_tokens: tokens,
        stop_token_ids: Arc::from(deployment.shape.eos_token_ids.as_slice()),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    })
}
