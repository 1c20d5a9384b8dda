//! How long the way to another host and back takes, as a lane learns it, and when an answer is overdue.
//!
//! An answer that is late is no fault by itself: who should send it may wait for a third host. So a lane that waits for too long looks
//! who of all hosts gives no sign of life, and it is that one that is given up. Who gives signs and does not get on is found by the
//! coordinator (`standstill.rs`).

use rally_transport::{Peer, Transport};
use std::time::Duration;

/// No hop is overdue before this: a machine that does other things as well is late now and then.
const SOONEST: Duration = Duration::from_millis(250);
/// Before anything was learned.
const UNKNOWN: Duration = Duration::from_secs(2);
/// Hops of which the first are left out of the mean: caches and page tables are cold.
const COLD: u64 = 4;
/// A hop is overdue after this many times the longest that is usual.
const PATIENCE: f64 = 8.0;
/// A host without a sign of life for so long is given up by whoever waits overdue: several signs are missing then.
const SILENT: Duration = Duration::from_millis(400);

/// What a lane has learned of its hops: from the rows that it sent to those that came back for them.
#[derive(Debug)]
pub(crate) struct Hops {
    /// By micro-batch, when rows were sent last; none while nothing is expected.
    sent_ns: Vec<Option<u64>>,
    mean_ns: f64,
    /// Of the distance from the mean.
    deviation_ns: f64,
    count: u64,
}

impl Hops {
    pub(crate) fn new(micro_batches: usize) -> Self {
        Self { sent_ns: vec![None; micro_batches], mean_ns: 0.0, deviation_ns: 0.0, count: 0 }
    }

    /// Rows of a micro-batch went out.
    pub(crate) fn sent(&mut self, micro_batch: usize, at_ns: u64) {
        self.sent_ns[micro_batch] = Some(at_ns);
    }

    /// Rows of a micro-batch have come.
    pub(crate) fn answered(&mut self, micro_batch: usize, at_ns: u64) {
        let Some(sent_ns) = self.sent_ns[micro_batch].take() else { return };
        let took_ns = at_ns.saturating_sub(sent_ns) as f64;
        self.count += 1;
        // Smoothed as round trips are in TCP (RFC 6298).
        if self.count <= COLD {
            (self.mean_ns, self.deviation_ns) = (took_ns, took_ns / 2.0);
        } else {
            self.deviation_ns += ((took_ns - self.mean_ns).abs() - self.deviation_ns) / 4.0;
            self.mean_ns += (took_ns - self.mean_ns) / 8.0;
        }
    }

    /// How long an answer may take.
    pub(crate) fn deadline(&self) -> Duration {
        if self.count < COLD {
            return UNKNOWN;
        }
        let longest_s = (self.mean_ns + 4.0 * self.deviation_ns) * 1e-9;
        Duration::from_secs_f64((PATIENCE * longest_s).min(3600.0)).max(SOONEST)
    }

    /// Whom to give up, and why, after so long a wait: the host that has been silent for longest, if that is too long.
    pub(crate) fn culprit(&self, transport: &dyn Transport, hosts: usize, waited: Duration) -> Option<(Peer, String)> {
        let silent = (0..hosts).filter_map(|peer| Some((transport.silent_for(peer)?, peer)));
        let (silence, peer) = silent.max().filter(|(silence, _)| *silence >= SILENT)?;
        let usual_ms = self.mean_ns * 1e-6;
        let (waited, silence) = (waited.as_millis(), silence.as_millis());
        let why = format!(
            "rows are overdue ({waited} ms, {usual_ms:.1} ms are usual) and it has given no sign of life for {silence} ms"
        );
        Some((peer, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_follows_what_hops_take() {
        let mut hops = Hops::new(2);
        assert_eq!(hops.deadline(), UNKNOWN, "nothing was learned");
        let mut now_ns = 0;
        let mut hop = |hops: &mut Hops, took_ms: u64| {
            hops.sent(1, now_ns);
            now_ns += took_ms * 1_000_000;
            hops.answered(1, now_ns);
        };
        (0..100).for_each(|_| hop(&mut hops, 1));
        assert_eq!(hops.deadline(), SOONEST, "8 ms are no lateness on a machine that does other things");
        (0..100).for_each(|_| hop(&mut hops, 100));
        let steady = hops.deadline();
        assert!((Duration::from_millis(800)..Duration::from_millis(1100)).contains(&steady), "{steady:?}");
        (0..50).for_each(|i| hop(&mut hops, 50 + 100 * (i % 2)));
        assert!(hops.deadline() > steady, "hops that differ are waited for longer");
    }

    #[test]
    fn what_was_not_asked_for_teaches_nothing() {
        let mut hops = Hops::new(1);
        (0..10).for_each(|i| hops.answered(0, i * 1_000_000_000));
        assert_eq!(hops.deadline(), UNKNOWN);
    }
}
