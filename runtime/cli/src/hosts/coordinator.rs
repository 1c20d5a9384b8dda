//! What a command needs that coordinates the hosts of a graph.

use super::faults::FaultArgs;
use super::{Hosts, KeyArgs, Meeting, seconds};
use crate::error::{Blame, CliError};
use clap::Args;
use crossbeam::channel::Receiver;
use rally_engine::{Engine, EngineError, Kept, Paused};
use rally_stages::deployment::{Deployment, refuse_what_does_not_run};
use std::time::Duration;

/// Which host a command is on, and how it finds the others.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// In a graph with hosts: which one this is. That of the first attention device unless given.
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    pub faults: FaultArgs,
    /// In a graph with hosts: how long to wait for one, at first for each, later for one without which the run cannot go on.
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = seconds)]
    wait_hosts: f64,
}

impl CoordinatorArgs {
    /// For how long a host is waited for.
    pub fn wait(&self) -> Duration {
        Duration::from_secs_f64(self.wait_hosts)
    }

    /// The hosts of the graph, if it has any; this one's plan compiled.
    pub fn hosts(&self, deployment: &Deployment) -> Result<Option<Hosts>, CliError> {
        if deployment.spec.hosts.is_empty() {
            return match &self.host {
                Some(host) => Err(CliError::Mistake(format!("--host {host}: this graph has no hosts"))),
                None => self.faults.refuse_without_hosts().map(|()| None),
            };
        }
        let first = Hosts::first_attention(deployment).unwrap_or_default();
        let name = self.host.as_ref().unwrap_or(&first);
        // Before anyone looks for a key: a graph that cannot run needs none.
        let own = deployment.spec.hosts.get_index_of(name.as_str());
        refuse_what_does_not_run(&deployment.spec, deployment.stage_graph(), own).or_mistake()?;
        let hosts = Hosts::open(deployment, name, &self.key, None)?.with_plan_of(deployment)?;
        hosts.with_faults(&self.faults, deployment.stage_graph()).map(Some)
    }
}

/// Why a run does not go on as it is.
#[derive(Clone, Debug)]
pub enum Break {
    /// It failed.
    Failed(EngineError),
    /// A host that was away answers again.
    Returned(usize),
}

impl Meeting {
    /// Sets a run going with the hosts that there are, however often one is lost on the way. Returns whether it goes on with sequences that
    /// its planner has.
    pub fn begin(&mut self, mut paused: Paused, interrupts: &Receiver<()>) -> Result<(Engine, bool), CliError> {
        loop {
            let (mut parts, kept) = paused;
            parts.across = Some(self.meet(interrupts)?);
            // What has no sequences was left before any was submitted.
            let goes_on = kept.as_ref().is_some_and(Kept::has_sequences);
            match Engine::resume(parts, kept) {
                Ok(engine) => {
                    self.is_complete();
                    return Ok((engine, goes_on));
                }
                Err((error, left)) => {
                    self.lost(&error)?;
                    paused = *left;
                }
            }
        }
    }

    /// Stops a run that does not go on as it is, and says how it goes on.
    pub fn pause(&mut self, engine: Engine, why: Break) -> Result<Paused, CliError> {
        match why {
            Break::Failed(error) => {
                let goes_on = self.lost(&error)?;
                let paused = engine.pause();
                let then = match error {
                    EngineError::Standstill { .. } => "all hosts are asked again",
                    _ if goes_on => "the run goes on without it",
                    _ => "the run waits for it",
                };
                eprintln!("{error}; {then}");
                Ok(paused)
            }
            Break::Returned(host) => {
                let paused = engine.pause();
                eprintln!("host `{}` is back", self.returned(host));
                Ok(paused)
            }
        }
    }
}
