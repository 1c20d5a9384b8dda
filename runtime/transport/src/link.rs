//! A connection to one peer: a queue and a thread that writes, and reading frame by frame.
//!
//! Whoever posts never waits for the network. A peer is alive as long as something comes from it; the writing thread sends a sign of
//! life whenever it had nothing else to send for [`PULSE`]. [`DEADLINE`] is the last resort: whoever waits for rows knows sooner that a
//! peer is silent when it should not be. A sign of life says how it is with the lanes of who sends it.

use crate::checksum::{CHECK_BYTES, Checksum};
use crate::frame::{Frame, FrameError, HEADER_BYTES};
use crate::transport::{Peer, Pulse, Registration, Stamp, TransportError};
use std::collections::VecDeque;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a host with nothing to say shows that it lives.
pub const PULSE: Duration = Duration::from_millis(100);
/// A peer that says or takes nothing for so long is given up. Twenty signs of life are missing then: a busy machine misses a few.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// For a peer that was given up to be told so.
const PARTING: Duration = Duration::from_millis(20);
/// Room for headers and short frames that arrive together; longer ones go to their slot directly.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// The slots of an epoch, known once they are registered.
pub(crate) type Slots = Arc<OnceLock<Vec<Registration>>>;

/// What goes with signs of life, once somebody has said so.
pub(crate) type Shown = Arc<OnceLock<Arc<dyn Fn() -> Pulse + Send + Sync>>>;

enum Item {
    Rows {
        slot: usize,
        stamp: Stamp,
    },
    Message(Vec<u8>),
    /// What comes next is changed on its way.
    Damage(u64),
    Done,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Nothing is taken any more, and what is there is dropped.
    closed: bool,
    /// The last item is there.
    finished: bool,
}

#[derive(Default)]
struct Outbound {
    queue: Mutex<Queue>,
    more: Condvar,
    /// No signs of life are shown.
    hushed: AtomicBool,
}

impl Outbound {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, item: Item) {
        let mut queue = self.queue();
        if !queue.closed && !queue.finished {
            queue.finished = matches!(item, Item::Done);
            queue.items.push_back(item);
            drop(queue);
            self.more.notify_one();
        }
    }

    fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        queue.items.clear();
        drop(queue);
        self.more.notify_one();
    }

    /// What comes next; nothing after a pulse without any; `Err` once it is closed.
    fn next(&self) -> Result<Option<Item>, ()> {
        let mut queue = self.queue();
        loop {
            if queue.closed {
                return Err(());
            }
            if let Some(item) = queue.items.pop_front() {
                return Ok(Some(item));
            }
            let (woken, timeout) = self.more.wait_timeout(queue, PULSE).unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            if timeout.timed_out() && queue.items.is_empty() && !queue.closed {
                return Ok(None);
            }
        }
    }
}

/// A connection to a peer.
pub struct Link {
    /// Who is at the other end.
    pub peer: Peer,
    stream: TcpStream,
    reader: Mutex<BufReader<TcpStream>>,
    outbound: Arc<Outbound>,
    /// The first thing that went wrong.
    fault: Arc<OnceLock<TransportError>>,
    writer: Option<JoinHandle<()>>,
    since: Instant,
    /// When a frame came last, in milliseconds behind `since`.
    heard_ms: AtomicU64,
    /// What came with the last sign of life.
    pulse: Mutex<Option<Pulse>>,
}

impl Link {
    /// Takes over a connection whose handshake is done.
    pub(crate) fn new(peer: Peer, stream: TcpStream, slots: Slots, shown: Shown) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let reader = Mutex::new(BufReader::with_capacity(READ_AHEAD_BYTES, stream.try_clone()?));
        let (outbound, fault) = (Arc::new(Outbound::default()), Arc::new(OnceLock::new()));
        let (queue, told, out) = (Arc::clone(&outbound), Arc::clone(&fault), stream.try_clone()?);
        let write = move || {
            if let Err(error) = write_all(&queue, &out, &slots, &shown) {
                let _ = told.set(error);
                queue.close();
                // Wakes the thread that reads.
                let _ = out.shutdown(Shutdown::Both);
            }
        };
        let writer = std::thread::Builder::new().name(format!("link {peer} out")).spawn(write)?;
        Ok(Self {
            peer,
            stream,
            reader,
            outbound,
            fault,
            writer: Some(writer),
            since: Instant::now(),
            heard_ms: AtomicU64::new(0),
            pulse: Mutex::default(),
        })
    }

    pub(crate) fn post(&self, slot: usize, stamp: Stamp) {
        self.outbound.push(Item::Rows { slot, stamp });
    }

    pub(crate) fn send(&self, message: Vec<u8>) {
        self.outbound.push(Item::Message(message));
    }

    pub(crate) fn finish(&self) {
        self.outbound.push(Item::Done);
    }

    pub(crate) fn damage(&self, chosen: u64) {
        self.outbound.push(Item::Damage(chosen));
    }

    pub(crate) fn hush(&self, hushed: bool) {
        self.outbound.hushed.store(hushed, Ordering::Relaxed);
    }

    /// Gives the peer up. Whoever reads is told `error`, unless something else went wrong before. What was said before
    /// [`Link::finish`] is still sent.
    pub(crate) fn give_up(&self, error: TransportError) {
        let _ = self.fault.set(error);
        if self.outbound.queue().finished {
            let _ = self.stream.shutdown(Shutdown::Read);
            return;
        }
        self.outbound.close();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// For how long nothing has come.
    pub(crate) fn silent_for(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }

    pub(crate) fn pulse(&self) -> Option<Pulse> {
        *self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn beats(&self, pulse: Pulse) {
        *self.pulse.lock().unwrap_or_else(PoisonError::into_inner) = Some(pulse);
    }

    /// Reads one frame: its header, then what `body` makes of the rest.
    pub(crate) fn read<T>(
        &self,
        body: impl FnOnce(Frame, &mut dyn Read) -> Result<T, ReadError>,
    ) -> Result<T, TransportError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let read = read_frame(&mut *reader, body);
        if read.is_ok() {
            self.heard_ms.store(self.since.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
        read.map_err(|error| self.fault.get_or_init(|| error.into()).clone())
    }
}

impl Drop for Link {
    /// A link that was finished says all that it had to say; any other one breaks off.
    fn drop(&mut self) {
        if !self.outbound.queue().finished {
            self.outbound.close();
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        if let Some(writer) = self.writer.take() {
            // A peer that takes nothing any more holds nobody up.
            let given_up = self.fault.get().is_some().then(Instant::now);
            while given_up.is_some_and(|since| since.elapsed() < PARTING) && !writer.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if given_up.is_some() {
                let _ = self.stream.shutdown(Shutdown::Both);
            }
            let _ = writer.join();
        }
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What it said.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Its slot is taken.
    #[error("its slot is in use")]
    SlotBusy,
}

impl From<ReadError> for TransportError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Frame(error) => Self::BadFrame(error),
            ReadError::SlotBusy => Self::SlotBusy,
            ReadError::Io(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent(DEADLINE.as_millis()),
                io::ErrorKind::UnexpectedEof => Self::Closed,
                _ => Self::Io(error.to_string()),
            },
        }
    }
}

/// Reads a header, and gives what follows to `body`.
pub fn read_frame<R: Read, T>(
    reader: &mut R,
    body: impl FnOnce(Frame, &mut dyn Read) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header)?;
    let frame = Frame::decode(&header)?;
    body(frame, reader)
}

fn write_all(outbound: &Outbound, stream: &TcpStream, slots: &Slots, shown: &Shown) -> Result<(), TransportError> {
    let mut damage = None;
    while let Ok(item) = outbound.next() {
        let mut out = stream;
        let written = match item {
            None if outbound.hushed.load(Ordering::Relaxed) => Ok(()),
            None => {
                let pulse = shown.get().map(|shown| shown()).unwrap_or_default();
                out.write_all(&Frame::Ping(pulse).encode())
            }
            Some(Item::Message(message)) => {
                let header = Frame::Message { bytes: (message.len() + CHECK_BYTES) as u32 }.encode();
                let check = Checksum::of(&[&header, &message]);
                write_parts(stream, &mut [&header[..], &message, &check].map(IoSlice::new), damage.take())
            }
            Some(Item::Damage(chosen)) => {
                damage = Some(chosen);
                Ok(())
            }
            Some(Item::Done) => {
                // What was queued before is out; the peer may go on talking.
                out.write_all(&Frame::Done.encode()).map_err(write_error)?;
                let _ = stream.shutdown(Shutdown::Write);
                return Ok(());
            }
            Some(Item::Rows { slot, stamp }) => match write_rows(stream, slots, (slot, stamp), damage.take()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && is_busy(&error) => {
                    return Err(TransportError::SlotBusy);
                }
                written => written,
            },
        };
        written.map_err(write_error)?;
    }
    Ok(())
}

/// Whether an error came from the slot, and not from the socket.
fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

fn write_error(error: io::Error) -> TransportError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TransportError::Stuck(DEADLINE.as_millis()),
        io::ErrorKind::BrokenPipe => TransportError::Closed,
        _ => TransportError::Io(error.to_string()),
    }
}

fn write_rows(stream: &TcpStream, slots: &Slots, (slot, stamp): (usize, Stamp), damage: Option<u64>) -> io::Result<()> {
    let Some(registration) = slots.get().and_then(|slots| slots.get(slot)) else {
        return Err(io::Error::other("rows were posted before their slot was registered"));
    };
    let lengths = registration.memory.lengths(&stamp).unwrap_or_default();
    let bytes = (lengths.iter().sum::<usize>() + CHECK_BYTES) as u32;
    let header = Frame::Rows { key: registration.key, stamp, bytes }.encode();
    registration.memory.read(&stamp, &mut |[rows, ids, weights]| {
        let check = Checksum::of(&[&header, rows, ids, weights]);
        let mut parts = [&header[..], rows, ids, weights, &check].map(IoSlice::new);
        write_parts(stream, &mut parts, damage)
    })
}

/// All bytes of all parts, in few system calls; with one bit changed if `damage` chooses one.
fn write_parts(mut stream: &TcpStream, mut parts: &mut [IoSlice<'_>], damage: Option<u64>) -> io::Result<()> {
    if let Some(chosen) = damage {
        let mut bytes = parts.iter().fold(Vec::new(), |bytes, part| [&bytes[..], part].concat());
        let bit = chosen as usize % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        return stream.write_all(&bytes);
    }
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
