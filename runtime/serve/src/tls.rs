//! TLS: a certificate and its key from files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error, ServerConfig};

/// Longest file that is read: a chain has some kilobytes.
const MOST_BYTES: u64 = 1 << 20;

/// Why there can be no TLS. Says which file is at fault, never what a key is.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{}: {message}", file.display())]
    Unusable {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The key is another certificate's.
    #[error("the key in {} is not that of the first certificate in {}", key.display(), certificate.display())]
    Apart {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// What a server proves itself with, over TLS 1.2 and 1.3. Clones are the same.
#[derive(Clone)]
pub struct Tls(pub(crate) TlsAcceptor);

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tls")
    }
}

impl Tls {
    /// From a chain of certificates, the server's own first, and its private key (PKCS#8, PKCS#1 or SEC1), all PEM.
    ///
    /// # Errors
    /// A file cannot be read or used, or they do not belong together.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let unusable = |file: &Path, message: String| TlsError::Unusable { file: file.into(), message };
        let chain: Result<Vec<_>, PemError> = CertificateDer::pem_slice_iter(&read(certificate)?).collect();
        let chain = chain.map_err(|error| unusable(certificate, format!("no PEM: {error:?}")))?;
        if chain.is_empty() {
            return Err(unusable(certificate, "has no certificate in PEM form".into()));
        }
        let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| match error {
            PemError::NoItemsFound => unusable(key, "has no private key in PEM form that is not encrypted".into()),
            other => unusable(key, format!("no PEM: {other:?}")),
        })?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("it has suites for both versions");
        let config = builder.with_no_client_auth().with_single_cert(chain, private);
        let mut config = config.map_err(|error| match error {
            Error::InconsistentKeys(_) => TlsError::Apart { certificate: certificate.into(), key: key.into() },
            Error::InvalidCertificate(_) => unusable(certificate, error.to_string()),
            _ => unusable(key, error.to_string()),
        })?;
        // What connections speak; a client that only knows others is told so in the handshake.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let io = |source| TlsError::Io { file: file.into(), source };
    if std::fs::metadata(file).map_err(io)?.len() > MOST_BYTES {
        let message = format!("longer than {MOST_BYTES} bytes, which no such file is");
        return Err(TlsError::Unusable { file: file.into(), message });
    }
    std::fs::read(file).map_err(io)
}
