//! What a way between two hosts is worth: latency and bandwidth of its own connection, while others carry rows or not.

use crate::frame::{Frame, HEADER_BYTES};
use crate::transport::Pulse;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// There and back so many times, for the median.
const ROUND_TRIPS: usize = 101;
/// So many bytes one way, in pieces of [`PIECE_BYTES`].
const PIECES: usize = 32;
const PIECE_BYTES: usize = 1 << 20;
/// Whoever answers waits no longer than this for the next piece.
const PATIENCE: Duration = Duration::from_secs(2);

/// A way, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probed {
    /// Median time of 32 bytes there and back.
    pub round_trip_us: f64,
    /// Of 32 MB one way, in pieces of 1 MB, with the word at the end that all is there.
    pub gigabytes_per_second: f64,
}

/// Measures a way. The connection has gone through the handshake, and serves for nothing else.
pub fn probe(mut stream: &TcpStream) -> io::Result<Probed> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (ping, mut header) = (Frame::Ping(Pulse::default()).encode(), [0; HEADER_BYTES]);
    let mut times: Vec<Duration> = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        stream.write_all(&ping)?;
        stream.read_exact(&mut header)?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let piece = vec![0; PIECE_BYTES];
    let announced = Frame::Message { bytes: PIECE_BYTES as u32 }.encode();
    let began = Instant::now();
    for _ in 0..PIECES {
        stream.write_all(&announced)?;
        stream.write_all(&piece)?;
    }
    stream.write_all(&ping)?;
    stream.read_exact(&mut header)?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Probed {
        round_trip_us: times[ROUND_TRIPS / 2].as_secs_f64() * 1e6,
        gigabytes_per_second: (PIECES * PIECE_BYTES) as f64 / seconds / 1e9,
    })
}

/// The other end: pings come back, pieces are taken.
pub(crate) fn answer(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut header = [0; HEADER_BYTES];
    let mut piece = vec![0; PIECE_BYTES];
    for _ in 0..=ROUND_TRIPS + PIECES {
        stream.read_exact(&mut header)?;
        match Frame::decode(&header) {
            Ok(Frame::Ping(_)) => stream.write_all(&header)?,
            Ok(Frame::Message { bytes }) if bytes as usize <= PIECE_BYTES => {
                stream.read_exact(&mut piece[..bytes as usize])?;
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(())
}
