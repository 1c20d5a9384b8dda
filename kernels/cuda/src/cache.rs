//! Compiled kernels on disk, so that a second start compiles nothing. Owns the files' form and nothing of compilation.
//!
//! An entry is one file named by its key: a header with a magic word, the content's length and its hash, then the
//! cubin. It is written beside its place and renamed, so that readers see all of it or nothing; one that is torn,
//! truncated or altered is not an error but a miss, and is replaced.

use crate::error::CudaError;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// First bytes of an entry; the digit is the form's version.
const MAGIC: &[u8; 8] = b"rallycu1";
/// Magic word, length, hash.
const HEADER_BYTES: usize = 8 + 8 + 16;

/// FNV-1a of 128 bits: equal on every machine and in every version, which the standard library's hashers do not promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl Fingerprint {
    /// Of nothing yet.
    pub fn new() -> Fingerprint {
        Fingerprint(0x6c62272e07bb014262b821756295c58d)
    }

    /// With one more part. A part's length counts, so that parts cannot flow into each other.
    #[must_use]
    pub fn with(self, part: &[u8]) -> Fingerprint {
        let length = (part.len() as u64).to_le_bytes();
        Fingerprint(
            length
                .iter()
                .chain(part)
                .fold(self.0, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(0x0000000001000000000000000000013b)),
        )
    }
}

impl Default for Fingerprint {
    fn default() -> Fingerprint {
        Fingerprint::new()
    }
}

/// A folder of compiled kernels.
#[derive(Debug, Clone)]
pub struct CubinCache {
    folder: PathBuf,
}

impl CubinCache {
    /// `$XDG_CACHE_HOME/rally/cubin`, or `~/.cache/rally/cubin`; nowhere if neither variable is set.
    pub fn for_user() -> Option<CubinCache> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(CubinCache::in_folder(base.join("rally").join("cubin")))
    }

    /// In a folder of the caller's, made when first written to.
    pub fn in_folder(folder: impl Into<PathBuf>) -> CubinCache {
        CubinCache { folder: folder.into() }
    }

    /// Where entries are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where an entry of `name` and key lies.
    pub fn path(&self, name: &str, key: Fingerprint) -> PathBuf {
        self.folder.join(format!("{name}-{:032x}.cubin", key.0))
    }

    /// The cubin under a key, if a whole one is there.
    pub fn read(&self, name: &str, key: Fingerprint) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path(name, key)).ok()?;
        let (header, cubin) = bytes.split_at_checked(HEADER_BYTES)?;
        (header == entry_header(cubin)).then(|| cubin.to_vec())
    }

    /// Keeps a cubin under a key.
    ///
    /// # Errors
    /// [`CudaError::Cache`] if the folder or the file cannot be written.
    pub fn write(&self, name: &str, key: Fingerprint, cubin: &[u8]) -> Result<(), CudaError> {
        let failed = |source| CudaError::Cache { path: self.folder.clone(), source };
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).map_err(failed)?;
        file.write_all(&entry_header(cubin)).and_then(|()| file.write_all(cubin)).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(self.path(name, key)).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

fn entry_header(cubin: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&(cubin.len() as u64).to_le_bytes());
    header[16..].copy_from_slice(&Fingerprint::new().with(cubin).0.to_le_bytes());
    header
}
