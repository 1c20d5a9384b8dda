//! An OpenAI-compatible HTTP front for a running deployment.
//!
//! Owns the forms of requests and answers, who waits for which sequence, and connections. It decides nothing about steps: that
//! is the planner's, which a run reaches through the engine. It never touches a lane: tokens arrive as events of the run.

#![forbid(unsafe_code)]

pub mod api;
mod front;
mod generation;
mod http;
mod keys;
mod server;
mod template;
mod tls;

pub use front::{Front, FrontParts, Revive, Waiting, Why};
pub use http::Model;
pub use keys::{KeyError, Keys, VARIABLE};
pub use server::{Limits, ServeError, Server, ServerOptions};
pub use template::{ChatTemplate, TemplateError};
pub use tls::{Tls, TlsError};
