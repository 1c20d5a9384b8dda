//! `POST /v1/completions` and `POST /v1/chat/completions`.

use super::prepare::{self, Prepared};
use super::stream::{self, EventStream, Told};
use super::{App, Model, Peer, Service, body, json_text, unix_seconds};
use crate::api::answer::{Envelope, Form};
use crate::api::chat::parse_chat;
use crate::api::error::ApiError;
use crate::api::request::{Common, Prompt, parse_completion};
use crate::front::Asking;
use crate::generation::Generation;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use std::sync::Arc;

/// Bodies from this size on are parsed and encoded away from the threads that serve connections: a megabyte takes a good part of
/// a second.
const LARGE_BODY: usize = 16 << 10;

pub(super) async fn completions(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    answer(app, request, Form::Completion).await
}

pub(super) async fn chat(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, ApiError> {
    answer(app, request, Form::Chat).await
}

async fn answer(app: Arc<App>, request: Request<Body>, form: Form) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let client = app.authorize(&head.headers, head.extensions.get::<Peer>().copied())?;
    let service = app.service()?;
    let body = body::read(&app, &head.headers, body).await?;
    let (common, prepared) = if body.len() < LARGE_BODY {
        understand(&service.model, form, &body)?
    } else {
        let service = Arc::clone(&service);
        let understood = tokio::task::spawn_blocking(move || understand(&service.model, form, &body)).await;
        understood.unwrap_or_else(|_| Err(ApiError::NotReady("reading the request failed".into())))?
    };
    let asking = Asking { client, priority: common.priority };
    generate(&service, form, &common, prepared, asking).await
}

fn understand(model: &Model, form: Form, body: &[u8]) -> Result<(Common, Prepared), ApiError> {
    match form {
        Form::Completion => {
            let request = parse_completion(body)?;
            model.check_name(&request.common.model)?;
            let prepared = prepare::prepare(model, &request.common, &request.prompts, true)?;
            Ok((request.common, prepared))
        }
        Form::Chat => {
            let request = parse_chat(body)?;
            model.check_name(&request.common.model)?;
            let template = model.template.as_ref();
            let template =
                template.ok_or_else(|| ApiError::Text("the model has no chat template: use /v1/completions".into()))?;
            // Templates write the special tokens themselves.
            let prompt = Prompt::Text(template.render(&request.messages)?);
            let prepared = prepare::prepare(model, &request.common, &[prompt], false)?;
            Ok((request.common, prepared))
        }
    }
}

/// Has the sequences decoded, and answers with what comes, at once or event by event.
async fn generate(
    service: &Service,
    form: Form,
    common: &Common,
    prepared: Prepared,
    asking: Asking,
) -> Result<Response, ApiError> {
    let Model { name, codec, .. } = &service.model;
    let tickets = service.front.submit(prepared.sequences, asking)?;
    let generation = |ticket| Generation::new(ticket, codec.as_ref(), &common.stop, common.logprobs.is_some());
    let mut generations: Vec<Generation> = tickets.into_iter().map(generation).collect();
    let envelope = Envelope {
        form,
        id: format!("{}{:016x}", form.id_prefix(), prepare::random()),
        created: unix_seconds(),
        model: name.clone(),
        codec: codec.clone(),
    };
    if let Some(mode) = common.stream {
        // Before the status is sent: a request that gets no place is refused with one.
        generations[0].admitted().await?;
        let told = Told { usage: mode.include_usage, prompt_tokens: prepared.prompt_tokens, choices: common.n };
        return Ok(EventStream::new(envelope, generations, told).into_response());
    }
    let mut choices = Vec::with_capacity(generations.len());
    for generation in &mut generations {
        choices.push(generation.whole().await?);
    }
    let usage = stream::usage(prepared.prompt_tokens, common.n, generations.iter());
    Ok(json_text(StatusCode::OK, envelope.whole(&choices, usage)))
}
