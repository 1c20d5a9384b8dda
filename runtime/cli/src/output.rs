//! Files that are there whole or not at all, and a stdout whose failures are seen.
//!
//! A result file is written beside its target under another name, synced, and renamed when complete. What is no regular file
//! (`/dev/stdout`, a pipe) is written directly.

use crate::error::{Blame, CliError};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

enum Target {
    Direct(File),
    Renamed(NamedTempFile),
}

/// An output file in the making. Dropped before [`OutputFile::finish`], it leaves nothing behind.
pub struct OutputFile {
    path: PathBuf,
    target: Target,
}

impl OutputFile {
    /// Opens the output, so that a wrong path is known before any work is done.
    pub fn create(path: &Path) -> Result<Self, CliError> {
        let mistake = |error: io::Error| CliError::Mistake(format!("{}: cannot be written: {error}", path.display()));
        let special = std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
        let target = if special {
            Target::Direct(File::options().write(true).open(path).map_err(mistake)?)
        } else {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Target::Renamed(NamedTempFile::new_in(folder).map_err(mistake)?)
        };
        Ok(Self { path: path.into(), target })
    }

    /// Writes everything through `write`, syncs, and puts the file in its place.
    pub fn finish(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
        let path = self.path;
        let failure =
            |error: io::Error| CliError::Failure(format!("{}: could not be written: {error}", path.display()));
        match self.target {
            Target::Direct(mut file) => write_buffered(&mut file, write).map_err(failure),
            Target::Renamed(mut temporary) => {
                write_buffered(temporary.as_file_mut(), write).map_err(failure)?;
                temporary.as_file().sync_all().map_err(failure)?;
                readable_like_others(&temporary).map_err(failure)?;
                temporary.persist(&path).map_err(|error| failure(error.error)).map(drop)
            }
        }
    }
}

fn write_buffered(file: &mut File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut buffered = BufWriter::new(file);
    write(&mut buffered)?;
    buffered.flush()
}

/// Temporary files are private; a result is an ordinary file.
#[cfg(unix)]
fn readable_like_others(file: &NamedTempFile) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable_like_others(_file: &NamedTempFile) -> io::Result<()> {
    Ok(())
}

/// Prints to stdout and flushes; a closed pipe is an error like any other.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| format!("stdout: could not be written: {error}")).or_failure()
}
