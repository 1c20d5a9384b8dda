//! The handshake: two hosts prove to each other that they have the same key, run the same version, and compiled the same plan of the
//! same model.
//!
//! ```text
//! initiator → responder   magic, protocol, nonce                        44 bytes
//! responder → initiator   magic, protocol, nonce                        44 bytes
//! initiator → responder   length, claims, HMAC over all so far          at most 1 kB
//! responder → initiator   1, length, claims, HMAC over all so far       at most 1 kB; or 0: another key
//!                         2 instead of 1: the same, and it is busy, with a run of the host that the claims are said to be for
//! ```
//! A stranger gets the responder's nonce and nothing else: not even its name is told before the key was proved. What comes after the
//! handshake is neither signed nor encrypted, so the network between the hosts must be theirs.

use crate::codec::{CodecError, Reader, Writer};
use crate::key::{PROOF_BYTES, SharedKey};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};

/// First bytes of a connection.
const MAGIC: [u8; 8] = *b"rallyv1\n";
/// Version of the handshake and the frames.
pub const PROTOCOL: u32 = 3;
const NONCE_BYTES: usize = 32;
const HELLO_BYTES: usize = MAGIC.len() + 4 + NONCE_BYTES;
/// Longest claims.
const MOST_CLAIMS_BYTES: usize = 1024;
/// Longest name in them.
const MOST_NAME_BYTES: usize = 128;

/// What a host is in a membership epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRole {
    /// It plans steps, and everyone follows.
    Coordinator,
    /// It runs its lanes.
    Worker,
    /// Nothing: it measures the way.
    Probe,
}

/// A hash of 256 bits, printed as its first 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// SHA-256 of the parts, each behind its length.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(&hasher.finalize());
        Self(hash)
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Its name in the graph.
    pub host: String,
    /// Whom it takes the other end for.
    pub to: String,
    /// What it is.
    pub role: HostRole,
    /// Version of rally.
    pub version: String,
    /// Of the plan and all in the graph that it follows from.
    pub plan: Hash,
    /// Of the model's shapes and weights.
    pub model: Hash,
    /// Membership epoch, drawn by the coordinator.
    pub epoch: u64,
    /// Drawn when the process began: a host that was started again is another one.
    pub incarnation: u64,
}

impl Claims {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(256);
        writer.text(&self.host).text(&self.to).u8(self.role as u8).text(&self.version);
        writer.raw(&self.plan.0).raw(&self.model.0).u64(self.epoch).u64(self.incarnation).finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let claims = Self {
            host: reader.text(MOST_NAME_BYTES, "a host's name")?.into(),
            to: reader.text(MOST_NAME_BYTES, "a host's name")?.into(),
            role: match reader.u8("a role")? {
                0 => HostRole::Coordinator,
                1 => HostRole::Worker,
                2 => HostRole::Probe,
                _ => return Err(CodecError { what: "a role", at: 0 }),
            },
            version: reader.text(MOST_NAME_BYTES, "a version")?.into(),
            plan: Hash(reader.array("a plan's hash")?),
            model: Hash(reader.array("a model's hash")?),
            epoch: reader.u64("an epoch")?,
            incarnation: reader.u64("an incarnation")?,
        };
        reader.end("the end of the claims")?;
        Ok(claims)
    }

    /// Whether two hosts can work together; both values of what differs.
    fn agree(&self, other: &Self) -> Result<(), HandshakeError> {
        let differs = |what: &'static str, own: &dyn ToString, theirs: &dyn ToString| {
            let (host, own, theirs) = (other.host.clone(), own.to_string(), theirs.to_string());
            Err(HandshakeError::Differs { what, host, own, theirs })
        };
        match () {
            () if self.version != other.version => differs("version of rally", &self.version, &other.version),
            () if self.model != other.model => differs("model", &self.model, &other.model),
            () if self.plan != other.plan => differs("plan", &self.plan, &other.plan),
            () if other.to != self.host => Err(misaddressed(self, &other.to, &other.host)),
            () if self.to != other.host => Err(misaddressed(other, &self.to, &self.host)),
            () => Ok(()),
        }
    }
}

/// `host` looked for `sought` and found `found`.
fn misaddressed(found: &Claims, sought: &str, host: &str) -> HandshakeError {
    HandshakeError::Misaddressed { own: found.host.clone(), sought: sought.into(), host: host.into() }
}

/// Why two ends did not come together.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed, ended, or took too long.
    #[error("the handshake broke off: {0}")]
    Io(#[from] io::Error),
    /// The other end is no rally.
    #[error("what answers there is no rally host")]
    NotRally,
    /// Another version of the handshake.
    #[error("protocol {PROTOCOL} here, {0} there: run one version of rally on all hosts")]
    Protocol(u32),
    /// Another key.
    #[error("the shared key there is another one")]
    WrongKey,
    /// Claims that cannot be read.
    #[error("the claims make no sense: {0}")]
    Claims(#[from] CodecError),
    /// Claims longer than any are.
    #[error("claims of {0} bytes")]
    TooLong(usize),
    /// Right key, but the hosts would not do the same work.
    #[error("host `{host}` has another {what}: {own} here, {theirs} there")]
    Differs {
        /// What.
        what: &'static str,
        /// The other host.
        host: String,
        /// This host's value.
        own: String,
        /// The other one's.
        theirs: String,
    },
    /// The other end looks for someone else, or is someone else.
    #[error("host `{host}` takes `{own}` for `{sought}`: one of the addresses in the graph is wrong")]
    Misaddressed {
        /// Who is there.
        own: String,
        /// Who is looked for.
        sought: String,
        /// By whom.
        host: String,
    },
    /// The other end works for someone else.
    #[error("it is busy with a run of host `{0}`")]
    Busy(String),
    /// The system gave no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

/// A random number.
pub fn random_u64() -> Result<u64, HandshakeError> {
    Ok(u64::from_le_bytes(random()?))
}

fn random<const N: usize>() -> Result<[u8; N], HandshakeError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| HandshakeError::Random(error.to_string()))?;
    Ok(bytes)
}

type Hello = [u8; HELLO_BYTES];

fn hello() -> Result<Hello, HandshakeError> {
    let mut hello = [0; HELLO_BYTES];
    hello[..8].copy_from_slice(&MAGIC);
    hello[8..12].copy_from_slice(&PROTOCOL.to_le_bytes());
    hello[12..].copy_from_slice(&random::<NONCE_BYTES>()?);
    Ok(hello)
}

fn receive_hello(stream: &mut impl Read) -> Result<Hello, HandshakeError> {
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello)?;
    let protocol = u32::from_le_bytes([hello[8], hello[9], hello[10], hello[11]]);
    match () {
        () if hello[..8] != MAGIC => Err(HandshakeError::NotRally),
        () if protocol != PROTOCOL => Err(HandshakeError::Protocol(protocol)),
        () => Ok(hello),
    }
}

fn send_claims(stream: &mut impl Write, claims: &[u8], proof: [u8; PROOF_BYTES], before: &[u8]) -> io::Result<()> {
    let mut bytes = before.to_vec();
    bytes.extend_from_slice(&(claims.len() as u16).to_le_bytes());
    bytes.extend_from_slice(claims);
    bytes.extend_from_slice(&proof);
    stream.write_all(&bytes)
}

fn receive_claims(stream: &mut impl Read) -> Result<(Vec<u8>, [u8; PROOF_BYTES]), HandshakeError> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let length = usize::from(u16::from_le_bytes(length));
    if length > MOST_CLAIMS_BYTES {
        return Err(HandshakeError::TooLong(length));
    }
    let (mut claims, mut proof) = (vec![0; length], [0; PROOF_BYTES]);
    stream.read_exact(&mut claims)?;
    stream.read_exact(&mut proof)?;
    Ok((claims, proof))
}

const INITIATOR: &[u8] = b"rally initiator";
const RESPONDER: &[u8] = b"rally responder";

/// The end that connected. Returns the other one's claims.
///
/// # Errors
/// Whatever speaks against working together; the connection is to be dropped then.
pub fn initiate(stream: &mut (impl Read + Write), key: &SharedKey, own: &Claims) -> Result<Claims, HandshakeError> {
    let ours = hello()?;
    stream.write_all(&ours)?;
    let theirs = receive_hello(stream)?;
    let claims = own.encode();
    send_claims(stream, &claims, key.prove(&[INITIATOR, &ours, &theirs, &claims]), &[])?;
    let mut verdict = [0];
    stream.read_exact(&mut verdict)?;
    if verdict == [0] {
        return Err(HandshakeError::WrongKey);
    }
    let (answer, proof) = receive_claims(stream)?;
    if !key.verify(&[RESPONDER, &ours, &theirs, &claims, &answer], &proof) {
        return Err(HandshakeError::WrongKey);
    }
    let other = Claims::decode(&answer)?;
    if verdict == [2] {
        return Err(HandshakeError::Busy(other.to));
    }
    own.agree(&other)?;
    Ok(other)
}

/// The end that was connected to. `own.to` and `own.epoch` become what the other end says. Returns the other one's claims.
///
/// # Errors
/// As [`initiate`]. A host with the right key has then been told this end's claims, so that it can say what differs as well.
pub fn respond(stream: &mut (impl Read + Write), key: &SharedKey, own: &Claims) -> Result<Claims, HandshakeError> {
    respond_unless(stream, key, own, |_| None)
}

/// The same, unless this end is busy: then `busy` says with the run of which host, and the other end is told so.
///
/// # Errors
/// As [`respond`], and [`HandshakeError::Busy`].
pub fn respond_unless(
    stream: &mut (impl Read + Write),
    key: &SharedKey,
    own: &Claims,
    busy: impl FnOnce(&Claims) -> Option<String>,
) -> Result<Claims, HandshakeError> {
    let theirs = receive_hello(stream)?;
    let ours = hello()?;
    stream.write_all(&ours)?;
    let (claims, proof) = receive_claims(stream)?;
    if !key.verify(&[INITIATOR, &theirs, &ours, &claims], &proof) {
        stream.write_all(&[0])?;
        return Err(HandshakeError::WrongKey);
    }
    let other = Claims::decode(&claims)?;
    let own = Claims { to: other.host.clone(), epoch: other.epoch, ..own.clone() };
    let fits = own.agree(&other);
    // Who would be refused anyhow hears why.
    let busy = if fits.is_ok() { busy(&other) } else { None };
    let answer = Claims { to: busy.clone().unwrap_or(own.to), ..own }.encode();
    let verdict = if busy.is_some() { 2 } else { 1 };
    send_claims(stream, &answer, key.prove(&[RESPONDER, &theirs, &ours, &claims, &answer]), &[verdict])?;
    fits?;
    busy.map_or(Ok(other), |busy| Err(HandshakeError::Busy(busy)))
}
