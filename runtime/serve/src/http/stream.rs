//! An answer as server-sent events: one for each token, the usage if asked for, `[DONE]`.

use crate::api::answer::{Envelope, Piece, Usage};
use crate::generation::{Delta, Generation};
use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Events that are put together into one write; a client that was slow gets the rest with the next.
const BYTES_AT_ONCE: usize = 64 << 10;

/// What is told beside the choices.
#[derive(Clone, Copy)]
pub(super) struct Told {
    /// The usage, at the end.
    pub(super) usage: bool,
    pub(super) prompt_tokens: usize,
    /// Of each prompt.
    pub(super) choices: usize,
}

/// What was read and made: a prompt is read, or was cached, for its first choice.
pub(super) fn usage<'a>(
    prompt_tokens: usize,
    choices: usize,
    generations: impl Iterator<Item = &'a Generation> + Clone,
) -> Usage {
    let cached = generations.clone().step_by(choices).map(Generation::cached).sum();
    Usage::new(prompt_tokens, cached, generations.map(Generation::tokens).sum())
}

/// A response body. Dropped with the connection, it cancels what is under way.
pub(super) struct EventStream {
    envelope: Envelope,
    choices: Vec<Streamed>,
    told: Told,
    done: bool,
}

struct Streamed {
    generation: Generation,
    characters: usize,
    begun: bool,
    over: bool,
}

impl EventStream {
    pub(super) fn new(envelope: Envelope, generations: Vec<Generation>, told: Told) -> Self {
        let streamed = |generation| Streamed { generation, characters: 0, begun: false, over: false };
        Self { envelope, choices: generations.into_iter().map(streamed).collect(), told, done: false }
    }

    pub(super) fn into_response(self) -> Response {
        let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")];
        (headers, Body::new(self)).into_response()
    }

    /// Appends what is there of all choices to `out`.
    fn gather(&mut self, context: &mut Context<'_>, out: &mut String) {
        for (index, choice) in self.choices.iter_mut().enumerate() {
            while !choice.over && out.len() < BYTES_AT_ONCE {
                match choice.generation.poll_delta(context) {
                    Poll::Pending => break,
                    Poll::Ready(None) => choice.over = true,
                    Poll::Ready(Some(Ok(delta))) => {
                        let is_first = !std::mem::replace(&mut choice.begun, true);
                        let piece = Piece { index, delta: &delta, text_offset: choice.characters, is_first };
                        event(out, &self.envelope.chunk(piece, self.told.usage));
                        choice.characters += characters(&delta);
                    }
                    Poll::Ready(Some(Err(error))) => {
                        event(out, &error.to_json().to_string());
                        choice.over = true;
                    }
                }
            }
        }
    }
}

/// Characters that later offsets count; only where offsets are told.
fn characters(delta: &Delta) -> usize {
    delta.tokens.as_ref().map_or(0, |_| delta.text.chars().count())
}

fn event(out: &mut String, json: &str) {
    out.push_str("data: ");
    out.push_str(json);
    out.push_str("\n\n");
}

impl hyper::body::Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        let mut out = String::new();
        this.gather(context, &mut out);
        if this.choices.iter().all(|choice| choice.over) {
            this.done = true;
            if this.told.usage {
                let generations = this.choices.iter().map(|choice| &choice.generation);
                let usage = usage(this.told.prompt_tokens, this.told.choices, generations);
                event(&mut out, &this.envelope.usage_chunk(usage));
            }
            event(&mut out, "[DONE]");
        }
        if out.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(Frame::data(out.into())))) }
    }
}
