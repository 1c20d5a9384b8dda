//! What `rally run` does with a run: everything is submitted at once, and texts are collected until all requests have ended.

use super::collect::Collector;
use super::console::Console;
use crate::drive::{Client, End, drive_until_failure};
use crate::error::{Blame, CliError};
use crate::hosts::{Break, Meeting};
use crate::journal::Journal;
use crate::journal::record::Contents;
use crate::observe::Observer;
use crate::output::print_bytes;
use crate::requests::RequestId;
use crossbeam::channel::{Receiver, never};
use rally_engine::schedule::batch::{SequenceId, SequenceRequest, TokenDetail};
use rally_engine::schedule::planner::FinishReason;
use rally_engine::{Engine, EngineParts, Paused, RunEvent, RunReport, SubmitHandle};
use rally_stages::deployment::Deployment;
use rally_stages::text::TextCodec;
use std::time::Instant;

/// Most events between two times that what they brought is written down and shown.
const MOST_UNSETTLED: usize = 1024;

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
    /// Where prefixes are reused: tokens to read, and of them those that were cached.
    pub reused: Option<(u64, u64)>,
}

struct Run<'a> {
    jobs: &'a [Job],
    submitted: bool,
    collectors: Vec<Collector>,
    /// By job: it has ended, and nothing more is said of it.
    closed: Vec<bool>,
    console: &'a mut Console,
    /// By a stop string, since that was asked.
    ended: Vec<SequenceId>,
    journal: Option<Journal>,
    /// Ctrl-C came to a run with a journal: what is open is not over, but goes on another time.
    suspended: bool,
    /// Events since the last time that everything was written down and shown.
    unsettled: usize,
    /// Ctrl-C came.
    interrupted: bool,
    /// Since when the run stands still, for want of a host or because one has come back.
    stands_since: Option<Instant>,
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

/// A journal, and what was in it if the run is one that goes on.
#[derive(Default)]
pub struct Journaled {
    /// Is written.
    pub journal: Option<Journal>,
    /// Was read.
    pub contents: Option<Contents>,
}

/// Decodes all jobs to the end. With other hosts, whom `meeting` finds: a run whose host is lost goes on with those that are left, if they
/// can, and else once one is back that can. Sequences whose KV is still there go on from it, the others from their prompts and the
/// tokens they have.
/// So does the run of a journal.
pub fn decode(
    parts: EngineParts,
    jobs: &[Job],
    deployment: &Deployment,
    watchers: Watchers<'_>,
    journaled: Journaled,
    mut meeting: Option<Meeting>,
    reuse_prefixes: bool,
) -> Result<Outcome, CliError> {
    let Watchers { console, interrupts, observer } = watchers;
    let mut begun = Instant::now();
    let collectors = jobs.iter().map(|job| collector(job, deployment.codec.as_ref())).collect();
    let mut run = Run {
        jobs,
        submitted: false,
        collectors,
        closed: vec![false; jobs.len()],
        console,
        ended: Vec::new(),
        journal: journaled.journal,
        suspended: false,
        unsettled: 0,
        interrupted: false,
        stands_since: None,
    };
    if let Some(contents) = journaled.contents {
        run.restore(contents)?;
    }
    let mut first = true;
    let mut paused: Paused = (parts, None);
    loop {
        let (engine, goes_on) = match &mut meeting {
            Some(meeting) => meeting.begin(paused, interrupts)?,
            None => (Engine::start(paused.0).or_failure()?, false),
        };
        if reuse_prefixes {
            engine.reuse_prefixes();
        }
        observer.watch(&engine, deployment, &format!("{} {}", deployment.spec.name, deployment.schedule.label), None);
        if std::mem::take(&mut first) {
            begun = Instant::now();
            run.collectors.iter_mut().for_each(|collector| collector.submitted(begun));
            tracing::info!(requests = jobs.len(), "decoding");
        }
        run.begin(deployment.shape.max_positions, goes_on, &engine.handle())?;
        let look_out = meeting.as_ref().map(Meeting::look_out);
        let returned = look_out.as_ref().map_or_else(never, |look_out| look_out.returned.clone());
        match (drive_until_failure(&engine, &mut run, interrupts, observer, &returned)?, &mut meeting) {
            (End::Done { .. }, _) => {
                let elapsed_s = begun.elapsed().as_secs_f64();
                let reused = reuse_prefixes.then(|| engine.handle().prefix_queries_and_hits());
                engine.close();
                let report = engine.join();
                observer.finish();
                if let Some(journal) = &mut run.journal {
                    journal.close()?;
                }
                let interrupted = run.interrupted;
                return Ok(Outcome { collectors: run.collectors, report, interrupted, elapsed_s, reused });
            }
            (End::Failed(error), Some(meeting)) => {
                run.stands_since = Some(Instant::now());
                paused = meeting.pause(engine, Break::Failed(error))?;
            }
            (End::Returned(host), Some(meeting)) => {
                run.stands_since = Some(Instant::now());
                paused = meeting.pause(engine, Break::Returned(host))?;
            }
            (End::Returned(_), None) => unreachable!("hosts come back where there are some"),
            (End::Failed(error), None) => return Err(CliError::Failure(error.to_string())),
        }
    }
}

fn collector(job: &Job, codec: Option<&TextCodec>) -> Collector {
    let TokenDetail { logprobs, .. } = job.sequence.detail;
    let prompt_tokens = job.sequence.prompt.len();
    Collector::new(job.id.clone(), prompt_tokens, codec, &job.stops, logprobs.is_some())
}

impl Run<'_> {
    /// Everything is as the process before this one left it.
    fn restore(&mut self, contents: Contents) -> Result<(), CliError> {
        for (index, (tokens, end)) in contents.tokens.into_iter().zip(contents.ends).enumerate() {
            for sample in tokens {
                let progress = self.collectors[index].restore(sample).or_failure()?;
                self.console.text(index, &progress.text);
            }
            if let Some(reason) = end {
                self.close(index, reason)?;
            }
        }
        Ok(())
    }

    /// Everything is to be submitted, unless the planner `goes_on` with it. What had ended when an engine before this one failed, and was
    /// not told so, ends now.
    fn begin(&mut self, max_positions: usize, goes_on: bool, handle: &SubmitHandle) -> Result<(), CliError> {
        self.submitted = goes_on;
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
            // Its planner may not have heard.
            handle.cancel(index as u64);
        }
        if self.interrupted {
            for index in 0..self.jobs.len() {
                self.finish(index, FinishReason::Cancelled)?;
                handle.cancel(index as u64);
            }
        }
        self.settle()
    }

    fn finish(&mut self, index: usize, reason: FinishReason) -> Result<(), CliError> {
        if self.closed[index] {
            return Ok(());
        }
        // A stop string ends a request before its sequence is cancelled.
        let reason = if self.collectors[index].is_finished() { FinishReason::Stop } else { reason };
        if self.suspended && reason == FinishReason::Cancelled {
            self.closed[index] = true;
            self.collectors[index].finish(reason).or_failure()?;
            return Ok(());
        }
        if let Some(journal) = &mut self.journal {
            journal.end(index, reason);
        }
        self.close(index, reason)
    }

    fn close(&mut self, index: usize, reason: FinishReason) -> Result<(), CliError> {
        self.closed[index] = true;
        let rest = self.collectors[index].finish(reason).or_failure()?;
        self.console.text(index, &rest);
        let result = self.collectors[index].result();
        if result.text.is_none() {
            self.console.ids(index, &result.token_ids);
        }
        self.console.finished(index);
        Ok(())
    }

    /// Writes down what has happened, and then shows it.
    fn settle(&mut self) -> Result<(), CliError> {
        self.unsettled = 0;
        if let Some(journal) = &mut self.journal {
            journal.commit()?;
        }
        let ready = self.console.take_ready();
        if !ready.is_empty() {
            print_bytes(&ready)?;
            if let Some(journal) = &mut self.journal {
                journal.printed(self.console.position());
                journal.write()?;
            }
        }
        Ok(())
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
        self.journal.as_ref().and_then(Journal::sync_due)
    }

    fn is_done(&self) -> bool {
        self.closed.iter().all(|closed| *closed)
    }

    fn ended(&mut self) -> Option<SequenceId> {
        self.ended.pop()
    }

    fn event(&mut self, event: RunEvent, handle: &SubmitHandle) -> Result<(), CliError> {
        match event {
            RunEvent::Admitted(..) | RunEvent::Failed(_) => {}
            RunEvent::Token(report) => {
                let index = report.sample.sequence as usize;
                if let Some(since) = self.stands_since.take() {
                    let stood_ms = report.at.saturating_duration_since(since).as_secs_f64() * 1e3;
                    tracing::info!(stood_ms, "the run goes on");
                }
                // What comes behind a stop string, or behind an interrupt's end, is surplus.
                if let Some(journal) = self.journal.as_mut().filter(|_| !self.collectors[index].is_finished()) {
                    journal.token(report.index, &report.sample);
                }
                let progress = self.collectors[index].token(report).or_failure()?;
                self.console.text(index, &progress.text);
                if progress.stopped {
                    handle.cancel(index as u64);
                    self.ended.push(index as u64);
                }
            }
            RunEvent::Finished(sequence, reason, _) => self.finish(sequence as usize, reason)?,
        }
        self.unsettled += 1;
        if self.unsettled >= MOST_UNSETTLED { self.settle() } else { Ok(()) }
    }

    fn settled(&mut self) -> Result<(), CliError> {
        self.settle()
    }

    /// The step in flight ends; every request keeps what it has.
    fn interrupt(&mut self, handle: &SubmitHandle) {
        self.suspended = self.journal.is_some();
        self.interrupted = true;
        let open = self.collectors.iter().enumerate().filter(|(_, collector)| !collector.is_finished());
        open.for_each(|(index, _)| handle.cancel(index as u64));
    }
}
