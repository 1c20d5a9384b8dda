//! Reading a request's body within its limits.

use super::App;
use crate::api::error::ApiError;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::timeout;

/// Of a body that is too long, so much is read and thrown away: a client that is cut off in the middle of sending never sees the
/// answer that says why.
const MOST_THROWN_AWAY: usize = 256 << 20;

/// The whole body.
///
/// # Errors
/// It is no JSON by its own account, too long, too slow, or broken off.
pub(super) async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    check_type(headers)?;
    let seconds = app.limits.body_timeout.as_secs();
    let read = timeout(app.limits.body_timeout, collect(body, app.limits.max_body_bytes));
    read.await.map_err(|_| ApiError::BodyTooSlow { seconds })?
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let kind = text.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::NotJsonType(kind.chars().take(100).collect()))
}

async fn collect(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut all = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ApiError::BodyBroken)?.into_data() else { continue };
        length += data.len();
        if length > MOST_THROWN_AWAY {
            break;
        }
        if length > limit {
            all = Vec::new();
        } else {
            all.extend_from_slice(&data);
        }
    }
    if length > limit { Err(ApiError::BodyTooLarge { limit }) } else { Ok(all.into()) }
}
