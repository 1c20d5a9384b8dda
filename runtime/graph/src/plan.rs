//! The plan: per lane, the tasks of one cycle of all micro-batches, in the order the lane executes them for ever.
//!
//! It owns the expansion of stage instances into tasks ([`TaskTable`]), the compilation of a policy's lane orders into waits
//! between lanes ([`Plan::compile`]), and the proof that no order deadlocks. It chooses no order (policies do) and runs
//! nothing (lanes do).
//!
//! A lane executes strictly in order, so "task done" is one number a lane: how many tasks it has completed since the start. A
//! wait is "lane L has completed at least n tasks". A *cycle* is one pass over a lane's list. Tasks at the head of a list may
//! belong to the step before ([`Turn::behind`]): so a micro-batch's last combine, its sampling and its next embedding can be
//! neighbours, and no barrier stands between two steps.

use crate::stage_graph::{DeviceIndex, Payload, StageGraph, StageIndex};
use petgraph::Incoming;
use petgraph::graph::NodeIndex;
use serde::Serialize;
use std::collections::HashMap;

/// Index of a task in [`TaskTable::tasks`].
pub type TaskId = usize;

/// What part of a stage instance a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskRole {
    /// The whole of a stage on one device.
    Compute,
    /// A transfer's encoding on a source device.
    Send,
    /// A transfer's decoding on a destination device.
    Receive,
}

/// A task of one micro-batch, whichever micro-batch it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskTemplate {
    /// Instance it belongs to.
    pub node: NodeIndex,
    /// Stage of the instance.
    pub stage: StageIndex,
    /// Layer of the instance.
    pub layer: Option<usize>,
    /// What a transfer carries here.
    pub payload: Payload,
    /// Its part.
    pub role: TaskRole,
    /// Device it runs on.
    pub device: DeviceIndex,
    /// Tasks of the same micro-batch and step that come before it.
    pub after: Vec<TaskId>,
}

/// A lane and the tasks one micro-batch has on it, in dataflow order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneTasks {
    /// Name: the device's, while a device has one lane.
    pub name: String,
    /// Device it belongs to.
    pub device: DeviceIndex,
    /// Its tasks of one micro-batch and step.
    pub tasks: Vec<TaskId>,
}

/// All tasks of one micro-batch and step.
#[derive(Clone, Debug)]
pub struct TaskTable {
    /// The tasks, in dataflow order.
    pub tasks: Vec<TaskTemplate>,
    /// The lanes; only devices that have tasks get one.
    pub lanes: Vec<LaneTasks>,
    /// Tasks that begin a step (they follow nothing inside it).
    pub entries: Vec<TaskId>,
    /// Tasks that end a step (nothing inside it follows them).
    pub exits: Vec<TaskId>,
}

impl TaskTable {
    /// Expands every instance: one task a device; a transfer sends on each source and receives on each destination.
    pub fn new(graph: &StageGraph) -> Self {
        let mut expansion = Expansion { graph, tasks: Vec::new(), outputs: HashMap::new() };
        for node in &graph.order {
            expansion.add(*node);
        }
        let tasks = expansion.tasks;
        let mut lanes: Vec<LaneTasks> = Vec::new();
        for (device, entry) in graph.devices.iter().enumerate() {
            let own: Vec<TaskId> = (0..tasks.len()).filter(|task| tasks[*task].device == device).collect();
            if !own.is_empty() {
                lanes.push(LaneTasks { name: entry.name.clone(), device, tasks: own });
            }
        }
        let mut followed = vec![false; tasks.len()];
        for task in &tasks {
            task.after.iter().for_each(|before| followed[*before] = true);
        }
        let entries = (0..tasks.len()).filter(|task| tasks[*task].after.is_empty()).collect();
        let exits = (0..tasks.len()).filter(|task| !followed[*task]).collect();
        Self { tasks, lanes, entries, exits }
    }

    /// Splits a lane's tasks where it must wait for another lane: inside a segment nothing is waited for.
    pub fn segments(&self, lane: usize) -> Vec<&[TaskId]> {
        let lane = &self.lanes[lane];
        let foreign = |task: &TaskId| self.tasks[*task].after.iter().any(|b| self.tasks[*b].device != lane.device);
        let starts: Vec<usize> = (0..lane.tasks.len()).filter(|i| *i == 0 || foreign(&lane.tasks[*i])).collect();
        let ends = starts.iter().skip(1).copied().chain([lane.tasks.len()]);
        starts.iter().zip(ends).map(|(start, end)| &lane.tasks[*start..end]).collect()
    }
}

struct Expansion<'a> {
    graph: &'a StageGraph,
    tasks: Vec<TaskTemplate>,
    /// Tasks after which an instance's result exists, by instance.
    outputs: HashMap<NodeIndex, Vec<TaskId>>,
}

impl Expansion<'_> {
    fn add(&mut self, node: NodeIndex) {
        let before: Vec<TaskId> = self
            .graph
            .graph
            .neighbors_directed(node, Incoming)
            .flat_map(|before| self.outputs.get(&before).cloned().unwrap_or_default())
            .collect();
        let stage = self.graph.stage(node);
        let outputs = match &stage.transfer {
            None => {
                stage.devices.iter().map(|device| self.push(node, TaskRole::Compute, *device, before.clone())).collect()
            }
            Some(transfer) => {
                let sends: Vec<TaskId> = transfer
                    .from
                    .iter()
                    .map(|device| self.push(node, TaskRole::Send, *device, before.clone()))
                    .collect();
                transfer.to.iter().map(|device| self.push(node, TaskRole::Receive, *device, sends.clone())).collect()
            }
        };
        self.outputs.insert(node, outputs);
    }

    /// Adds a task. Data moves between devices by transfers alone, so a compute or send task needs only what its own device
    /// did before, where its device did anything; a receive needs every source.
    fn push(&mut self, node: NodeIndex, role: TaskRole, device: DeviceIndex, mut after: Vec<TaskId>) -> TaskId {
        if role != TaskRole::Receive && after.iter().any(|task| self.tasks[*task].device == device) {
            after.retain(|task| self.tasks[*task].device == device);
        }
        after.sort_unstable();
        let instance = self.graph.graph[node];
        let (stage, layer, payload) = (instance.stage, instance.layer, instance.payload);
        self.tasks.push(TaskTemplate { node, stage, layer, payload, role, device, after });
        self.tasks.len() - 1
    }
}

/// One entry of a lane order, as a policy gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// Which task.
    pub task: TaskId,
    /// Of which micro-batch.
    pub micro_batch: usize,
    /// Whether it belongs to the step before the cycle's.
    pub behind: bool,
}

/// A wait: the lane may go on once `lane` has completed its task at `position` in cycle `own cycle + cycles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// Lane waited for.
    pub lane: usize,
    /// Position in that lane's list.
    pub position: usize,
    /// Cycles between: −1 the one before, 0 the same, 1 the next.
    pub cycles: i64,
}

/// A task in a lane's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTask {
    /// Which task.
    pub task: TaskId,
    /// Of which micro-batch.
    pub micro_batch: usize,
    /// Whether it belongs to the step before the cycle's.
    pub behind: bool,
    /// Other lanes it waits for, at most one wait a lane.
    pub waits: Vec<Wait>,
    /// Lanes that wait for it somewhere.
    pub wakes: Vec<usize>,
}

/// A lane's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedLane {
    /// Name of the lane.
    pub name: String,
    /// Device it belongs to.
    pub device: DeviceIndex,
    /// One cycle of tasks.
    pub tasks: Vec<PlannedTask>,
}

/// Lane orders with their waits: what lanes replay.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The tasks the lists refer to.
    pub table: TaskTable,
    /// Micro-batches that rotate.
    pub micro_batches: usize,
    /// The lists.
    pub lanes: Vec<PlannedLane>,
}

/// Why a policy's orders are no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Lanes would have nothing to do, for ever.
    #[error("a plan needs at least one micro-batch")]
    NoMicroBatches,
    /// Not one order a lane.
    #[error("the policy gave {got} lane orders for {expected} lanes")]
    LaneCount {
        /// Orders given.
        got: usize,
        /// Lanes there are.
        expected: usize,
    },
    /// A task is missing, is there twice, or stands on a lane of another device.
    #[error(
        "lane `{lane}`: task {task} of micro-batch {micro_batch} must be there exactly once, and is there {times} times"
    )]
    NotOnce {
        /// The lane.
        lane: String,
        /// The task.
        task: TaskId,
        /// The micro-batch.
        micro_batch: usize,
        /// How often it is there.
        times: usize,
    },
    /// The lanes would wait for each other for ever.
    #[error("the lane orders deadlock: lane `{lane}` never gets past its entry {position} of cycle {cycle}")]
    Deadlock {
        /// A lane that is stuck.
        lane: String,
        /// Where.
        position: usize,
        /// In which cycle.
        cycle: usize,
    },
}

impl Plan {
    /// Compiles `orders` (one a lane of `table`, in the same order) into a plan for `micro_batches` micro-batches.
    pub fn compile(table: TaskTable, micro_batches: usize, orders: &[Vec<Turn>]) -> Result<Self, PlanError> {
        if micro_batches == 0 {
            return Err(PlanError::NoMicroBatches);
        }
        if orders.len() != table.lanes.len() {
            return Err(PlanError::LaneCount { got: orders.len(), expected: table.lanes.len() });
        }
        let places = locate(&table, micro_batches, orders)?;
        let mut lanes: Vec<PlannedLane> = Vec::with_capacity(orders.len());
        for (lane, order) in orders.iter().enumerate() {
            let tasks = order.iter().map(|turn| planned_task(&table, &places, lane, turn)).collect();
            lanes.push(PlannedLane { name: table.lanes[lane].name.clone(), device: table.lanes[lane].device, tasks });
        }
        let mut plan = Self { table, micro_batches, lanes };
        plan.prove()?;
        plan.drop_own_lane_waits();
        plan.fill_wakes();
        Ok(plan)
    }

    /// Walks three cycles of all lanes on paper. Waits reach one cycle back or ahead, so what passes three passes all.
    fn prove(&self) -> Result<(), PlanError> {
        const CYCLES: usize = 3;
        // A wait for the cycle after the last one proved would never end here; one more cycle of every other lane covers it.
        let limit = |lane: usize| (CYCLES + 1) * self.lanes[lane].tasks.len();
        let mut done = vec![0usize; self.lanes.len()];
        loop {
            let mut moved = false;
            for lane in 0..self.lanes.len() {
                while done[lane] < limit(lane) && self.ready(lane, &done) {
                    done[lane] += 1;
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        match (0..self.lanes.len()).find(|lane| done[*lane] < CYCLES * self.lanes[*lane].tasks.len()) {
            None => Ok(()),
            Some(lane) => {
                let length = self.lanes[lane].tasks.len();
                let (position, cycle) = (done[lane] % length, done[lane] / length);
                Err(PlanError::Deadlock { lane: self.lanes[lane].name.clone(), position, cycle })
            }
        }
    }

    fn ready(&self, lane: usize, done: &[usize]) -> bool {
        let length = self.lanes[lane].tasks.len();
        let (cycle, position) = (done[lane] / length, done[lane] % length);
        self.lanes[lane].tasks[position].waits.iter().all(|wait| {
            let target = self.wait_target(wait, cycle as i64);
            done[wait.lane] as i64 >= target
        })
    }

    /// How many tasks `wait.lane` must have completed for `wait` to be over, for a waiter in `cycle`.
    pub fn wait_target(&self, wait: &Wait, cycle: i64) -> i64 {
        let cycle = cycle + wait.cycles;
        if cycle < 0 { 0 } else { cycle * self.lanes[wait.lane].tasks.len() as i64 + wait.position as i64 + 1 }
    }

    /// Waits for the own lane are kept by the order itself (the proof has shown that they are).
    fn drop_own_lane_waits(&mut self) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            for task in &mut lane.tasks {
                task.waits.retain(|wait| wait.lane != index);
            }
        }
    }

    fn fill_wakes(&mut self) {
        let mut wakes: Vec<(usize, usize, usize)> = Vec::new();
        for (waiter, lane) in self.lanes.iter().enumerate() {
            for wait in lane.tasks.iter().flat_map(|task| &task.waits) {
                wakes.push((wait.lane, wait.position, waiter));
            }
        }
        for (lane, position, waiter) in wakes {
            let list = &mut self.lanes[lane].tasks[position].wakes;
            if !list.contains(&waiter) {
                list.push(waiter);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Place {
    lane: usize,
    position: usize,
    behind: bool,
}

type Places = HashMap<(TaskId, usize), Place>;

fn locate(table: &TaskTable, micro_batches: usize, orders: &[Vec<Turn>]) -> Result<Places, PlanError> {
    let mut places = Places::new();
    for (lane, order) in orders.iter().enumerate() {
        let mut times: HashMap<(TaskId, usize), usize> = HashMap::new();
        for (position, turn) in order.iter().enumerate() {
            *times.entry((turn.task, turn.micro_batch)).or_default() += 1;
            places.insert((turn.task, turn.micro_batch), Place { lane, position, behind: turn.behind });
        }
        let wanted = table.lanes[lane].tasks.iter().flat_map(|task| (0..micro_batches).map(|m| (*task, m)));
        for (task, micro_batch) in wanted {
            let times = times.remove(&(task, micro_batch)).unwrap_or(0);
            if times != 1 {
                return Err(PlanError::NotOnce { lane: table.lanes[lane].name.clone(), task, micro_batch, times });
            }
        }
        // What is left belongs to another lane, or to a micro-batch that does not exist.
        if let Some((&(task, micro_batch), &times)) = times.iter().min() {
            return Err(PlanError::NotOnce { lane: table.lanes[lane].name.clone(), task, micro_batch, times });
        }
    }
    Ok(places)
}

fn planned_task(table: &TaskTable, places: &Places, lane: usize, turn: &Turn) -> PlannedTask {
    let mut waits: Vec<Wait> = Vec::new();
    let mut add = |before: TaskId, steps_back: i64| {
        let place = places[&(before, turn.micro_batch)];
        let cycles = i64::from(place.behind) - i64::from(turn.behind) - steps_back;
        let wait = Wait { lane: place.lane, position: place.position, cycles };
        match waits.iter_mut().find(|other| other.lane == wait.lane) {
            Some(other) if (other.cycles, other.position) >= (wait.cycles, wait.position) => {}
            Some(other) => *other = wait,
            None => waits.push(wait),
        }
    };
    table.tasks[turn.task].after.iter().for_each(|before| add(*before, 0));
    if table.entries.contains(&turn.task) {
        table.exits.iter().for_each(|before| add(*before, 1));
    }
    // The tasks of a micro-batch share its buffers on a device, so they must also keep their dataflow order on their lane.
    let own = &table.lanes[lane].tasks;
    if let Some(index) = own.iter().position(|task| *task == turn.task)
        && index > 0
    {
        add(own[index - 1], 0);
    }
    PlannedTask { task: turn.task, micro_batch: turn.micro_batch, behind: turn.behind, waits, wakes: Vec::new() }
}
