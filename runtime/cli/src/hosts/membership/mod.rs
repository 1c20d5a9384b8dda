//! Where hosts are: at the addresses in the graph, or where their keys in etcd say.
//!
//! A worker keeps a key in etcd for as long as it lives (`keeper.rs`), and whoever looks for a host reads it. Only meetings read: an epoch
//! that runs asks etcd nothing, and where etcd does not answer what it said last still holds.

pub mod etcd;
pub mod keeper;
pub mod member;

use crate::error::CliError;
use crossbeam::channel::Receiver;
use etcd::{Etcd, EtcdError};
use member::Member;
use rally_graph::spec::DeploymentSpec;
use rally_transport::key::SharedKey;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What etcd said so long ago is news: several hosts are looked for at once.
const FRESH: Duration = Duration::from_millis(40);
/// An etcd that did not answer is asked again after so long, where what it said before will do.
const RETRY: Duration = Duration::from_secs(2);
/// Between two tries to reach an etcd without which nothing begins.
const AGAIN: Duration = Duration::from_millis(200);

/// Where hosts are.
#[derive(Clone)]
pub enum Directory {
    /// By host, as in the graph.
    Listed(Vec<String>),
    /// In etcd.
    Etcd(Arc<Members>),
}

/// The members that etcd knows.
pub struct Members {
    /// The cluster.
    pub etcd: Etcd,
    /// Seconds that a host which says nothing stays a member.
    pub lease_seconds: u32,
    prefix: String,
    names: Vec<String>,
    key: SharedKey,
    seen: Mutex<Seen>,
}

/// What etcd said.
#[derive(Default)]
struct Seen {
    /// By host.
    members: Vec<Option<Member>>,
    at: Option<Instant>,
    /// When it last did not answer, and why.
    failed: Option<(Instant, String)>,
    /// Keys whose value is none that a host wrote; each is told once.
    strange: HashSet<String>,
}

impl Directory {
    /// As `spec` says, for hosts that share `key`.
    pub fn of(spec: &DeploymentSpec, key: &SharedKey) -> Self {
        let Some(membership) = &spec.membership else {
            return Self::Listed(spec.hosts.values().map(|host| host.address.clone().unwrap_or_default()).collect());
        };
        let names: Vec<String> = spec.hosts.keys().cloned().collect();
        let prefix = membership.prefix.clone().unwrap_or_else(|| format!("/rally/{}", spec.name));
        let seen = Seen { members: vec![None; names.len()], ..Seen::default() };
        Self::Etcd(Arc::new(Members {
            etcd: Etcd::new(&membership.etcd),
            lease_seconds: membership.lease_seconds,
            prefix: prefix.trim_end_matches('/').to_owned(),
            names,
            key: key.clone(),
            seen: Mutex::new(seen),
        }))
    }

    /// The members, where etcd knows them.
    pub fn members(&self) -> Option<&Arc<Members>> {
        match self {
            Self::Listed(_) => None,
            Self::Etcd(members) => Some(members),
        }
    }

    /// Where a host is.
    ///
    /// # Errors
    /// Why nobody knows.
    pub fn address(&self, host: usize) -> Result<String, String> {
        match self {
            Self::Listed(addresses) => Ok(addresses[host].clone()),
            Self::Etcd(members) => members.find(host).map(|member| member.address),
        }
    }

    /// Waits until etcd answers, where there is one: for `patience`, or for ever.
    pub fn await_etcd(&self, patience: Option<Duration>, interrupts: &Receiver<()>) -> Result<(), CliError> {
        let Some(members) = self.members() else { return Ok(()) };
        members.persist(patience, interrupts, || members.look(&mut members.seen()))
    }
}

impl Members {
    /// The key of a host.
    pub fn key_of(&self, host: &str) -> String {
        format!("{}/hosts/{host}", self.prefix)
    }

    /// The value of a host's key.
    pub fn value_of(&self, member: &Member) -> Vec<u8> {
        member.sign(&self.key, &self.key_of(&member.host)).unwrap_or_default()
    }

    /// Hosts that have a key now.
    pub fn all(&self) -> Result<Vec<Member>, EtcdError> {
        let mut seen = self.seen();
        self.look(&mut seen)?;
        Ok(seen.members.iter().flatten().cloned().collect())
    }

    /// What etcd says of a host, or has said where it does not answer.
    ///
    /// # Errors
    /// Why nothing is known of it.
    pub fn find(&self, host: usize) -> Result<Member, String> {
        let mut seen = self.seen();
        let wait = match seen.members[host] {
            Some(_) => RETRY,
            None => FRESH,
        };
        let is_fresh = seen.at.is_some_and(|at| at.elapsed() < FRESH);
        let is_down = seen.failed.as_ref().is_some_and(|(at, _)| at.elapsed() < wait);
        if !is_fresh
            && !is_down
            && let Err(error) = self.look(&mut seen)
        {
            tracing::debug!(%error, "what etcd said last holds");
        }
        let nothing = || match &seen.failed {
            Some((_, why)) => why.clone(),
            None => {
                let lease = self.lease_seconds;
                format!(
                    "etcd has no key {} of it: it is not up, or gave no sign for {lease} s",
                    self.key_of(&self.names[host])
                )
            }
        };
        seen.members[host].clone().ok_or_else(nothing)
    }

    /// Does something with etcd again and again until it answers: for `patience`, or for ever. Says for whom it waits.
    ///
    /// # Errors
    /// [`CliError::Failure`] where it does not answer in time, [`CliError::Mistake`] where it refuses.
    pub fn persist<T>(
        &self,
        patience: Option<Duration>,
        interrupts: &Receiver<()>,
        mut attempt: impl FnMut() -> Result<T, EtcdError>,
    ) -> Result<T, CliError> {
        let (began, mut told) = (Instant::now(), false);
        loop {
            let error = match attempt() {
                Ok(done) => return Ok(done),
                Err(error) if error.may_pass() => error,
                Err(error) => return Err(CliError::Mistake(error.to_string())),
            };
            if patience.is_some_and(|patience| began.elapsed() >= patience) {
                let seconds = patience.unwrap_or_default().as_secs_f64();
                return Err(CliError::Failure(format!(
                    "no etcd after {seconds} s, which the graph's hosts need to meet: {error}"
                )));
            }
            if !std::mem::replace(&mut told, true) {
                let long =
                    patience.map_or("until it answers".into(), |patience| format!("for {} s", patience.as_secs_f64()));
                eprintln!("waiting for etcd, {long}: {error}");
            }
            if interrupts.recv_timeout(AGAIN).is_ok() {
                return Err(CliError::Interrupted);
            }
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, seen: &mut Seen) -> Result<(), EtcdError> {
        let found = match self.etcd.below(&format!("{}/hosts/", self.prefix)) {
            Ok(found) => found,
            Err(error) => {
                if seen.failed.is_none() && seen.at.is_some() {
                    tracing::warn!(%error, "what etcd said last holds");
                }
                seen.failed = Some((Instant::now(), error.to_string()));
                return Err(error);
            }
        };
        (seen.at, seen.failed) = (Some(Instant::now()), None);
        let mut members = vec![None; self.names.len()];
        for (name, value) in found {
            let read = Member::read(&value, &self.key, &name);
            let host = read.as_ref().and_then(|member| self.names.iter().position(|host| *host == member.host));
            match (host, read) {
                (Some(host), Some(member)) if self.key_of(&member.host) == name => members[host] = Some(member),
                _ if seen.strange.insert(name.clone()) => {
                    tracing::warn!(key = name, "in etcd, and of no host of this graph that has the shared key");
                }
                _ => {}
            }
        }
        seen.members = members;
        Ok(())
    }
}
