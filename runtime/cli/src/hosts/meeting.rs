//! The coordinator's meeting with all other hosts, at the beginning of every membership epoch.

use super::Hosts;
use crate::error::{Blame, CliError};
use crossbeam::channel::Receiver;
use rally_engine::EngineError;
use rally_engine::hosts::Across;
use rally_transport::doorman::{HANDSHAKE, ReachError, reach};
use rally_transport::handshake::{HandshakeError, HostRole, random_u64};
use rally_transport::tcp::Tcp;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two tries to reach a host.
const AGAIN: Duration = Duration::from_millis(50);
/// A host that is waited for longer than this is named.
const UNREMARKABLE: Duration = Duration::from_millis(300);

/// Meets the other hosts, again and again if need be.
pub struct Meeting {
    hosts: Hosts,
    vocab: usize,
    wait: Duration,
    /// Hosts in the order in which they are tried: who was missed last comes first, so that nobody else is disturbed.
    order: Vec<usize>,
    /// Since when somebody is missing.
    missing_since: Option<Instant>,
    told: Option<usize>,
}

impl Meeting {
    /// Of all other hosts; none may be away for longer than `wait`.
    pub fn new(hosts: Hosts, vocab: usize, wait: Duration) -> Self {
        let order = (0..hosts.names.len()).filter(|host| *host != hosts.own).collect();
        Self { hosts, vocab, wait, order, missing_since: None, told: None }
    }

    /// Connects to every host. Waits for those that are away, and says for whom.
    pub fn meet(&mut self, interrupts: &Receiver<()>) -> Result<Across, CliError> {
        loop {
            match self.once()? {
                Ok(transport) => {
                    return Ok(Across {
                        host: self.hosts.own,
                        coordinator: self.hosts.own,
                        transport: Arc::new(transport),
                        names: self.hosts.names.clone(),
                        vocab: self.vocab,
                    });
                }
                Err(why) => self.miss(self.order[0], &why.to_string())?,
            }
            if interrupts.recv_timeout(AGAIN).is_ok() {
                return Err(CliError::Interrupted);
            }
        }
    }

    /// All hosts are ready: nobody is missing any more.
    pub fn is_complete(&mut self) {
        (self.missing_since, self.told) = (None, None);
    }

    /// A host was lost, or could not be had.
    pub fn lost(&mut self, error: &EngineError) -> Result<(), CliError> {
        match error {
            EngineError::HostLost { host, why } => match self.hosts.index_of(host) {
                Some(host) => self.miss(host, why),
                None => Err(CliError::Failure(error.to_string())),
            },
            error => Err(CliError::Failure(error.to_string())),
        }
    }

    fn miss(&mut self, host: usize, why: &str) -> Result<(), CliError> {
        let missing = self.missing_since.get_or_insert_with(Instant::now).elapsed();
        let (name, address) = (&self.hosts.names[host], &self.hosts.addresses[host]);
        if missing >= self.wait {
            let waited = self.wait.as_secs_f64();
            return Err(CliError::Failure(format!("host `{name}` ({address}) is missing after {waited} s: {why}")));
        }
        if missing >= UNREMARKABLE.min(self.wait) && self.told != Some(host) {
            eprintln!("waiting for host `{name}` ({address}): {why}");
            self.told = Some(host);
        }
        let place = self.order.iter().position(|other| *other == host).unwrap_or(0);
        self.order[..=place].rotate_right(1);
        Ok(())
    }

    /// Inner error: a host that may come yet, now first in the order.
    fn once(&mut self) -> Result<Result<Tcp, ReachError>, CliError> {
        let epoch = random_u64().or_failure()?;
        let mut transport = Tcp::default();
        for place in 0..self.order.len() {
            let host = self.order[place];
            let claims = self.hosts.claims_for(host, HostRole::Coordinator, epoch);
            match reach(&self.hosts.addresses[host], &self.hosts.key, &claims, HANDSHAKE) {
                Ok((stream, _)) => transport.add(host, stream).or_failure()?,
                Err(error) if error.may_pass() => {
                    self.order[..=place].rotate_right(1);
                    return Ok(Err(error));
                }
                Err(error) => return Err(refused(&self.hosts.names[host], &error)),
            }
        }
        Ok(Ok(transport))
    }
}

/// A host that will not work with this one: the user has given them different things.
pub(super) fn refused(name: &str, error: &ReachError) -> CliError {
    let hint = match error {
        ReachError::Handshake { source: HandshakeError::Differs { .. }, .. } => {
            "; all hosts need the same graph, model, flags and version"
        }
        _ => "",
    };
    CliError::Mistake(format!("host `{name}`: {error}{hint}"))
}
