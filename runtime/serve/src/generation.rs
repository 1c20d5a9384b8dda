//! One choice's way from tokens to text: what becomes certain with each token, stop strings, the end.

use crate::api::error::ApiError;
use crate::front::{Ticket, Update, stopping};
use rally_engine::TokenReport;
use rally_engine::schedule::planner::FinishReason;
use rally_stages::text::{StopScanner, StreamDecoder, TextCodec, TextError};
use std::task::{Context, Poll};

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop string, or an end-of-sequence token.
    Stop,
    /// `max_tokens`, or the model's longest sequence.
    Length,
}

impl Finish {
    /// As answers say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A token with its log probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfo {
    /// The token.
    pub id: u32,
    /// Its log probability.
    pub logprob: f32,
    /// The likeliest ones, best first.
    pub top: Vec<(u32, f32)>,
}

/// What came with a token, or with several put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Text that became certain.
    pub text: String,
    /// Its tokens, if log probabilities were asked for.
    pub tokens: Option<Vec<TokenInfo>>,
    /// Set once, on the last.
    pub finish: Option<Finish>,
}

impl Delta {
    /// Appends what came later.
    pub fn append(&mut self, later: Self) {
        self.text.push_str(&later.text);
        match (&mut self.tokens, later.tokens) {
            (Some(tokens), Some(more)) => tokens.extend(more),
            (tokens @ None, more) => *tokens = more,
            (Some(_), None) => {}
        }
        self.finish = self.finish.or(later.finish);
    }
}

/// A choice that is being generated. Dropped before its end, it cancels its sequence.
pub struct Generation {
    ticket: Ticket,
    decoder: Option<StreamDecoder>,
    scanner: StopScanner,
    logprobs: bool,
    /// Waits for what comes with it: the end is told together with the last token.
    pending: Option<Delta>,
    /// No token follows: what waits goes with the end.
    is_last: bool,
    over: bool,
    tokens: usize,
    cached: usize,
}

impl Generation {
    /// Nothing generated yet. Without `codec` its text is token ids.
    pub fn new(ticket: Ticket, codec: Option<&TextCodec>, stops: &[String], logprobs: bool) -> Self {
        Self {
            ticket,
            decoder: codec.map(TextCodec::stream),
            scanner: StopScanner::new(stops),
            logprobs,
            pending: None,
            is_last: false,
            over: false,
            tokens: 0,
            cached: 0,
        }
    }

    /// Tokens so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens of its prompt that were cached, known once it has a place.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Waits until it has a place among those that are decoded.
    ///
    /// # Errors
    /// It gets none.
    pub async fn admitted(&mut self) -> Result<(), ApiError> {
        self.cached = self.ticket.admitted().await?;
        Ok(())
    }

    /// The next piece: one for each token, the last with the reason of the end; `None` behind it.
    pub fn poll_delta(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delta, ApiError>>> {
        while !self.over {
            let update = match self.ticket.poll_update(context) {
                Poll::Ready(update) => update,
                Poll::Pending if self.pending.is_some() && !self.is_last => break,
                Poll::Pending => return Poll::Pending,
            };
            match self.take(update) {
                Ok(None) => {}
                Ok(Some(before)) => return Poll::Ready(Some(Ok(before))),
                Err(error) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(self.pending.take().map(Ok))
    }

    /// The rest of it, put together.
    ///
    /// # Errors
    /// It came to no end.
    pub async fn whole(&mut self) -> Result<Delta, ApiError> {
        let mut all = Delta { tokens: self.logprobs.then(Vec::new), ..Delta::default() };
        while let Some(delta) = std::future::poll_fn(|context| self.poll_delta(context)).await {
            all.append(delta?);
        }
        Ok(all)
    }

    /// Returns what waited, if it is complete now.
    fn take(&mut self, update: Update) -> Result<Option<Delta>, ApiError> {
        match update {
            Update::Admitted(cached) => {
                self.cached = cached;
                Ok(None)
            }
            Update::Token(report) => {
                let delta = self.token(report).map_err(failed)?;
                Ok(self.pending.replace(delta))
            }
            Update::Finished(reason) => {
                self.over = true;
                let finish = match reason {
                    FinishReason::Stop => Finish::Stop,
                    FinishReason::Length => Finish::Length,
                    FinishReason::Cancelled => return Err(stopping()),
                };
                let last = self.pending.get_or_insert_default();
                if let Some(decoder) = &mut self.decoder {
                    let scanned = self.scanner.push(&decoder.finish().map_err(failed)?);
                    last.text.push_str(&scanned.text);
                    last.text.push_str(&self.scanner.finish());
                }
                last.finish = Some(finish);
                Ok(None)
            }
            Update::Refused(error) => Err(error),
        }
    }

    fn token(&mut self, report: TokenReport) -> Result<Delta, TextError> {
        let sample = report.sample;
        self.tokens += 1;
        self.is_last = report.last;
        let tokens = sample.logprobs.map(|(logprob, top)| vec![TokenInfo { id: sample.token, logprob, top }]);
        let tokens = tokens.filter(|_| self.logprobs);
        let Some(decoder) = &mut self.decoder else {
            let gap = if self.tokens > 1 { " " } else { "" };
            return Ok(Delta { text: format!("{gap}{}", sample.token), tokens, finish: None });
        };
        let scanned = self.scanner.push(&decoder.push(sample.token)?);
        let stopped = scanned.stop.is_some();
        if stopped {
            self.over = true;
            self.ticket.stopped();
        }
        Ok(Delta { text: scanned.text, tokens, finish: stopped.then_some(Finish::Stop) })
    }
}

/// A tokenizer that cannot decode what its model makes.
fn failed(error: TextError) -> ApiError {
    ApiError::NotReady(error.to_string())
}
