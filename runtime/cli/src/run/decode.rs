//! What `rally run` does with a run: everything is submitted at once, and texts are collected until all requests have ended.

use super::collect::Collector;
use super::console::Console;
use crate::drive::{Client, drive};
use crate::error::{Blame, CliError};
use crate::observe::Observer;
use crate::requests::RequestId;
use crossbeam::channel::Receiver;
use rally_engine::schedule::batch::{SequenceId, SequenceRequest, TokenDetail};
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
    console: &'a mut Console,
    open: usize,
    /// By a stop string, at the last event.
    ended: Option<SequenceId>,
}

/// Decodes all jobs to the end, watched by `observer`.
pub fn decode(
    parts: EngineParts,
    jobs: &[Job],
    deployment: &Deployment,
    console: &mut Console,
    interrupts: &Receiver<()>,
    observer: &mut Observer,
) -> Result<Outcome, CliError> {
    let engine = Engine::start(parts).or_failure()?;
    observer.watch(&engine, deployment, &format!("{} {}", deployment.spec.name, deployment.schedule.label), None);
    let begun = Instant::now();
    let collectors = jobs.iter().map(|job| collector(job, deployment.codec.as_ref(), begun)).collect();
    let mut run = Run { jobs, submitted: false, collectors, console, open: jobs.len(), ended: None };
    tracing::info!(requests = jobs.len(), "decoding");
    let interrupted = drive(&engine, &mut run, interrupts, observer)?;
    let elapsed_s = begun.elapsed().as_secs_f64();
    engine.close();
    let report = engine.join();
    observer.finish();
    Ok(Outcome { collectors: run.collectors, report, interrupted, elapsed_s })
}

fn collector(job: &Job, codec: Option<&TextCodec>, submitted: Instant) -> Collector {
    let TokenDetail { logprobs, .. } = job.sequence.detail;
    let prompt_tokens = job.sequence.prompt.len();
    Collector::new(job.id.clone(), prompt_tokens, codec, &job.stops, logprobs.is_some(), submitted)
}

impl Client for Run<'_> {
    /// Everything, together, once.
    fn due(&mut self, _now: Instant) -> Vec<SequenceRequest> {
        if std::mem::replace(&mut self.submitted, true) {
            return Vec::new();
        }
        self.jobs.iter().map(|job| job.sequence.clone()).collect()
    }

    fn next_due(&self) -> Option<Instant> {
        None
    }

    fn is_done(&self) -> bool {
        self.open == 0
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
            RunEvent::Finished(sequence, reason, _) => {
                let index = sequence as usize;
                let rest = self.collectors[index].finish(reason).or_failure()?;
                self.console.text(index, &rest)?;
                let result = self.collectors[index].result();
                if result.text.is_none() {
                    self.console.ids(index, &result.token_ids);
                }
                self.open -= 1;
                self.console.finished(index)
            }
        }
    }

    /// The step in flight ends; every request keeps what it has.
    fn interrupt(&mut self, handle: &SubmitHandle) {
        let open = self.collectors.iter().enumerate().filter(|(_, collector)| !collector.is_finished());
        open.for_each(|(index, _)| handle.cancel(index as u64));
    }
}
