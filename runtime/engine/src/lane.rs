//! A real lane: a thread that walks its list for ever, waiting on other lanes where the plan says so.

use crate::control::Control;
use crate::engine::EngineError;
use crate::slot::{self, Header, Slot};
use crate::span::{LaneReport, Recorder, Span};
use crate::stage::{Probe, Sample, Stage, TaskContext};
use crate::sync::{LaneSync, Stopped};
use crate::values::Values;
use rally_graph::plan::{Plan, PlannedTask, TaskRole};
use rally_graph::spec::WireDtype;
use rally_graph::stage_graph::{Payload, StageGraph};
use rally_kernels::team::Team;
use rally_schedule::batch::DeviceBatch;
use std::sync::{Arc, Mutex};

/// The other end of a transfer task.
pub(crate) struct Peer {
    pub(crate) device: usize,
    /// Group of that device; partial sums are formed inside a group first.
    pub(crate) group: String,
    pub(crate) slot: Arc<Mutex<Slot>>,
}

/// What a lane knows about one position of its list beyond the plan.
pub(crate) struct Position {
    /// Ends of a transfer task, in the transfer's order.
    pub(crate) peers: Vec<Peer>,
    pub(crate) dtype: WireDtype,
    /// First task of a step on this device: the descriptor is fetched before it.
    pub(crate) begins_step: bool,
    /// Nothing follows it inside the step.
    pub(crate) ends_step: bool,
}

/// Everything a lane owns or shares.
pub(crate) struct Lane {
    pub(crate) index: usize,
    pub(crate) plan: Arc<Plan>,
    pub(crate) graph: Arc<StageGraph>,
    pub(crate) positions: Vec<Position>,
    /// By stage index; only stages of this device are there.
    pub(crate) stages: Vec<Option<Box<dyn Stage>>>,
    /// By micro-batch.
    pub(crate) values: Vec<Values>,
    /// By micro-batch.
    pub(crate) batches: Vec<DeviceBatch>,
    /// Index among the attention devices.
    pub(crate) attention: Option<usize>,
    pub(crate) last_tokens: Vec<u32>,
    pub(crate) samples: Vec<Sample>,
    /// A group's sum and one partial of it, `[rows, hidden]` each.
    pub(crate) partials: [Vec<f32>; 2],
    pub(crate) team: Team,
    pub(crate) cores: Vec<u32>,
    pub(crate) sync: Arc<LaneSync>,
    pub(crate) control: Arc<Control>,
    pub(crate) recorder: Recorder,
    pub(crate) probe: Option<Arc<dyn Probe>>,
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
    pub(crate) fn run(mut self) -> LaneReport {
        let control = Arc::clone(&self.control);
        let name = self.plan.lanes[self.index].name.clone();
        self.sync.register(self.index);
        pin(&self.cores);
        // Whatever a stage left half done dies with this lane: nothing of it is used after a panic.
        let walked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.walk()));
        match walked {
            Ok(LaneEnd::Stopped) => {}
            Ok(LaneEnd::Failed(error)) => control.fail(error),
            Err(panic) => control.fail(EngineError::LanePanicked { lane: name, message: panic_message(&*panic) }),
        }
        self.sync.end(self.index);
        self.recorder.into_report()
    }

    fn walk(&mut self) -> LaneEnd {
        let plan = Arc::clone(&self.plan);
        let tasks = &plan.lanes[self.index].tasks;
        let mut cycle = 0;
        loop {
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
        let ready_ns = self.recorder.now_ns();
        for wait in &task.waits {
            let target = plan.wait_target(wait, cycle as i64);
            self.sync.wait(self.index, cycle, wait.lane, target as u64)?;
        }
        // A task that lags in the very first cycle belongs to a step that never was; its micro-batch has no rows yet.
        let step = if task.behind { cycle.wrapping_sub(1) } else { cycle };
        let start_ns = self.recorder.now_ns();
        let (rows, bytes) = self.execute(plan, position, task, step)?;
        if rows > 0 {
            let end_ns = self.recorder.now_ns();
            let (position, rows) = (position as u32, rows as u32);
            self.recorder.record(Span { position, step, rows, bytes, ready_ns, start_ns, end_ns });
        }
        if self.positions[position].ends_step {
            self.control.end_step(task.micro_batch, cycle, &mut self.samples);
        }
        let done = cycle * plan.lanes[self.index].tasks.len() as u64 + position as u64 + 1;
        self.sync.complete(self.index, done, &task.wakes);
        Ok(())
    }

    /// Returns the rows of the task and the bytes it moved.
    fn execute(&mut self, plan: &Plan, at: usize, task: &PlannedTask, step: u64) -> Result<(usize, u64), EngineError> {
        let template = &plan.table.tasks[task.task];
        let m = task.micro_batch;
        if self.positions[at].begins_step
            && let Some(device) = self.attention
        {
            self.control.take_batch(m, device, &mut self.batches[m]);
            self.values[m].rows = self.batches[m].rows;
        }
        let header = Header { step, layer: template.layer.unwrap_or(0), rows: self.values[m].rows };
        let moved = match template.role {
            TaskRole::Send => self.send(at, m, template.payload, header)?,
            TaskRole::Receive => self.receive(at, m, template.payload, header)?,
            TaskRole::Compute => {
                self.compute(m, template.stage, header)?;
                0
            }
        };
        let rows = self.values[m].rows;
        if rows > 0
            && let Some(probe) = &self.probe
        {
            probe.after(&self.graph.stages[template.stage].id, template.layer, &self.batches[m], &self.values[m]);
        }
        Ok((rows, moved))
    }

    fn compute(&mut self, m: usize, stage: usize, header: Header) -> Result<(), EngineError> {
        if header.rows == 0 {
            return Ok(());
        }
        let work = self.stages[stage].as_mut().expect("the engine checked that every compute task has its stage");
        let mut context = TaskContext {
            layer: header.layer,
            micro_batch: m,
            batch: &self.batches[m],
            values: &mut self.values[m],
            last_tokens: &mut self.last_tokens,
            samples: &mut self.samples,
            team: &self.team,
        };
        work.run(&mut context).map_err(|source| EngineError::Stage {
            stage: self.graph.stages[stage].id.clone(),
            layer: header.layer,
            source,
        })
    }

    fn send(&mut self, at: usize, m: usize, payload: Payload, header: Header) -> Result<u64, EngineError> {
        let (position, values) = (&self.positions[at], &self.values[m]);
        let mut bytes = 0;
        for peer in &position.peers {
            let (first_row, rows) = match payload {
                // y goes home: each attention device gets the rows it sent, in the order it sent them.
                Payload::Output if !values.origins.is_empty() => {
                    let origin = values.origins.iter().find(|origin| origin.device == peer.device);
                    origin.map_or((0, 0), |origin| (origin.first_row, origin.rows))
                }
                _ => (0, header.rows),
            };
            let mut slot = slot::take(&peer.slot)?;
            bytes += slot.send(values, first_row, position.dtype, payload, Header { rows, ..header }) as u64;
        }
        Ok(bytes)
    }

    fn receive(&mut self, at: usize, m: usize, payload: Payload, header: Header) -> Result<u64, EngineError> {
        let (position, values) = (&self.positions[at], &mut self.values[m]);
        if payload != Payload::Output {
            values.rows = 0;
            values.origins.clear();
            for peer in &position.peers {
                let slot = slot::take(&peer.slot)?;
                expect_header(slot.header(), header, None)?;
                slot.receive_input(values, peer.device, position.dtype, payload);
            }
            return Ok(0);
        }
        let rows = self.batches[m].rows;
        values.rows = rows;
        sum_partials(position, values, &mut self.partials, Header { rows, ..header })?;
        Ok(0)
    }
}

/// y = Σ over groups, in order, of (Σ over the devices of a group, in order): one order, whatever moved the rows.
fn sum_partials(
    position: &Position,
    values: &mut Values,
    partials: &mut [Vec<f32>; 2],
    header: Header,
) -> Result<(), EngineError> {
    let hidden = values.widths.hidden;
    let count = header.rows * hidden;
    let [sum, partial] = partials;
    for (g, group) in position.peers.chunk_by(|a, b| a.group == b.group).enumerate() {
        let target = if g == 0 { &mut values.y[..count] } else { &mut sum[..count] };
        for (i, peer) in group.iter().enumerate() {
            let slot = slot::take(&peer.slot)?;
            expect_header(slot.header(), header, Some(header.rows))?;
            if i == 0 {
                slot.receive_output(target, hidden, position.dtype);
            } else {
                slot.receive_output(&mut partial[..count], hidden, position.dtype);
                add(target, &partial[..count]);
            }
        }
        if g > 0 {
            add(&mut values.y[..count], &sum[..count]);
        }
    }
    Ok(())
}

fn add(target: &mut [f32], other: &[f32]) {
    target.iter_mut().zip(other).for_each(|(a, b)| *a += b);
}

/// `rows`: how many must be there, where the destination knows.
fn expect_header(got: Header, want: Header, rows: Option<usize>) -> Result<(), EngineError> {
    // In the first cycle tasks that lag look into slots that nobody has filled yet.
    let nothing_yet = want.step == u64::MAX && got == Header::default();
    let right = (got.step, got.layer) == (want.step, want.layer) && rows.is_none_or(|rows| rows == got.rows);
    if right || nothing_yet { Ok(()) } else { Err(EngineError::WrongRows { got, want }) }
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

fn pin(cores: &[u32]) {
    // One core: the lane itself. Several: the device's team is pinned and the lane only starts its work.
    if let [core] = cores
        && let Some(ids) = core_affinity::get_core_ids()
        && let Some(id) = ids.into_iter().find(|id| id.id == *core as usize)
        && !core_affinity::set_for_current(id)
    {
        tracing::warn!(core, "the lane could not be pinned to its core");
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}
