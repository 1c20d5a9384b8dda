//! Connections: accepting them, their limits, and the end.

mod connection;
mod timed;

use crate::front::Front;
use crate::http::{App, Model, Service, router};
use crate::keys::Keys;
use crate::tls::Tls;
use rally_metrics::Exporter;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Threads that serve connections: they parse, write and sleep, and lanes need the cores more.
const THREADS: usize = 2;
/// Threads that encode long prompts.
const ENCODERS: usize = 2;
/// How often the end of a drain is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// After the last answer, for connections to write it out.
const LAST_WRITES: Duration = Duration::from_millis(1000);

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most bytes of a body.
    pub max_body_bytes: usize,
    /// Most connections; those beyond get 503.
    pub max_connections: usize,
    /// Most bytes of a request's head.
    pub max_head_bytes: usize,
    /// Most lines of a request's head.
    pub max_headers: usize,
    /// For a request's head, from the first byte on or since the last answer.
    pub head_timeout: Duration,
    /// For a body.
    pub body_timeout: Duration,
    /// A client that takes nothing for so long while there is something to send is cut off.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 4 << 20,
            max_connections: 1024,
            max_head_bytes: 32 << 10,
            max_headers: 64,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// How a server is started.
pub struct ServerOptions {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// What clients may cost.
    pub limits: Limits,
    /// Renders `/metrics`.
    pub exporter: Exporter,
    /// If there are some, `/v1` wants one.
    pub keys: Option<Keys>,
    /// Connections are encrypted if there is one.
    pub tls: Option<Tls>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port is someone else's.
    #[error("{address} is in use by another process: choose another port, or port 0 for a free one")]
    InUse {
        /// What was asked for.
        address: SocketAddr,
    },
    /// Any other reason not to get the address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The operating system gave no threads.
    #[error("no threads to serve connections: {0}")]
    Threads(io::Error),
}

/// A server. It answers from the start on: until [`Server::serve`], that it is not ready.
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    service: Option<Arc<Service>>,
    runtime: Runtime,
    /// True: connections end after the answer they are at.
    ending: watch::Sender<bool>,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// [`ServeError`]: the address cannot be had, or threads.
    pub fn start(options: ServerOptions) -> Result<Self, ServeError> {
        let ServerOptions { address, limits, exporter, keys, tls } = options;
        let listen = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::InUse { address },
            _ => ServeError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(ENCODERS)
            .thread_name("rally-http")
            .enable_all()
            .build()
            .map_err(ServeError::Threads)?;
        let app = Arc::new(App::new(limits, exporter, keys));
        let (ending, ends) = watch::channel(false);
        let accepts = {
            let _in_runtime = runtime.enter();
            let listener = tokio::net::TcpListener::from_std(listener).map_err(listen)?;
            connection::accept(listener, tls, router(Arc::clone(&app)), limits, ends)
        };
        runtime.spawn(accepts);
        Ok(Self { address, app, service: None, runtime, ending })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests from now on.
    pub fn serve(&mut self, model: Model, front: Front) {
        let service = Arc::new(Service { model, front });
        self.app.set_service(Some(Arc::clone(&service)));
        self.service = Some(service);
    }

    /// Takes no new requests.
    pub fn close(&self) {
        if let Some(service) = &self.service {
            service.front.close();
        }
    }

    /// Lets requests under way end, for so long, after [`Server::close`]; whoever is not done by then is cancelled. Returns how many
    /// sequences that were.
    pub fn drain(self, deadline: Duration) -> usize {
        let until = Instant::now() + deadline;
        let mut cut_off = 0;
        if let Some(front) = self.service.as_deref().map(|service| &service.front) {
            while front.open() > 0 && Instant::now() < until {
                std::thread::sleep(LOOK);
            }
            cut_off = front.open();
            front.cancel_all();
        }
        // Every connection holds a receiver; so do those that wait to accept.
        self.ending.send_replace(true);
        let until = Instant::now() + LAST_WRITES;
        while self.ending.receiver_count() > 0 && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        self.runtime.shutdown_background();
        cut_off
    }
}
