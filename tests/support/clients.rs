//! Clients by the hundred on one thread: connections that are kept, answers read piece by piece.
// Each test and benchmark uses its own part of this file.
#![allow(dead_code)]

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

/// What a connection that breaks off gives.
fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A request with a JSON body, on a connection that is kept.
pub fn request(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Runs `all` on this thread until it is done.
pub fn on_this_thread<T>(all: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("an event loop can be had").block_on(all)
}

/// A connection to a server.
pub struct Client {
    stream: BufReader<TcpStream>,
    piece: Vec<u8>,
    /// Before it reads on, so much time passes: then what has come meanwhile costs one look, as if it were read elsewhere.
    pub rest: Option<Duration>,
}

impl Client {
    /// From any address of this machine.
    pub async fn connect(server: SocketAddr) -> io::Result<Self> {
        Self::connect_from([127, 0, 0, 1], server).await
    }

    /// From this address: to the server it is another client.
    pub async fn connect_from(own: [u8; 4], server: SocketAddr) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((own, 0).into())?;
        let stream = socket.connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(16 << 10, stream), piece: Vec::new(), rest: None })
    }

    /// Sends `request` and shows each piece of the answer's body to `on_piece`; returns the status.
    ///
    /// # Errors
    /// The answer breaks off, or is none.
    pub async fn ask(&mut self, request: &[u8], mut on_piece: impl FnMut(&[u8])) -> io::Result<u16> {
        self.stream.write_all(request).await?;
        let status = self.line().await?.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| broken("no status"))?;
        let (mut length, mut chunked) = (0, false);
        loop {
            let line = self.line().await?.to_ascii_lowercase();
            match line.split_once(": ") {
                None => break,
                Some(("content-length", value)) => length = value.parse().map_err(|_| broken("no length"))?,
                Some(("transfer-encoding", value)) => chunked = value == "chunked",
                Some(_) => {}
            }
        }
        if !chunked {
            self.read(length).await?;
            on_piece(&self.piece);
            return Ok(status);
        }
        loop {
            let size = usize::from_str_radix(&self.line().await?, 16).map_err(|_| broken("no size of a chunk"))?;
            self.read(size + 2).await?;
            if size == 0 {
                return Ok(status);
            }
            on_piece(&self.piece[..size]);
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        self.rest().await;
        self.piece.clear();
        self.stream.read_until(b'\n', &mut self.piece).await?;
        match self.piece.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None => Err(broken("the answer breaks off")),
        }
    }

    async fn rest(&self) {
        if let Some(rest) = self.rest.filter(|_| self.stream.buffer().is_empty()) {
            tokio::time::sleep(rest).await;
        }
    }

    async fn read(&mut self, bytes: usize) -> io::Result<()> {
        self.piece.resize(bytes, 0);
        self.stream.read_exact(&mut self.piece).await.map(drop)
    }
}
