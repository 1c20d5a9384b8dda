//! A load on virtual lanes, and what comes of it in the terms of a benchmark.

use crate::durations::{Durations, Scattered};
use rally_graph::plan::Plan;
use rally_graph::stage_graph::DeviceIndex;
use rally_load::Load;
use rally_load::summary::RequestTiming;
use rally_schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_schedule::planner::{PlannerConfig, SubmitError};
use rally_schedule::virtual_lanes::{Arrival, Fold, FoldedError, Uneven, VirtualOptions, VirtualReport, VirtualRun};
use std::collections::HashMap;
use std::sync::Arc;

/// Why nothing can be predicted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PredictError {
    /// The cost table lacks something.
    #[error(
        "the cost table has no times of stage `{stage}`, part `{part}`: it is of another graph; measure this one with `rally profile`"
    )]
    NotMeasured {
        /// The stage.
        stage: String,
        /// Which part of its work.
        part: &'static str,
    },
    /// A request that can never run here.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// Devices that one was to stand for do not do the same under this load.
    #[error(transparent)]
    Uneven(#[from] Uneven),
}

impl From<FoldedError> for PredictError {
    fn from(error: FoldedError) -> Self {
        match error {
            FoldedError::Submit(error) => error.into(),
            FoldedError::Uneven(error) => error.into(),
        }
    }
}

/// What is predicted.
pub struct Setting<'a> {
    /// The lane orders.
    pub plan: &'a Plan,
    /// Sizes the step planner keeps to.
    pub planner: PlannerConfig,
    /// Devices that hold sequences, in the planner's order.
    pub attention: &'a [DeviceIndex],
    /// What is asked of the deployment.
    pub load: &'a Load,
    /// How long things take.
    pub durations: &'a dyn Durations,
    /// Standard deviation over mean of every duration.
    pub jitter: f64,
    /// Of the jitter.
    pub seed: u64,
    /// Devices that the plan runs for others. Without jitter only: luck is not the same for all.
    pub fold: &'a Fold,
    /// Whether spans are kept; else sums.
    pub keeps_spans: bool,
    /// Whether the step planner learns what steps cost, as a benchmark's does. Sequences that are all alike need no learning, and a fold
    /// no change of homes.
    pub learns: bool,
    /// Cores that all lanes share; `None`: a core a lane.
    pub cores: Option<usize>,
    /// Tokens of every prompt that count as read, as in a benchmark that takes them so.
    pub pretend_read: usize,
}

/// What will happen.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// What the lanes do.
    pub report: VirtualReport,
    /// By request of the load.
    pub timings: Vec<RequestTiming>,
    /// Seconds from the load's beginning to its last token.
    pub duration_s: f64,
}

impl Setting<'_> {
    /// Runs the load to its end on virtual time, with the step planner of a run.
    ///
    /// # Errors
    /// [`PredictError::Submit`] if a request can never run here, [`PredictError::Uneven`] if the fold is not that of this load.
    pub fn predict(&self) -> Result<Prediction, PredictError> {
        let costs = Scattered { durations: self.durations, jitter: self.jitter, seed: self.seed };
        let run = VirtualRun {
            plan: self.plan,
            planner: self.planner,
            attention: self.attention,
            costs: &costs,
            token: &|_, _| 0,
        };
        // Prompts of a length are one: thousands of requests have few lengths, or short ones.
        let mut prompts: HashMap<usize, Arc<[u32]>> = HashMap::new();
        let mut prompt = |tokens: usize| Arc::clone(prompts.entry(tokens).or_insert_with(|| vec![0; tokens].into()));
        let arrival = |(id, request): (usize, &rally_load::LoadRequest)| Arrival {
            at_ns: (request.arrival_s * 1e9).round() as u64,
            request: SequenceRequest {
                generated: std::sync::Arc::default(),
                id: id as u64,
                prompt: prompt(request.prompt_tokens),
                max_new_tokens: request.output_tokens,
                stop_token_ids: [].into(),
                sampling: SamplingParams::default(),
                detail: TokenDetail::default(),
            },
        };
        let arrivals = self.load.requests.iter().enumerate().map(arrival).collect();
        let (max_under_way, keeps_spans) = (self.load.max_concurrency, self.keeps_spans);
        let (learns, cores, pretend_read) = (self.learns, self.cores, self.pretend_read);
        let options =
            VirtualOptions { max_under_way, learns, keeps_spans, cores, pretend_read, ..VirtualOptions::default() };
        let report = run.run_folded(self.fold, arrivals, options)?;
        let timings = self.timings(&report);
        let last = timings.iter().filter_map(|timing| timing.token_s.last().copied());
        let duration_s = last.fold(0.0, f64::max);
        Ok(Prediction { report, timings, duration_s })
    }

    fn timings(&self, report: &VirtualReport) -> Vec<RequestTiming> {
        let timing = |(id, request): (usize, &rally_load::LoadRequest)| {
            let times = report.sequences.get(&(id as u64));
            RequestTiming {
                arrival_s: request.arrival_s,
                prompt_tokens: request.prompt_tokens,
                token_s: times.map_or_else(Vec::new, |times| {
                    times.tokens.iter().map(|(_, at_ns)| *at_ns as f64 * 1e-9).collect()
                }),
                completed: times.is_some_and(|times| times.finished.is_some()),
            }
        };
        self.load.requests.iter().enumerate().map(timing).collect()
    }
}
