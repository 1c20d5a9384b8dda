//! One request's way from tokens to a result: text, stop strings, times, logits.

use crate::requests::RequestId;
use rally_engine::TokenReport;
use rally_engine::schedule::planner::FinishReason;
use rally_engine::stage::Sample;
use rally_stages::text::{StopScanner, StreamDecoder, TextCodec, TextError};
use serde::Serialize;
use std::time::Instant;

/// A result as `--out` writes it.
#[derive(Clone, Debug, Serialize)]
pub struct RequestResult {
    /// As in the request.
    pub id: RequestId,
    /// Generated text up to a stop string; null without a tokenizer.
    pub text: Option<String>,
    /// Generated tokens.
    pub token_ids: Vec<u32>,
    /// `stop`, `length`, `cancelled`.
    pub finish_reason: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// From submission to the first token; null if there was none, or if it came before the run was resumed.
    pub ttft_ms: Option<f64>,
    /// Mean time between tokens, of a resumed run those since then; null with fewer than two.
    pub tpot_ms: Option<f64>,
    /// Per token, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprobs>>,
}

/// Log probabilities of one position.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogprobs {
    /// The chosen token.
    pub token_id: u32,
    /// Its log probability.
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<TopLogprob>,
}

/// One alternative.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TopLogprob {
    /// The token.
    pub token_id: u32,
    /// Its log probability.
    pub logprob: f32,
}

/// Text that became final with a token, and whether the sequence must be cancelled now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// To be shown.
    pub text: String,
    /// A stop string is complete: nothing after this token counts.
    pub stopped: bool,
}

/// Collects one request.
pub struct Collector {
    id: RequestId,
    prompt_tokens: usize,
    decoder: Option<StreamDecoder>,
    scanner: StopScanner,
    text: String,
    token_ids: Vec<u32>,
    logprobs: Option<Vec<TokenLogprobs>>,
    /// Rows of logits, one a token, `[generated, vocab]`.
    pub logits: Vec<f32>,
    submitted: Option<Instant>,
    /// Tokens that another process has generated.
    restored: usize,
    first: Option<Instant>,
    last: Option<Instant>,
    finish: Option<&'static str>,
}

impl Collector {
    /// Nothing generated yet.
    pub fn new(
        id: RequestId,
        prompt_tokens: usize,
        codec: Option<&TextCodec>,
        stops: &[String],
        logprobs: bool,
    ) -> Self {
        Self {
            id,
            prompt_tokens,
            decoder: codec.map(TextCodec::stream),
            scanner: StopScanner::new(stops),
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: logprobs.then(Vec::new),
            logits: Vec::new(),
            submitted: None,
            restored: 0,
            first: None,
            last: None,
            finish: None,
        }
    }

    /// It is submitted at this time.
    pub fn submitted(&mut self, at: Instant) {
        self.submitted = Some(at);
    }

    /// Whether nothing more is expected.
    pub fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// The tokens so far.
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// Tokens that were generated here, and not by a process before this one.
    pub fn fresh_tokens(&self) -> usize {
        self.token_ids.len() - self.restored
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Takes a token. After a stop string tokens are surplus and leave no trace.
    pub fn token(&mut self, report: TokenReport) -> Result<Progress, TextError> {
        if !self.is_finished() {
            self.first.get_or_insert(report.at);
            self.last = Some(report.at);
        }
        self.take(report.sample)
    }

    /// Takes a token that a process before this one has generated.
    pub fn restore(&mut self, sample: Sample) -> Result<Progress, TextError> {
        self.restored += usize::from(!self.is_finished());
        self.take(sample)
    }

    fn take(&mut self, sample: Sample) -> Result<Progress, TextError> {
        if self.is_finished() {
            return Ok(Progress::default());
        }
        self.token_ids.push(sample.token);
        if let Some(row) = sample.logits {
            self.logits.extend_from_slice(&row);
        }
        if let (Some(list), Some((logprob, top))) = (&mut self.logprobs, sample.logprobs) {
            let top = top.into_iter().map(|(token_id, logprob)| TopLogprob { token_id, logprob }).collect();
            list.push(TokenLogprobs { token_id: sample.token, logprob, top });
        }
        let Some(decoder) = &mut self.decoder else { return Ok(Progress::default()) };
        let scanned = self.scanner.push(&decoder.push(sample.token)?);
        self.text.push_str(&scanned.text);
        let stopped = scanned.stop.is_some();
        if stopped {
            self.finish = Some("stop");
        }
        Ok(Progress { text: scanned.text, stopped })
    }

    /// The sequence ended. Returns text that was held back.
    pub fn finish(&mut self, reason: FinishReason) -> Result<String, TextError> {
        if self.is_finished() {
            return Ok(String::new());
        }
        let mut rest = String::new();
        if let Some(decoder) = &mut self.decoder {
            let scanned = self.scanner.push(&decoder.finish()?);
            rest = scanned.text;
            if scanned.stop.is_none() {
                rest.push_str(&self.scanner.finish());
            }
        }
        self.text.push_str(&rest);
        self.finish = Some(match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        });
        Ok(rest)
    }

    /// Mean time between the tokens that were generated here so far; none with fewer than two.
    pub fn tpot_ms(&self) -> Option<f64> {
        let (first, last) = self.first.zip(self.last).filter(|_| self.fresh_tokens() > 1)?;
        Some(ms(first, last) / (self.fresh_tokens() - 1) as f64)
    }

    /// From submission to the first token, if that was all here.
    fn ttft_ms(&self) -> Option<f64> {
        let (submitted, first) = self.submitted.zip(self.first).filter(|_| self.restored == 0)?;
        Some(ms(submitted, first))
    }

    /// What there is.
    pub fn result(&self) -> RequestResult {
        RequestResult {
            id: self.id.clone(),
            text: self.decoder.as_ref().map(|_| self.text.clone()),
            token_ids: self.token_ids.clone(),
            finish_reason: self.finish.unwrap_or("cancelled"),
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.tokens(),
            ttft_ms: self.ttft_ms(),
            tpot_ms: self.tpot_ms(),
            logprobs: self.logprobs.clone(),
        }
    }
}

fn ms(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1e3
}
