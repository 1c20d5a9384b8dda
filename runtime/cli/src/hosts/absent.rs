//! Hosts that are away, and looking out for them while a run goes on without.

use super::Hosts;
use crossbeam::channel::{Receiver, bounded};
use rally_transport::handshake::HostRole;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks for a host that is away.
const LOOK: Duration = Duration::from_millis(250);
/// A host that was lost again and again is taken in no sooner than so long after the last time.
const LONGEST_BAN: Duration = Duration::from_secs(30);

/// By host, whether and why it is away.
#[derive(Debug)]
pub(super) struct Absent {
    hosts: Vec<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    away: Option<String>,
    /// How often it went away.
    losses: u32,
    /// When it may come again.
    free: Option<Instant>,
}

impl Absent {
    /// Of `hosts`, of which none is.
    pub(super) fn new(hosts: usize) -> Self {
        Self { hosts: vec![State::default(); hosts] }
    }

    /// By host, whether it is not away.
    pub(super) fn present(&self) -> Vec<bool> {
        self.hosts.iter().map(|host| host.away.is_none()).collect()
    }

    /// Those that are away.
    pub(super) fn hosts(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].away.is_some())
    }

    pub(super) fn why(&self, host: usize) -> String {
        self.hosts[host].away.clone().unwrap_or_else(|| "it is away".into())
    }

    /// It went away, or still is.
    pub(super) fn is_away(&mut self, host: usize, why: &str) {
        let state = &mut self.hosts[host];
        if state.away.replace(why.into()).is_none() {
            // Every change of the members stops everyone for a moment: a host that comes and goes does so less and less often.
            let ban = LOOK.saturating_mul(1 << state.losses.min(16)).min(LONGEST_BAN);
            state.losses += 1;
            state.free = Some(Instant::now() + ban);
        }
    }

    /// It was reached, because nothing goes on without it.
    pub(super) fn is_there(&mut self, host: usize) {
        self.hosts[host].away = None;
    }

    /// It answers again, and is to be taken in.
    pub(super) fn returned(&mut self, host: usize) {
        self.hosts[host].away = None;
    }

    /// Looks for those that are away on a thread of its own.
    pub(super) fn look_out(&self, hosts: &Hosts) -> LookOut {
        let (sender, returned) = bounded(1);
        let stop = Arc::new(AtomicBool::new(false));
        let away: Vec<(usize, Instant)> =
            self.hosts().map(|host| (host, self.hosts[host].free.unwrap_or_else(Instant::now))).collect();
        if !away.is_empty() {
            let (hosts, stopped) = (hosts.clone(), Arc::clone(&stop));
            let look = move || {
                while !stopped.load(Ordering::Acquire) {
                    std::thread::sleep(LOOK);
                    let found = away.iter().find(|(host, free)| *free <= Instant::now() && answers(&hosts, *host));
                    if let Some((host, _)) = found {
                        // Nobody asks any more where the epoch is over.
                        let _ = sender.send(*host);
                        return;
                    }
                }
            };
            if let Err(error) = std::thread::Builder::new().name("look-out".into()).spawn(look) {
                tracing::warn!(%error, "nobody looks out for hosts that are away");
            }
        }
        LookOut { returned, stop }
    }
}

fn answers(hosts: &Hosts, host: usize) -> bool {
    hosts.reach(host, HostRole::Probe, 0).is_ok()
}

/// Somebody who looks out for hosts, until this is dropped.
pub struct LookOut {
    /// A host that answers again.
    pub returned: Receiver<usize>,
    stop: Arc<AtomicBool>,
}

impl Drop for LookOut {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}
