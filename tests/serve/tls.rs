//! The same over TLS, and what is said of certificates and keys that will not do.

use crate::binary;
use crate::http::{self, PATIENCE, Serving, completion, reply};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

/// A certificate for `localhost` that vouches for itself, and its key, as files.
struct Pair {
    folder: TempDir,
    made: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Pair {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("keys can be made");
        let pair = Self { folder: tempfile::tempdir().expect("a temporary folder"), made };
        pair.write("cert.pem", &pair.made.cert.pem());
        pair.write("key.pem", &pair.made.signing_key.serialize_pem());
        pair
    }

    fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("it can be written");
        binary::path_text(&self.path(name)).to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self, more: &[&str]) -> Serving {
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| self.path(name));
        let own = ["--tls-cert", binary::path_text(&cert), "--tls-key", binary::path_text(&key)];
        Serving::start(&[&own, more].concat())
    }

    /// A connection to `server` that trusts this certificate and no other.
    fn connect(
        &self,
        server: &Serving,
        version: &'static SupportedProtocolVersion,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.made.cert.der().clone()).expect("it is a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("both are there")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("it is a name");
        let client = ClientConnection::new(Arc::new(config), name).expect("the client can begin");
        StreamOwned::new(client, server.connect())
    }
}

#[test]
fn answers_and_streams_come_over_tls() {
    let (pair, other) = (Pair::new(), Pair::new());
    let server = pair.serve(&["--request-seconds", "1"]);
    let ask = |stream: bool| {
        let body = json!({ "prompt": "Nora", "max_tokens": 12, "temperature": 0, "stream": stream });
        http::post("/v1/completions", &completion(body).to_string(), "")
    };
    let mut texts = Vec::new();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for streams in [false, true] {
            let mut connection = pair.connect(&server, version);
            connection.write_all(ask(streams).as_bytes()).expect("the server reads");
            // To its end: a connection that is not closed in due form is an error.
            let answer = reply(&mut connection);
            assert_eq!(connection.conn.protocol_version(), Some(version.version));
            texts.push(match streams {
                false => answer.json()["choices"][0]["text"].as_str().expect("text").to_owned(),
                true => answer.events().iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect(),
            });
        }
    }
    assert!(texts.iter().all(|text| *text == texts[0] && !text.is_empty()), "{texts:?}");
    // A head that does not come is answered here too.
    let mut slow = pair.connect(&server, &rustls::version::TLS13);
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").expect("the server reads");
    assert_eq!(reply(&mut slow).status, 408);
    // Who trusts someone else is not answered.
    let wrong = other.connect(&server, &rustls::version::TLS13).write_all(b"GET / HTTP/1.1\r\n\r\n");
    assert!(wrong.is_err_and(|error| error.to_string().contains("certificate")));
}

/// Whoever speaks no TLS, or never ends its handshake, is let go of, and takes no place from others.
#[test]
fn handshakes_that_come_to_nothing_cost_others_nothing() {
    let pair = Pair::new();
    let server = pair.serve(&["--request-seconds", "1", "--max-connections", "4"]);
    let mut strangers: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    strangers[0].write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("the server reads");
    // The first bytes of a greeting that is never finished.
    strangers[1].write_all(&[0x16, 0x03, 0x01, 0x01, 0x00, 0x01]).expect("the server reads");
    for mut stranger in strangers {
        let mut said = Vec::new();
        // A reset is an end as well.
        let _ = stranger.read_to_end(&mut said);
        assert!(!said.starts_with(b"HTTP/"), "{said:?}");
    }
    let until = Instant::now() + PATIENCE;
    let is_served = || {
        let mut connection = pair.connect(&server, &rustls::version::TLS13);
        let mut said = String::new();
        let asked = connection.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        asked.and_then(|()| connection.read_to_string(&mut said)).is_ok() && said.starts_with("HTTP/1.1 200")
    };
    // They may not have come back yet.
    while !is_served() {
        assert!(Instant::now() < until, "places come back");
    }
}

#[test]
fn certificates_and_keys_that_will_not_do_are_named() {
    let (pair, other) = (Pair::new(), Pair::new());
    let cert = pair.write("cert.pem", &pair.made.cert.pem());
    let key = pair.write("key.pem", &pair.made.signing_key.serialize_pem());
    let missing = binary::path_text(&pair.path("none.pem")).to_owned();
    let empty = pair.write("empty.pem", "");
    let garbage = pair.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let torn = pair.write("torn.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let theirs = other.write("theirs.pem", &other.made.signing_key.serialize_pem());
    for (cert, key, said) in [
        (&missing, &key, "none.pem: cannot be read"),
        (&cert, &missing, "none.pem: cannot be read"),
        (&empty, &key, "empty.pem: has no certificate"),
        (&key, &key, "key.pem: has no certificate"),
        (&garbage, &key, "garbage.pem: "),
        (&cert, &cert, "cert.pem: has no private key"),
        (&cert, &torn, "torn.pem: "),
        (&cert, &theirs, "theirs.pem is not that of the first certificate in"),
    ] {
        binary::refused(&["serve", http::GRAPH, "--tls-cert", cert, "--tls-key", key], said);
    }
    binary::refused(&["serve", http::GRAPH, "--tls-cert", &cert], "--tls-key");
    binary::refused(&["serve", http::GRAPH, "--tls-key", &key], "--tls-cert");
}
