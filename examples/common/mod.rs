//! What the examples share: where the tiny model is, and a request made from a prompt.

use rally::engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally::stages::deployment::Deployment;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A path inside the repository, wherever the example is started from.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A greedy request of at most `tokens` tokens for a text prompt.
#[allow(dead_code)] // Not every example decodes text.
pub fn request(deployment: &Deployment, id: u64, prompt: &str, tokens: usize) -> anyhow::Result<SequenceRequest> {
    let codec = deployment.codec.as_ref().ok_or_else(|| anyhow::anyhow!("the model has no tokenizer"))?;
    Ok(SequenceRequest {
        id,
        prompt: Arc::from(codec.encode(prompt, true)?),
        max_new_tokens: tokens,
        stop_token_ids: Arc::from(deployment.shape.eos_token_ids.as_slice()),
        sampling: SamplingParams::default(),
        detail: TokenDetail::default(),
    })
}
