//! The coordinator's side: steps out to the hosts that follow, their ends back to the planner.

use super::Signals;
use super::messages::{Message, encode_planned};
use super::switchboard::{Hears, StepEnded};
use crate::clock::RunClock;
use crate::control::Control;
use crate::engine::EngineError;
use crate::steps::Steps;
use crate::sync::LaneSync;
use crossbeam::channel::{Receiver, Sender};
use rally_schedule::batch::DeviceBatch;
use rally_transport::{Peer, Transport};
use std::sync::Arc;

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
    /// All others.
    pub(crate) peers: Vec<Peer>,
    /// Lanes of this host that begin steps.
    pub(crate) lanes: Vec<usize>,
}

impl Followers {
    /// Waits until every host is ready, and says so to all.
    pub(crate) fn gather(&self, names: &[String]) -> Result<(), EngineError> {
        let lost = |peer: Peer, why: String| EngineError::HostLost { host: names[peer].clone(), why };
        for peer in &self.peers {
            let bytes = self.transport.receive(*peer).map_err(|error| lost(*peer, error.to_string()))?;
            // A host that cannot reach another says which.
            match bytes[..] {
                [1] => {}
                _ => return Err(lost(*peer, refusal(&bytes, names))),
            }
        }
        self.tell(&Message::Go);
        Ok(())
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

    /// Lanes begin no cycle after this one.
    pub(crate) fn finish(&self, cycle: u64) {
        self.tell(&Message::Finish { cycle });
    }

    /// The run has failed.
    pub(crate) fn failed(&self, error: &EngineError) {
        // Who is lost is told as that: hosts tell it on, and whoever hears of it from two sides must hear the same.
        let (reason, lost) = match error {
            EngineError::HostLost { host, why } => (why.clone(), self.names.iter().position(|name| name == host)),
            error => (error.to_string(), None),
        };
        self.tell(&Message::Failed { reason, lost });
    }
}

/// What a host says instead of being ready.
fn refusal(bytes: &[u8], names: &[String]) -> String {
    let mut reader = rally_transport::codec::Reader::new(bytes.get(1..).unwrap_or_default());
    let reason = reader.text(bytes.len(), "a reason").unwrap_or("it is not ready").to_owned();
    let lost = reader.u32("a host").ok().and_then(|host| names.get((host as usize).checked_sub(1)?));
    lost.map_or(reason.clone(), |host| format!("it does not reach `{host}`: {reason}"))
}

/// Hears what hosts say to the coordinator.
pub(crate) struct Planning {
    pub(crate) control: Arc<Control>,
    pub(crate) ends: Sender<StepEnded>,
}

impl Hears for Planning {
    fn planned(&self, _: usize, _: usize, _: DeviceBatch) {
        self.fails(EngineError::HostFailed {
            host: "?".into(),
            message: "it sent the coordinator a step, which only the coordinator plans".into(),
        });
    }

    /// Planning may have to wait for work, and whoever polls a connection must not.
    fn step_ended(&self, ended: StepEnded) {
        // Nobody takes it where the run is over.
        let _ = self.ends.send(ended);
    }

    fn fails(&self, error: EngineError) {
        self.control.fail(error);
    }
}

/// Tells the planner of steps that ended elsewhere, until nobody can tell of any more.
pub(crate) fn count_ends(control: &Control, ends: &Receiver<StepEnded>) {
    for StepEnded { micro_batch, cycle, next, mut samples } in ends {
        control.end_step(micro_batch, cycle, next, &mut samples);
    }
}
