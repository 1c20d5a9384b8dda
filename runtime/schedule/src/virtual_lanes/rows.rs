//! Which rows every task of a virtual run works on, followed along the edges as real lanes move them.
//!
//! Rails, copies of the FFN and exchanges inside a stage included. Rows are counted exactly; the context of a share of rows is
//! taken to be that share of the whole.

use super::fold::{Fold, Uneven};
use super::{Load, batch_load, samples};
use crate::batch::DeviceBatch;
use rally_graph::plan::{Plan, TaskId, TaskRole, TaskTable};
use rally_graph::routes::{FfnLayout, Share};
use rally_graph::stage_graph::{DeviceIndex, Payload};

/// Rows that came from an attention device.
type Origin = (DeviceIndex, Load);

/// The rows of one micro-batch on one device.
#[derive(Clone, Default)]
struct Held {
    load: Load,
    /// Where they came from, if a transfer brought them.
    origins: Vec<Origin>,
}

/// Where a task's rows go on.
#[derive(Clone, Default)]
struct Way {
    /// Of a send that carries a group's sums of y: the devices it ends at.
    homes: Vec<DeviceIndex>,
    /// The copy of the layer's FFN that the device belongs to, if it does.
    replica: Option<usize>,
    /// Whether another part of the stage follows.
    goes_on: bool,
}

/// Where rows are.
pub(super) struct RowFlow<'a> {
    table: &'a TaskTable,
    fold: &'a Fold,
    /// By device: its number among the attention devices.
    own: Vec<Option<usize>>,
    /// Numbers of copies that FFNs have, where they have several.
    copies: Vec<usize>,
    micro_batches: usize,
    /// By task.
    ways: Vec<Way>,
    /// By device and micro-batch.
    held: Vec<Held>,
    /// By task and micro-batch: what it worked on when it last ran, which is what it sent.
    sent: Vec<Load>,
}

impl<'a> RowFlow<'a> {
    pub(super) fn new(plan: &'a Plan, own: Vec<Option<usize>>, fold: &'a Fold) -> Self {
        let (table, micro_batches) = (&plan.table, plan.micro_batches);
        let devices = table.tasks.iter().map(|task| task.device + 1).max().unwrap_or(0);
        let held = vec![Held::default(); devices * micro_batches];
        let sent = vec![Load::default(); table.tasks.len() * micro_batches];
        let mut copies: Vec<usize> = table.ffns.iter().flatten().map(FfnLayout::replicas).collect();
        copies.sort_unstable();
        copies.dedup();
        copies.retain(|copies| *copies > 1);
        Self { table, fold, own, copies, micro_batches, ways: ways(table), held, sent }
    }

    /// Two devices of a class that were planned to do different things in a step of `micro_batch`, if there are any. `alike`: by number
    /// among the attention devices, those that each is run for.
    pub(super) fn uneven(&self, micro_batch: usize, alike: &[Vec<usize>], planned: &[DeviceBatch]) -> Option<Uneven> {
        let device = |own: usize| self.own.iter().position(|other| *other == Some(own)).unwrap_or(0);
        for (own, alike) in alike.iter().enumerate().filter(|(_, alike)| alike.len() > 1) {
            let (load, sampled) = (batch_load(&planned[own]), samples(&planned[own]));
            let same = |other: &usize| batch_load(&planned[*other]) == load && samples(&planned[*other]) == sampled;
            if let Some(other) = alike.iter().find(|other| !same(other)) {
                let (devices, loads) = ((device(own), device(*other)), (load, batch_load(&planned[*other])));
                return Some(Uneven::Batches { micro_batch, devices, loads });
            }
        }
        let all = (0..alike.len()).flat_map(|own| self.copies.iter().map(move |copies| (planned[own].rows, *copies)));
        let mut uneven = all.filter(|(rows, copies)| !rows.is_multiple_of(*copies));
        uneven.next().map(|(rows, copies)| Uneven::Copies { rows, copies })
    }

    /// A device's descriptor of a new step.
    pub(super) fn begin_step(&mut self, device: DeviceIndex, micro_batch: usize, load: Load) {
        self.held[device * self.micro_batches + micro_batch].load = load;
    }

    /// What a task that starts now works on; `own` are the rows of the descriptor, on an attention device.
    pub(super) fn of_task(&mut self, task: TaskId, micro_batch: usize, own: Option<Load>) -> Load {
        let template = &self.table.tasks[task];
        let place = template.device * self.micro_batches + micro_batch;
        let sent = |before: &TaskId| self.sent[before * self.micro_batches + micro_batch];
        let load = match (template.role, template.payload, own) {
            (TaskRole::Receive, Payload::Output, Some(own)) => {
                self.held[place].load = own;
                own
            }
            (TaskRole::Receive, ..) => {
                let origins = self.arrivals(task, micro_batch);
                let load = origins.iter().map(|(_, load)| *load).sum();
                self.held[place] = Held { load, origins };
                load
            }
            (TaskRole::Exchange, Payload::Input | Payload::RoutedInput, _) => {
                self.along_rail(task, micro_batch).iter().map(|(_, load)| *load).sum()
            }
            (TaskRole::Send, Payload::Output, _) if !self.ways[task].homes.is_empty() => self.going_home(task, place),
            // A part between two exchanges works on the rows of all peers.
            (TaskRole::Exchange, Payload::None, _) if self.ways[task].goes_on => template.after.iter().map(sent).sum(),
            (TaskRole::Compute | TaskRole::Send | TaskRole::Exchange, ..) => self.held[place].load,
        };
        let kept = match template.part {
            // What a part hands back to each peer are that peer's rows.
            0 => load,
            _ => self.held[place].load,
        };
        self.sent[task * self.micro_batches + micro_batch] = kept;
        load
    }

    /// FFN input that a receive finds: straight from the sources, or as the group's devices passed it on.
    fn arrivals(&self, task: TaskId, micro_batch: usize) -> Vec<Origin> {
        let is_exchange = |before: &TaskId| self.table.tasks[*before].role == TaskRole::Exchange;
        let befores = self.table.tasks[task].after.iter().copied();
        let exchanges: Vec<TaskId> = befores.filter(is_exchange).collect();
        match exchanges.is_empty() {
            true => self.along_rail(task, micro_batch),
            false => exchanges.into_iter().flat_map(|exchange| self.along_rail(exchange, micro_batch)).collect(),
        }
    }

    /// The share of every send before `task` that the replica of its device gets, from all that a sender stands for.
    fn along_rail(&self, task: TaskId, micro_batch: usize) -> Vec<Origin> {
        let template = &self.table.tasks[task];
        let ffn = template.layer.and_then(|layer| self.table.ffns[layer].as_ref());
        let replica = ffn.zip(self.ways[task].replica);
        let share = |source: DeviceIndex| {
            replica.map_or(Share::ALL, |(ffn, replica)| ffn.share(self.own[source].unwrap_or(0), replica))
        };
        let origin = |send: &TaskId| {
            let source = self.table.tasks[*send].device;
            let load = self.sent[send * self.micro_batches + micro_batch].part(share(source));
            (source, load.times(self.fold.members(source).len()))
        };
        template.after.iter().map(origin).collect()
    }

    /// The rows of those devices that wait for this send.
    fn going_home(&self, task: TaskId, place: usize) -> Load {
        let Held { load, origins } = &self.held[place];
        let from = |home: &DeviceIndex| match origins.is_empty() {
            true => *load,
            false => origins.iter().find(|(device, _)| device == home).map(|(_, load)| *load).unwrap_or_default(),
        };
        self.ways[task].homes.iter().map(from).sum()
    }
}

/// By task, what follows from the table alone.
fn ways(table: &TaskTable) -> Vec<Way> {
    let mut ways: Vec<Way> = vec![Way::default(); table.tasks.len()];
    for (id, task) in table.tasks.iter().enumerate() {
        let ffn = task.layer.and_then(|layer| table.ffns[layer].as_ref());
        ways[id].replica = ffn.and_then(|ffn| ffn.replica_of(task.device));
        for before in &task.after {
            let (way, other) = (&mut ways[*before], &table.tasks[*before]);
            way.goes_on |= other.node == task.node && task.part > other.part;
            let sums = |before: &TaskId| {
                let before = &table.tasks[*before];
                before.role == TaskRole::Exchange && before.payload == Payload::Output
            };
            if other.role == TaskRole::Send && other.after.iter().any(sums) {
                way.homes.push(task.device);
            }
        }
    }
    ways
}

impl Load {
    fn times(self, times: usize) -> Self {
        Self { rows: self.rows * times, context: self.context * times }
    }

    /// A share of the rows.
    fn part(self, share: Share) -> Self {
        let rows = share.of(self.rows).len();
        Self { rows, context: (self.context * rows).checked_div(self.rows).unwrap_or(0) }
    }
}

impl std::iter::Sum for Load {
    fn sum<I: Iterator<Item = Self>>(loads: I) -> Self {
        loads
            .fold(Self::default(), |sum, load| Self { rows: sum.rows + load.rows, context: sum.context + load.context })
    }
}
