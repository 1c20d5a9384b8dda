//! Files that are there whole or not at all, and a stdout whose failures are seen.
//!
//! A result file is written beside its target under another name, synced, and renamed when complete. What is no regular file
//! (`/dev/stdout`, a pipe) is written directly.

use crate::error::{Blame, CliError};
use crate::observe::screen;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

enum Target {
    /// This process's own stdout, under a name: opened a second time, a redirected stdout would have two places to write at.
    Stdout,
    Direct(File),
    /// Under this name once complete.
    Renamed(PathBuf),
}

/// An output file to come. Dropped before [`OutputFile::finish`], it leaves nothing behind; so does a process that is killed
/// before it.
pub struct OutputFile {
    path: PathBuf,
    target: Target,
}

impl OutputFile {
    /// Tries the output, so that a wrong path is known before any work is done.
    pub fn create(path: &Path) -> Result<Self, CliError> {
        let mistake = |error: io::Error| CliError::Mistake(format!("{}: cannot be written: {error}", path.display()));
        let target = if ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name)) {
            Target::Stdout
        } else if is_special(path) {
            Target::Direct(File::options().append(true).open(path).map_err(mistake)?)
        } else {
            // A link stays a link: what it points at is replaced.
            let target = path.canonicalize().unwrap_or_else(|_| path.into());
            temporary_beside(&target).map_err(mistake)?;
            Target::Renamed(target)
        };
        Ok(Self { path: path.into(), target })
    }

    /// Writes everything through `write`, syncs, and puts the file in its place.
    pub fn finish(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
        let path = self.path;
        let failure =
            |error: io::Error| CliError::Failure(format!("{}: could not be written: {error}", path.display()));
        match self.target {
            Target::Stdout => write_buffered(&mut io::stdout().lock(), write).map_err(failure),
            Target::Direct(mut file) => write_buffered(&mut file, write).map_err(failure),
            Target::Renamed(target) => {
                let mut temporary = temporary_beside(&target).map_err(failure)?;
                write_buffered(temporary.as_file_mut(), write).map_err(failure)?;
                temporary.as_file().sync_all().map_err(failure)?;
                readable_like_others(&temporary).map_err(failure)?;
                temporary.persist(&target).map_err(|error| failure(error.error)).map(drop)
            }
        }
    }
}

/// Files that a command reads and writes, each with how the user gave it: `--out`, `the graph`.
#[derive(Default)]
pub struct FilesInUse<'a> {
    inputs: Vec<(&'a str, &'a Path)>,
    outputs: Vec<(&'a str, &'a Path)>,
    model: Option<&'a Path>,
}

impl<'a> FilesInUse<'a> {
    /// A command that reads `graph` and the checkpoint in the folder `model`; what is no folder holds nothing to protect.
    pub fn new(graph: &'a Path, model: &'a str) -> Self {
        Self { inputs: vec![("the graph", graph)], outputs: Vec::new(), model: Some(Path::new(model)) }
    }

    /// Adds a file that is read, if it was given.
    pub fn reads(mut self, name: &'a str, path: Option<&'a Path>) -> Self {
        self.inputs.extend(path.map(|path| (name, path)));
        self
    }

    /// Adds a file that is written, if it was given.
    pub fn writes(mut self, name: &'a str, path: Option<&'a Path>) -> Self {
        self.outputs.extend(path.map(|path| (name, path)));
        self
    }

    /// Refuses an output that would replace an input, and two outputs under one name, of which one would be lost.
    pub fn check(&self) -> Result<(), CliError> {
        for (index, (name, path)) in self.outputs.iter().enumerate() {
            let place = place(path);
            let same = |(_, other): &&(&str, &Path)| self::place(other) == place;
            if let Some((other, _)) = self.outputs[..index].iter().find(same) {
                return Err(CliError::Mistake(format!(
                    "{other} and {name} both name {}: use two files",
                    path.display()
                )));
            }
            let read = self.inputs.iter().find(same).map(|(input, _)| *input);
            let of_model = place.parent().is_some_and(|folder| Some(folder) == self.model) && place.exists();
            if let Some(input) = read.or(of_model.then_some("a file of the model")) {
                return Err(CliError::Mistake(format!(
                    "{name} {}: this is {input}, which is read, and would be replaced: write to another file",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

/// Where a file is or will be, the same under all its names. What is no regular file is only what it is called: stdin and stdout
/// may be one terminal.
fn place(path: &Path) -> PathBuf {
    if is_special(path) {
        return path.into();
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    path.canonicalize()
        .ok()
        .or_else(|| Some(folder.canonicalize().ok()?.join(path.file_name()?)))
        .unwrap_or(path.into())
}

/// What a rename must never replace: pipes, devices, folders, and the names a system gives to open files. `/dev/stderr` looks
/// like the file that stderr was redirected to, and renaming over it would break it for everyone.
fn is_special(path: &Path) -> bool {
    let system = ["/dev", "/proc"].iter().any(|folder| path.starts_with(folder));
    match std::fs::metadata(path) {
        Ok(metadata) => system || !metadata.is_file(),
        Err(_) => false,
    }
}

fn temporary_beside(target: &Path) -> io::Result<NamedTempFile> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    NamedTempFile::new_in(folder)
}

fn write_buffered(file: &mut impl Write, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
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
    print_bytes(text.as_bytes())
}

/// The same of bytes, which may begin or end within a character.
pub fn print_bytes(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let shared = stdout.is_terminal();
    let mut write = || stdout.write_all(bytes).and_then(|()| stdout.flush());
    // A live view may stand where this goes.
    let written = if shared { screen::above(write) } else { write() };
    written.map_err(|error| format!("stdout: could not be written: {error}")).or_failure()
}
