//! The coordinator's meeting with the other hosts, at the beginning of every membership epoch.
//!
//! A run begins with all of them. One that is lost is left out of the epochs that follow if the deployment can do without it, looked for
//! meanwhile, and taken in again once it answers; if it cannot, the run pauses until one comes that it needs.

use super::Hosts;
use super::absent::{Absent, LookOut};
use crate::error::{Blame, CliError};
use crossbeam::channel::Receiver;
use rally_engine::EngineError;
use rally_engine::hosts::messages::Message;
use rally_engine::hosts::{Across, STANDSTILL, missed};
use rally_graph::stage_graph::StageGraph;
use rally_transport::doorman::ReachError;
use rally_transport::handshake::{HostRole, random_u64};
use rally_transport::tcp::Tcp;
use rally_transport::transport::Transport;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two tries to reach a host.
const AGAIN: Duration = Duration::from_millis(50);
/// A host that is waited for longer than this is named.
const UNREMARKABLE: Duration = Duration::from_millis(300);

/// Meets the other hosts, again and again if need be.
pub struct Meeting {
    hosts: Hosts,
    graph: Arc<StageGraph>,
    vocab: usize,
    wait: Duration,
    absent: Absent,
    /// Since when the run waits for a host.
    waiting_since: Option<Instant>,
    told: Option<usize>,
    /// All hosts were there once, or it has been given up to wait for all.
    begun: bool,
}

/// A host that is missing, and why.
type Missing = (usize, String);

impl Meeting {
    /// Of the other hosts of `graph`; none that is needed may be away for longer than `wait`.
    pub fn new(hosts: Hosts, graph: Arc<StageGraph>, vocab: usize, wait: Duration) -> Self {
        let absent = Absent::new(hosts.names.len());
        Self { hosts, graph, vocab, wait, absent, waiting_since: None, told: None, begun: false }
    }

    /// Connects to every host that there is. Waits for those without which nothing runs, and says for whom.
    pub fn meet(&mut self, interrupts: &Receiver<()>) -> Result<Across, CliError> {
        loop {
            match self.once()? {
                Ok((transport, present)) => {
                    self.begun |= present.iter().all(|present| *present);
                    let message = Message::Epoch { present: present.clone() }.encode();
                    let others = (0..present.len()).filter(|host| present[*host] && *host != self.hosts.own);
                    others.for_each(|host| transport.send(host, message.clone()));
                    return Ok(Across {
                        host: self.hosts.own,
                        coordinator: self.hosts.own,
                        transport: self.hosts.transport(transport)?,
                        names: self.hosts.names.clone(),
                        vocab: self.vocab,
                        present,
                        standstill: STANDSTILL,
                        keeps: true,
                    });
                }
                Err((host, why)) => self.miss(host, &why)?,
            }
            if interrupts.recv_timeout(AGAIN).is_ok() {
                return Err(CliError::Interrupted);
            }
        }
    }

    /// All that were met are ready: nobody is waited for any more.
    pub fn is_complete(&mut self) {
        (self.waiting_since, self.told, self.begun) = (None, None, true);
    }

    /// Looks out for those that are away, as long as what it returns lives.
    pub fn look_out(&self) -> LookOut {
        self.absent.look_out(&self.hosts)
    }

    /// A host that was away answers.
    pub fn returned(&mut self, host: usize) -> &str {
        self.absent.returned(host);
        &self.hosts.names[host]
    }

    /// A host was lost, or left, or could not be had. Returns whether the run can go on without it.
    pub fn lost(&mut self, error: &EngineError) -> Result<bool, CliError> {
        let (host, why) = match error {
            EngineError::HostLost { host, why } => (host, why.as_str()),
            EngineError::HostLeaves { host } => (host, "it has left"),
            // Nobody is to blame, or it shows when all are asked again.
            EngineError::Standstill { .. } => return Ok(true),
            error => return Err(CliError::Failure(error.to_string())),
        };
        match self.hosts.index_of(host) {
            // Others do not hear this host: they are asked again.
            Some(host) if host == self.hosts.own => Ok(true),
            Some(host) => {
                self.absent.is_away(host, why);
                let goes_on = self.begun && missed(&self.graph, &self.absent.present()).is_empty();
                if !goes_on {
                    self.miss(host, why)?;
                }
                Ok(goes_on)
            }
            None => Err(CliError::Failure(error.to_string())),
        }
    }

    /// The run waits for a host.
    fn miss(&mut self, host: usize, why: &str) -> Result<(), CliError> {
        let waited = self.waiting_since.get_or_insert_with(Instant::now).elapsed();
        let (name, address) = (&self.hosts.names[host], self.hosts.place(host));
        if waited >= self.wait {
            let seconds = self.wait.as_secs_f64();
            if !self.begun && missed(&self.graph, &self.absent.present()).is_empty() {
                eprintln!("host `{name}` ({address}) is missing after {seconds} s; the run begins without it");
                self.begun = true;
                return Ok(());
            }
            return Err(CliError::Failure(format!("host `{name}` ({address}) is missing after {seconds} s: {why}")));
        }
        if waited >= UNREMARKABLE.min(self.wait) && self.told != Some(host) {
            eprintln!("waiting for host `{name}` ({address}): {why}");
            self.told = Some(host);
        }
        Ok(())
    }

    /// One try. Inner error: a host that must come first, and may.
    fn once(&mut self) -> Result<Result<(Tcp, Vec<bool>), Missing>, CliError> {
        let (epoch, mut transport) = (random_u64().or_failure()?, Tcp::default());
        // Those that are away come first, and only if they are needed: nobody else is disturbed before one of them is there.
        let needed = match self.begun {
            true => missed(&self.graph, &self.absent.present()),
            false => self.absent.hosts().collect(),
        };
        let mut present = self.absent.present();
        for host in needed.iter().copied() {
            present[host] = self.try_host(host, epoch, &mut transport)?;
        }
        if let Some(missing) = self.first_missing(&needed, &present) {
            return Ok(Err(missing));
        }
        let own = self.hosts.own;
        for host in (0..present.len()).filter(|host| *host != own && !needed.contains(host)) {
            if present[host] && !self.try_host(host, epoch, &mut transport)? {
                present[host] = false;
                if let Some(missing) = self.first_missing(&[host], &present) {
                    return Ok(Err(missing));
                }
            }
        }
        Ok(Ok((transport, present)))
    }

    /// Who of `tried` is not `present` and must be.
    fn first_missing(&self, tried: &[usize], present: &[bool]) -> Option<Missing> {
        let lacks = missed(&self.graph, present);
        let must = |host: &&usize| !present[**host] && (!self.begun || lacks.contains(host));
        tried.iter().find(must).map(|host| (*host, self.absent.why(*host)))
    }

    /// Whether a host could be reached.
    fn try_host(&mut self, host: usize, epoch: u64, transport: &mut Tcp) -> Result<bool, CliError> {
        match self.hosts.reach(host, HostRole::Coordinator, epoch) {
            Ok((stream, _)) => {
                transport.add(host, stream).or_failure()?;
                self.absent.is_there(host);
                Ok(true)
            }
            Err(error) if self.hosts.may_pass(&error) => {
                self.absent.is_away(host, &error.to_string());
                Ok(false)
            }
            Err(error) => Err(refused(&self.hosts.names[host], &error)),
        }
    }
}

/// A host that will not work with this one: the user has given them different things.
pub(super) fn refused(name: &str, error: &ReachError) -> CliError {
    let hint = if error.differs() { "; all hosts need the same graph, model, flags and version" } else { "" };
    CliError::Mistake(format!("host `{name}`: {error}{hint}"))
}
