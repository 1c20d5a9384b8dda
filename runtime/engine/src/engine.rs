//! A run: lanes, slots and planner put together, started, fed, ended.

use crate::clock::RunClock;
use crate::control::{Control, RunEvent, Surroundings};
use crate::figures::{LaneMeter, RunFigures, counts_routing};
use crate::lane::{Lane, Position, stand_apart};
use crate::outbox::{Inbox, outbox};
use crate::rehearsal::FixedBatches;
use crate::remote::RemoteValues;
use crate::slot::{Header, SlotError};
use crate::span::{CounterSample, LaneReport, Recorder};
use crate::stage::{Probe, Stage, StageError};
use crate::step_work::StepWork;
use crate::sync::LaneSync;
use crate::transfer::Scratch;
use crate::values::Values;
pub use crate::values::Widths;
use crate::wiring::Wiring;
use crossbeam::channel::Receiver;
use rally_graph::kinds::Role;
use rally_graph::plan::{Plan, PlannedTask, TaskRole};
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::{DeviceIndex, StageGraph, StageIndex};
use rally_kernels::team::Team;
use rally_schedule::batch::{DeviceBatch, SequenceId, SequenceRequest};
use rally_schedule::cost::CostModel;
use rally_schedule::planner::{PlannerConfig, StepPlanner, SubmitError};
use std::collections::HashMap;
use std::sync::Arc;
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
}

/// A run that is going on.
pub struct Engine {
    control: Arc<Control>,
    lanes: Vec<JoinHandle<LaneReport>>,
    inbox: Inbox,
    clock: RunClock,
    figures: Arc<RunFigures>,
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
    /// Allocates slots and values, and starts one thread a lane. Lanes wait, parked, until something is submitted.
    pub fn start(mut parts: EngineParts) -> Result<Self, EngineError> {
        let Prepared { lanes, control, inbox, clock, figures } = prepare(&mut parts, None)?;
        // Dropped on the way out, it ends and joins the lanes that have started.
        let mut engine = Self { control, lanes: Vec::new(), inbox, clock, figures };
        for lane in lanes {
            let name = parts.plan.lanes[lane.index].name.clone();
            let spawned = std::thread::Builder::new().name(format!("lane {name}")).spawn(move || lane.run());
            let handle = spawned.map_err(|error| EngineError::Thread { lane: name, message: error.to_string() })?;
            engine.lanes.push(handle);
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
    pub fn join(mut self) -> RunReport {
        let lanes = self.lanes.drain(..).map(|lane| lane.join().unwrap_or_default()).collect();
        let (counters, dropped_counters) = self.control.take_counters();
        RunReport { lanes, counters, dropped_counters, costs: self.control.learned_costs() }
    }
}

impl Drop for Engine {
    /// An engine that is dropped before it was joined stops at once and leaves no thread behind.
    fn drop(&mut self) {
        if self.lanes.is_empty() {
            return;
        }
        self.control.abort();
        for lane in self.lanes.drain(..) {
            // A lane reports its own panic; there is nothing to add here.
            let _ = lane.join();
        }
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
}

/// Allocates slots and values of every lane, and takes the stages out of `parts`. `fixed`: what steps work on in a rehearsal.
pub(crate) fn prepare(parts: &mut EngineParts, fixed: Option<FixedBatches>) -> Result<Prepared, EngineError> {
    let sync = Arc::new(LaneSync::new(parts.plan.lanes.len(), stand_apart(&parts.plan, &parts.graph)));
    let (events, inbox) = outbox(parts.planner.sequences)
        .map_err(|error| EngineError::Thread { lane: "events".into(), message: error.to_string() })?;
    let planner = StepPlanner::new(parts.planner);
    let work = parts.learn.then(|| Arc::new(StepWork::new(parts.plan.micro_batches)));
    let clock = RunClock::start();
    // A micro-batch's step has several spans on every lane and one sample, so this many reach back further than the spans.
    let counters = parts.spans_per_lane.min(MOST_COUNTERS);
    let experts = experts_by_lane(parts);
    let figures = Arc::new(RunFigures::new(clock.clone(), &parts.plan, &parts.graph, &planner, &experts));
    let surroundings = Surroundings {
        sync: Arc::clone(&sync),
        events,
        clock: clock.clone(),
        counters,
        figures: Arc::clone(&figures),
        work: work.clone(),
        fixed,
    };
    let control = Arc::new(Control::new(planner, &parts.plan, surroundings));
    let (graph, attention) = (Arc::clone(&parts.graph), parts.attention.clone());
    let shared = Shared { sync, control, clock, figures, work };
    let remote = parts.devices.iter().map(|device| device.remote.is_some()).collect();
    let mut wiring = Wiring::new(&graph, &attention, remote, parts.planner.rows_per_device, parts.widths);
    let mut lanes = Vec::new();
    for index in 0..parts.plan.lanes.len() {
        lanes.push(build_lane(parts, index, &shared, &mut wiring)?);
    }
    let Shared { control, clock, figures, .. } = shared;
    Ok(Prepared { lanes, control, inbox, clock, figures })
}

/// What all lanes of a run have in common.
struct Shared {
    sync: Arc<LaneSync>,
    control: Arc<Control>,
    clock: RunClock,
    figures: Arc<RunFigures>,
    work: Option<Arc<StepWork>>,
}

fn build_lane(
    parts: &mut EngineParts,
    index: usize,
    shared: &Shared,
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
    let positions = planned_tasks.map(|task| position(parts, &stages, task, wiring)).collect::<Result<Vec<_>, _>>()?;
    let routes = |stage: usize| {
        stages[stage].as_ref().is_some_and(|work| work.routed_experts() > 0)
            && counts_routing(&parts.plan.table, &parts.graph, stage, device)
    };
    let counts_routing = (0..stages.len()).map(routes).collect();
    Ok(Lane {
        index,
        plan: Arc::clone(&parts.plan),
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
        control: Arc::clone(&shared.control),
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
    })
}

/// What a lane must know about `task` beyond the plan.
fn position(
    parts: &EngineParts,
    stages: &[Option<Box<dyn Stage>>],
    task: &PlannedTask,
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
    Ok(Position {
        moves,
        incoming,
        outgoing,
        legs: wiring.legs(template, task.micro_batch, &sizes),
        dtype: stage.transfer.as_ref().map_or(WireDtype::F32, |transfer| transfer.dtype),
        begins_step: parts.plan.table.entries.contains(&task.task),
        ends_step: parts.plan.table.exits.contains(&task.task),
    })
}
