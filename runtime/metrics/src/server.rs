//! `GET /metrics` and `GET /health` on a port: HTTP/1.1 as far as a scraper needs it, on the standard library alone.
//!
//! Whoever connects can cost the run little: at most [`MOST_CONNECTIONS`] at a time, each with a deadline for all of it and a
//! small buffer, and none of them on a lane's thread.

use crate::exporter::{Exporter, Health};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that are answered at once; those beyond are closed. A scraper needs one.
const MOST_CONNECTIONS: usize = 8;
/// For a request and its answer together.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest request; scrapers send a few hundred bytes.
const MOST_REQUEST_BYTES: usize = 8192;
/// How often samples are put into their buckets when nobody scrapes.
const TIDY: Duration = Duration::from_secs(5);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port is someone else's.
    #[error("metrics: {address} is in use by another process: choose another port, or port 0 for a free one")]
    InUse {
        /// What was asked for.
        address: SocketAddr,
    },
    /// Any other reason not to get the address.
    #[error("metrics: cannot listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The operating system gave no thread.
    #[error("metrics: no thread for the listener: {0}")]
    Thread(io::Error),
}

/// Serves until it is dropped.
pub struct MetricsServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Dropped, it ends the tidying thread.
    awake: Option<Sender<()>>,
}

impl MetricsServer {
    /// Listens on `address`; port 0 is any free one ([`MetricsServer::address`] says which).
    pub fn start(address: SocketAddr, exporter: &Exporter) -> Result<Self, ServerError> {
        let listen = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ServerError::InUse { address },
            _ => ServerError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let (awake, asleep) = mpsc::channel::<()>();
        let stop = Arc::new(AtomicBool::new(false));
        let mut server = Self { address, stop: Arc::clone(&stop), threads: Vec::new(), awake: Some(awake) };
        let tidied = exporter.clone();
        server.spawn("metrics tidy", move || {
            while asleep.recv_timeout(TIDY) == Err(RecvTimeoutError::Timeout) {
                tidied.tidy();
            }
        })?;
        let exporter = exporter.clone();
        server.spawn("metrics", move || accept(&listener, &exporter, &stop))?;
        Ok(server)
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), ServerError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(work).map_err(ServerError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        drop(self.awake.take());
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
        }
        // Wakes the thread that accepts. If even that fails, the thread dies with the process; waiting for it would hang.
        if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            for thread in self.threads.drain(..) {
                // A panic of theirs was printed when it happened, and the run is over.
                let _ = thread.join();
            }
        }
    }
}

/// Counts a connection as long as it lives.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn accept(listener: &TcpListener, exporter: &Exporter, stop: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            // No descriptors left, most likely: whoever has them needs time to give some back.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if open.fetch_add(1, Ordering::AcqRel) >= MOST_CONNECTIONS {
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (place, exporter) = (Place(Arc::clone(&open)), exporter.clone());
        let answered = std::thread::Builder::new().name("metrics answer".into()).spawn(move || {
            let _place = place;
            if let Err(error) = answer(stream, &exporter) {
                tracing::debug!(%error, "a scrape was not answered");
            }
        });
        if let Err(error) = answered {
            tracing::debug!(%error, "no thread for a scrape");
        }
    }
}

fn answer(mut stream: TcpStream, exporter: &Exporter) -> io::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let mut request = Vec::new();
    let reply = match read_head(&mut stream, &mut request, deadline)? {
        Head::Complete => reply(&request, exporter),
        Head::TooLong => Reply::new("431 Request Header Fields Too Large", "the request is too long\n".into()),
    };
    let Reply { status, kind, body, with_body } = reply;
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let length = body.len();
    let mut text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n"
    );
    if with_body {
        text.push_str(&body);
    }
    write_all(&mut stream, text.as_bytes(), deadline)
}

enum Head {
    Complete,
    TooLong,
}

/// Time left, as socket timeouts take it.
fn left(deadline: Instant) -> io::Result<Option<Duration>> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
}

/// Reads up to the empty line that ends a request's head. Bodies are not read: nothing here takes one.
fn read_head(stream: &mut TcpStream, request: &mut Vec<u8>, deadline: Instant) -> io::Result<Head> {
    let mut buffer = [0; 1024];
    loop {
        stream.set_read_timeout(left(deadline)?)?;
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(&buffer[..count]);
        if request.windows(4).any(|four| four == b"\r\n\r\n") {
            return Ok(Head::Complete);
        }
        if request.len() > MOST_REQUEST_BYTES {
            return Ok(Head::TooLong);
        }
    }
}

/// As [`Write::write_all`], but the deadline is one for all: a timeout per write would let a reader of single bytes go on for ever.
fn write_all(stream: &mut TcpStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(left(deadline)?)?;
        match stream.write(bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => bytes = &bytes[count..],
        }
    }
    Ok(())
}

struct Reply {
    status: &'static str,
    kind: &'static str,
    body: String,
    with_body: bool,
}

impl Reply {
    fn new(status: &'static str, body: String) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body, with_body: true }
    }
}

fn reply(request: &[u8], exporter: &Exporter) -> Reply {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Reply::new("400 Bad Request", "this is no HTTP request\n".into());
    };
    if !version.starts_with("HTTP/1.") {
        return Reply::new("400 Bad Request", "this is no HTTP/1 request\n".into());
    }
    if !matches!(method, "GET" | "HEAD") {
        return Reply::new("405 Method Not Allowed", "GET /metrics or GET /health\n".into());
    }
    let mut reply = match target.split('?').next().unwrap_or_default() {
        "/metrics" => {
            Reply { kind: "text/plain; version=0.0.4; charset=utf-8", ..Reply::new("200 OK", exporter.render()) }
        }
        "/health" => {
            let health = exporter.health();
            let status = if health == Health::Serving { "200 OK" } else { "503 Service Unavailable" };
            Reply::new(status, format!("{}\n", health.name()))
        }
        _ => Reply::new("404 Not Found", "there is /metrics and /health\n".into()),
    };
    reply.with_body = method == "GET";
    reply
}
