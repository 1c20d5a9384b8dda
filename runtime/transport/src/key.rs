//! The key that the hosts of a deployment share.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;
use std::path::{Path, PathBuf};

/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;
/// Shortest key: whoever listens to a handshake can try keys at home, so it must not be a word.
pub const FEWEST_KEY_BYTES: usize = 16;
/// Longest file that is read as a key.
const MOST_KEY_BYTES: usize = 4096;

/// A secret of at least [`FEWEST_KEY_BYTES`] bytes. It is never printed.
#[derive(Clone)]
pub struct SharedKey(Vec<u8>);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the key file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A secret too short to be one, or a file too long to hold one.
    #[error(
        "a key has {FEWEST_KEY_BYTES} to {MOST_KEY_BYTES} bytes, and this one has {0}: make one with `head -c 32 /dev/urandom | base64`"
    )]
    Length(usize),
}

impl SharedKey {
    /// A key of these bytes; white space around it does not count.
    pub fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        let key = bytes.trim_ascii();
        if !(FEWEST_KEY_BYTES..=MOST_KEY_BYTES).contains(&key.len()) {
            return Err(KeyError::Length(key.len()));
        }
        Ok(Self(key.to_vec()))
    }

    /// The key in a file.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let unreadable = |source| KeyError::Unreadable { path: path.to_owned(), source };
        Self::new(&std::fs::read(path).map_err(unreadable)?)
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in parts {
            // The length before each part, so that no two lists of parts are the same bytes.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    /// Proves that whoever says `parts` has the key.
    pub fn prove(&self, parts: &[&[u8]]) -> [u8; PROOF_BYTES] {
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(&self.mac(parts).finalize().into_bytes());
        proof
    }

    /// Whether `proof` is that of `parts`. Takes as long for a wrong one as for a right one.
    pub fn verify(&self, parts: &[&[u8]], proof: &[u8; PROOF_BYTES]) -> bool {
        self.mac(parts).verify_slice(proof).is_ok()
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SharedKey(…)")
    }
}
