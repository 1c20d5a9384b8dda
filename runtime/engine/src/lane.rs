//! A real lane: a thread that walks its list for ever, waiting on other lanes where the plan says so.

use crate::engine::EngineError;
use crate::exchange::{Exchange, Legs};
use crate::hosts::{Hops, Signals};
use crate::remote::{Moment, Parcel, RemoteValues};
use crate::slot::Header;
use crate::span::{Begin, LaneReport, Recorder, Span};
use crate::stage::{Probe, Sample, Stage, TaskContext};
use crate::step_work::StepWork;
use crate::steps::{StepEnd, Steps};
use crate::sync::{LaneSync, Stopped, Waited};
use crate::transfer::{Moved, Scratch, Transfer};
use crate::values::Values;
use crate::wiring::{Lines, Moves};
use rally_graph::plan::{Plan, PlannedTask, TaskRole, Wait};
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::{Payload, StageGraph};
use rally_kernels::team::Team;
use rally_schedule::batch::DeviceBatch;
use rally_transport::Transport;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a lane knows about one position of its list beyond the plan.
pub(crate) struct Position {
    pub(crate) moves: Moves,
    /// What a part of a stage hands on, where the stage's devices exchange rows.
    pub(crate) legs: Option<Legs>,
    /// What is fetched once the task may begin.
    pub(crate) incoming: Lines,
    /// What is fetched while the task before runs.
    pub(crate) outgoing: Lines,
    pub(crate) dtype: WireDtype,
    /// First task of a step on this device: the descriptor is fetched before it.
    pub(crate) begins_step: bool,
    /// Nothing follows it inside the step.
    pub(crate) ends_step: bool,
    /// What it waits for from other hosts.
    pub(crate) signals: Vec<SignalWait>,
    /// Whether it sends rows to another host.
    pub(crate) crosses: bool,
}

/// A wait for another host.
pub(crate) struct SignalWait {
    /// The progress counter.
    pub(crate) signal: usize,
    /// What it must say.
    pub(crate) due: Due,
    /// The wait that would have been in one process, if there were one.
    pub(crate) instead_of: Option<Wait>,
}

/// What a signal counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Rows of the task's layer.
    Rows,
    /// Descriptors of steps.
    Step,
}

/// Everything a lane owns or shares.
pub(crate) struct Lane {
    pub(crate) index: usize,
    pub(crate) plan: Arc<Plan>,
    pub(crate) graph: Arc<StageGraph>,
    pub(crate) positions: Vec<Position>,
    /// By stage index; only stages of this device are there.
    pub(crate) stages: Vec<Option<Box<dyn Stage>>>,
    /// By stage index: whether the tokens it routes are counted here. Devices that get the same rows route them alike.
    pub(crate) counts_routing: Vec<bool>,
    /// By micro-batch.
    pub(crate) values: Vec<Values>,
    /// Where the numbers of `values` are, if the device has memory of its own.
    pub(crate) remote: Option<Box<dyn RemoteValues>>,
    /// A moment that was noted and is of no use.
    pub(crate) unused: Option<Moment>,
    /// Whether cycles begin with nothing in the caches of such a device, and whether this one still has to.
    pub(crate) sweeps: bool,
    pub(crate) sweep_due: bool,
    /// The end of the last task of any such device, where they take turns.
    pub(crate) turns: Option<Turns>,
    /// By micro-batch.
    pub(crate) batches: Vec<DeviceBatch>,
    /// Index among the attention devices.
    pub(crate) attention: Option<usize>,
    pub(crate) last_tokens: Vec<u32>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) scratch: Scratch,
    pub(crate) team: Team,
    pub(crate) cores: Vec<u32>,
    pub(crate) sync: Arc<LaneSync>,
    pub(crate) control: Arc<dyn Steps>,
    pub(crate) recorder: Recorder,
    /// Present if costs are learned.
    pub(crate) work: Option<Arc<StepWork>>,
    pub(crate) probe: Option<Arc<dyn Probe>>,
    /// Present where there are other hosts.
    pub(crate) across: Option<LaneAcross>,
}

/// What whoever is next waits for. Held from before a task until it has been told: turns are taken in the order of telling, in which no
/// task waits for a later one.
pub(crate) type Turns = Arc<Mutex<Option<Parcel>>>;

/// What a lane needs for other hosts.
pub(crate) struct LaneAcross {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) hops: Hops,
}

/// What a lane leaves behind.
pub(crate) struct LaneRemains {
    pub(crate) index: usize,
    pub(crate) report: LaneReport,
    /// By stage index; none if one panicked.
    pub(crate) stages: Vec<Option<Box<dyn Stage>>>,
    pub(crate) remote: Option<Box<dyn RemoteValues>>,
}

enum LaneEnd {
    Stopped,
    Failed(EngineError),
}

impl From<Stopped> for LaneEnd {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<EngineError> for LaneEnd {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

impl Lane {
    /// Runs until the run ends. A failure or a panic ends the run for all lanes.
    pub(crate) fn run(mut self) -> LaneRemains {
        let control = Arc::clone(&self.control);
        let name = self.plan.lanes[self.index].name.clone();
        self.sync.register(self.index);
        pin(&self.cores);
        // Whatever a stage left half done dies with this lane: nothing of it is used after a panic.
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.walk()));
        match walked {
            Ok(LaneEnd::Stopped) => {
                if let Err(error) = self.hear(true) {
                    control.fail(error);
                }
            }
            Ok(LaneEnd::Failed(error)) => control.fail(error),
            Err(panic) => {
                control.fail(EngineError::LanePanicked { lane: name, message: panic_message(&*panic) });
                self.stages.clear();
            }
        }
        self.sync.end(self.index);
        self.into_remains()
    }

    /// What there is of a lane that does not run, or not any more.
    pub(crate) fn into_remains(self) -> LaneRemains {
        let Self { index, recorder, stages, remote, .. } = self;
        LaneRemains { index, report: recorder.into_report(), stages, remote }
    }

    fn walk(&mut self) -> LaneEnd {
        let plan = Arc::clone(&self.plan);
        let tasks = &plan.lanes[self.index].tasks;
        let mut cycle = 0;
        self.recorder.mark();
        loop {
            self.sweep_due = self.sweeps;
            for (position, task) in tasks.iter().enumerate() {
                if let Err(end) = self.turn(&plan, cycle, position, task) {
                    return end;
                }
            }
            cycle += 1;
        }
    }

    fn turn(&mut self, plan: &Plan, cycle: u64, position: usize, task: &PlannedTask) -> Result<(), LaneEnd> {
        self.sync.check(cycle)?;
        self.recorder.ready();
        for wait in &task.waits {
            let target = plan.wait_target(wait, cycle as i64);
            if !self.sync.reached(wait.lane, target as u64) {
                self.recorder.begin_wait();
                if self.sync.wait(self.index, cycle, wait.lane, target as u64)? {
                    self.recorder.waited(plan, wait, target as u64);
                    continue;
                }
            }
            self.recorder.reached(plan, wait, target as u64);
            // Also where it came between the two looks: the clock was not read since.
            self.recorder.not_before(self.sync.over_ns(wait.lane));
        }
        self.positions[position].incoming.prefetch();
        // A task that lags in the very first cycle belongs to a step that never was; its micro-batch has no rows yet.
        let step = if task.behind { cycle.wrapping_sub(1) } else { cycle };
        if step != u64::MAX {
            self.await_hosts(plan, cycle, position, step)?;
            if self.positions[position].crosses
                && let Some(across) = &mut self.across
            {
                across.hops.sent(task.micro_batch, self.recorder.marked_ns());
            }
        }
        let start_ns = self.recorder.begin(position as u32);
        let done = cycle * plan.lanes[self.index].tasks.len() as u64 + position as u64 + 1;
        let turns = self.turns.clone().filter(|_| self.remote.is_some());
        let turn = turns.as_ref().map(|turns| turns.lock().unwrap_or_else(PoisonError::into_inner));
        let from = self.note(position, turn.as_deref())?;
        let Moved { rows, effort, bytes } = self.execute(plan, position, task, step)?;
        let work = self.work.as_ref().filter(|_| plan.table.tasks[task.task].computes());
        let span = (rows > 0).then(|| {
            let (position, rows, effort) = (position as u32, rows as u32, effort as u32);
            Span { position, step, rows, effort, bytes, start_ns, ..Span::default() }
        });
        let span = match (from, &mut self.remote) {
            (Some(from), Some(remote)) => {
                match span {
                    Some(span) => {
                        let to = remote.note(None).map_err(EngineError::Remote)?;
                        self.recorder.tell(span, done, (from, to), work.map(|_| task.micro_batch));
                    }
                    // The device was told nothing: the next task's moment instead.
                    None => {
                        if let Begin::At(moment) = from {
                            self.unused = Some(moment);
                        }
                    }
                }
                if let Some(mut turn) = turn {
                    *turn = Some(remote.end_turn().map_err(EngineError::Remote)?);
                }
                self.hear(self.positions[position].ends_step)?;
                None
            }
            _ => span.map(|span| self.recorder.end(span, done)),
        };
        if let (Some(span), Some(work)) = (&span, &self.work)
            && plan.table.tasks[task.task].computes()
        {
            work.add(task.micro_batch, span.end_ns - span.start_ns);
        }
        if self.positions[position].ends_step {
            // Of the step that never was, the next is the first.
            let next = step.wrapping_add(1);
            let (micro_batch, device) = (task.micro_batch, self.attention.unwrap_or(0));
            let idle_from_ns = self.control.end_step(StepEnd { micro_batch, device, cycle, next }, &mut self.samples);
            self.recorder.planned(idle_from_ns);
        }
        let tasks = plan.lanes[self.index].tasks.len();
        // A task ahead, so that the slots of a send are here once there is something to put into them.
        self.positions[(position + 2) % tasks].outgoing.prefetch();
        self.recorder.turn_to((position + 1) % tasks);
        self.sync.complete(self.index, done, self.recorder.marked_ns(), &task.wakes);
        if let Some(span) = span {
            self.recorder.settle(span);
        }
        Ok(())
    }

    /// Where the device works later than it is told to: lets it wait for the rows of the task at `at`, and notes when it begins.
    fn note(&mut self, at: usize, turn: Option<&Option<Parcel>>) -> Result<Option<Begin>, EngineError> {
        let Some(remote) = &mut self.remote else { return Ok(None) };
        let waits = Transfer::expect(&mut **remote, &self.positions[at].moves)?;
        if let Some(before) = turn {
            remote.await_turn(before.as_ref())?;
        }
        let sweeps = std::mem::take(&mut self.sweep_due);
        if sweeps {
            remote.sweep()?;
        }
        // What it waited for, or was told beside its tasks, is none of the next one's time.
        let apart = sweeps || turn.is_some();
        // Two moments with nothing between them are microseconds apart: one will do where the device is still at work.
        if !waits
            && !apart
            && let Some(last) = self.recorder.told_last()
            && !remote.is_over(last)?
        {
            return Ok(Some(Begin::Behind));
        }
        Ok(Some(Begin::At(remote.note(self.unused.take())?)))
    }

    /// Records what such a device is over with; all that it was told, waiting for it, if `all`.
    fn hear(&mut self, all: bool) -> Result<(), EngineError> {
        let Some(remote) = &mut self.remote else { return Ok(()) };
        Ok(self.recorder.hear(&mut **remote, self.work.as_deref(), all)?)
    }

    fn await_hosts(&mut self, plan: &Plan, cycle: u64, position: usize, step: u64) -> Result<(), LaneEnd> {
        let Some(LaneAcross { transport, signals, hops }) = &mut self.across else { return Ok(()) };
        let task = &plan.lanes[self.index].tasks[position];
        let (micro_batch, layer) = (task.micro_batch, plan.table.tasks[task.task].layer.unwrap_or(0));
        for SignalWait { signal, due, instead_of } in &self.positions[position].signals {
            let target = match due {
                Due::Rows => signals.arrival(step, layer),
                Due::Step => signals.step(micro_batch, step),
            };
            if !self.sync.reached(*signal, target) {
                self.recorder.begin_wait();
                let waited = match due {
                    Due::Rows => {
                        let wait = |patience| self.sync.wait_at_most(self.index, cycle, (*signal, target), patience);
                        patiently(hops, &**transport, &self.graph.hosts, wait)?
                    }
                    // With nothing to do a step may be long in coming.
                    Due::Step => self.sync.wait(self.index, cycle, *signal, target)?,
                };
                if waited {
                    match instead_of {
                        Some(wait) => self.recorder.waited(plan, wait, plan.wait_target(wait, cycle as i64) as u64),
                        None => drop(self.recorder.mark()),
                    }
                    continue;
                }
            }
            self.recorder.not_before(self.sync.over_ns(*signal));
        }
        // The last of them: a hop is over when all rows are there.
        let rows = self.positions[position].signals.iter().filter(|wait| wait.due == Due::Rows);
        if let Some(over_ns) = rows.map(|wait| self.sync.over_ns(wait.signal)).max() {
            hops.answered(micro_batch, over_ns);
        }
        Ok(())
    }

    fn execute(&mut self, plan: &Plan, at: usize, task: &PlannedTask, step: u64) -> Result<Moved, EngineError> {
        let template = &plan.table.tasks[task.task];
        let m = task.micro_batch;
        if self.positions[at].begins_step
            && let Some(device) = self.attention
        {
            self.control.take_batch(m, device, &mut self.batches[m]);
            self.values[m].rows = self.batches[m].rows;
        }
        if step == u64::MAX && self.across.is_some() && template.payload != Payload::None {
            // Nobody waits for what a step that never was would send, and nobody has sent it.
            self.values[m].rows = 0;
            return Ok(Moved::default());
        }
        let mut header = Header { step, layer: template.layer.unwrap_or(0), rows: self.values[m].rows };
        let moved = match template.payload {
            Payload::None => self.compute(m, at, template.stage, header)?,
            Payload::Input | Payload::RoutedInput | Payload::Output => {
                header.rows = self.batches[m].rows;
                let position = &self.positions[at];
                let (values, scratch) = (&mut self.values[m], &mut self.scratch);
                let remote = self.remote.as_mut().map(|remote| &mut **remote as &mut dyn RemoteValues);
                let (dtype, payload) = (position.dtype, template.payload);
                let transport = self.across.as_ref().map(|across| &*across.transport);
                Transfer { values, remote, micro_batch: m, scratch, dtype, payload, header, transport }
                    .run(&position.moves)?
            }
        };
        let inside = template.role == TaskRole::Exchange && template.payload != Payload::None;
        let is_part = self.positions[at].legs.as_ref().is_some_and(|legs| !legs.outgoing.is_empty());
        if moved.rows > 0
            && !inside
            && !is_part
            && let Some(probe) = &self.probe
        {
            if let Some(remote) = &mut self.remote {
                remote.fetch(m, &mut self.values[m])?;
            }
            probe.after(&self.graph.stages[template.stage].id, template.layer, &self.batches[m], &self.values[m]);
        }
        Ok(moved)
    }

    fn compute(&mut self, m: usize, at: usize, stage: usize, header: Header) -> Result<Moved, EngineError> {
        let legs = self.positions[at].legs.as_ref();
        let arrived = legs.map_or(Ok(0), |legs| legs.begin(header))?;
        let rows = if legs.is_some_and(Legs::is_between) { arrived } else { header.rows };
        if rows == 0 {
            return Ok(Moved::default());
        }
        let work = self.stages[stage].as_mut().expect("the engine checked that every compute task has its stage");
        let mut context = TaskContext {
            layer: header.layer,
            micro_batch: m,
            batch: &self.batches[m],
            values: &mut self.values[m],
            last_tokens: &mut self.last_tokens,
            samples: &mut self.samples,
            effort: rows,
            team: &self.team,
            exchange: Exchange::new(legs),
        };
        let done = work.run(&mut context);
        let effort = context.effort;
        done.map_err(|source| EngineError::Stage {
            stage: self.graph.stages[stage].id.clone(),
            layer: header.layer,
            source,
        })?;
        if self.counts_routing[stage] {
            let values = &self.values[m];
            self.recorder.routed(header.layer, &values.expert_ids[..values.rows * values.widths.top_k]);
        }
        Ok(Moved { rows, effort, bytes: legs.map_or(Ok(0), Legs::bytes)? })
    }
}

/// Whether every lane of `plan` is pinned to a core of its own that this machine has.
pub(crate) fn stand_apart(plan: &Plan, graph: &StageGraph) -> bool {
    let mut free: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|id| id.id).collect();
    plan.lanes.iter().all(|lane| match graph.devices[lane.device].cores[..] {
        [core] => {
            let place = free.iter().position(|id| *id == core as usize);
            place.map(|place| free.swap_remove(place)).is_some()
        }
        _ => false,
    })
}

pub(crate) fn pin(cores: &[u32]) {
    // One core: the lane itself. Several: the device's team is pinned and the lane only starts its work.
    if let [core] = cores
        && let Some(ids) = core_affinity::get_core_ids()
        && let Some(id) = ids.into_iter().find(|id| id.id == *core as usize)
        && !core_affinity::set_for_current(id)
    {
        tracing::warn!(core, "the lane could not be pinned to its core");
    }
}

/// Waits until rows come, or a host is silent that should not be. Returns whether there was anything to wait for.
fn patiently(
    hops: &Hops,
    transport: &dyn Transport,
    hosts: &[String],
    wait: impl Fn(Duration) -> Result<Waited, Stopped>,
) -> Result<bool, LaneEnd> {
    let began = Instant::now();
    let (mut patience, mut suspect) = (hops.deadline(), None);
    loop {
        match wait(patience)? {
            Waited::Overdue => {}
            waited => return Ok(waited != Waited::Not),
        }
        let culprit = hops.culprit(transport, hosts.len(), began.elapsed());
        let silent = culprit.as_ref().map(|(peer, _)| *peer);
        match culprit {
            Some((peer, why)) if suspect == silent => {
                return Err(EngineError::HostLost { host: hosts[peer].clone(), why }.into());
            }
            // A host that was stopped itself finds everyone silent at first, and has yet to read what they said meanwhile.
            _ => suspect = silent,
        }
        // Looked at again as often as a parked lane wakes.
        patience = Duration::ZERO;
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
