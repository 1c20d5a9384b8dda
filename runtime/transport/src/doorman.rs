//! The doorman: listens on a host's address, goes through the handshake with whoever connects, and lets in who has the key and the
//! same work. Strangers cost a thread for a moment and a line in the log, and nothing else.

use crate::handshake::{Claims, HandshakeError, HostRole, initiate, respond_unless};
use crate::key::SharedKey;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// For a whole handshake. A host of the deployment takes a millisecond.
pub const HANDSHAKE: Duration = Duration::from_secs(2);
/// Handshakes under way at once. When one more comes the oldest is dropped, so that no number of strangers who say nothing keeps
/// a host out for longer than it takes to try again.
const MOST_HANDSHAKES: usize = 64;
/// Hosts that were let in and that nobody has asked for yet.
const MOST_WAITING: usize = 64;
/// How long to wait when the system gives no more connections.
const BREATH: Duration = Duration::from_millis(20);

/// A host that was let in.
#[derive(Debug)]
pub struct Guest {
    /// What it says of itself; proved.
    pub claims: Claims,
    /// The connection, past the handshake.
    pub stream: TcpStream,
}

/// Why there is no doorman, or no way to a host.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The address in the graph is none, or none of this machine.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As in the graph.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody there.
    #[error("{address}: {source}")]
    Connect {
        /// As in the graph.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody knows where it is.
    #[error("{why}")]
    Unknown {
        /// The host.
        host: String,
        /// Why not.
        why: String,
    },
    /// Somebody there, but not the right one.
    #[error("{address}: {source}")]
    Handshake {
        /// As in the graph.
        address: String,
        /// What went wrong.
        source: HandshakeError,
    },
}

impl ReachError {
    /// Whether trying again can help: the host may not be up yet, or be in the middle of something.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Listen { .. } => false,
            Self::Connect { .. } | Self::Unknown { .. } => true,
            Self::Handshake { source, .. } => matches!(source, HandshakeError::Io(_) | HandshakeError::Busy(_)),
        }
    }

    /// Whether the right host is there, and would not do the same work.
    pub fn differs(&self) -> bool {
        matches!(self, Self::Handshake { source: HandshakeError::Differs { .. }, .. })
    }
}

/// A stream that must be done with everything by a certain time.
struct Timed<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(bytes)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects to the host at `address` and goes through the handshake. Both together take no longer than `patience`.
pub fn reach(
    address: &str,
    key: &SharedKey,
    own: &Claims,
    patience: Duration,
) -> Result<(TcpStream, Claims), ReachError> {
    let until = Instant::now() + patience;
    let fault = |source| ReachError::Connect { address: address.into(), source };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for candidate in address.to_socket_addrs().map_err(fault)? {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&candidate, left) {
            Err(error) => last = error,
            Ok(stream) => {
                stream.set_nodelay(true).map_err(fault)?;
                let met = initiate(&mut Timed { stream: &stream, until }, key, own);
                let claims = met.map_err(|source| ReachError::Handshake { address: address.into(), source })?;
                return Ok((stream, claims));
            }
        }
    }
    Err(fault(last))
}

/// Listens until it is dropped.
pub struct Doorman {
    address: SocketAddr,
    guests: Receiver<Guest>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    refused: Arc<AtomicU64>,
    busy: Arc<Mutex<Option<Claims>>>,
}

/// What handshakes need.
struct Door {
    key: SharedKey,
    own: Claims,
    /// The coordinator that this host works for.
    busy: Arc<Mutex<Option<Claims>>>,
    guests: Sender<Guest>,
    refused: Arc<AtomicU64>,
    /// Connections whose handshake is under way, oldest first.
    open: Mutex<VecDeque<(u64, TcpStream)>>,
}

impl Doorman {
    /// Listens on exactly `address`, as `own`.
    pub fn start(address: &str, key: SharedKey, own: Claims) -> Result<Self, ReachError> {
        let fault = |source| ReachError::Listen { address: address.into(), source };
        let listener = TcpListener::bind(address).map_err(fault)?;
        let bound = listener.local_addr().map_err(fault)?;
        let (guests, waiting) = bounded(MOST_WAITING);
        let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let busy = Arc::new(Mutex::new(None));
        let (counted, works_for) = (Arc::clone(&refused), Arc::clone(&busy));
        let door = Arc::new(Door { key, own, busy: works_for, guests, refused: counted, open: Mutex::default() });
        let stopped = Arc::clone(&stop);
        let accept = move || accept(&listener, &door, &stopped);
        let thread = std::thread::Builder::new().name("doorman".into()).spawn(accept).map_err(fault)?;
        Ok(Self { address: bound, guests: waiting, stop, thread: Some(thread), refused, busy })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this host works for a coordinator, or for none. Another one, or the same one started anew, is told so.
    pub fn works_for(&self, coordinator: Option<Claims>) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = coordinator;
    }

    /// Hosts that were let in, in order.
    pub fn guests(&self) -> &Receiver<Guest> {
        &self.guests
    }

    /// Connections that were refused so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Doorman {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts. If even that fails, the thread dies with the process; waiting for it would hang.
        if TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, door: &Arc<Door>, stop: &AtomicBool) {
    for id in 0.. {
        let accepted = listener.accept();
        if stop.load(Ordering::Acquire) {
            return;
        }
        let spawned = accepted.and_then(|(stream, address)| {
            door.admit(id, &stream)?;
            let door = Arc::clone(door);
            let name = "handshake".to_owned();
            std::thread::Builder::new().name(name).spawn(move || door.receive(id, stream, address)).map(drop)
        });
        if let Err(error) = spawned {
            tracing::debug!(%error, "a connection could not be taken");
            std::thread::sleep(BREATH);
        }
    }
}

impl Door {
    fn open(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, TcpStream)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a handshake, in place of the oldest one if there are too many.
    fn admit(&self, id: u64, stream: &TcpStream) -> io::Result<()> {
        let mut open = self.open();
        if open.len() >= MOST_HANDSHAKES
            && let Some((_, oldest)) = open.pop_front()
        {
            let _ = oldest.shutdown(Shutdown::Both);
        }
        open.push_back((id, stream.try_clone()?));
        Ok(())
    }

    fn receive(&self, id: u64, stream: TcpStream, address: SocketAddr) {
        let until = Instant::now() + HANDSHAKE;
        let busy = |other: &Claims| {
            let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            let another = |by: &&Claims| match other.role {
                HostRole::Coordinator => other.incarnation != by.incarnation,
                // Whoever works for it and is looked for has not come back from an epoch that is over: a lane hangs.
                HostRole::Probe => other.incarnation == by.incarnation,
                HostRole::Worker => false,
            };
            busy.as_ref().filter(another).map(|by| by.host.clone())
        };
        let met = respond_unless(&mut Timed { stream: &stream, until }, &self.key, &self.own, busy);
        self.open().retain(|(other, _)| *other != id);
        match met {
            Ok(claims) if claims.role == HostRole::Probe => {
                // Whoever measures is gone when it has seen enough.
                let _ = crate::probe::answer(&stream);
            }
            Ok(claims) => {
                // A host beyond those that fit is dropped, and tries again.
                let _ = self.guests.try_send(Guest { claims, stream });
            }
            Err(error) => self.refuse(address, &error),
        }
    }

    /// The first refusal is told, and then one in ten times as many: a flood fills no log.
    fn refuse(&self, address: SocketAddr, error: &HandshakeError) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if let HandshakeError::Busy(by) = error {
            tracing::debug!(%address, by, "another run was refused");
        } else if let HandshakeError::Differs { .. } | HandshakeError::Misaddressed { .. } = error {
            tracing::warn!(%address, %error, "a host was refused");
        } else if count.ilog10() > (count - 1).checked_ilog10().unwrap_or(0) || count == 1 {
            tracing::warn!(%address, %error, refused = count, "a connection was refused");
        }
    }
}
