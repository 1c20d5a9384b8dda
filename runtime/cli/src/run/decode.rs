//! What `rally run` does with a run: everything is submitted at once, and texts are collected until all requests have ended.

use super::collect::Collector;
use super::console::Console;
use crate::drive::{Client, End, drive_until_failure};
use crate::error::{Blame, CliError};
use crate::hosts::Meeting;
use crate::observe::Observer;
use crate::requests::RequestId;
use crossbeam::channel::Receiver;
use rally_engine::schedule::batch::{SequenceId, SequenceRequest, TokenDetail};
use rally_engine::schedule::planner::FinishReason;
use rally_engine::{Engine, EngineParts, RunEvent, RunReport, SubmitHandle};
use rally_stages::deployment::Deployment;
use rally_stages::text::TextCodec;
use std::time::Instant;

/// One request, ready to be submitted.
pub struct Job {
    /// As in the request.
    pub id: RequestId,
    /// Shown before its text.
    pub opening: String,
    /// What is decoded; its id is the job's index.
    pub sequence: SequenceRequest,
    /// Stop strings.
    pub stops: Vec<String>,
}

/// What a run produced.
pub struct Outcome {
    /// By job.
    pub collectors: Vec<Collector>,
    /// What the lanes did.
    pub report: RunReport,
    /// Ctrl-C came before the end.
    pub interrupted: bool,
    /// From submission to the last event.
    pub elapsed_s: f64,
}

struct Run<'a> {
    jobs: &'a [Job],
    submitted: bool,
    collectors: Vec<Collector>,
    /// By job: it has ended, and nothing more is said of it.
    closed: Vec<bool>,
    console: &'a mut Console,
    /// By a stop string, at the last event.
    ended: Option<SequenceId>,
}

/// Who sees a run and who may end it.
pub struct Watchers<'a> {
    /// Shows texts.
    pub console: &'a mut Console,
    /// Ctrl-C.
    pub interrupts: &'a Receiver<()>,
    /// Counts and shows what happens.
    pub observer: &'a mut Observer,
}

/// Decodes all jobs to the end. With other hosts, whom `meeting` finds: a run whose host is lost goes on when all are there again,
/// each sequence from its prompt and the tokens it has.
pub fn decode(
    mut parts: EngineParts,
    jobs: &[Job],
    deployment: &Deployment,
    watchers: Watchers<'_>,
    mut meeting: Option<Meeting>,
) -> Result<Outcome, CliError> {
    let Watchers { console, interrupts, observer } = watchers;
    let mut begun = Instant::now();
    let mut run: Option<Run<'_>> = None;
    let mut console = Some(console);
    loop {
        if let Some(meeting) = &mut meeting {
            parts.across = Some(meeting.meet(interrupts)?);
        }
        let engine = match (Engine::try_start(parts), &mut meeting) {
            (Ok(engine), _) => engine,
            (Err((error, left)), Some(meeting)) => {
                meeting.lost(&error)?;
                parts = *left;
                continue;
            }
            (Err((error, _)), None) => return Err(CliError::Failure(error.to_string())),
        };
        if let Some(meeting) = &mut meeting {
            meeting.is_complete();
        }
        observer.watch(&engine, deployment, &format!("{} {}", deployment.spec.name, deployment.schedule.label), None);
        if let Some(console) = console.take() {
            begun = Instant::now();
            let collectors = jobs.iter().map(|job| collector(job, deployment.codec.as_ref(), begun)).collect();
            let closed = vec![false; jobs.len()];
            run = Some(Run { jobs, submitted: false, collectors, closed, console, ended: None });
            tracing::info!(requests = jobs.len(), "decoding");
        }
        let run_of = run.as_mut().expect("it was begun with the first engine");
        run_of.begin(deployment.shape.max_positions)?;
        match (drive_until_failure(&engine, run_of, interrupts, observer)?, &mut meeting) {
            (End::Done { interrupted }, _) => {
                let elapsed_s = begun.elapsed().as_secs_f64();
                engine.close();
                let report = engine.join();
                observer.finish();
                let collectors = run.take().map(|run| run.collectors).unwrap_or_default();
                return Ok(Outcome { collectors, report, interrupted, elapsed_s });
            }
            (End::Failed(error), Some(meeting)) => {
                parts = engine.stop();
                meeting.lost(&error)?;
                eprintln!("{error}; its sequences go on when all hosts are there");
            }
            (End::Failed(error), None) => return Err(CliError::Failure(error.to_string())),
        }
    }
}

fn collector(job: &Job, codec: Option<&TextCodec>, submitted: Instant) -> Collector {
    let TokenDetail { logprobs, .. } = job.sequence.detail;
    let prompt_tokens = job.sequence.prompt.len();
    Collector::new(job.id.clone(), prompt_tokens, codec, &job.stops, logprobs.is_some(), submitted)
}

impl Run<'_> {
    /// Everything is to be submitted. What had ended when an engine before this one failed, and was not told so, ends now.
    fn begin(&mut self, max_positions: usize) -> Result<(), CliError> {
        self.submitted = false;
        for index in 0..self.jobs.len() {
            let (sequence, tokens) = (&self.jobs[index].sequence, self.collectors[index].token_ids());
            let most = sequence.max_new_tokens.min(max_positions.saturating_sub(sequence.prompt.len()));
            let reason = match tokens.last() {
                _ if self.collectors[index].is_finished() => FinishReason::Stop,
                Some(last) if sequence.stop_token_ids.contains(last) => FinishReason::Stop,
                Some(_) if tokens.len() >= most => FinishReason::Length,
                _ => continue,
            };
            self.finish(index, reason)?;
        }
        Ok(())
    }

    fn finish(&mut self, index: usize, reason: FinishReason) -> Result<(), CliError> {
        if std::mem::replace(&mut self.closed[index], true) {
            return Ok(());
        }
        let rest = self.collectors[index].finish(reason).or_failure()?;
        self.console.text(index, &rest)?;
        let result = self.collectors[index].result();
        if result.text.is_none() {
            self.console.ids(index, &result.token_ids);
        }
        self.console.finished(index)
    }
}

impl Client for Run<'_> {
    /// Everything that is open, together, once; with the tokens it has.
    fn due(&mut self, _now: Instant) -> Vec<SequenceRequest> {
        if std::mem::replace(&mut self.submitted, true) {
            return Vec::new();
        }
        let open = (0..self.jobs.len()).filter(|index| !self.closed[*index]);
        let request = |index: usize| SequenceRequest {
            generated: self.collectors[index].token_ids().into(),
            ..self.jobs[index].sequence.clone()
        };
        open.map(request).collect()
    }

    fn next_due(&self) -> Option<Instant> {
        None
    }

    fn is_done(&self) -> bool {
        self.closed.iter().all(|closed| *closed)
    }

    fn ended(&mut self) -> Option<SequenceId> {
        self.ended.take()
    }

    fn event(&mut self, event: RunEvent, handle: &SubmitHandle) -> Result<(), CliError> {
        match event {
            RunEvent::Admitted(..) | RunEvent::Failed(_) => Ok(()),
            RunEvent::Token(report) => {
                let index = report.sample.sequence as usize;
                let progress = self.collectors[index].token(report).or_failure()?;
                if !progress.text.is_empty() {
                    self.console.text(index, &progress.text)?;
                }
                if progress.stopped {
                    handle.cancel(index as u64);
                    self.ended = Some(index as u64);
                }
                Ok(())
            }
            RunEvent::Finished(sequence, reason, _) => self.finish(sequence as usize, reason),
        }
    }

    /// The step in flight ends; every request keeps what it has.
    fn interrupt(&mut self, handle: &SubmitHandle) {
        let open = self.collectors.iter().enumerate().filter(|(_, collector)| !collector.is_finished());
        open.for_each(|(index, _)| handle.cancel(index as u64));
    }
}
