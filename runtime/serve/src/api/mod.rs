//! What clients send and what they get, in OpenAI's forms. Pure: bytes in, typed requests or typed errors out.

pub mod answer;
pub mod chat;
pub mod error;
mod fields;
pub mod request;
