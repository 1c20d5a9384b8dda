//! Which rows every task of a virtual run works on, followed along the edges as real lanes move them.
//!
//! Rails, copies of the FFN and exchanges inside a stage included. Rows are counted exactly; the context of a share of rows is
//! taken to be that share of the whole.

use super::Load;
use rally_graph::plan::{Plan, TaskId, TaskRole, TaskTable, TaskTemplate};
use rally_graph::routes::Share;
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
    /// Whether another part of the stage follows.
    goes_on: bool,
}

/// Where rows are.
pub(super) struct RowFlow<'a> {
    table: &'a TaskTable,
    attention: &'a [DeviceIndex],
    micro_batches: usize,
    /// By task.
    ways: Vec<Way>,
    /// By device and micro-batch.
    held: Vec<Held>,
    /// By task and micro-batch: what it worked on when it last ran, which is what it sent.
    sent: Vec<Load>,
}

impl<'a> RowFlow<'a> {
    pub(super) fn new(plan: &'a Plan, attention: &'a [DeviceIndex]) -> Self {
        let (table, micro_batches) = (&plan.table, plan.micro_batches);
        let devices = table.tasks.iter().map(|task| task.device + 1).max().unwrap_or(0);
        let held = vec![Held::default(); devices * micro_batches];
        let sent = vec![Load::default(); table.tasks.len() * micro_batches];
        Self { table, attention, micro_batches, ways: ways(table), held, sent }
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
                let origins = self.arrivals(template, micro_batch);
                let load = origins.iter().map(|(_, load)| *load).sum();
                self.held[place] = Held { load, origins };
                load
            }
            (TaskRole::Exchange, Payload::Input | Payload::RoutedInput, _) => {
                self.along_rail(template, micro_batch).iter().map(|(_, load)| *load).sum()
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
    fn arrivals(&self, template: &TaskTemplate, micro_batch: usize) -> Vec<Origin> {
        let befores = template.after.iter().map(|before| &self.table.tasks[*before]);
        let exchanges: Vec<&TaskTemplate> = befores.filter(|before| before.role == TaskRole::Exchange).collect();
        match exchanges.is_empty() {
            true => self.along_rail(template, micro_batch),
            false => exchanges.into_iter().flat_map(|exchange| self.along_rail(exchange, micro_batch)).collect(),
        }
    }

    /// The share of every send before `template` that the replica of its device gets.
    fn along_rail(&self, template: &TaskTemplate, micro_batch: usize) -> Vec<Origin> {
        let ffn = template.layer.and_then(|layer| self.table.ffns[layer].as_ref());
        let replica = ffn.and_then(|ffn| Some((ffn, ffn.replica_of(template.device)?)));
        let share = |source: DeviceIndex| {
            let index = self.attention.iter().position(|device| *device == source).unwrap_or(0);
            replica.map_or(Share::ALL, |(ffn, replica)| ffn.share(index, replica))
        };
        let origin = |send: &TaskId| {
            let source = self.table.tasks[*send].device;
            (source, self.sent[send * self.micro_batches + micro_batch].part(share(source)))
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
    for task in &table.tasks {
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
