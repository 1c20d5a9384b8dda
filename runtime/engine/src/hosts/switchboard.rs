//! Where what comes from other hosts goes: rows to the lanes that wait for them, steps to whoever plans or follows, failures to the run.

use super::Signals;
use super::messages::{Bounds, Message};
use crate::clock::RunClock;
use crate::engine::EngineError;
use crate::stage::Sample;
use crate::steps::StepEnd;
use crate::sync::LaneSync;
use rally_graph::plan::Plan;
use rally_graph::stage_graph::StageGraph;
use rally_schedule::batch::DeviceBatch;
use rally_transport::{Event, Peer, Polled, Registration, Transport};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// What a run does with what other hosts say.
pub(crate) trait Hears: Send + Sync {
    /// The rows of a step, from `peer`. Returns whether those of all devices here are there.
    fn planned(&self, peer: Peer, micro_batch: usize, device: usize, batch: DeviceBatch) -> bool;
    /// A lane of `peer` is through with a step.
    fn step_ended(&self, peer: Peer, ended: StepEnded);
    /// `peer` was asked to leave.
    fn leaves(&self, peer: Peer);
    /// It is over for this run.
    fn fails(&self, error: EngineError);
}

/// A lane of another host is through with a micro-batch's step.
pub(crate) struct StepEnded {
    pub(crate) end: StepEnd,
    pub(crate) samples: Vec<Sample>,
}

/// Takes what the transport tells. Shared by the threads that poll it.
pub(crate) struct Switchboard {
    pub(crate) sync: Arc<LaneSync>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) clock: RunClock,
    pub(crate) bounds: Bounds,
    pub(crate) hears: Arc<dyn Hears>,
    names: Vec<String>,
    coordinator: Peer,
    /// By slot: its peer, and the lane that waits for it.
    slots: Vec<(Peer, [usize; 1])>,
    /// Lanes that wait for steps.
    followers: Vec<usize>,
    /// By micro-batch and attention device, the last step that was told of: what comes again or late is none.
    told: Mutex<Vec<Option<u64>>>,
}

impl Switchboard {
    pub(crate) fn new(
        (plan, graph): (&Plan, &StageGraph),
        (sync, signals, clock): (Arc<LaneSync>, Arc<Signals>, RunClock),
        (slots, coordinator, followers): (&[Registration], Peer, Vec<usize>),
        bounds: Bounds,
        hears: Arc<dyn Hears>,
    ) -> Self {
        let lane = |device: u16| plan.lanes.iter().position(|lane| lane.device == usize::from(device)).unwrap_or(0);
        Self {
            sync,
            signals,
            clock,
            bounds,
            hears,
            names: graph.hosts.clone(),
            coordinator,
            slots: slots.iter().map(|slot| (slot.peer, [lane(slot.key.to)])).collect(),
            followers,
            told: Mutex::new(vec![None; bounds.planner.micro_batches * bounds.planner.devices]),
        }
    }

    /// Whether nobody has told of `step` or a later one of a micro-batch on an attention device.
    fn is_news(&self, micro_batch: usize, device: usize, step: u64) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = &mut told[micro_batch * self.bounds.planner.devices + device];
        let news = last.is_none_or(|last| step > last);
        if news {
            *last = Some(step);
        }
        news
    }

    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn name(&self, peer: Peer) -> String {
        self.names[peer].clone()
    }

    pub(crate) fn take(&self, event: Event) {
        match event {
            Event::Arrived { slot, stamp } => {
                let count = self.signals.arrival(stamp.step, stamp.layer as usize);
                self.sync.complete(self.signals.slot(slot), count, self.now_ns(), &self.slots[slot].1);
            }
            Event::Message { peer, bytes } => match Message::decode(&bytes, &self.bounds) {
                Ok(message) => self.hear(peer, message),
                // Who says one such thing is believed nothing.
                Err(error) => self.hears.fails(EngineError::HostLost {
                    host: self.name(peer),
                    why: format!("it said something that makes no sense: {error}"),
                }),
            },
            Event::Done { peer } => self.done(peer),
            Event::Down { peer, error } => {
                self.hears.fails(EngineError::HostLost { host: self.name(peer), why: error.to_string() });
            }
        }
    }

    fn hear(&self, peer: Peer, message: Message) {
        match message {
            Message::Planned { micro_batch, step, device, batch } if self.is_news(micro_batch, device, step) => {
                if !self.hears.planned(peer, micro_batch, device, batch) {
                    return;
                }
                let signal = self.signals.planned(micro_batch);
                self.sync.complete(signal, step.wrapping_add(1), self.now_ns(), &self.followers);
            }
            Message::StepEnded { micro_batch, device, cycle, next, samples }
                if self.is_news(micro_batch, device, next) =>
            {
                self.hears.step_ended(peer, StepEnded { end: StepEnd { micro_batch, device, cycle, next }, samples });
            }
            Message::Planned { .. } | Message::StepEnded { .. } => {
                tracing::debug!(host = self.name(peer), "what it told of a step came again, or late, and was dropped");
            }
            Message::Leaving => self.hears.leaves(peer),
            Message::Needed => {
                tracing::warn!("nobody else has what this host has: it leaves once the run is over");
            }
            Message::Finish { cycle } => self.sync.finish_after(cycle),
            Message::Failed { reason, lost } => {
                let lost = lost.and_then(|lost| self.names.get(lost)).cloned();
                self.hears.fails(match lost {
                    Some(host) => EngineError::HostLost { host, why: reason },
                    None => EngineError::HostFailed { host: self.name(peer), message: reason },
                });
            }
            // The epoch has begun already.
            Message::Epoch { .. } | Message::Ready { .. } | Message::Go => {}
        }
    }

    /// All lanes of a host have ended: whoever waits for one of them leaves as well.
    fn done(&self, peer: Peer) {
        for (slot, _) in self.slots.iter().enumerate().filter(|(_, (from, _))| *from == peer) {
            self.sync.end(self.signals.slot(slot));
        }
        if peer == self.coordinator {
            (0..self.bounds.planner.micro_batches).for_each(|m| self.sync.end(self.signals.planned(m)));
        }
    }
}

/// Starts a thread for each of the transport's lanes.
pub(crate) fn spawn_lanes(
    transport: &Arc<dyn Transport>,
    switchboard: &Arc<Switchboard>,
) -> Result<Vec<JoinHandle<()>>, EngineError> {
    let spawn = |lane: usize| {
        let (transport, switchboard) = (Arc::clone(transport), Arc::clone(switchboard));
        let poll = move || while transport.poll(lane, &mut |event| switchboard.take(event)) == Polled::Again {};
        let name = format!("transport {lane}");
        let thread = std::thread::Builder::new().name(name.clone()).spawn(poll);
        thread.map_err(|error| EngineError::Thread { lane: name, message: error.to_string() })
    };
    (0..transport.lanes()).map(spawn).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::toy::{Setup, policy};

    /// Writes down what it hears.
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Notes {
        fn note(&self, note: String) {
            self.0.lock().expect("nobody panics with it").push(note);
        }
    }

    impl Hears for Notes {
        fn planned(&self, peer: Peer, micro_batch: usize, device: usize, _: DeviceBatch) -> bool {
            self.note(format!("{peer} planned {micro_batch} on {device}"));
            true
        }

        fn step_ended(&self, peer: Peer, ended: StepEnded) {
            let StepEnd { micro_batch, device, next, .. } = ended.end;
            self.note(format!("{peer} ended {micro_batch} on {device}, {next} follows"));
        }

        fn leaves(&self, peer: Peer) {
            self.note(format!("{peer} leaves"));
        }

        fn fails(&self, error: EngineError) {
            self.note(error.to_string());
        }
    }

    #[test]
    fn what_is_told_twice_or_late_is_heard_once_and_nonsense_loses_the_host() {
        let parts = Setup { attention: 2, ..Setup::simple(policy(false), 2) }.parts();
        let notes = Arc::new(Notes::default());
        let bounds = Bounds { planner: parts.planner, vocab: 16 };
        let signals = Arc::new(Signals::new(&parts.plan, parts.graph.layers, 0));
        let sync = Arc::new(LaneSync::new(signals.counters(), 1, false));
        let mut switchboard = Switchboard::new(
            (&parts.plan, &parts.graph),
            (Arc::clone(&sync), Arc::clone(&signals), RunClock::start()),
            (&[], 0, vec![0]),
            bounds,
            Arc::clone(&notes) as Arc<dyn Hears>,
        );
        switchboard.names = vec!["a0".into(), "a1".into()];
        let say = |message: &Message| switchboard.take(Event::Message { peer: 1, bytes: message.encode() });
        let ended = |micro_batch, device, next| Message::StepEnded {
            micro_batch,
            device,
            cycle: next,
            next,
            samples: Vec::new(),
        };
        // Again, before what came before it, on another device, of another micro-batch.
        let ends = [(0, 1, 0), (0, 1, 0), (0, 1, 2), (0, 1, 1), (0, 0, 1), (1, 1, 0), (0, 1, 2), (0, 1, 3)];
        ends.into_iter().for_each(|(micro_batch, device, next)| say(&ended(micro_batch, device, next)));
        for step in [4, 4, 3, 5] {
            say(&Message::Planned { micro_batch: 1, step, device: 0, batch: DeviceBatch::default() });
        }
        assert!(sync.reached(signals.planned(1), 6) && !sync.reached(signals.planned(1), 7));
        switchboard.take(Event::Message { peer: 1, bytes: vec![4, 9, 9] });
        let heard = [
            "1 ended 0 on 1, 0 follows",
            "1 ended 0 on 1, 2 follows",
            "1 ended 0 on 0, 1 follows",
            "1 ended 1 on 1, 0 follows",
            "1 ended 0 on 1, 3 follows",
            "1 planned 1 on 0",
            "1 planned 1 on 0",
        ];
        let notes = notes.0.lock().expect("nobody panics with it");
        assert_eq!(notes[..heard.len()], heard);
        assert_eq!(notes.len(), heard.len() + 1);
        assert!(notes[heard.len()].contains("host `a1` is lost: it said something that makes no sense"), "{notes:?}");
    }
}
