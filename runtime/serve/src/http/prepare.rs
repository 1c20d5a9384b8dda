//! From a parsed request to sequences: prompts encoded, held against the model, seeds drawn.

use super::Model;
use crate::api::error::ApiError;
use crate::api::request::{Common, Prompt};
use rally_engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

/// What one request asks of the run.
pub(super) struct Prepared {
    /// Prompt by prompt, `n` each; ids are not set.
    pub(super) sequences: Vec<SequenceRequest>,
    /// Tokens of all prompts, each once.
    pub(super) prompt_tokens: usize,
}

/// `add_special`: texts get the tokens that the tokenizer puts around every text.
///
/// # Errors
/// A prompt cannot be encoded or is too long, or a token is not in the vocabulary.
pub(super) fn prepare(
    model: &Model,
    common: &Common,
    prompts: &[Prompt],
    add_special: bool,
) -> Result<Prepared, ApiError> {
    if !common.stop.is_empty() && model.codec.is_none() {
        return Err(ApiError::Text("`stop` needs text, and the model has no tokenizer.json".into()));
    }
    let mut prepared = Prepared { sequences: Vec::with_capacity(prompts.len() * common.n), prompt_tokens: 0 };
    let first_seed = common.seed.unwrap_or_else(random);
    for prompt in prompts {
        let ids = ids(model, common, prompt, add_special)?;
        prepared.prompt_tokens += ids.len();
        let prompt: Arc<[u32]> = ids.into();
        for _ in 0..common.n {
            let seed = first_seed.wrapping_add(prepared.sequences.len() as u64);
            prepared.sequences.push(sequence(model, common, Arc::clone(&prompt), seed)?);
        }
    }
    Ok(prepared)
}

fn ids(model: &Model, common: &Common, prompt: &Prompt, add_special: bool) -> Result<Vec<u32>, ApiError> {
    let too_long =
        |prompt| ApiError::TooLong { prompt, max_tokens: common.max_tokens.unwrap_or(1), context: model.max_positions };
    match prompt {
        Prompt::TokenIds(ids) if ids.len() >= model.max_positions => Err(too_long(Some(ids.len()))),
        Prompt::TokenIds(ids) => match ids.iter().position(|id| *id as usize >= model.vocab) {
            None => Ok(ids.clone()),
            Some(position) => Err(ApiError::Invalid {
                param: format!("prompt[{position}]"),
                found: ids[position].to_string(),
                expected: format!("a token id below {}, the model's vocabulary", model.vocab),
            }),
        },
        Prompt::Text(text) => {
            let codec = model.codec.as_ref().ok_or_else(|| {
                ApiError::Text("the model has no tokenizer.json: give `prompt` as a list of token ids".into())
            })?;
            // Encoding takes time by the length of the text; four times what any prompt could have needs no counting.
            if text.len() > model.max_positions.saturating_mul(codec.longest_token_bytes()).saturating_mul(4) {
                return Err(too_long(None));
            }
            let ids = codec.encode(text, add_special).map_err(|error| ApiError::Text(error.to_string()))?;
            match ids.len() {
                0 => Err(ApiError::Text("the prompt has no tokens".into())),
                tokens if tokens >= model.max_positions => Err(too_long(Some(tokens))),
                _ => Ok(ids),
            }
        }
    }
}

fn sequence(model: &Model, common: &Common, prompt: Arc<[u32]>, seed: u64) -> Result<SequenceRequest, ApiError> {
    let room = model.max_positions - prompt.len();
    let max_new_tokens = common.max_tokens.unwrap_or(room);
    if max_new_tokens > room {
        let (prompt, context) = (Some(prompt.len()), model.max_positions);
        return Err(ApiError::TooLong { prompt, max_tokens: max_new_tokens, context });
    }
    Ok(SequenceRequest {
        generated: Arc::default(),
        id: 0,
        prompt,
        max_new_tokens,
        stop_token_ids: if common.ignore_eos { Arc::from([]) } else { Arc::clone(&model.eos_token_ids) },
        sampling: SamplingParams {
            temperature: common.temperature,
            top_k: common.top_k,
            top_p: common.top_p,
            min_p: common.min_p,
            seed,
        },
        detail: TokenDetail { logprobs: common.logprobs, logits: false },
    })
}

/// Another number every time; nothing secret hangs on it.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
