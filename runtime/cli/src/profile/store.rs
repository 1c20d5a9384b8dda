//! The table in the making, beside its file under another name: written whole after every walk or so, found again by the next
//! run of the same profile.

use super::grid::Axes;
use crate::error::{Blame, CliError};
use crate::output::OutputFile;
use rally_engine::schedule::cost_table::{CostPoint, StageCost};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What must be the same for points to be used again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Processor and program.
    pub machine: Value,
    /// The model.
    pub model: Value,
    /// The graph file, by its hash.
    pub graph: Value,
    /// The grid.
    pub axes: Axes,
    /// Milliseconds spent on a point.
    pub point_ms: u64,
    /// Whether CUDA devices took turns.
    pub in_turn: bool,
}

#[derive(Serialize, Deserialize)]
struct Partial {
    identity: Identity,
    /// Walks that are done.
    walks: usize,
    stages: Vec<StageCost>,
}

/// What an earlier run left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// Points of this profile.
    Same,
    /// Points of another one, or a file that is none.
    Other,
}

/// Points measured so far.
pub struct Store {
    path: PathBuf,
    partial: Partial,
    written: Instant,
}

/// A crash costs at most this much work.
const WRITE_EVERY: Duration = Duration::from_secs(1);

impl Store {
    /// Takes up what an earlier run of the same profile left beside `out`.
    pub fn open(out: &Path, identity: Identity) -> Result<(Self, Found), CliError> {
        let mut name = out.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        let (partial, found) = match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Partial>(&bytes) {
                Ok(partial) if partial.identity == identity => (Some(partial), Found::Same),
                _ => (None, Found::Other),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (None, Found::Nothing),
            Err(error) => return Err(CliError::Mistake(format!("{}: cannot be read: {error}", path.display()))),
        };
        let partial = partial.unwrap_or(Partial { identity, walks: 0, stages: Vec::new() });
        Ok((Self { path, partial, written: Instant::now() }, found))
    }

    /// Points that are there.
    pub fn count(&self) -> usize {
        self.partial.stages.iter().map(|stage| stage.points.len()).sum()
    }

    /// Walks that are done.
    pub fn walks(&self) -> usize {
        self.partial.walks
    }

    /// Another walk is done, and all its points are there.
    pub fn walked(&mut self) -> Result<(), CliError> {
        self.partial.walks += 1;
        if self.written.elapsed() >= WRITE_EVERY { self.write() } else { Ok(()) }
    }

    /// Adds a point of `cost`, which says of what and has no points, unless it is there.
    pub fn add(&mut self, cost: StageCost, point: CostPoint) {
        let same = |other: &&mut StageCost| {
            let key = |cost: &StageCost| (cost.stage.clone(), cost.part, cost.device.clone(), cost.warm);
            key(other) == key(&cost)
        };
        match self.partial.stages.iter_mut().find(same) {
            Some(known) => {
                let there = |other: &CostPoint| (other.rows, other.along) == (point.rows, point.along);
                if !known.points.iter().any(there) {
                    known.points.push(point);
                }
            }
            None => self.partial.stages.push(StageCost { points: vec![point], ..cost }),
        }
    }

    /// Writes what there is.
    pub fn write(&mut self) -> Result<(), CliError> {
        let partial = &self.partial;
        OutputFile::create(&self.path)?.finish(|out| serde_json::to_writer(out, partial).map_err(Into::into))?;
        self.written = Instant::now();
        Ok(())
    }

    /// Every stage with its points in order, and nothing beside the table any more once `write` has succeeded.
    pub fn finish(mut self, write: impl FnOnce(Vec<StageCost>) -> Result<(), CliError>) -> Result<(), CliError> {
        for stage in &mut self.partial.stages {
            stage.points.sort_by_key(|point| (point.rows, point.along));
        }
        write(self.partial.stages)?;
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).or_failure(),
            _ => Ok(()),
        }
    }
}
