//! `--journal` and `--resume`: where a run's requests come from, and where what becomes of them is written down.

use super::RunArgs;
use super::console::Console;
use super::decode::{Job, Journaled};
use super::jobs;
use crate::error::CliError;
use crate::journal::record::{Contents, JournaledRequest, Origin};
use crate::journal::{Journal, JournalError, SyncPolicy, origin, stdout_file};
use clap::Args;
use rally_engine::schedule::planner::StepPlanner;
use rally_stages::deployment::Deployment;
use std::path::{Path, PathBuf};

/// The journal's flags.
#[derive(Clone, Debug, Args)]
pub struct JournalArgs {
    /// Write down here what a process needs that goes on with this run: the requests, each token before it is shown, ends. A run that was
    /// killed, or interrupted, goes on with --resume.
    #[arg(long, value_name = "F", conflicts_with = "resume")]
    pub journal: Option<PathBuf>,
    /// Go on with the run of this journal: the same tokens, and on stdout only what is not there yet. Behind a file (`>> F`) that holds to
    /// the byte; elsewhere the piece that was being written when the process was killed may come twice.
    #[arg(long, value_name = "F")]
    pub resume: Option<PathBuf>,
    /// When the journal is synced to disk, which matters only if the machine goes down: before a `step` is shown, every so many
    /// milliseconds (`100ms`), or `never`; `step` unless given.
    #[arg(long, value_name = "step|Nms|never")]
    pub journal_sync: Option<SyncPolicy>,
}

impl JournalArgs {
    /// The journal's file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.journal.as_deref().or(self.resume.as_deref())
    }
}

/// The journal that a run begins with.
pub enum Beginning {
    /// None.
    Unwritten,
    /// A new one.
    New(PathBuf, Origin, SyncPolicy),
    /// One with something in it.
    Old(Box<(Journal, Contents)>),
}

/// The jobs of a run, and its journal. A new one is only made by [`Beginning::begin`]: nothing is left of a run that cannot begin.
pub fn jobs(args: &RunArgs, deployment: &Deployment) -> Result<(Vec<Job>, Beginning), CliError> {
    let JournalArgs { journal, resume, journal_sync } = &args.journal;
    if journal_sync.is_some() && args.journal.path().is_none() {
        return Err(CliError::Mistake("--journal-sync: there is no --journal to sync".into()));
    }
    let sync = journal_sync.unwrap_or_default();
    if let Some(path) = resume {
        let (journal, mut contents) = Journal::open(path, &origin(deployment, 0)?, sync)?;
        let jobs =
            std::mem::take(&mut contents.requests).into_iter().map(|request| job(request, args, deployment, path));
        return Ok((jobs.collect::<Result<_, _>>()?, Beginning::Old(Box::new((journal, contents)))));
    }
    let jobs = jobs::make(args, deployment)?;
    let Some(path) = journal else { return Ok((jobs, Beginning::Unwritten)) };
    // Known before weights are read.
    if path.exists() {
        return Err(JournalError::Exists { path: path.clone() }.into());
    }
    let origin = origin(deployment, jobs.len())?;
    Ok((jobs, Beginning::New(path.clone(), origin, sync)))
}

/// What a journal says is believed no more than a request file: limits may have become smaller.
fn job(request: JournaledRequest, args: &RunArgs, deployment: &Deployment, path: &Path) -> Result<Job, CliError> {
    let JournaledRequest { id, opening, sequence, stops } = request;
    let mistake = |what: String| CliError::Mistake(format!("{}: request `{id}`: {what}", path.display()));
    if args.logits.is_some() && !sequence.detail.logits {
        return Err(mistake(
            "the run of this journal kept no logits, and --logits has to be given from the beginning".into(),
        ));
    }
    let vocab = deployment.shape.vocab;
    if let Some(token) = sequence.prompt.iter().find(|token| **token as usize >= vocab) {
        return Err(mistake(format!("token id {token} is outside the vocabulary of {vocab}")));
    }
    StepPlanner::new(deployment.planner_config()).accepts(&sequence).map_err(|error| mistake(error.to_string()))?;
    Ok(Job { id, opening, sequence, stops })
}

impl Beginning {
    /// Makes the journal if it is a new one, and lets `console` begin where the process before this one ended.
    pub fn begin(self, jobs: &[Job], console: &mut Console) -> Result<Journaled, CliError> {
        match self {
            Self::Unwritten => Ok(Journaled::default()),
            Self::New(path, origin, sync) => {
                let requests = jobs.iter().map(|job| JournaledRequest {
                    id: job.id.clone(),
                    opening: job.opening.clone(),
                    sequence: job.sequence.clone(),
                    stops: job.stops.clone(),
                });
                Ok(Journaled { journal: Some(Journal::create(&path, origin, requests, sync)?), contents: None })
            }
            Self::Old(old) => {
                let (journal, contents) = *old;
                let same = |there: &crate::journal::record::OutputPlace| {
                    stdout_file().filter(|here| (here.device, here.inode) == (there.device, there.inode))
                };
                match contents.origin.stdout.and_then(|there| Some((there, same(&there)?))) {
                    // What is in the file was printed, whatever the journal knows of it.
                    Some((there, here)) => console.begin_behind(here.bytes.saturating_sub(there.bytes)),
                    None => console.begin_at(contents.printed),
                }
                Ok(Journaled { journal: Some(journal), contents: Some(contents) })
            }
        }
    }
}
