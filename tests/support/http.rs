//! `rally serve` as a user starts it, and a client that writes requests by hand.
// Each test binary uses its own part of this file.
#![allow(dead_code)]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The graph that is served.
pub const GRAPH: &str = "graphs/tiny-ping-pong.json";
/// What the model is called.
pub const MODEL: &str = "tiny-step3";
/// Nothing that a test waits for takes so long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A server that answers until this is dropped.
pub struct Serving {
    child: Child,
    stderr: BufReader<ChildStderr>,
    pub address: String,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The data of each event of a stream, `[DONE]` checked and left out.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        let mut events: Vec<&str> = self.body.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""), "an event is left open: {self:?}");
        assert_eq!(events.pop(), Some("data: [DONE]"), "{self:?}");
        let data = events.iter().map(|event| event.strip_prefix("data: ").expect("an event is data"));
        data.map(|data| serde_json::from_str(data).expect("data is JSON")).collect()
    }
}

impl Serving {
    /// Serves [`GRAPH`], ready.
    pub fn start(more: &[&str]) -> Self {
        let mut server = Self::begin(more);
        let ready = server.line();
        assert!(ready.starts_with("ready: "), "{ready}");
        server
    }

    /// The same, as soon as it listens.
    pub fn begin(more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rally"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["serve", GRAPH, "--listen", "127.0.0.1:0"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut server = Self { child, stderr, address: String::new() };
        let line = server.line();
        let address = line.split_once("://").unwrap_or_else(|| panic!("{line}")).1;
        server.address = address.to_owned();
        server
    }

    /// The next line of stderr.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).expect("stderr can be read");
        line.trim_end().to_owned()
    }

    /// A connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream
    }

    /// A connection on which a request with a JSON body was sent.
    pub fn send(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(post(path, &body.to_string(), "").as_bytes()).expect("the server reads");
        stream
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        self.raw(request.as_bytes())
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        reply(self.send(path, body))
    }

    /// A completion that must succeed.
    #[track_caller]
    pub fn complete(&self, body: Value) -> Value {
        let reply = self.post("/v1/completions", &completion(body));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    /// The answer to these bytes.
    #[track_caller]
    pub fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        stream.write_all(request).expect("the server reads");
        reply(stream)
    }

    /// The sum over all series of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").body;
        let samples = page.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            (series.split('{').next() == Some(name)).then(|| value.parse::<f64>().expect("a value is a number"))
        });
        samples.sum()
    }

    /// Looks until `is_so`.
    #[track_caller]
    pub fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < until, "{what}, after three minutes:\n{}", self.get("/metrics").body);
        }
    }

    /// Waits until nobody has anything under way and every page is free.
    #[track_caller]
    pub fn until_empty(&self) {
        let names = ["rally_num_requests_running", "rally_num_requests_waiting", "rally_kv_cache_usage_perc"];
        self.until("pages come back", |server| names.iter().all(|name| server.metric(name) == 0.0));
    }

    pub fn signal(&self, name: &str) {
        crate::binary::signal(self.child.id(), name);
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        self.child.wait().expect("the child is ours")
    }

    /// Its end, if it has come.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `body` with the model's name.
pub fn completion(mut body: Value) -> Value {
    body["model"] = json!(MODEL);
    body
}

/// A request with a body, as text; `more` lines of its head end with CRLF each.
pub fn post(path: &str, body: &str, more: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\
         Connection: close\r\n\r\n{body}"
    )
}

/// Reads to the end of the connection.
#[track_caller]
pub fn reply(mut stream: impl Read) -> Reply {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the server answers");
    let text = String::from_utf8(bytes).expect("answers are text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let mut reply = Reply { status, head: head.to_owned(), body: body.to_owned() };
    if reply.header("Transfer-Encoding") == Some("chunked") {
        reply.body = whole(body).unwrap_or_else(|| panic!("the answer breaks off: {text:?}"));
    }
    reply
}

/// A chunked body put together; `None` if its end is missing.
fn whole(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size + 2..)?;
    }
}
