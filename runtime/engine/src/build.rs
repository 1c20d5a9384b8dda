//! From an engine's parts to lanes that have not started: slots and values allocated, waits and sums wired up.

use crate::clock::RunClock;
use crate::control::{Control, Kept, Surroundings};
use crate::engine::{DeviceParts, EngineError, EngineParts};
use crate::figures::{LaneMeter, RunFigures, counts_routing};
use crate::hosts::{Crossings, Followers, Hops, Patience, STANDSTILL, Signals};
use crate::lane::{Due, Lane, LaneAcross, Position, SignalWait, stand_apart};
use crate::outbox::{Inbox, outbox};
use crate::rehearsal::FixedBatches;
use crate::remote::Crossing;
use crate::slot::{self, storage_dtype};
use crate::span::Recorder;
use crate::stage::Stage;
use crate::step_work::StepWork;
use crate::steps::Steps;
use crate::sync::LaneSync;
use crate::transfer::Scratch;
use crate::values::Values;
use crate::wiring::Wiring;
use rally_graph::kinds::Role;
use rally_graph::plan::{Plan, PlannedTask, TaskRole, Wait};
use rally_graph::routes::Rails;
use rally_graph::spec::{TransportKind, WireDtype};
use rally_graph::stage_graph::{DeviceIndex, StageGraph};
use rally_kernels::team::Team;
use rally_schedule::batch::DeviceBatch;
use rally_schedule::planner::StepPlanner;
use rally_transport::{Direction, Peer, Registration};
use std::sync::Arc;

/// Most counter samples a run keeps: 2.6 MB.
const MOST_COUNTERS: usize = 65_536;

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
    pub(crate) clock: RunClock,
    pub(crate) figures: Arc<RunFigures>,
    pub(crate) sync: Arc<LaneSync>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) slots: Vec<Registration>,
}

/// Allocates slots and values of every lane, and takes the stages out of `parts`. `fixed`: what steps work on in a rehearsal.
/// `kept`: what an epoch before this one has left.
pub(crate) fn prepare(
    parts: &mut EngineParts,
    fixed: Option<FixedBatches>,
    kept: Option<Kept>,
) -> Result<Prepared, EngineError> {
    let (events, inbox) = outbox(parts.planner.sequences)
        .map_err(|error| EngineError::Thread { lane: "events".into(), message: error.to_string() })?;
    // A micro-batch's step has several spans on every lane and one sample, so this many reach back further than the spans.
    let counters = parts.spans_per_lane.min(MOST_COUNTERS);
    let (plan, followers) = (Arc::clone(&parts.plan), followers(parts));
    let mut made = None;
    let away = |lane: &usize| {
        let device = parts.plan.lanes[*lane].device;
        parts.across.as_ref().is_some_and(|across| across.is_away(&parts.graph, device))
    };
    let away: Vec<usize> = (0..plan.lanes.len()).filter(away).collect();
    let (mut left, mut in_flight, mut patience) = (None, Vec::new(), None);
    if let Some(kept) = kept {
        let parts = kept.into_parts();
        (left, in_flight, patience) = (Some(parts.0), parts.1, Some(parts.2));
    }
    let least = parts.across.as_ref().map_or(STANDSTILL, |across| across.standstill);
    let patience = patience.unwrap_or_else(|| Patience::new(least));
    let mut inputs = Some((events, fixed, left, away, in_flight));
    let built = build(parts, &mut |shared, planner| {
        let (events, fixed, left, away, in_flight) = inputs.take().expect("lanes are built once");
        let surroundings = Surroundings {
            sync: Arc::clone(&shared.sync),
            events,
            clock: shared.clock.clone(),
            counters,
            figures: Arc::clone(&shared.figures),
            work: shared.work.clone(),
            fixed,
            followers: followers.as_ref().map(|make| make(shared)),
            away,
            in_flight,
            patience,
        };
        let control = Arc::new(Control::new(left.unwrap_or(planner), &plan, surroundings));
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
    let others = (0..parts.graph.hosts.len()).filter(|host| *host != across.host);
    let peers: Vec<Peer> = others.filter(|host| across.present[*host]).collect();
    let lanes: Vec<usize> = lanes_here(parts).collect();
    let (transport, names) = (Arc::clone(&across.transport), across.names.clone());
    let lane_names: Vec<String> = parts.plan.lanes.iter().map(|lane| lane.name.clone()).collect();
    Some(Box::new(move |shared| Followers {
        transport: Arc::clone(&transport),
        sync: Arc::clone(&shared.sync),
        signals: Arc::clone(&shared.signals),
        clock: shared.clock.clone(),
        hosts: hosts.clone(),
        names: names.clone(),
        peers: peers.clone(),
        lanes: lanes.clone(),
        lane_names: lane_names.clone(),
    }))
}

/// Indices of the lanes that this process runs.
pub(crate) fn lanes_here(parts: &EngineParts) -> impl Iterator<Item = usize> + use<'_> {
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
        let away = |device| across.is_away(&parts.graph, device);
        wiring = wiring.on_host(across.host, (0..graph.devices.len()).map(away).collect());
        // Once through, to find the slots that cross: signals are counted before lanes are built.
        for task in here.iter().flat_map(|lane| &parts.plan.lanes[*lane].tasks) {
            wiring.moves(&parts.plan.table.tasks[task.task], task.micro_batch);
        }
        wiring.forget_touched();
    }
    if let Some(crossings) = &wiring.crossings {
        make_room(&graph, &mut parts.devices, crossings, parts.planner.rows_per_device)?;
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

/// Moves slots that cross over an engine that reads and writes devices' memory there. On rails rows are passed on by the host.
fn make_room(
    graph: &StageGraph,
    devices: &mut [DeviceParts],
    crossings: &Crossings,
    rows: usize,
) -> Result<(), EngineError> {
    let mut slots = 0;
    for (Registration { key, direction, .. }, slot) in crossings.slots().iter().zip(crossings.shared()) {
        let stage = &graph.stages[usize::from(key.edge)];
        let Some(transfer) = &stage.transfer else { continue };
        let by_itself = stage.spec.transport == Some(TransportKind::Nixl) && Rails::of(graph, transfer).is_none();
        let here = if *direction == Direction::Out { key.from } else { key.to };
        if let Some(remote) = devices[usize::from(here)].remote.as_mut().filter(|_| by_itself) {
            // Forth and back are different transfers; what has room for experts has it for none.
            let crossing = Crossing { dtype: storage_dtype(transfer.dtype), routed: true };
            slot::take(slot)?.move_to(remote.room(rows, crossing)?);
            slots += 1;
        }
    }
    if slots > 0 {
        tracing::info!(slots, "rows over NIXL cross from and to the memory of devices");
    }
    Ok(())
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
        sweeps: false,
        sweep_due: false,
        turns: None,
        work: shared.work.clone(),
        probe: parts.probe.clone(),
        across: parts.across.as_ref().map(|across| LaneAcross {
            transport: Arc::clone(&across.transport),
            signals: Arc::clone(&shared.signals),
            hops: Hops::new(micro_batches),
        }),
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
        crosses: moves.crosses(),
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
