//! Accepting, and one connection's life: HTTP/1.1, over TLS or not, with limits on its handshake, its heads and its writes.

use super::Limits;
use super::timed::TimedWrites;
use crate::api::error::ApiError;
use crate::http::Peer;
use crate::tls::Tls;
use axum::Router;
use axum::http::StatusCode;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tower_service::Service;

/// After a failed accept: no descriptors left, most likely, and whoever has them needs time to give some back.
const PAUSE: Duration = Duration::from_millis(20);

/// Accepts until the end is told.
pub(super) async fn accept(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    limits: Limits,
    mut ends: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.max_connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ends.wait_for(|ending| *ending) => return,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            // In TLS nothing can be said before a handshake, which is what there is no place for.
            if tls.is_none() {
                turn_away(&stream);
            }
            continue;
        };
        let (tls, router, ends) = (tls.clone(), router.clone(), ends.clone());
        tokio::spawn(async move {
            let _place = place;
            // Events are small, and each is wanted at once.
            let _ = stream.set_nodelay(true);
            let (stream, peer) = (TimedWrites::new(stream, limits.write_timeout), Peer(peer.ip()));
            match tls {
                None => converse(stream, peer, router, limits, ends).await,
                Some(tls) => match timeout(limits.head_timeout, tls.0.accept(stream)).await {
                    Ok(Ok(stream)) => converse(stream, peer, router, limits, ends).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                    Err(_) => tracing::debug!("a handshake did not end"),
                },
            }
        });
    }
}

/// Says so without waiting: what does not fit the socket's buffer is not said.
fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(&refusal(&ApiError::TooManyConnections));
}

/// An answer to a request that was never read.
fn refusal(error: &ApiError) -> Vec<u8> {
    let body = error.to_json().to_string();
    let status = StatusCode::from_u16(error.status()).expect("statuses are of three digits");
    let retry = error.retry_after_s().map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{retry}Connection: close\r\n\r\n"
    );
    (head + &body).into_bytes()
}

async fn converse<S>(stream: S, peer: Peer, router: Router, limits: Limits, mut ends: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_head_bytes);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.clone().call(request)
    });
    let mut connection = builder.serve_connection(TokioIo::new(stream), service);
    let over = tokio::select! {
        ended = &mut connection => Some(ended),
        _ = ends.wait_for(|ending| *ending) => None,
    };
    let ended = match over {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let Err(error) = ended else { return };
    tracing::debug!(%error, "a connection ended early");
    let parts = connection.into_parts();
    // One that was idle is closed without a word, as clients expect.
    if error.is_timeout() && !parts.read_buf.is_empty() {
        let mut stream = parts.io.into_inner();
        let late = ApiError::HeadTooSlow { seconds: limits.head_timeout.as_secs() };
        // Whoever trickles a head may not read either.
        let _ = stream.write_all(&refusal(&late)).await;
        let _ = stream.shutdown().await;
    }
}
