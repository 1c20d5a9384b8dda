//! From prompts and request files to jobs: one form, encoded, checked against the model and the graph's limits.

use super::RunArgs;
use super::decode::Job;
use crate::error::{Blame, CliError};
use crate::requests::{self, Prompt, RequestErrors, RequestFault, RequestSpec, check_against, parse_requests};
use clap::Args;
use rally_engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_engine::schedule::planner::StepPlanner;
use rally_stages::deployment::Deployment;
use std::path::Path;
use std::sync::Arc;

/// What `--prompt` requests ask for; requests in a file say it themselves.
#[derive(Clone, Debug, Args)]
pub struct RequestDefaults {
    /// Most tokens to generate for each prompt.
    #[arg(long, value_name = "N", default_value_t = requests::DEFAULT_MAX_TOKENS, conflicts_with_all = ["requests", "resume"])]
    max_tokens: usize,
    /// 0 always takes the likeliest token; 1 samples from the model's own distribution.
    #[arg(long, value_name = "T", default_value_t = 0.0, conflicts_with_all = ["requests", "resume"])]
    temperature: f32,
    /// Sample among the likeliest tokens that have this share together.
    #[arg(long, value_name = "P", default_value_t = 1.0, conflicts_with_all = ["requests", "resume"])]
    top_p: f32,
    /// Sample among the K likeliest tokens; 0: all.
    #[arg(long, value_name = "K", default_value_t = 0, conflicts_with_all = ["requests", "resume"])]
    top_k: usize,
    /// Sample among tokens at least this likely, relative to the likeliest.
    #[arg(long, value_name = "P", default_value_t = 0.0, conflicts_with_all = ["requests", "resume"])]
    min_p: f32,
    /// Seed of the random numbers; the prompt's index if not given.
    #[arg(long, value_name = "S", conflicts_with_all = ["requests", "resume"])]
    seed: Option<u64>,
    /// Text that ends an answer; may be given several times.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["requests", "resume"])]
    stop: Vec<String>,
    /// Go on after an end-of-sequence token.
    #[arg(long, conflicts_with_all = ["requests", "resume"])]
    ignore_eos: bool,
}

/// Makes the jobs of a run.
pub fn make(args: &RunArgs, deployment: &Deployment) -> Result<Vec<Job>, CliError> {
    let specs = match &args.requests {
        Some(path) => read_file(path, deployment)?,
        None => from_prompts(&args.prompts, &args.defaults)?,
    };
    if specs.is_empty() {
        return Err(CliError::Mistake("there are no requests".into()));
    }
    if args.logits.is_some()
        && let Some(spec) = specs.iter().find(|spec| spec.id.as_str() == "__metadata__")
    {
        return Err(CliError::Mistake(format!(
            "--logits: no tensor can be named `{}`; give the request another id",
            spec.id
        )));
    }
    let planner = StepPlanner::new(deployment.planner_config());
    specs.into_iter().enumerate().map(|(index, spec)| job(index, spec, args, deployment, &planner)).collect()
}

fn read_file(path: &Path, deployment: &Deployment) -> Result<Vec<RequestSpec>, CliError> {
    let bytes =
        std::fs::read(path).map_err(|error| format!("{}: cannot be read: {error}", path.display())).or_mistake()?;
    let specs = parse_requests(&bytes, path).or_mistake()?;
    check_against(&specs, &deployment.shape, path).or_mistake()?;
    Ok(specs)
}

/// Flags go through the same parser as files, so that both have the same ranges.
fn from_prompts(prompts: &[String], defaults: &RequestDefaults) -> Result<Vec<RequestSpec>, CliError> {
    let mut lines = String::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let line = serde_json::json!({
            "prompt": prompt, "max_tokens": defaults.max_tokens, "temperature": defaults.temperature,
            "top_p": defaults.top_p, "top_k": defaults.top_k, "min_p": defaults.min_p,
            "seed": defaults.seed.unwrap_or(index as u64), "stop": defaults.stop, "ignore_eos": defaults.ignore_eos,
        });
        lines.push_str(&format!("{line}\n"));
    }
    parse_requests(lines.as_bytes(), Path::new("arguments")).map_err(|errors| flag_mistakes(&errors))
}

/// The faults of requests that were made from flags, each once, under the flag's name.
fn flag_mistakes(errors: &RequestErrors) -> CliError {
    let mut told: Vec<String> = Vec::new();
    for error in errors.errors() {
        let words = match &error.fault {
            RequestFault::Invalid { key, found, expected } => {
                format!("--{} is {found}; expected {expected}", key.replace('_', "-"))
            }
            fault => format!("--prompt, number {}: {fault}", error.line),
        };
        if !told.contains(&words) {
            told.push(words);
        }
    }
    CliError::Mistake(told.join("\n"))
}

fn job(
    index: usize,
    spec: RequestSpec,
    args: &RunArgs,
    deployment: &Deployment,
    planner: &StepPlanner,
) -> Result<Job, CliError> {
    let name = |error: String| CliError::Mistake(format!("request `{}`: {error}", spec.id));
    let (opening, prompt) = match &spec.prompt {
        Prompt::TokenIds(ids) => (String::new(), ids.clone()),
        Prompt::Text(text) => {
            let codec = deployment.codec.as_ref().ok_or_else(|| {
                name("the model has no tokenizer.json: give `prompt_token_ids` in a --requests file".into())
            })?;
            (text.clone(), codec.encode(text, true).map_err(|error| name(error.to_string()))?)
        }
    };
    if !spec.stop.is_empty() && deployment.codec.is_none() {
        return Err(name("`stop` needs text, and the model has no tokenizer.json".into()));
    }
    let stop_token_ids: &[u32] = if spec.ignore_eos { &[] } else { &deployment.shape.eos_token_ids };
    let sequence = SequenceRequest {
        generated: std::sync::Arc::default(),
        id: index as u64,
        prompt: Arc::from(prompt),
        max_new_tokens: spec.max_tokens,
        stop_token_ids: Arc::from(stop_token_ids),
        sampling: sampling(&spec, index),
        detail: TokenDetail { logprobs: spec.logprobs.map(|count| count as u32), logits: args.logits.is_some() },
    };
    planner.accepts(&sequence).map_err(|error| name(error.to_string()))?;
    Ok(Job { id: spec.id, opening, sequence, stops: spec.stop })
}

fn sampling(spec: &RequestSpec, index: usize) -> SamplingParams {
    SamplingParams {
        temperature: spec.temperature,
        top_k: u32::try_from(spec.top_k).unwrap_or(u32::MAX),
        top_p: spec.top_p,
        min_p: spec.min_p,
        seed: spec.seed.unwrap_or(index as u64),
    }
}
