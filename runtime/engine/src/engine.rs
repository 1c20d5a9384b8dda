//! A run: lanes, slots and planner put together, started, fed, ended.

use crate::clock::RunClock;
use crate::control::{Control, RunEvent, Surroundings};
use crate::figures::{LaneMeter, RunFigures, counts_routing};
use crate::hosts::{Across, Crossings, Followers, Planning, Signals, Switchboard, count_ends, spawn_lanes};
use crate::lane::{Due, Lane, LaneRemains, Position, SignalWait, stand_apart};
use crate::outbox::{Inbox, outbox};
use crate::rehearsal::FixedBatches;
use crate::remote::RemoteValues;
use crate::slot::{Header, SlotError};
use crate::span::{CounterSample, LaneReport, Recorder};
use crate::stage::{Probe, Stage, StageError};
use crate::step_work::StepWork;
use crate::steps::Steps;
use crate::sync::LaneSync;
use crate::transfer::Scratch;
use crate::values::Values;
pub use crate::values::Widths;
use crate::wiring::Wiring;
use crossbeam::channel::Receiver;
use rally_graph::kinds::Role;
use rally_graph::plan::{Plan, PlannedLane, PlannedTask, TaskRole, Wait};
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::{DeviceIndex, StageGraph, StageIndex};
use rally_kernels::team::Team;
use rally_schedule::batch::{DeviceBatch, SequenceId, SequenceRequest};
use rally_schedule::cost::CostModel;
use rally_schedule::planner::{PlannerConfig, StepPlanner, SubmitError};
use rally_transport::{Peer, Registration};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

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
    /// A host of the deployment says that its part of the run failed.
    #[error("on host `{host}`: {message}")]
    HostFailed {
        /// Its name.
        host: String,
        /// What it says.
        message: String,
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

    /// KV pages that nobody holds, over all devices.
    pub fn free_pages(&self) -> usize {
        self.0.free_pages()
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

/// Most counter samples a run keeps: 2.6 MB.
const MOST_COUNTERS: usize = 65_536;

impl Engine {
    /// Allocates slots and values, and starts one thread a lane. Lanes wait, parked, until something is submitted. With other hosts it
    /// waits until all of them are ready.
    pub fn start(parts: EngineParts) -> Result<Self, EngineError> {
        Self::try_start(parts).map_err(|(error, _)| error)
    }

    /// The same; gives the parts back if it comes to nothing.
    pub fn try_start(mut parts: EngineParts) -> Result<Self, (EngineError, Box<EngineParts>)> {
        match prepare(&mut parts, None) {
            Err(error) => Err((error, Box::new(parts))),
            Ok(prepared) => Self::set_going(parts, prepared),
        }
    }

    fn set_going(parts: EngineParts, prepared: Prepared) -> Result<Self, (EngineError, Box<EngineParts>)> {
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
            let mut parts = engine.stop();
            give_back(&mut parts, lanes.into_iter().map(Lane::into_remains));
            return Err((error, Box::new(parts)));
        }
        match spawn(lanes, &plan, &*engine.control) {
            Ok(handles) => engine.lanes = handles,
            Err(error) => return Err((error, Box::new(engine.stop()))),
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
    /// step would take longer ([`StepPlanner::keep_tpot`]).
    pub fn keep_tpot(&self, target_s: f64) {
        self.control.keep_tpot(target_s);
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

    fn abort(&self) {
        self.control.abort();
        if let Some(across) = &self.across {
            across.transport.finish();
            let peers = self.control.followers().into_iter().flat_map(|followers| &followers.peers);
            peers.for_each(|peer| across.transport.peer_down(*peer, "the run was ended here"));
        }
    }

    fn join_lanes(&mut self) -> (Vec<LaneReport>, EngineParts) {
        let parts = self.parts.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut parts = parts.take().expect("an engine is joined once");
        let named = |lane: &PlannedLane| LaneReport { name: lane.name.clone(), ..LaneReport::default() };
        // Lanes of other hosts are reported there.
        let mut reports: Vec<LaneReport> = parts.plan.lanes.iter().map(named).collect();
        let ends: Vec<LaneRemains> = self.lanes.drain(..).filter_map(|lane| lane.join().ok()).collect();
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

/// Waits for the other hosts, and starts the threads that carry what they send.
fn meet_hosts(
    parts: &EngineParts,
    across: &Across,
    control: &Arc<Control>,
    (sync, signals, clock): (Arc<LaneSync>, Arc<Signals>, RunClock),
    slots: Vec<Registration>,
) -> Result<Vec<JoinHandle<()>>, EngineError> {
    let (ends, ended) = crossbeam::channel::unbounded();
    let switchboard = Arc::new(Switchboard::new(
        (&parts.plan, &parts.graph),
        (sync, signals, clock),
        (&slots, across.coordinator, lanes_here(parts).collect()),
        across.bounds(parts),
        Arc::new(Planning { control: Arc::clone(control), ends }),
    ));
    across.transport.register(slots);
    let followers = control.followers().expect("a coordinator has followers");
    followers.gather(&parts.graph.hosts)?;
    let counting = Arc::clone(control);
    let count = std::thread::Builder::new().name("steps".into()).spawn(move || count_ends(&counting, &ended));
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

/// By lane, how many experts its routers choose among.
fn experts_by_lane(parts: &EngineParts) -> Vec<usize> {
    let of_device =
        |device: DeviceIndex| parts.devices[device].stages.values().map(|stage| stage.routed_experts()).max();
    parts.plan.lanes.iter().map(|lane| of_device(lane.device).unwrap_or(0)).collect()
}

/// Lanes that have not started.
pub(crate) struct Prepared {
    pub(crate) lanes: Vec<Lane>,
    pub(crate) control: Arc<Control>,
    pub(crate) inbox: Inbox,
    clock: RunClock,
    figures: Arc<RunFigures>,
    sync: Arc<LaneSync>,
    signals: Arc<Signals>,
    slots: Vec<Registration>,
}

/// Allocates slots and values of every lane, and takes the stages out of `parts`. `fixed`: what steps work on in a rehearsal.
pub(crate) fn prepare(parts: &mut EngineParts, fixed: Option<FixedBatches>) -> Result<Prepared, EngineError> {
    let (events, inbox) = outbox(parts.planner.sequences)
        .map_err(|error| EngineError::Thread { lane: "events".into(), message: error.to_string() })?;
    // A micro-batch's step has several spans on every lane and one sample, so this many reach back further than the spans.
    let counters = parts.spans_per_lane.min(MOST_COUNTERS);
    let (plan, followers) = (Arc::clone(&parts.plan), followers(parts));
    let mut made = None;
    let mut inputs = Some((events, fixed));
    let built = build(parts, &mut |shared, planner| {
        let (events, fixed) = inputs.take().expect("lanes are built once");
        let surroundings = Surroundings {
            sync: Arc::clone(&shared.sync),
            events,
            clock: shared.clock.clone(),
            counters,
            figures: Arc::clone(&shared.figures),
            work: shared.work.clone(),
            fixed,
            followers: followers.as_ref().map(|make| make(shared)),
        };
        let control = Arc::new(Control::new(planner, &plan, surroundings));
        made = Some(Arc::clone(&control));
        control
    })?;
    let Built { lanes, slots, shared: Shared { sync, signals, clock, figures, .. } } = built;
    let control = made.expect("lanes were built with it");
    Ok(Prepared { lanes, control, inbox, clock, figures, sync, signals, slots })
}

type MakeFollowers = Box<dyn Fn(&Shared) -> Followers>;

/// What makes the followers of a coordinator.
fn followers(parts: &EngineParts) -> Option<MakeFollowers> {
    let across = parts.across.clone()?;
    let on = |device: &DeviceIndex| parts.graph.devices[*device].host.filter(|host| *host != across.host);
    let hosts: Vec<Option<Peer>> = parts.attention.iter().map(on).collect();
    let peers: Vec<Peer> = (0..parts.graph.hosts.len()).filter(|host| *host != across.host).collect();
    let lanes: Vec<usize> = lanes_here(parts).collect();
    let (transport, names) = (Arc::clone(&across.transport), across.names.clone());
    Some(Box::new(move |shared| Followers {
        transport: Arc::clone(&transport),
        sync: Arc::clone(&shared.sync),
        signals: Arc::clone(&shared.signals),
        clock: shared.clock.clone(),
        hosts: hosts.clone(),
        names: names.clone(),
        peers: peers.clone(),
        lanes: lanes.clone(),
    }))
}

/// Indices of the lanes that this process runs.
fn lanes_here(parts: &EngineParts) -> impl Iterator<Item = usize> + use<'_> {
    let here = |device| parts.across.as_ref().is_none_or(|across| across.is_here(&parts.graph, device));
    parts.plan.lanes.iter().enumerate().filter(move |(_, lane)| here(lane.device)).map(|(index, _)| index)
}

/// What all lanes of a run have in common.
pub(crate) struct Shared {
    pub(crate) sync: Arc<LaneSync>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) clock: RunClock,
    pub(crate) figures: Arc<RunFigures>,
    work: Option<Arc<StepWork>>,
    /// The plan, its waits for lanes of other hosts left out.
    plan: Arc<Plan>,
}

/// The lanes of this process, built and not started.
pub(crate) struct Built {
    pub(crate) lanes: Vec<Lane>,
    pub(crate) shared: Shared,
    /// Those whose other end is on another host.
    pub(crate) slots: Vec<Registration>,
}

/// Builds the lanes of this process around the steps that `make` makes.
pub(crate) fn build(
    parts: &mut EngineParts,
    make: &mut dyn FnMut(&Shared, StepPlanner) -> Arc<dyn Steps>,
) -> Result<Built, EngineError> {
    let (graph, attention) = (Arc::clone(&parts.graph), parts.attention.clone());
    let here: Vec<usize> = lanes_here(parts).collect();
    let remote = parts.devices.iter().map(|device| device.remote.is_some()).collect();
    let mut wiring = Wiring::new(&graph, &attention, remote, parts.planner.rows_per_device, parts.widths);
    if let Some(across) = &parts.across {
        wiring = wiring.on_host(across.host);
        // Once through, to find the slots that cross: signals are counted before lanes are built.
        for task in here.iter().flat_map(|lane| &parts.plan.lanes[*lane].tasks) {
            wiring.moves(&parts.plan.table.tasks[task.task], task.micro_batch);
        }
        wiring.forget_touched();
    }
    let crossing = wiring.crossings.as_ref().map_or(0, |crossings| crossings.slots().len());
    let signals = Arc::new(Signals::new(&parts.plan, graph.layers, crossing));
    let counters = if parts.across.is_some() { signals.counters() } else { parts.plan.lanes.len() };
    let mut plan = Arc::clone(&parts.plan);
    if parts.across.is_some() {
        Arc::make_mut(&mut plan).keep_waits(|lane| here.contains(&lane));
    }
    let clock = RunClock::start();
    let planner = StepPlanner::new(parts.planner);
    let experts = experts_by_lane(parts);
    let figures = Arc::new(RunFigures::new(clock.clone(), &parts.plan, &parts.graph, &planner, &experts));
    (0..parts.plan.lanes.len()).filter(|lane| !here.contains(lane)).for_each(|lane| figures.is_elsewhere(lane));
    let shared = Shared {
        sync: Arc::new(LaneSync::new(counters, here.len(), stand_apart(&parts.plan, &parts.graph))),
        signals,
        clock,
        figures,
        work: parts.learn.then(|| Arc::new(StepWork::new(parts.plan.micro_batches))),
        plan,
    };
    let steps = make(&shared, planner);
    let lanes = here.into_iter().map(|lane| build_lane(parts, lane, &shared, &steps, &mut wiring));
    let lanes = lanes.collect::<Result<Vec<_>, _>>()?;
    let slots = wiring.crossings.map(Crossings::into_slots).unwrap_or_default();
    Ok(Built { lanes, shared, slots })
}

fn build_lane(
    parts: &mut EngineParts,
    index: usize,
    shared: &Shared,
    steps: &Arc<dyn Steps>,
    wiring: &mut Wiring<'_>,
) -> Result<Lane, EngineError> {
    let planned = &parts.plan.lanes[index];
    let device = planned.device;
    let cores = parts.graph.devices[device].cores.clone();
    let micro_batches = parts.plan.micro_batches;
    // An FFN device may get the rows of every attention device; so may an attention device that runs the FFN as well.
    let is_ffn = parts.graph.devices_of_role(Role::Ffn).contains(&device);
    let gathers = is_ffn || !parts.attention.contains(&device);
    let rows = parts.planner.rows_per_device * if gathers { parts.attention.len() } else { 1 };
    let mut stages: Vec<Option<Box<dyn Stage>>> = parts.graph.stages.iter().map(|_| None).collect();
    for (stage, work) in parts.devices[device].stages.drain() {
        stages[stage] = Some(work);
    }
    let remote = parts.devices[device].remote.take();
    let planned_tasks = planned.tasks.iter();
    let positions = planned_tasks
        .map(|task| position(parts, &stages, task, &shared.signals, wiring))
        .collect::<Result<Vec<_>, _>>()?;
    let routes = |stage: usize| {
        stages[stage].as_ref().is_some_and(|work| work.routed_experts() > 0)
            && counts_routing(&parts.plan.table, &parts.graph, stage, device)
    };
    let counts_routing = (0..stages.len()).map(routes).collect();
    Ok(Lane {
        index,
        plan: Arc::clone(&shared.plan),
        graph: Arc::clone(&parts.graph),
        positions,
        counts_routing,
        stages,
        values: (0..micro_batches).map(|_| Values::new(rows, parts.widths)).collect(),
        batches: vec![DeviceBatch::default(); micro_batches],
        attention: parts.attention.iter().position(|attention| *attention == device),
        last_tokens: vec![0; parts.planner.sequences_per_device],
        samples: Vec::with_capacity(rows),
        scratch: Scratch::new(parts.planner.rows_per_device, parts.widths),
        team: Team::pinned(&cores),
        cores,
        sync: Arc::clone(&shared.sync),
        control: Arc::clone(steps),
        recorder: Recorder::new(
            &planned.name,
            shared.clock.clone(),
            parts.spans_per_lane,
            LaneMeter::new(&shared.figures, &parts.plan, &parts.graph, index),
            remote.is_some(),
        ),
        remote,
        unused: None,
        work: shared.work.clone(),
        probe: parts.probe.clone(),
        across: parts.across.as_ref().map(|across| (Arc::clone(&across.transport), Arc::clone(&shared.signals))),
    })
}

/// What a lane must know about `task` beyond the plan.
fn position(
    parts: &EngineParts,
    stages: &[Option<Box<dyn Stage>>],
    task: &PlannedTask,
    signals: &Signals,
    wiring: &mut Wiring<'_>,
) -> Result<Position, EngineError> {
    let template = &parts.plan.table.tasks[task.task];
    let stage = &parts.graph.stages[template.stage];
    let work = stages[template.stage].as_ref();
    if template.role == TaskRole::Compute && work.is_none() {
        let device = parts.graph.devices[template.device].name.clone();
        return Err(EngineError::MissingStage { device, stage: stage.id.clone() });
    }
    let sizes = work.map(|work| work.exchanges()).unwrap_or_default();
    let moves = wiring.moves(template, task.micro_batch);
    let (incoming, outgoing) = moves.lines();
    let begins_step = parts.plan.table.entries.contains(&task.task);
    Ok(Position {
        signals: signal_waits(parts, task, begins_step, signals, wiring),
        moves,
        incoming,
        outgoing,
        legs: wiring.legs(template, task.micro_batch, &sizes),
        dtype: stage.transfer.as_ref().map_or(WireDtype::F32, |transfer| transfer.dtype),
        begins_step,
        ends_step: parts.plan.table.exits.contains(&task.task),
    })
}

/// What `task`, just wired, waits for from other hosts.
fn signal_waits(
    parts: &EngineParts,
    task: &PlannedTask,
    begins_step: bool,
    signals: &Signals,
    wiring: &mut Wiring<'_>,
) -> Vec<SignalWait> {
    let (Some(across), Some(crossings)) = (&parts.across, &mut wiring.crossings) else { return Vec::new() };
    let device = |wait: &Wait| parts.plan.lanes[wait.lane].device;
    let touched = std::mem::take(&mut crossings.touched);
    let mut waits: Vec<SignalWait> = Vec::new();
    for (slot, from) in touched {
        if let Some(wait) = task.waits.iter().find(|wait| device(wait) == from) {
            waits.push(SignalWait { signal: signals.slot(slot), due: Due::Rows, instead_of: Some(*wait) });
        }
    }
    let elsewhere = task.waits.iter().find(|wait| !across.is_here(&parts.graph, device(wait))).copied();
    // A coordinator whose lanes alone end steps has planned before it comes here.
    if begins_step && (across.host != across.coordinator || elsewhere.is_some()) {
        let signal = signals.planned(task.micro_batch);
        waits.push(SignalWait { signal, due: Due::Step, instead_of: elsewhere });
    }
    waits
}
