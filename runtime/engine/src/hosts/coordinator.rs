//! The coordinator's side: steps out to the hosts that follow, their ends back to the planner.

use super::messages::{Bounds, Message, encode_planned};
use super::standstill::{LOOK, Standstill, Watch};
use super::switchboard::{Hears, StepEnded};
use super::{Signals, missed};
use crate::clock::RunClock;
use crate::control::Control;
use crate::engine::EngineError;
use crate::steps::Steps;
use crate::sync::LaneSync;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use rally_graph::stage_graph::StageGraph;
use rally_schedule::batch::DeviceBatch;
use rally_transport::{Peer, Pulse, Transport};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For a host to find the others of its epoch and to make its slots.
const READY: Duration = Duration::from_secs(15);

/// The hosts that follow this one's steps.
pub(crate) struct Followers {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) sync: Arc<LaneSync>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) clock: RunClock,
    /// By attention device, the host it is on if that is another one.
    pub(crate) hosts: Vec<Option<Peer>>,
    /// Of all hosts.
    pub(crate) names: Vec<String>,
    /// All others that take part.
    pub(crate) peers: Vec<Peer>,
    /// Lanes of this host.
    pub(crate) lanes: Vec<usize>,
    /// Names of all lanes.
    pub(crate) lane_names: Vec<String>,
}

impl Followers {
    /// Waits until every host is ready. Returns which of them have nothing any more of what was in their attention devices.
    pub(crate) fn gather(&self, bounds: &Bounds) -> Result<Vec<Peer>, EngineError> {
        let lost = |peer: Peer, why: String| EngineError::HostLost { host: self.names[peer].clone(), why };
        let mut emptied = Vec::new();
        for peer in self.peers.iter().copied() {
            let bytes = self.transport.receive(peer, READY).map_err(|error| lost(peer, error.to_string()))?;
            match Message::decode(&bytes, bounds) {
                Ok(Message::Ready { keeps }) => emptied.extend((!keeps).then_some(peer)),
                // A host that cannot reach another says which.
                Ok(Message::Failed { reason, lost: Some(other) }) if other < self.names.len() => {
                    return Err(lost(other, format!("`{}` does not reach it: {reason}", self.names[peer])));
                }
                Ok(Message::Failed { reason, .. }) => return Err(lost(peer, reason)),
                _ => return Err(lost(peer, "it said something else than that it is ready".into())),
            }
        }
        Ok(emptied)
    }

    /// All are ready.
    pub(crate) fn go(&self) {
        self.tell(&Message::Go);
    }

    /// Attention devices of `hosts`.
    pub(crate) fn devices_of<'a>(&'a self, hosts: &'a [Peer]) -> impl Iterator<Item = usize> + 'a {
        let on = |host: &Option<Peer>| host.is_some_and(|host| hosts.contains(&host));
        self.hosts.iter().enumerate().filter(move |(_, host)| on(host)).map(|(device, _)| device)
    }

    fn tell(&self, message: &Message) {
        self.peers.iter().for_each(|peer| self.transport.send(*peer, message.encode()));
    }

    /// `step` of a micro-batch was planned.
    pub(crate) fn planned(&self, micro_batch: usize, step: u64, batches: &[DeviceBatch]) {
        for (device, (host, batch)) in self.hosts.iter().zip(batches).enumerate() {
            if let Some(host) = host {
                self.transport.send(*host, encode_planned(micro_batch, step, device, batch));
            }
        }
        let now_ns = self.clock.now_ns();
        self.sync.complete(self.signals.planned(micro_batch), step.wrapping_add(1), now_ns, &self.lanes);
    }

    /// Ends an epoch before its end. Lanes of other hosts that wait for each other's rows would not leave because this one has.
    pub(crate) fn leave(&self) {
        self.tell(&Message::Failed { reason: "the run was ended there".into(), lost: None });
        self.transport.finish();
        self.peers.iter().for_each(|peer| self.transport.peer_down(*peer, "the run was ended here"));
    }

    /// How it is with the lanes of a host that takes part.
    fn pulse_of(&self, host: Peer, own: Peer) -> Option<Pulse> {
        if host == own { Some(self.sync.pulse(&self.lanes)) } else { self.transport.pulse_of(host) }
    }

    /// Lanes begin no cycle after this one.
    pub(crate) fn finish(&self, cycle: u64) {
        self.tell(&Message::Finish { cycle });
    }

    /// `peer` is not let go.
    fn needs(&self, peer: Peer) {
        self.transport.send(peer, Message::Needed.encode());
    }

    /// What a run fails with in which nothing moves.
    fn blame(&self, own: Peer, found: Standstill) -> EngineError {
        let waited_ms = found.waited.as_millis();
        match found.host {
            None => EngineError::Standstill { waited_ms },
            Some(host) if host == own => {
                let lane = self.lanes.iter().find(|lane| self.sync.is_at_work(**lane));
                let lane = lane.map_or_else(|| "one of them".into(), |lane| self.lane_names[*lane].clone());
                EngineError::LaneHangs { lane, waited_ms }
            }
            Some(host) => EngineError::HostLost {
                host: self.names[host].clone(),
                why: format!(
                    "it shows signs of life, but a lane of it has been at one task for {waited_ms} ms, and no host has \
                     completed any since"
                ),
            },
        }
    }

    /// The run has failed.
    pub(crate) fn failed(&self, error: &EngineError) {
        // Who is lost is told as that: hosts tell it on, and whoever hears of it from two sides must hear the same.
        let index = |host: &String| self.names.iter().position(|name| name == host);
        let (reason, lost) = match error {
            EngineError::HostLost { host, why } => (why.clone(), index(host)),
            EngineError::HostLeaves { host } => ("it leaves".into(), index(host)),
            error => (error.to_string(), None),
        };
        self.tell(&Message::Failed { reason, lost });
    }
}

/// Hears what hosts say to the coordinator.
pub(crate) struct Planning {
    pub(crate) control: Arc<Control>,
    pub(crate) ends: Sender<StepEnded>,
    /// Of all hosts.
    pub(crate) names: Vec<String>,
    /// By attention device, the host it is on if that is another one.
    pub(crate) hosts: Vec<Option<Peer>>,
    pub(crate) graph: Arc<StageGraph>,
    /// By host: whether it takes part.
    pub(crate) present: Vec<bool>,
}

impl Hears for Planning {
    fn planned(&self, peer: Peer, _: usize, _: usize, _: DeviceBatch) -> bool {
        self.fails(EngineError::HostLost {
            host: self.names[peer].clone(),
            why: "it sent the coordinator a step, which only the coordinator plans".into(),
        });
        false
    }

    /// Planning may have to wait for work, and whoever polls a connection must not.
    fn step_ended(&self, peer: Peer, ended: StepEnded) {
        if self.hosts[ended.end.device] != Some(peer) {
            let why = "it told of a step's end on a device that is not its own".into();
            return self.fails(EngineError::HostLost { host: self.names[peer].clone(), why });
        }
        // Nobody takes it where the run is over.
        let _ = self.ends.send(ended);
    }

    /// Whoever can be done without is let go, by an end of this epoch; the next one begins without it.
    fn leaves(&self, peer: Peer) {
        let present: Vec<bool> = (0..self.present.len()).map(|host| self.present[host] && host != peer).collect();
        let host = self.names[peer].clone();
        if missed(&self.graph, &present).is_empty() {
            return self.fails(EngineError::HostLeaves { host });
        }
        tracing::warn!(host, "it was asked to leave, and stays: nobody else has what it has");
        if let Some(followers) = self.control.followers() {
            followers.needs(peer);
        }
    }

    fn fails(&self, error: EngineError) {
        self.control.fail(error);
    }
}

/// Tells the planner of steps that ended elsewhere, until nobody can tell of any more; and looks whether anything moves, as host `own` of
/// so many.
pub(crate) fn count_ends(control: &Control, ends: &Receiver<StepEnded>, (own, hosts): (Peer, usize)) {
    let mut watch = Watch::new(hosts, own, Instant::now());
    loop {
        match ends.recv_timeout(LOOK) {
            Ok(StepEnded { end, mut samples }) => drop(control.end_step(end, &mut samples)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        let Some(followers) = control.followers().filter(|_| watch.is_due(now)) else { continue };
        let pulse_of = |host| followers.pulse_of(host, own);
        let found = watch.look(now, pulse_of, control.has_work(), &mut control.patience());
        if let Some(found) = found {
            control.fail(followers.blame(own, found));
            // Where all that was asked for is there, nobody hears of it who would leave.
            if control.is_closed() {
                followers.leave();
            }
        }
    }
}
