//! From stage instances to tasks: who computes, sends, receives and exchanges, and what each needs before it.

use super::{TaskId, TaskRole, TaskTemplate};
use crate::routes::{Exchanges, Rails};
use crate::stage_graph::{DeviceIndex, Payload, ResolvedTransfer, StageGraph};
use petgraph::Incoming;
use petgraph::graph::NodeIndex;
use std::collections::HashMap;

/// The tasks of one micro-batch and step, in dataflow order.
pub(super) fn expand(graph: &StageGraph) -> Vec<TaskTemplate> {
    let mut expansion = Expansion { graph, tasks: Vec::new(), outputs: HashMap::new() };
    for node in &graph.order {
        expansion.add(*node);
    }
    expansion.tasks
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
            None => self.compute(node, &before),
            Some(transfer) => match (Rails::of(self.graph, transfer), self.graph.graph[node].payload) {
                (None, _) => self.broadcast(node, transfer, &before),
                (Some(rails), Payload::Output) => self.reduce_scatter(node, &rails, &before),
                (Some(rails), _) => self.all_gather(node, &rails, &before),
            },
        };
        self.outputs.insert(node, outputs);
    }

    /// A stage whose devices work on each other's rows goes on in a further task after each exchange.
    fn compute(&mut self, node: NodeIndex, before: &[TaskId]) -> Vec<TaskId> {
        let (graph, stage) = (self.graph, self.graph.stage(node));
        let exchanges = graph.graph[node].layer.and_then(|layer| Exchanges::of(graph, stage, layer));
        let mut tasks = self.on_each(node, TaskRole::Compute, std::slice::from_ref(&stage.devices), |this, device| {
            this.own(device, before)
        });
        let Some(Exchanges { parts, peers }) = exchanges else { return tasks };
        for part in 1..parts {
            tasks = self.on_each(node, TaskRole::Exchange, &peers, |this, device| {
                this.of_devices(&tasks, Rails::group(&peers, device))
            });
            tasks.iter().for_each(|task| self.tasks[*task].part = part);
        }
        tasks
    }

    fn broadcast(&mut self, node: NodeIndex, transfer: &ResolvedTransfer, before: &[TaskId]) -> Vec<TaskId> {
        let sends: Vec<TaskId> = transfer
            .from
            .iter()
            .map(|device| self.push(node, TaskRole::Send, *device, self.own(*device, before)))
            .collect();
        transfer.to.iter().map(|device| self.push(node, TaskRole::Receive, *device, sends.clone())).collect()
    }

    /// u along the rails, then to all of each group.
    fn all_gather(&mut self, node: NodeIndex, rails: &Rails, before: &[TaskId]) -> Vec<TaskId> {
        let sends = self.on_each(node, TaskRole::Send, &rails.from, |this, device| this.own(device, before));
        let exchanges = self.on_each(node, TaskRole::Exchange, &rails.to, |this, device| {
            this.of_devices(&sends, &Rails::opposite(&rails.to, device, &rails.from))
        });
        self.on_each(node, TaskRole::Receive, &rails.to, |this, device| {
            this.of_devices(&exchanges, Rails::group(&rails.to, device))
        })
    }

    /// Parts of y to the device of the group on whose rail their rows go home; that one sums and sends them.
    fn reduce_scatter(&mut self, node: NodeIndex, rails: &Rails, before: &[TaskId]) -> Vec<TaskId> {
        let exchanges = self.on_each(node, TaskRole::Exchange, &rails.from, |this, device| this.own(device, before));
        let sends = self.on_each(node, TaskRole::Send, &rails.from, |this, device| {
            this.of_devices(&exchanges, Rails::group(&rails.from, device))
        });
        self.on_each(node, TaskRole::Receive, &rails.to, |this, device| {
            this.of_devices(&sends, &Rails::opposite(&rails.to, device, &rails.from))
        })
    }

    fn on_each(
        &mut self,
        node: NodeIndex,
        role: TaskRole,
        groups: &[Vec<DeviceIndex>],
        after: impl Fn(&Self, DeviceIndex) -> Vec<TaskId>,
    ) -> Vec<TaskId> {
        let devices = groups.iter().flatten();
        devices.map(|device| self.push(node, role, *device, after(self, *device))).collect()
    }

    fn of_devices(&self, tasks: &[TaskId], devices: &[DeviceIndex]) -> Vec<TaskId> {
        tasks.iter().copied().filter(|task| devices.contains(&self.tasks[*task].device)).collect()
    }

    /// Data moves between devices by transfers alone, so a task that only looks at its own device needs what that did before,
    /// where it did anything.
    fn own(&self, device: DeviceIndex, before: &[TaskId]) -> Vec<TaskId> {
        let own = self.of_devices(before, &[device]);
        if own.is_empty() { before.to_vec() } else { own }
    }

    fn push(&mut self, node: NodeIndex, role: TaskRole, device: DeviceIndex, mut after: Vec<TaskId>) -> TaskId {
        after.sort_unstable();
        let instance = self.graph.graph[node];
        let (stage, layer, payload) = (instance.stage, instance.layer, instance.payload);
        self.tasks.push(TaskTemplate { node, stage, layer, payload, role, part: 0, device, after });
        self.tasks.len() - 1
    }
}
