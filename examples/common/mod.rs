//! What the examples share: where the tiny model is.

use std::path::{Path, PathBuf};

/// A path inside the repository, wherever the example is started from.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
