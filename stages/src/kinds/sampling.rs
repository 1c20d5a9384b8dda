//! `sampling`: final norm, head, and a token for each sequence whose rows end here.
//!
//! Weights: `model.norm.weight` `[hidden]`, `lm_head.weight` `[vocab, hidden]` (the embedding where the config ties them).

use super::registry::{BuildContext, BuildError};
use rally_engine::schedule::batch::{RowGroup, SampleSpec};
use rally_engine::stage::{Sample, Stage, StageError, TaskContext};
use rally_graph::model::ModelShape;
use rally_kernels::linear::linear;
use rally_kernels::matrix::Matrix;
use rally_kernels::norm::rms_norm_in_place;
use rally_kernels::sampling::{self as kernel, SamplingScratch};
use std::sync::Arc;

struct Sampling {
    norm: Vec<f32>,
    head: Arc<Matrix>,
    eps: f32,
    /// Last rows of the groups that sample, `[groups, hidden]`.
    rows: Vec<f32>,
    logits: Vec<f32>,
    scratch: SamplingScratch,
}

pub(super) fn build(context: &mut BuildContext<'_>) -> Result<Box<dyn Stage>, BuildError> {
    let shape = context.shape;
    let head = context.shared_matrix(head_name(shape), shape.vocab, shape.hidden)?;
    let most = most_samples(context);
    Ok(Box::new(Sampling {
        norm: context.weights.vector("model.norm.weight", shape.hidden)?,
        head,
        eps: shape.rms_norm_eps,
        rows: vec![0.0; most * shape.hidden],
        logits: vec![0.0; most * shape.vocab],
        scratch: SamplingScratch::default(),
    }))
}

impl Stage for Sampling {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let (hidden, vocab) = (self.head.cols(), self.head.rows());
        let mut count = 0;
        for group in task.batch.groups.iter().filter(|group| group.sample.is_some()) {
            let last = group.first_row + group.rows - 1;
            let row = &task.values.x[last * hidden..(last + 1) * hidden];
            self.rows[count * hidden..(count + 1) * hidden].copy_from_slice(row);
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let rows = &mut self.rows[..count * hidden];
        rms_norm_in_place(rows, count, &self.norm, self.eps);
        linear(task.team, rows, count, &self.head, &mut self.logits[..count * vocab]);
        choose_all(task, &self.logits, vocab, &mut self.scratch)
    }
}

/// The head's tensor.
pub(super) fn head_name(shape: &ModelShape) -> &'static str {
    if shape.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }
}

/// Tokens of a step at most: a sequence samples no more than once.
pub(super) fn most_samples(context: &BuildContext<'_>) -> usize {
    context.attention_rows().min(context.planner.sequences_per_device)
}

/// A token for each group that samples, from `logits`, `[groups that sample, vocab]`.
fn choose_all(
    task: &mut TaskContext<'_>,
    logits: &[f32],
    vocab: usize,
    scratch: &mut SamplingScratch,
) -> Result<(), StageError> {
    let sampled = task.batch.groups.iter().filter_map(|group| group.sample.as_ref().map(|spec| (group, spec)));
    for ((group, spec), logits) in sampled.zip(logits.chunks_exact(vocab)) {
        let sample = choose(group, spec, logits, scratch)?;
        task.last_tokens[group.slot] = sample.token;
        task.samples.push(sample);
    }
    Ok(())
}

fn choose(
    group: &RowGroup,
    spec: &SampleSpec,
    logits: &[f32],
    scratch: &mut SamplingScratch,
) -> Result<Sample, StageError> {
    let params = kernel::SamplingParams {
        temperature: spec.params.temperature,
        top_k: spec.params.top_k,
        top_p: spec.params.top_p,
        min_p: spec.params.min_p,
        seed: spec.params.seed,
    };
    let chosen = kernel::sample(logits, &params, spec.token_index, scratch);
    let token = chosen.map_err(|_| StageError::NonFiniteLogits {
        sequence: group.sequence,
        token: logits.iter().position(|logit| !logit.is_finite()).unwrap_or(0),
    })?;
    let logprobs = spec
        .detail
        .logprobs
        .map(|most| (kernel::log_prob(logits, token), kernel::top_log_probs(logits, most as usize)));
    let logits = spec.detail.logits.then(|| logits.to_vec());
    Ok(Sample { sequence: group.sequence, token, logprobs, logits })
}
