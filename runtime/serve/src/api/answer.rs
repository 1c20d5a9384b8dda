//! Answers in OpenAI's forms: whole ones, and the events of a stream.

use crate::generation::{Delta, TokenInfo};
use rally_stages::text::TextCodec;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Which endpoint's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

impl Form {
    fn object(self, is_chunk: bool) -> &'static str {
        match (self, is_chunk) {
            (Self::Completion, _) => "text_completion",
            (Self::Chat, false) => "chat.completion",
            (Self::Chat, true) => "chat.completion.chunk",
        }
    }

    /// What ids of its answers begin with.
    pub fn id_prefix(self) -> &'static str {
        match self {
            Self::Completion => "cmpl-",
            Self::Chat => "chatcmpl-",
        }
    }
}

/// Tokens that were read and made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// Of all answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// More on prompts.
    pub prompt_tokens_details: PromptDetails,
}

/// More on the tokens that were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptDetails {
    /// Of them, those that were not read again: their KV pages were cached.
    pub cached_tokens: usize,
}

impl Usage {
    /// Of `prompt` tokens read, `cached` of them only the first time, and `completion` tokens made.
    pub fn new(prompt: usize, cached: usize, completion: usize) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptDetails { cached_tokens: cached },
        }
    }
}

/// What all parts of one answer carry.
pub struct Envelope {
    /// Which form.
    pub form: Form,
    /// Of this answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// For the text of tokens in log probabilities.
    pub codec: Option<TextCodec>,
}

/// A piece of a choice.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which choice.
    pub index: usize,
    /// What came.
    pub delta: &'a Delta,
    /// Characters of the choice before it.
    pub text_offset: usize,
    /// Whether nothing came before it.
    pub is_first: bool,
}

#[derive(Serialize)]
struct Outer<'a, T> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: &'a [T],
    /// Absent unless usage was asked for; then null but for the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(flatten)]
    body: Body<'a>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
}

/// What a choice says, under the key of its form.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Body<'a> {
    Text(&'a str),
    Delta {
        #[serde(skip_serializing_if = "Option::is_none")]
        role: Option<&'static str>,
        content: &'a str,
    },
    Message {
        role: &'static str,
        content: &'a str,
        refusal: Option<&'static str>,
    },
}

impl Envelope {
    /// An event with a piece of a choice. `with_usage`: whether usage is told at the end, so that this one says null.
    pub fn chunk(&self, piece: Piece<'_>, with_usage: bool) -> String {
        let text = piece.delta.text.as_str();
        let body = match self.form {
            Form::Completion => Body::Text(text),
            Form::Chat => Body::Delta { role: piece.is_first.then_some("assistant"), content: text },
        };
        self.write(&[self.choice(piece, body)], with_usage.then_some(None), true)
    }

    /// The event that tells the usage, without choices.
    pub fn usage_chunk(&self, usage: Usage) -> String {
        self.write::<()>(&[], Some(Some(usage)), true)
    }

    /// A whole answer.
    pub fn whole(&self, choices: &[Delta], usage: Usage) -> String {
        let choice = |(index, delta)| {
            let piece = Piece { index, delta, text_offset: 0, is_first: true };
            let text = delta.text.as_str();
            let body = match self.form {
                Form::Completion => Body::Text(text),
                Form::Chat => Body::Message { role: "assistant", content: text, refusal: None },
            };
            self.choice(piece, body)
        };
        let choices: Vec<_> = choices.iter().enumerate().map(choice).collect();
        self.write(&choices, Some(Some(usage)), false)
    }

    fn write<T: Serialize>(&self, choices: &[T], usage: Option<Option<Usage>>, is_chunk: bool) -> String {
        let (id, object, model) = (&*self.id, self.form.object(is_chunk), &*self.model);
        let outer = Outer { id, object, created: self.created, model, choices, usage };
        serde_json::to_string(&outer).expect("texts and numbers are JSON")
    }

    fn choice<'a>(&self, piece: Piece<'_>, body: Body<'a>) -> Choice<'a> {
        let logprobs = piece.delta.tokens.as_ref().map(|tokens| match self.form {
            Form::Completion => self.completion_logprobs(tokens, piece.text_offset),
            Form::Chat => {
                json!({ "content": tokens.iter().map(|token| self.chat_logprobs(token)).collect::<Vec<_>>() })
            }
        });
        Choice { index: piece.index, body, logprobs, finish_reason: piece.delta.finish.map(|finish| finish.name()) }
    }

    fn completion_logprobs(&self, tokens: &[TokenInfo], mut text_offset: usize) -> Value {
        let mut offsets = Vec::with_capacity(tokens.len());
        for token in tokens {
            offsets.push(text_offset);
            text_offset += self.token_text(token.id).chars().count();
        }
        let top = |token: &TokenInfo| -> Map<String, Value> {
            token.top.iter().map(|(id, logprob)| (self.token_text(*id), Value::from(*logprob))).collect()
        };
        json!({
            "tokens": tokens.iter().map(|token| self.token_text(token.id)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }

    fn chat_logprobs(&self, token: &TokenInfo) -> Value {
        let one = |id: u32, logprob: f32| {
            let bytes = self.codec.as_ref().map(|codec| codec.token_bytes(id));
            json!({ "token": self.token_text(id), "logprob": logprob, "bytes": bytes })
        };
        let mut chosen = one(token.id, token.logprob);
        chosen["top_logprobs"] = token.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
        chosen
    }

    fn token_text(&self, id: u32) -> String {
        self.codec.as_ref().map_or_else(|| id.to_string(), |codec| codec.token_text(id))
    }
}
