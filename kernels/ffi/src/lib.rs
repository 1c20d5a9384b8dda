//! Calls into the operating system and into libraries that need `unsafe`: memory mapping, and what NIXL needs.
//!
//! Owns read-only file mappings. Knows nothing of checkpoints, tensors or devices.

#[cfg(feature = "nixl")]
pub mod nixl;

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A whole file mapped read-only; dereferences to its bytes and unmaps when dropped.
#[derive(Debug)]
pub struct MappedFile {
    /// `None` for an empty file, which the system cannot map.
    map: Option<memmap2::Mmap>,
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }
}

/// Maps the file at `path` read-only.
///
/// The file must not be truncated or rewritten while the mapping lives: a checkpoint is read-only input by
/// convention, as it is for every loader that maps safetensors files.
///
/// # Errors
///
/// Whatever opening, inspecting or mapping the file reports.
pub fn map_file(path: &Path) -> io::Result<MappedFile> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(MappedFile { map: None });
    }
    // SAFETY: the mapping is private to this process and read-only. Another process changing the file meanwhile is
    // outside what any mapping can guard against; the contract above excludes it.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(MappedFile { map: Some(map) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn maps_the_bytes_of_a_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"rally").unwrap();
        assert_eq!(&*map_file(file.path()).unwrap(), b"rally");
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(map_file(file.path()).unwrap().is_empty());
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = map_file(&folder.path().join("absent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
