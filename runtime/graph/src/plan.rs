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

mod expand;

use crate::kinds::Role;
use crate::routes::FfnLayout;
use crate::shard::ShardCounts;
use crate::stage_graph::{DeviceIndex, Payload, ResolvedStage, Section, StageGraph, StageIndex};
use expand::expand;
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
    /// A device's part of what a group does inside itself. On rails: u is passed on to the others before they receive it, parts
    /// of y are given to those who sum and send them. Of a stage whose devices work on each other's rows: a further part of
    /// it, on what the peers left ([`Exchanges`](crate::routes::Exchanges)).
    Exchange,
}

impl TaskRole {
    /// Its word, as in messages and cost tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Exchange => "exchange",
        }
    }
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
    /// What it does of the instance.
    pub role: TaskRole,
    /// Part of a stage that is done in several, from 0.
    pub part: usize,
    /// Device it runs on.
    pub device: DeviceIndex,
    /// Tasks of the same micro-batch and step that come before it.
    pub after: Vec<TaskId>,
}

impl TaskTemplate {
    /// Whether it is a part of a stage's own work, the first or a later one; all else moves rows of a transfer.
    pub fn computes(&self) -> bool {
        self.role == TaskRole::Compute || (self.role == TaskRole::Exchange && self.payload == Payload::None)
    }
}

/// A lane and the tasks one micro-batch has on it, in dataflow order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneTasks {
    /// Name: the device's, while a device has one lane.
    pub name: String,
    /// Group of that device; the device's own name if it is in none.
    pub group: String,
    /// Device it belongs to.
    pub device: DeviceIndex,
    /// Its tasks of one micro-batch and step.
    pub tasks: Vec<TaskId>,
}

/// What policies may know of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageLabel {
    /// Name in the graph.
    pub id: String,
    /// Kind of work.
    pub kind: String,
    /// What the kind is for.
    pub role: Role,
    /// Where it stands.
    pub section: Section,
}

/// All tasks of one micro-batch and step.
#[derive(Clone, Debug)]
pub struct TaskTable {
    /// The stages, by stage index.
    pub stages: Vec<StageLabel>,
    /// The tasks, in dataflow order.
    pub tasks: Vec<TaskTemplate>,
    /// The lanes; only devices that have tasks get one.
    pub lanes: Vec<LaneTasks>,
    /// Tasks that begin a step (they follow nothing inside it).
    pub entries: Vec<TaskId>,
    /// Tasks that end a step (nothing inside it follows them).
    pub exits: Vec<TaskId>,
    /// By stage: whether its devices do different amounts of work for the same rows, as shards of experts do (which of them the rows
    /// go to, and who holds the shared one, differs).
    pub uneven: Vec<bool>,
    /// The FFN of every layer: how rows are divided over its copies.
    pub ffns: Vec<Option<FfnLayout>>,
}

impl TaskTable {
    /// Expands every instance: one task a device; a transfer sends on each source and receives on each destination, and on
    /// rails every device of an FFN group takes part in the exchange as well.
    pub fn new(graph: &StageGraph) -> Self {
        let tasks = expand(graph);
        let mut by_device: Vec<Vec<TaskId>> = vec![Vec::new(); graph.devices.len()];
        tasks.iter().enumerate().for_each(|(id, task)| by_device[task.device].push(id));
        let lanes = graph.devices.iter().zip(by_device).enumerate().filter(|(_, (_, own))| !own.is_empty());
        let lanes: Vec<LaneTasks> = lanes
            .map(|(device, (entry, tasks))| {
                let (name, group) = (entry.name.clone(), entry.group.clone());
                LaneTasks { name, group, device, tasks }
            })
            .collect();
        let mut followed = vec![false; tasks.len()];
        for task in &tasks {
            task.after.iter().for_each(|before| followed[*before] = true);
        }
        let entries = (0..tasks.len()).filter(|task| tasks[*task].after.is_empty()).collect();
        let exits = (0..tasks.len()).filter(|task| !followed[*task]).collect();
        let uneven = |stage: &ResolvedStage| {
            stage.spec.placement.is_some() || ShardCounts::of(stage.spec.shard.as_ref()).experts > 1
        };
        let label = |stage: &ResolvedStage| StageLabel {
            id: stage.id.clone(),
            kind: stage.kind.clone(),
            role: stage.role,
            section: stage.section,
        };
        Self {
            stages: graph.stages.iter().map(label).collect(),
            uneven: graph.stages.iter().map(uneven).collect(),
            tasks,
            lanes,
            entries,
            exits,
            ffns: FfnLayout::by_layer(graph),
        }
    }

    /// What devices that `keeps` is true of do among themselves, as if there were no others; rows are divided over all copies of an FFN
    /// all the same. For virtual lanes that stand for others: whole groups are kept, or none of a group.
    pub fn of_devices(graph: &StageGraph, keeps: impl Fn(DeviceIndex) -> bool) -> Self {
        let mut part = graph.clone();
        for stage in &mut part.stages {
            stage.devices.retain(|device| keeps(*device));
            if let Some(transfer) = &mut stage.transfer {
                transfer.from.retain(|device| keeps(*device));
                transfer.to.retain(|device| keeps(*device));
            }
        }
        Self { ffns: FfnLayout::by_layer(graph), ..Self::new(&part) }
    }

    /// A task in words: `a2f` send, layer 3.
    pub fn describe(&self, task: TaskId) -> String {
        let Some(template) = self.tasks.get(task) else { return format!("task {task}, which does not exist") };
        let role = match template.role {
            TaskRole::Compute => String::new(),
            role => format!(" {}", role.name()),
        };
        let layer = template.layer.map(|layer| format!(", layer {layer}")).unwrap_or_default();
        format!("`{}`{role}{layer}", self.stages[template.stage].id)
    }

    /// Splits a lane's tasks where it must wait for another lane: inside a segment nothing is waited for, but for the other
    /// devices of the own group in an exchange, which are at the same place (as in any collective operation).
    pub fn segments(&self, lane: usize) -> Vec<&[TaskId]> {
        let lane = &self.lanes[lane];
        let inside = |task: &TaskTemplate, before: &TaskTemplate| {
            before.role == TaskRole::Exchange || (task.part > 0 && task.node == before.node)
        };
        let waits = |task: &TaskTemplate, before: &TaskTemplate| before.device != lane.device && !inside(task, before);
        let foreign = |task: &TaskTemplate| task.after.iter().any(|before| waits(task, &self.tasks[*before]));
        let foreign = |task: &TaskId| foreign(&self.tasks[*task]);
        let starts: Vec<usize> = (0..lane.tasks.len()).filter(|i| *i == 0 || foreign(&lane.tasks[*i])).collect();
        let ends = starts.iter().skip(1).copied().chain([lane.tasks.len()]);
        starts.iter().zip(ends).map(|(start, end)| &lane.tasks[*start..end]).collect()
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
        "lane `{lane}`: {what}, of micro-batch {micro_batch} must be there exactly once, and is there {times} times"
    )]
    NotOnce {
        /// The lane.
        lane: String,
        /// The task in words.
        what: String,
        /// The task.
        task: TaskId,
        /// The micro-batch.
        micro_batch: usize,
        /// How often it is there.
        times: usize,
    },
    /// The lanes would wait for each other for ever.
    #[error(
        "the lane orders deadlock: lane `{lane}` never gets past {what}, of micro-batch {micro_batch} (entry {position} of cycle {cycle})"
    )]
    Deadlock {
        /// A lane that is stuck.
        lane: String,
        /// The task in words.
        what: String,
        /// Its micro-batch.
        micro_batch: usize,
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
                let stuck = &self.lanes[lane].tasks[position];
                let (what, micro_batch) = (self.table.describe(stuck.task), stuck.micro_batch);
                Err(PlanError::Deadlock { lane: self.lanes[lane].name.clone(), what, micro_batch, position, cycle })
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

    /// Exit tasks of `micro_batch` that count as done before the first cycle: where only some of its exits lag a cycle behind,
    /// those alone run for the step before the first, which never was. Only lanes that `run` count.
    pub fn exits_at_start(&self, micro_batch: usize, run: impl Fn(usize) -> bool) -> usize {
        let lanes = self.lanes.iter().enumerate().filter(|(lane, _)| run(*lane));
        let exits = lanes.flat_map(|(_, lane)| &lane.tasks);
        let exits = exits.filter(|task| task.micro_batch == micro_batch && self.table.exits.contains(&task.task));
        let (behind, level): (Vec<_>, Vec<_>) = exits.partition(|task| task.behind);
        if behind.is_empty() { 0 } else { level.len() }
    }

    /// Leaves out all waits for lanes that `here` does not take: those of other hosts, of which one hears in other ways.
    pub fn keep_waits(&mut self, here: impl Fn(usize) -> bool) {
        for task in self.lanes.iter_mut().flat_map(|lane| &mut lane.tasks) {
            task.waits.retain(|wait| here(wait.lane));
        }
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
                return Err(not_once(table, lane, task, micro_batch, times));
            }
        }
        // What is left belongs to another lane, or to a micro-batch that does not exist.
        if let Some((&(task, micro_batch), &times)) = times.iter().min() {
            return Err(not_once(table, lane, task, micro_batch, times));
        }
    }
    Ok(places)
}

fn not_once(table: &TaskTable, lane: usize, task: TaskId, micro_batch: usize, times: usize) -> PlanError {
    PlanError::NotOnce { lane: table.lanes[lane].name.clone(), what: table.describe(task), task, micro_batch, times }
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
