//! The run loop of `rally run`: submit everything, collect events until all requests have ended, or Ctrl-C.

use super::collect::Collector;
use super::console::Console;
use crate::error::{Blame, CliError};
use crate::requests::RequestId;
use crossbeam::channel::{Receiver, select};
use rally_engine::schedule::batch::{SequenceRequest, TokenDetail};
use rally_engine::{Engine, EngineParts, RunEvent, RunReport};
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
    engine: Engine,
    collectors: Vec<Collector>,
    console: &'a mut Console,
    open: usize,
    interrupted: bool,
}

/// Decodes all jobs to the end.
pub fn decode(
    parts: EngineParts,
    jobs: &[Job],
    codec: Option<&TextCodec>,
    console: &mut Console,
    interrupts: &Receiver<()>,
) -> Result<Outcome, CliError> {
    let engine = Engine::start(parts).or_failure()?;
    let submitted = Instant::now();
    let collectors = jobs.iter().map(|job| collector(job, codec, submitted)).collect();
    engine.submit(jobs.iter().map(|job| job.sequence.clone())).or_mistake()?;
    let mut run = Run { engine, collectors, console, open: jobs.len(), interrupted: false };
    tracing::info!(requests = jobs.len(), "decoding");
    while run.open > 0 {
        select! {
            recv(run.engine.events()) -> event => match event {
                Ok(event) => run.event(event)?,
                Err(_) => return Err(CliError::Failure("the lanes ended before the requests did".into())),
            },
            recv(interrupts) -> _ => run.interrupt()?,
        }
    }
    let elapsed_s = submitted.elapsed().as_secs_f64();
    run.engine.close();
    let report = run.engine.join();
    Ok(Outcome { collectors: run.collectors, report, interrupted: run.interrupted, elapsed_s })
}

fn collector(job: &Job, codec: Option<&TextCodec>, submitted: Instant) -> Collector {
    let TokenDetail { logprobs, .. } = job.sequence.detail;
    let prompt_tokens = job.sequence.prompt.len();
    Collector::new(job.id.clone(), prompt_tokens, codec, &job.stops, logprobs.is_some(), submitted)
}

impl Run<'_> {
    fn event(&mut self, event: RunEvent) -> Result<(), CliError> {
        match event {
            RunEvent::Admitted(..) => Ok(()),
            RunEvent::Token(report) => {
                let index = report.sample.sequence as usize;
                let progress = self.collectors[index].token(report).or_failure()?;
                if !progress.text.is_empty() {
                    self.console.text(index, &progress.text)?;
                }
                if progress.stopped {
                    self.engine.handle().cancel(index as u64);
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
            RunEvent::Failed(error) => Err(CliError::Failure(error.to_string())),
        }
    }

    /// The step in flight ends; every request keeps what it has.
    fn interrupt(&mut self) -> Result<(), CliError> {
        self.interrupted = true;
        let handle = self.engine.handle();
        let open = self.collectors.iter().enumerate().filter(|(_, collector)| !collector.is_finished());
        open.for_each(|(index, _)| handle.cancel(index as u64));
        Ok(())
    }
}
