//! Routes, and what they share.

mod body;
mod completions;
mod live;
mod openapi;
mod page;
mod prepare;
mod stream;

use crate::api::error::ApiError;
use crate::front::{Client, Front};
use crate::keys::Keys;
use crate::server::Limits;
use crate::template::ChatTemplate;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use rally_metrics::Exporter;
use rally_stages::text::TextCodec;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// The model that is served.
pub struct Model {
    /// What requests call it.
    pub name: String,
    /// Its tokenizer; without one prompts are token ids, and so are texts.
    pub codec: Option<TextCodec>,
    /// Number of token ids.
    pub vocab: usize,
    /// Longest sequence, prompt and answer together.
    pub max_positions: usize,
    /// Tokens that end a sequence.
    pub eos_token_ids: Arc<[u32]>,
    /// How it takes messages, if it does.
    pub template: Option<ChatTemplate>,
    /// Milliseconds between tokens that are to be kept, for those who look.
    pub slo_tpot_ms: Option<f64>,
}

/// What requests are answered with, once the weights are there.
pub(crate) struct Service {
    pub(crate) model: Model,
    pub(crate) front: Front,
}

/// What all handlers share.
pub(crate) struct App {
    pub(crate) limits: Limits,
    pub(crate) exporter: Exporter,
    /// If there are some, one must be given.
    pub(crate) keys: Option<Keys>,
    /// Seconds since 1970.
    pub(crate) started: u64,
    service: RwLock<Option<Arc<Service>>>,
}

impl App {
    pub(crate) fn new(limits: Limits, exporter: Exporter, keys: Option<Keys>) -> Self {
        Self { limits, exporter, keys, started: unix_seconds(), service: RwLock::new(None) }
    }

    pub(crate) fn set_service(&self, service: Option<Arc<Service>>) {
        *self.service.write().unwrap_or_else(PoisonError::into_inner) = service;
    }

    /// Who asks.
    ///
    /// # Errors
    /// Keys are wanted, and none or a wrong one was given.
    pub(crate) fn authorize(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<Client, ApiError> {
        let Some(keys) = &self.keys else {
            return Ok(Client::Address(peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |Peer(address)| address)));
        };
        let header = headers.get(header::AUTHORIZATION).ok_or(ApiError::Unauthorized { given: false })?;
        let key = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
        keys.find(key.trim()).map(Client::Key).ok_or(ApiError::Unauthorized { given: true })
    }

    /// # Errors
    /// The weights are not there yet.
    pub(crate) fn service(&self) -> Result<Arc<Service>, ApiError> {
        let service = self.service.read().unwrap_or_else(PoisonError::into_inner).clone();
        service.ok_or_else(|| ApiError::NotReady("the weights are being loaded".into()))
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Now.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::page).fallback(only_get))
        .route("/v1/completions", post(completions::completions).fallback(only_post))
        .route("/v1/chat/completions", post(completions::chat).fallback(only_post))
        .route("/v1/models", get(models).fallback(only_get))
        .route("/v1/models/{name}", get(model).fallback(only_get))
        .route("/openapi.json", get(openapi::openapi).fallback(only_get))
        .route("/live", get(live::live).fallback(only_get))
        .route("/health", get(health).fallback(only_get))
        .route("/ready", get(ready).fallback(only_get))
        .route("/metrics", get(metrics).fallback(only_get))
        .route("/version", get(version).fallback(only_get))
        .fallback(nothing_there)
        .with_state(app)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status()).expect("statuses are of three digits");
        let mut response = json_response(status, &self.to_json());
        if let Some(seconds) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        match &self {
            Self::WrongMethod { allowed, .. } => {
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            Self::Unauthorized { .. } => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

pub(crate) fn json_response(status: StatusCode, value: &Value) -> Response {
    json_text(status, value.to_string())
}

pub(crate) fn json_text(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn nothing_there(uri: Uri) -> ApiError {
    ApiError::NoSuchPath(uri.path().chars().take(100).collect())
}

async fn only_post(method: Method) -> ApiError {
    ApiError::WrongMethod { method: method.to_string(), allowed: "POST" }
}

async fn only_get(method: Method) -> ApiError {
    ApiError::WrongMethod { method: method.to_string(), allowed: "GET, HEAD" }
}

/// Alive: the process answers.
async fn health() -> Response {
    json_response(StatusCode::OK, &json!({ "status": "ok" }))
}

/// Whether completions are answered now. Those that come while the run stands still wait, and are better sent elsewhere.
async fn ready(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let front = &app.service()?.front;
    match front.closed_because().or_else(|| front.stands_because()) {
        Some(reason) => Err(ApiError::NotReady(reason)),
        None => Ok(json_response(StatusCode::OK, &json!({ "status": "ready" }))),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.exporter.render()).into_response()
}

async fn version() -> Response {
    json_response(StatusCode::OK, &json!({ "version": env!("CARGO_PKG_VERSION") }))
}

impl Model {
    fn to_json(&self, created: u64) -> Value {
        json!({
            "id": self.name, "object": "model", "created": created, "owned_by": "rally", "max_model_len": self.max_positions,
        })
    }
}

async fn models(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    app.authorize(&headers, None)?;
    let model = app.service()?.model.to_json(app.started);
    Ok(json_response(StatusCode::OK, &json!({ "object": "list", "data": [model] })))
}

async fn model(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    axum::extract::Path(name): axum::extract::Path<String>,
) -> Result<Response, ApiError> {
    app.authorize(&headers, None)?;
    let service = app.service()?;
    service.model.check_name(&name)?;
    Ok(json_response(StatusCode::OK, &service.model.to_json(app.started)))
}

impl Model {
    /// # Errors
    /// It is called otherwise.
    pub(crate) fn check_name(&self, asked: &str) -> Result<(), ApiError> {
        if asked == self.name {
            return Ok(());
        }
        let asked = asked.chars().take(100).collect();
        Err(ApiError::NoSuchModel { asked, served: self.name.clone() })
    }
}
