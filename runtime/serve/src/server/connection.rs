//! Accepting, and one connection's life: HTTP/1.1, with limits on its head and its writes.

use super::Limits;
use super::timed::TimedWrites;
use crate::http::Peer;
use axum::Router;
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
use tower_service::Service;

/// After a failed accept: no descriptors left, most likely, and whoever has them needs time to give some back.
const PAUSE: Duration = Duration::from_millis(20);

const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
    Connection: close\r\nContent-Length: 120\r\n\r\n\
    {\"error\":{\"message\":\"there are too many connections\",\"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}\n";

const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Accepts until the end is told.
pub(super) async fn accept(listener: TcpListener, router: Router, limits: Limits, mut ends: watch::Receiver<bool>) {
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
            turn_away(&stream);
            continue;
        };
        let (router, ends) = (router.clone(), ends.clone());
        tokio::spawn(async move {
            let _place = place;
            // Events are small, and each is wanted at once.
            let _ = stream.set_nodelay(true);
            converse(TimedWrites::new(stream, limits.write_timeout), Peer(peer.ip()), router, limits, ends).await;
        });
    }
}

/// Says so without waiting: what does not fit the socket's buffer is not said.
fn turn_away(stream: &TcpStream) {
    let _ = stream.try_write(NO_PLACE);
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
        // Whoever trickles a head may not read either.
        let _ = parts.io.into_inner().write_all(TOO_SLOW).await;
    }
}
