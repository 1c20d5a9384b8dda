//! A run: lanes, slots and planner put together, started, fed, ended.

use crate::build::{Prepared, lanes_here, prepare};
use crate::clock::RunClock;
pub use crate::control::Kept;
use crate::control::{Control, RunEvent};
use crate::figures::RunFigures;
use crate::hosts::{Across, Planning, Signals, Switchboard, count_ends, spawn_lanes};
use crate::lane::{Lane, LaneRemains};
use crate::outbox::Inbox;
use crate::remote::RemoteValues;
use crate::slot::{Header, SlotError};
use crate::span::{CounterSample, LaneReport};
use crate::stage::{Probe, Stage, StageError};
use crate::steps::Steps;
use crate::sync::LaneSync;
pub use crate::values::Widths;
use crossbeam::channel::Receiver;
use rally_graph::plan::{Plan, PlannedLane};
use rally_graph::stage_graph::{DeviceIndex, StageGraph, StageIndex};
use rally_schedule::batch::{SequenceId, SequenceRequest};
use rally_schedule::cost::CostModel;
use rally_schedule::planner::{PlannerConfig, SubmitError};
use rally_transport::{Peer, Registration};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Why a run could not start, or failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// A stage failed.
    #[error("stage `{stage}`, layer {layer}: {source}")]
    Stage {
        /// The stage.
        stage: String,
        /// The layer.
        layer: usize,
        /// What went wrong.
        source: StageError,
    },
    /// A lane's thread panicked. A fault of ours.
    #[error("lane `{lane}` panicked: {message}")]
    LanePanicked {
        /// The lane.
        lane: String,
        /// What the panic said.
        message: String,
    },
    /// The plan let two tasks at one slot, or one at what a lane left half done. A fault of ours.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A host of the deployment is gone.
    #[error("host `{host}` is lost: {why}")]
    HostLost {
        /// Its name.
        host: String,
        /// What was noticed.
        why: String,
    },
    /// A host of the deployment was asked to leave, and the others have all that it has.
    #[error("host `{host}` leaves")]
    HostLeaves {
        /// Its name.
        host: String,
    },
    /// A host of the deployment says that its part of the run failed.
    #[error("on host `{host}`: {message}")]
    HostFailed {
        /// Its name.
        host: String,
        /// What it says.
        message: String,
    },
    /// A lane of this host has been at one task for too long: far longer than anything before. What it waits for, a stage, a card, a
    /// disk, does not come back.
    #[error(
        "a lane of this host hangs: `{lane}` has been at one task for {waited_ms} ms, and no host has completed any since"
    )]
    LaneHangs {
        /// The lane.
        lane: String,
        /// For how long nothing has moved.
        waited_ms: u128,
    },
    /// Every lane of every host waits, and all show signs of life: rows or words were lost on a connection that lives.
    #[error("nothing has moved for {waited_ms} ms, and every lane waits: something was lost between the hosts")]
    Standstill {
        /// For how long.
        waited_ms: u128,
    },
    /// Rows could not be brought to or from a device's own memory.
    #[error(transparent)]
    Remote(#[from] StageError),
    /// A slot held rows of another step or layer. A fault of ours.
    #[error("a transfer delivered {got:?} where {want:?} was due: the plan is wrong")]
    WrongRows {
        /// What was there.
        got: Header,
        /// What was expected.
        want: Header,
    },
    /// A compute task has no stage. Whoever built the parts forgot one.
    #[error("device `{device}` has no implementation of stage `{stage}`")]
    MissingStage {
        /// The device.
        device: String,
        /// The stage.
        stage: String,
    },
    /// A sequence that can never run here.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The lanes ended before the sequences did. A fault of ours.
    #[error("the lanes ended before the sequences did")]
    EndedEarly,
    /// Its owner broke it off.
    #[error("the run was broken off")]
    BrokenOff,
    /// The operating system gave no thread.
    #[error("no thread for lane `{lane}`: {message}")]
    Thread {
        /// The lane.
        lane: String,
        /// What the system said.
        message: String,
    },
}

/// What one device brings.
#[derive(Default)]
pub struct DeviceParts {
    /// Implementations of its stages, by stage index.
    pub stages: HashMap<StageIndex, Box<dyn Stage>>,
    /// Its values, if they live in memory of its own.
    pub remote: Option<Box<dyn RemoteValues>>,
}

impl EngineParts {
    /// What the run is on, for people: devices with memory of their own by name, and the processor where it has a device too.
    pub fn on_what(&self, cores: usize) -> String {
        let mut named: Vec<String> = Vec::new();
        for name in self.devices.iter().filter_map(|device| device.remote.as_ref().map(|remote| remote.name())) {
            if !named.contains(&name) {
                named.push(name);
            }
        }
        if self.devices.iter().any(|device| device.remote.is_none()) {
            named.push(format!("{cores} CPU cores"));
        }
        named.join(" and ")
    }
}

/// What a run is made of.
pub struct EngineParts {
    /// The deployment.
    pub graph: Arc<StageGraph>,
    /// The lane orders.
    pub plan: Arc<Plan>,
    /// Sizes the step planner keeps to.
    pub planner: PlannerConfig,
    /// Widths of rows.
    pub widths: Widths,
    /// Stages by device index.
    pub devices: Vec<DeviceParts>,
    /// Devices that hold sequences, in the planner's order.
    pub attention: Vec<DeviceIndex>,
    /// Whether the step planner learns what a step costs from how long stages work. Then which rows share a micro-batch
    /// depends on timing: every sequence has the same tokens as ever, but no second run has the same batches.
    pub learn: bool,
    /// Spans each lane keeps; 0: only sums.
    pub spans_per_lane: usize,
    /// Sees values after each task.
    pub probe: Option<Arc<dyn Probe>>,
    /// This host's part, where there are several. [`Engine::start`] is the coordinator's, [`follow`](crate::hosts::follow) the
    /// others'.
    pub across: Option<Across>,
}

/// What [`Engine::pause`] gives, for [`Engine::resume`].
pub type Paused = (EngineParts, Option<Kept>);

/// A run that is going on.
pub struct Engine {
    control: Arc<Control>,
    lanes: Vec<JoinHandle<LaneRemains>>,
    inbox: Inbox,
    clock: RunClock,
    figures: Arc<RunFigures>,
    /// What is left of the parts it was made of; gone once they were given back. Stages are one thread's at a time, and so nobody
    /// takes the lock while the engine is shared.
    parts: Mutex<Option<EngineParts>>,
    across: Option<Across>,
    /// Threads that carry what other hosts send.
    carriers: Vec<JoinHandle<()>>,
}

/// Submits and cancels from any thread.
#[derive(Clone)]
pub struct SubmitHandle(Arc<Control>);

impl SubmitHandle {
    /// Queues a sequence.
    pub fn submit(&self, request: SequenceRequest) -> Result<(), SubmitError> {
        self.0.submit([request])
    }

    /// Ends a sequence early; it is reported as finished at once, and its pages come back after the step in flight.
    pub fn cancel(&self, id: SequenceId) {
        self.0.cancel(id);
    }

    /// Makes a running sequence give its pages back after the step in flight and queue again, in front. Its answer is the same,
    /// only later. Returns whether it will: not if it is not running, and not if it has generated no token since it was
    /// preempted last.
    pub fn preempt(&self, id: SequenceId) -> bool {
        self.0.preempt(id)
    }

    /// How often a sequence had to give its pages back, for want of pages or because someone asked.
    pub fn preemptions(&self) -> u64 {
        self.0.preemptions()
    }

    /// KV pages that nobody holds, over all devices; cached ones as well.
    pub fn free_pages(&self) -> usize {
        self.0.free_pages()
    }

    /// Of them, those that hold what some sequence may begin with ([`Engine::reuse_prefixes`]).
    pub fn cached_pages(&self) -> usize {
        self.0.cached_pages()
    }

    /// Tokens that sequences have brought since prefixes are reused, and of them those that were cached and not read.
    pub fn prefix_queries_and_hits(&self) -> (u64, u64) {
        self.0.prefix_queries_and_hits()
    }

    /// Sequences that hold pages, and sequences in the queue.
    pub fn running_and_waiting(&self) -> (usize, usize) {
        self.0.running_and_waiting()
    }
}

/// What a run leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// By lane, in the plan's order.
    pub lanes: Vec<LaneReport>,
    /// How full the run was, a sample a planned step, oldest first; empty unless spans were asked for.
    pub counters: Vec<CounterSample>,
    /// Samples that fell out of the ring.
    pub dropped_counters: u64,
    /// What a micro-batch's step was found to cost at last, all devices together, in seconds; absent if nothing was
    /// learned.
    pub costs: Option<CostModel>,
}

impl Engine {
    /// Allocates slots and values, and starts one thread a lane. Lanes wait, parked, until something is submitted. With other hosts it
    /// waits until all of them are ready.
    pub fn start(parts: EngineParts) -> Result<Self, EngineError> {
        Self::resume(parts, None).map_err(|(error, _)| error)
    }

    /// The same, for a run that goes on with what [`Engine::pause`] has left. Gives all back if it comes to nothing.
    pub fn resume(mut parts: EngineParts, kept: Option<Kept>) -> Result<Self, (EngineError, Box<Paused>)> {
        match prepare(&mut parts, None, kept) {
            Err(error) => Err((error, Box::new((parts, None)))),
            Ok(prepared) => Self::set_going(parts, prepared),
        }
    }

    fn set_going(parts: EngineParts, prepared: Prepared) -> Result<Self, (EngineError, Box<Paused>)> {
        let Prepared { lanes, control, inbox, clock, figures, sync, signals, slots } = prepared;
        let plan = Arc::clone(&parts.plan);
        // Left on the way out, it ends and joins the lanes that have started.
        let met = match &parts.across {
            Some(across) => meet_hosts(&parts, across, &control, (sync, signals, clock.clone()), slots),
            None => Ok(Vec::new()),
        };
        let (carriers, met) = match met {
            Ok(carriers) => (carriers, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        let across = parts.across.clone();
        let parts = Mutex::new(Some(parts));
        let mut engine = Self { control, lanes: Vec::new(), inbox, clock, figures, parts, across, carriers };
        if let Err(error) = met {
            let (mut parts, kept) = engine.pause();
            give_back(&mut parts, lanes.into_iter().map(Lane::into_remains));
            return Err((error, Box::new((parts, kept))));
        }
        match spawn(lanes, &plan, &*engine.control) {
            Ok(handles) => engine.lanes = handles,
            Err(error) => return Err((error, Box::new(engine.pause()))),
        }
        Ok(engine)
    }

    /// A handle for submitting from elsewhere.
    pub fn handle(&self) -> SubmitHandle {
        SubmitHandle(Arc::clone(&self.control))
    }

    /// Queues sequences together: no step is planned between the first and the last, so which batches they form does not
    /// depend on timing. Stops at the first that cannot be taken.
    pub fn submit(&self, requests: impl IntoIterator<Item = SequenceRequest>) -> Result<(), SubmitError> {
        self.control.submit(requests)
    }

    /// What happens, in order. No event is lost and no lane waits for the reader; one that leaves thousands unread makes the run
    /// take memory for the rest. What is unread when the engine is dropped is gone.
    pub fn events(&self) -> &Receiver<RunEvent> {
        &self.inbox.events
    }

    /// When the lanes started; span times count from here.
    pub fn started(&self) -> Instant {
        self.clock.started()
    }

    /// Where the run's time goes and how full it is, to be looked at from any thread while it runs.
    pub fn figures(&self) -> Arc<RunFigures> {
        Arc::clone(&self.figures)
    }

    /// Makes the step planner keep to a time per token, in seconds: sequences wait and prompts are read in smaller pieces where a
    /// step would take longer ([`rally_schedule::planner::StepPlanner::keep_tpot`]).
    pub fn keep_tpot(&self, target_s: f64) {
        self.control.keep_tpot(target_s);
    }

    /// Lets sequences that begin alike share KV pages from now on: on one device, what one has read no other reads
    /// ([`rally_schedule::planner::StepPlanner::reuse_prefixes`]). No bit of an answer changes where a row's bits do not depend on the batch that it is in, as
    /// on CPUs.
    pub fn reuse_prefixes(&self) {
        self.control.reuse_prefixes();
    }

    /// Takes the first `tokens` tokens of prompts that come as read, for whoever measures
    /// ([`rally_schedule::planner::StepPlanner::pretend_read`]); stages were told to [`crate::stage::Stage::pretend`].
    pub fn pretend_read(&self, tokens: usize) {
        self.control.pretend_read(tokens);
    }

    /// Says that nothing more will be submitted: the run ends when all is done. What comes later is refused.
    pub fn close(&self) {
        self.control.close();
    }

    /// Runs `requests` to their ends and the engine to its own, showing each event to `on_event`.
    pub fn run_to_end(
        self,
        requests: impl IntoIterator<Item = SequenceRequest>,
        mut on_event: impl FnMut(RunEvent),
    ) -> Result<RunReport, EngineError> {
        let requests: Vec<SequenceRequest> = requests.into_iter().collect();
        let mut open = requests.len();
        self.submit(requests)?;
        while open > 0 {
            match self.inbox.events.recv().map_err(|_| EngineError::EndedEarly)? {
                RunEvent::Failed(error) => return Err(error),
                event => {
                    open -= usize::from(matches!(event, RunEvent::Finished(..)));
                    on_event(event);
                }
            }
        }
        self.close();
        Ok(self.join())
    }

    /// Waits for the lanes to end. Call [`Engine::close`] first.
    pub fn join(self) -> RunReport {
        self.join_and_return().0
    }

    /// The same; gives the parts back for another run. Stages of a lane that panicked are gone.
    pub fn join_and_return(mut self) -> (RunReport, EngineParts) {
        let (lanes, parts) = self.join_lanes();
        let (counters, dropped_counters) = self.control.take_counters();
        (RunReport { lanes, counters, dropped_counters, costs: self.control.learned_costs() }, parts)
    }

    /// Ends the run at once and gives the parts back.
    pub fn stop(mut self) -> EngineParts {
        self.abort();
        self.join_lanes().1
    }

    /// Ends the run at once, as a failure does: [`EngineError::BrokenOff`] comes behind all that was told before, and nothing after it.
    pub fn break_off(&self) {
        self.control.break_off(EngineError::BrokenOff);
        self.abort();
    }

    /// [`Engine::stop`] for a run that has failed or was broken off, and is to go on: also gives what its planner knows. The steps in flight are done again then.
    pub fn pause(mut self) -> Paused {
        self.abort();
        let parts = self.join_lanes().1;
        (parts, Some(self.control.keep()))
    }

    fn abort(&self) {
        self.control.abort();
        if let Some(followers) = self.control.followers() {
            followers.leave();
        }
    }

    fn join_lanes(&mut self) -> (Vec<LaneReport>, EngineParts) {
        let parts = self.parts.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut parts = parts.take().expect("an engine is joined once");
        let named = |lane: &PlannedLane| LaneReport { name: lane.name.clone(), ..LaneReport::default() };
        // Lanes of other hosts are reported there.
        let mut reports: Vec<LaneReport> = parts.plan.lanes.iter().map(named).collect();
        // A lane that hangs is left behind, with its stages.
        let ends = match self.across {
            Some(_) => join_unless(self.lanes.drain(..), || self.control.hangs()),
            None => self.lanes.drain(..).filter_map(|lane| lane.join().ok()).collect(),
        };
        ends.iter().for_each(|end| reports[end.index] = end.report.clone());
        give_back(&mut parts, ends);
        if let Some(across) = &parts.across {
            across.transport.finish();
        }
        self.carriers.drain(..).for_each(|carrier| drop(carrier.join()));
        (reports, parts)
    }
}

impl Drop for Engine {
    /// An engine that is dropped before it was joined stops at once and leaves no thread behind.
    fn drop(&mut self) {
        if self.parts.get_mut().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.abort();
            self.join_lanes();
        }
    }
}

/// Between two looks whether a lane has ended that may hang.
const ENDED: Duration = Duration::from_millis(1);

/// What lanes leave behind, of those that end before `gives_up` says that no more will.
pub(crate) fn join_unless(
    lanes: impl Iterator<Item = JoinHandle<LaneRemains>>,
    gives_up: impl Fn() -> bool,
) -> Vec<LaneRemains> {
    let ended = |lane: &JoinHandle<LaneRemains>| {
        while !lane.is_finished() {
            if gives_up() {
                return false;
            }
            std::thread::sleep(ENDED);
        }
        true
    };
    // Dropped, a handle lets its thread go.
    lanes.filter_map(|lane| ended(&lane).then_some(lane)?.join().ok()).collect()
}

/// Waits for the other hosts, and starts the threads that carry what they send.
fn meet_hosts(
    parts: &EngineParts,
    across: &Across,
    control: &Arc<Control>,
    (sync, signals, clock): (Arc<LaneSync>, Arc<Signals>, RunClock),
    slots: Vec<Registration>,
) -> Result<Vec<JoinHandle<()>>, EngineError> {
    let (ends, ended) = crossbeam::channel::unbounded();
    let followers = control.followers().expect("a coordinator has followers");
    let switchboard = Arc::new(Switchboard::new(
        (&parts.plan, &parts.graph),
        (sync, signals, clock),
        (&slots, across.coordinator, lanes_here(parts).collect()),
        across.bounds(parts),
        Arc::new(Planning {
            control: Arc::clone(control),
            ends,
            names: across.names.clone(),
            hosts: followers.hosts.clone(),
            graph: Arc::clone(&parts.graph),
            present: across.present.clone(),
        }),
    ));
    across.transport.register(slots);
    let emptied = followers.gather(&across.bounds(parts))?;
    let away: Vec<Peer> = (0..across.present.len()).filter(|host| !across.present[*host]).collect();
    (0..parts.attention.len()).for_each(|device| control.has_device(device));
    followers.devices_of(&emptied).for_each(|device| control.lost_device(device, false));
    followers.devices_of(&away).for_each(|device| control.lost_device(device, true));
    followers.go();
    let (counting, host, hosts) = (Arc::clone(control), across.host, across.names.len());
    let count = move || count_ends(&counting, &ended, (host, hosts));
    let count = std::thread::Builder::new().name("steps".into()).spawn(count);
    let count = count.map_err(|error| EngineError::Thread { lane: "steps".into(), message: error.to_string() })?;
    let mut carriers = spawn_lanes(&across.transport, &switchboard)?;
    carriers.push(count);
    Ok(carriers)
}

/// Starts a thread a lane. A lane that gets none ends the run for those that did.
pub(crate) fn spawn(
    lanes: Vec<Lane>,
    plan: &Plan,
    steps: &dyn Steps,
) -> Result<Vec<JoinHandle<LaneRemains>>, EngineError> {
    let mut handles = Vec::new();
    for lane in lanes {
        let name = plan.lanes[lane.index].name.clone();
        match std::thread::Builder::new().name(format!("lane {name}")).spawn(move || lane.run()) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                let error = EngineError::Thread { lane: name, message: error.to_string() };
                steps.fail(error.clone());
                handles.into_iter().for_each(|handle| drop(handle.join()));
                return Err(error);
            }
        }
    }
    Ok(handles)
}

/// Puts stages, and values in a device's own memory, back where they came from.
pub(crate) fn give_back(parts: &mut EngineParts, ends: impl IntoIterator<Item = LaneRemains>) {
    for LaneRemains { index, stages, remote, .. } in ends {
        let device = &mut parts.devices[parts.plan.lanes[index].device];
        let here = stages.into_iter().enumerate().filter_map(|(stage, work)| Some((stage, work?)));
        device.stages.extend(here);
        device.remote = remote;
    }
}
