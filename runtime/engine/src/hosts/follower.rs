//! A host that follows: it runs its lanes on the steps that the coordinator plans, and tells what they sampled.

use super::messages::{Bounds, Message, encode_step_ended};
use super::switchboard::{Hears, StepEnded};
use super::{Across, Switchboard, spawn_lanes};
use crate::build::{Built, build, lanes_here};
use crate::engine::{EngineError, EngineParts, give_back, join_unless, spawn};
use crate::lane::{Lane, LaneRemains};
use crate::stage::Sample;
use crate::steps::{StepEnd, Steps};
use crate::sync::LaneSync;
use crossbeam::channel::{Receiver, Sender, bounded, select};
use rally_schedule::batch::DeviceBatch;
use rally_transport::{Peer, Pulse, Transport};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the lanes of a host that follows work on.
struct Following {
    /// By micro-batch and attention device.
    batches: Vec<Vec<Mutex<DeviceBatch>>>,
    sync: Arc<LaneSync>,
    transport: Arc<dyn Transport>,
    coordinator: Peer,
    names: Vec<String>,
    /// The last of this host's attention devices.
    last_device: Option<usize>,
    /// The first thing that went wrong, and when.
    fault: Mutex<Option<(EngineError, Instant)>>,
}

/// So long after an epoch has failed a lane has come back from its task, or never will.
const ABANDONED: Duration = Duration::from_secs(60);

impl Following {
    fn has_failed_for(&self, time: Duration) -> bool {
        lock(&self.fault).as_ref().is_some_and(|(_, since)| since.elapsed() >= time)
    }

    fn new(across: &Across, last_device: Option<usize>, bounds: Bounds, sync: Arc<LaneSync>) -> Self {
        let batches = |_| (0..bounds.planner.devices).map(|_| Mutex::new(DeviceBatch::default())).collect();
        Self {
            batches: (0..bounds.planner.micro_batches).map(batches).collect(),
            sync,
            transport: Arc::clone(&across.transport),
            coordinator: across.coordinator,
            names: across.names.clone(),
            last_device,
            fault: Mutex::new(None),
        }
    }
}

impl Steps for Following {
    fn take_batch(&self, micro_batch: usize, device: usize, batch: &mut DeviceBatch) {
        std::mem::swap(&mut *lock(&self.batches[micro_batch][device]), batch);
    }

    fn end_step(&self, end: StepEnd, samples: &mut Vec<Sample>) -> Option<u64> {
        self.transport.send(self.coordinator, encode_step_ended(end, samples));
        samples.clear();
        None
    }

    fn fail(&self, error: EngineError) {
        let mut fault = lock(&self.fault);
        if fault.is_none() {
            let lost = match &error {
                EngineError::HostLost { host, .. } => self.names.iter().position(|name| name == host),
                _ => None,
            };
            let reason = match &error {
                EngineError::HostLost { why, .. } => why.clone(),
                error => error.to_string(),
            };
            self.transport.send(self.coordinator, Message::Failed { reason, lost }.encode());
            *fault = Some((error, Instant::now()));
        }
        drop(fault);
        self.sync.abort();
    }
}

impl Hears for Following {
    fn planned(&self, _: Peer, micro_batch: usize, device: usize, batch: DeviceBatch) -> bool {
        *lock(&self.batches[micro_batch][device]) = batch;
        // They come in the order of the devices.
        self.last_device == Some(device)
    }

    fn step_ended(&self, peer: Peer, _: StepEnded) {
        self.fail(EngineError::HostLost {
            host: self.names[peer].clone(),
            why: "it told a host that follows of a step's end, which only the coordinator counts".into(),
        });
    }

    fn leaves(&self, peer: Peer) {
        self.fail(EngineError::HostLost {
            host: self.names[peer].clone(),
            why: "it told a host that follows that it leaves, which only the coordinator is told".into(),
        });
    }

    fn fails(&self, error: EngineError) {
        self.fail(error);
    }
}

/// Runs this host's lanes for a membership epoch, until the coordinator ends it or something fails. Gives the parts back, for the
/// next one; stages of a lane that panicked are gone. Once something comes from `leave` the coordinator is asked to go on without this host.
pub fn follow(mut parts: EngineParts, leave: &Receiver<()>) -> (EngineParts, Followed) {
    let (mut begun, mut leaves) = (false, false);
    let ended = run(&mut parts, leave, (&mut begun, &mut leaves));
    (parts, Followed { begun, leaves, ended })
}

/// An epoch that a host has followed.
#[derive(Debug)]
pub struct Followed {
    /// All hosts were ready: what was in this host's devices before may be overwritten.
    pub begun: bool,
    /// This host was asked to leave.
    pub leaves: bool,
    /// [`EngineError::HostLost`] and [`EngineError::HostFailed`] where others are to blame; what a run fails with where this host is.
    pub ended: Result<(), EngineError>,
}

fn run(
    parts: &mut EngineParts,
    leave: &Receiver<()>,
    (begun, leaves): (&mut bool, &mut bool),
) -> Result<(), EngineError> {
    let across = parts.across.clone().expect("a host that follows is one of several");
    let bounds = across.bounds(parts);
    let mut made = None;
    let last_device = parts.attention.iter().rposition(|device| across.is_here(&parts.graph, *device));
    let Built { lanes, shared, slots } = build(parts, &mut |shared, _| {
        let following = Arc::new(Following::new(&across, last_device, bounds, Arc::clone(&shared.sync)));
        made = Some(Arc::clone(&following));
        following
    })?;
    let following = made.expect("lanes were built with it");
    let own: Vec<usize> = lanes.iter().map(|lane| lane.index).collect();
    let here = own.clone();
    let switchboard = Arc::new(Switchboard::new(
        (&parts.plan, &parts.graph),
        (Arc::clone(&shared.sync), shared.signals, shared.clock),
        (&slots, across.coordinator, here),
        bounds,
        Arc::clone(&following) as Arc<dyn Hears>,
    ));
    across.transport.show(shows(parts, &shared.sync));
    across.transport.register(slots);
    let polling = match await_go(&across, &bounds).and_then(|()| spawn_lanes(&across.transport, &switchboard)) {
        Ok(polling) => polling,
        Err(error) => {
            give_back(parts, lanes.into_iter().map(Lane::into_remains));
            return Err(error);
        }
    };
    *begun = true;
    let plan = Arc::clone(&parts.plan);
    let ((going, over), mut started) = (bounded(0), false);
    let ends: Vec<LaneRemains> = std::thread::scope(|scope| {
        let ask = || await_leave(&across, leave, &over);
        let asking = std::thread::Builder::new().name("leave".into()).spawn_scoped(scope, ask);
        // That there are not as many threads was told already, and all that started has ended.
        let handles = spawn(lanes, &plan, &*following).unwrap_or_default();
        started = !handles.is_empty();
        let ends = join_unless(handles.into_iter(), || following.has_failed_for(ABANDONED));
        drop::<Sender<()>>(going);
        match asking {
            Ok(asking) => *leaves = asking.join().unwrap_or(false),
            Err(error) => tracing::warn!(%error, "this host cannot be asked to leave this run"),
        }
        ends
    });
    let hangs = |lane: &&usize| started && !shared.sync.has_ended(**lane);
    let hangs = own.iter().find(hangs).map(|lane| plan.lanes[*lane].name.clone());
    give_back(parts, ends);
    across.transport.finish();
    let part = |why: &str| (0..parts.graph.hosts.len()).for_each(|peer| across.transport.peer_down(peer, why));
    if lock(&following.fault).is_some() {
        part("the run has failed here");
    }
    let ended = Instant::now();
    for thread in polling {
        // Who has not ended long after everyone else is waited for by nobody.
        while !thread.is_finished() {
            if ended.elapsed() >= ABANDONED {
                part("it does not end");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = thread.join();
    }
    let fault = lock(&following.fault).take();
    match hangs {
        Some(lane) => Err(EngineError::LaneHangs { lane, waited_ms: ABANDONED.as_millis() }),
        None => fault.map_or(Ok(()), |(error, _)| Err(error)),
    }
}

/// What signs of life show of this host's lanes.
fn shows(parts: &EngineParts, sync: &Arc<LaneSync>) -> Arc<dyn Fn() -> Pulse + Send + Sync> {
    let (lanes, sync) = (lanes_here(parts).collect::<Vec<_>>(), Arc::clone(sync));
    Arc::new(move || sync.pulse(&lanes))
}

/// Asks the coordinator to go on without this host once that is wanted. Returns whether it was, before the epoch was `over`.
fn await_leave(across: &Across, leave: &Receiver<()>, over: &Receiver<()>) -> bool {
    select! {
        recv(leave) -> asked => asked.is_ok_and(|()| {
            across.transport.send(across.coordinator, Message::Leaving.encode());
            true
        }),
        recv(over) -> _ => false,
    }
}

/// Says that this host is ready, and waits until all are.
fn await_go(across: &Across, bounds: &Bounds) -> Result<(), EngineError> {
    across.transport.send(across.coordinator, Message::Ready { keeps: across.keeps }.encode());
    let lost = |why: String| EngineError::HostLost { host: across.names[across.coordinator].clone(), why };
    // The others may be long in coming; the coordinator, if it lives, knows for how long.
    let bytes = across.transport.receive(across.coordinator, Duration::MAX).map_err(|error| lost(error.to_string()))?;
    match Message::decode(&bytes, bounds) {
        Ok(Message::Go) => Ok(()),
        Ok(Message::Failed { reason, .. }) => Err(lost(reason)),
        _ => Err(lost("it said something else than that all are ready".into())),
    }
}
