//! The journal's file: made whole or not at all, appended to, synced as the user wants it, held by one process at a time.

use super::record::{
    Contents, JournalFault, JournaledRequest, MAGIC, Origin, Position, Record, encode_request, encode_token, read,
};
use rally_engine::schedule::planner::FinishReason;
use rally_engine::stage::Sample;
use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// When what was written is made to survive a machine that goes down. A process that dies loses nothing under any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Before anything of a step is shown.
    #[default]
    Step,
    /// This long after it was written at the latest.
    Every(Duration),
    /// When the system sees fit.
    Never,
}

impl FromStr for SyncPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let milliseconds = |text: &str| text.parse().ok().filter(|ms| (1..=3_600_000).contains(ms));
        match (text, text.strip_suffix("ms").and_then(milliseconds)) {
            ("step", _) => Ok(Self::Step),
            ("never", _) => Ok(Self::Never),
            (_, Some(ms)) => Ok(Self::Every(Duration::from_millis(ms))),
            _ => Err("expected `step`, `never`, or milliseconds such as `100ms`".into()),
        }
    }
}

/// Why there is no journal, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A run must not write over another one's.
    #[error("{}: there is a journal already: `--resume` goes on with its run, another file name begins another", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("{}: another run is writing this journal", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// The system's fault.
    #[error("{}: {what}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// What is in it.
    #[error("{}: {source}", path.display())]
    Fault {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: JournalFault,
    },
    /// It is of something else.
    #[error("{}: the journal is of another {what}: {there} there, {here} here", path.display())]
    Differs {
        /// The file.
        path: PathBuf,
        /// In what.
        what: &'static str,
        /// In the journal.
        there: String,
        /// Of this run.
        here: String,
    },
}

impl JournalError {
    /// Whether another file, graph or flag helps.
    pub fn is_mistake(&self) -> bool {
        !matches!(self, Self::Io { what: CANNOT_WRITE, .. })
    }
}

const CANNOT_WRITE: &str = "could not be written; what is in it stays, and `--resume` goes on from there";

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    sync: SyncPolicy,
    /// Not written yet.
    buffer: Vec<u8>,
    /// Bytes of the file that are whole records.
    written: u64,
    /// Since when something is written and not synced.
    unsynced: Option<Instant>,
}

impl Journal {
    /// A new one, with the requests in it and on disk. It appears under its name with all of them, or not at all.
    ///
    /// # Errors
    /// [`JournalError::Exists`], [`JournalError::Io`].
    pub fn create(
        path: &Path,
        origin: Origin,
        requests: impl IntoIterator<Item = JournaledRequest>,
        sync: SyncPolicy,
    ) -> Result<Self, JournalError> {
        let fault = |what, source| JournalError::Io { path: path.into(), what, source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary = NamedTempFile::new_in(folder).map_err(|error| fault("cannot be made", error))?;
        let write = |temporary: &mut NamedTempFile| {
            let mut out = io::BufWriter::new(temporary.as_file_mut());
            out.write_all(&MAGIC)?;
            out.write_all(&Record::Begin(origin).encode())?;
            requests.into_iter().try_for_each(|request| out.write_all(&encode_request(&request)))?;
            out.flush()?;
            drop(out);
            // Held before it has its name: nobody else can come in between.
            temporary.as_file().lock()?;
            temporary.as_file().sync_all()
        };
        write(&mut temporary).map_err(|error| fault("cannot be written", error))?;
        let mut file = temporary.persist_noclobber(path).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => JournalError::Exists { path: path.into() },
            _ => fault("cannot be made", error.error),
        })?;
        // A name is on disk when its folder is.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| fault("cannot be made", error))?;
        let written = file.stream_position().map_err(|error| fault("cannot be written", error))?;
        Ok(Self { path: path.into(), file, sync, buffer: Vec::new(), written, unsynced: None })
    }

    /// The journal of a run that did not end, to go on with; half a record at its end is cut off. `here` says what this run is of, but
    /// for its requests and its output.
    ///
    /// # Errors
    /// [`JournalError`], all kinds but `Exists`.
    pub fn open(path: &Path, here: &Origin, sync: SyncPolicy) -> Result<(Self, Contents), JournalError> {
        let fault = |what, source| JournalError::Io { path: path.into(), what, source };
        let mut file =
            File::options().read(true).write(true).open(path).map_err(|error| fault("cannot be opened", error))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::Taken { path: path.into() },
            TryLockError::Error(error) => fault("cannot be locked", error),
        })?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes).map_err(|error| fault("cannot be read", error))?;
        let contents = read(&bytes).map_err(|source| JournalError::Fault { path: path.into(), source })?;
        agree(path, &contents.origin, here)?;
        let (whole, cut) = (contents.whole_bytes as u64, bytes.len() - contents.whole_bytes);
        if cut > 0 {
            tracing::info!(path = %path.display(), bytes = cut, "half a record at the end of the journal is cut off");
            file.set_len(whole).map_err(|error| fault("cannot be written", error))?;
        }
        file.seek(SeekFrom::Start(whole)).map_err(|error| fault("cannot be read", error))?;
        Ok((Self { path: path.into(), file, sync, buffer: Vec::new(), written: whole, unsynced: None }, contents))
    }

    /// The token of this index was generated.
    pub fn token(&mut self, index: u64, sample: &Sample) {
        self.buffer.extend(encode_token(index, sample));
    }

    /// A request has ended.
    pub fn end(&mut self, request: usize, reason: FinishReason) {
        self.buffer.extend(Record::End { request, reason }.encode());
    }

    /// So much is on stdout.
    pub fn printed(&mut self, position: Position) {
        self.buffer.extend(Record::Printed(position).encode());
    }

    /// Writes what was noted; afterwards it survives this process's death, and the machine's if every step is to be synced.
    ///
    /// # Errors
    /// The disk is full, or fails. Half a record that got there is taken back.
    pub fn commit(&mut self) -> Result<(), JournalError> {
        self.write()?;
        match (self.sync, self.unsynced) {
            (SyncPolicy::Step, Some(_)) => self.sync(),
            (SyncPolicy::Every(most), Some(since)) if since.elapsed() >= most => self.sync(),
            _ => Ok(()),
        }
    }

    /// Writes what was noted, and syncs nothing: what it says of is out already.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub fn write(&mut self) -> Result<(), JournalError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if let Err(source) = self.file.write_all(&self.buffer) {
            // If even that fails, the next reader cuts it off.
            let _ = self.file.set_len(self.written);
            return Err(self.cannot_write(source));
        }
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.unsynced.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// When something has to be synced, whatever else happens.
    pub fn sync_due(&self) -> Option<Instant> {
        match (self.sync, self.unsynced) {
            (SyncPolicy::Every(most), Some(since)) => Some(since + most),
            _ => None,
        }
    }

    /// The run has ended.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub fn close(&mut self) -> Result<(), JournalError> {
        self.write()?;
        if self.sync == SyncPolicy::Never { Ok(()) } else { self.sync() }
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|source| self.cannot_write(source))?;
        self.unsynced = None;
        Ok(())
    }

    fn cannot_write(&self, source: io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), what: CANNOT_WRITE, source }
    }
}

fn agree(path: &Path, there: &Origin, here: &Origin) -> Result<(), JournalError> {
    let differs =
        |what, there: String, here: String| Err(JournalError::Differs { path: path.into(), what, there, here });
    let graph = |origin: &Origin| format!("`{}` ({})", origin.graph_name, origin.graph);
    match () {
        () if there.version != here.version => differs("version of rally", there.version.clone(), here.version.clone()),
        () if there.graph != here.graph => differs("graph", graph(there), graph(here)),
        () if there.model != here.model => differs("model", there.model.to_string(), here.model.to_string()),
        () => Ok(()),
    }
}
