//! Which histogram a task's duration belongs to, and what its time is to those who wait.

use super::Work;
use rally_graph::kinds::Role;
use rally_graph::plan::{Plan, TaskTable};
use rally_graph::shard::ShardCounts;
use rally_graph::stage_graph::{DeviceIndex, StageGraph, StageIndex};
use rally_metrics::names;

/// One histogram of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Series {
    /// A stage, in one kind of layer.
    Stage {
        stage: StageIndex,
        /// `dense`, `moe`, or `none` outside the layers.
        layer_kind: &'static str,
    },
    /// This lane's part of a transfer.
    Transfer { stage: StageIndex },
}

impl Series {
    /// All of a lane, each once.
    pub(super) fn of_lane(plan: &Plan, graph: &StageGraph, lane: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for position in 0..plan.lanes[lane].tasks.len() {
            let series = Self::of(plan, graph, lane, position);
            if !all.contains(&series) {
                all.push(series);
            }
        }
        all
    }

    /// That of the task at `position`.
    pub(super) fn of(plan: &Plan, graph: &StageGraph, lane: usize, position: usize) -> Self {
        let template = &plan.table.tasks[plan.lanes[lane].tasks[position].task];
        let stage = template.stage;
        match template.computes() {
            true => Self::Stage { stage, layer_kind: layer_kind(graph, template.layer) },
            false => Self::Transfer { stage },
        }
    }

    pub(super) fn edges(self) -> &'static [f64] {
        match self {
            Self::Stage { .. } => names::STAGE_SECONDS.edges(),
            Self::Transfer { .. } => names::TRANSFER_SECONDS.edges(),
        }
    }
}

/// A layer with a router is a layer of experts.
fn layer_kind(graph: &StageGraph, layer: Option<usize>) -> &'static str {
    let Some(layer) = layer else { return "none" };
    let routed = |stage: StageIndex| graph.stages[stage].role == Role::Router;
    let moe = graph.graph.node_weights().any(|instance| instance.layer == Some(layer) && routed(instance.stage));
    if moe { "moe" } else { "dense" }
}

/// What the task at `position` is to those who wait for it: the same words as in a trace.
pub(super) fn work_of(plan: &Plan, graph: &StageGraph, lane: usize, position: usize) -> Work {
    let template = &plan.table.tasks[plan.lanes[lane].tasks[position].task];
    if !template.computes() {
        return Work::Transfer;
    }
    match graph.stages[template.stage].role {
        Role::Ffn => Work::Ffn,
        Role::Embed | Role::Attention | Role::Router | Role::Combine | Role::Sampling => Work::Attention,
        Role::Transfer | Role::Rowwise => side_of(graph, template.device),
    }
}

/// What a device is for. One that neither attends nor computes an FFN stands between the two, as a stage of a network does.
fn side_of(graph: &StageGraph, device: DeviceIndex) -> Work {
    let has = |roles: &[Role]| {
        graph.stages.iter().any(|stage| stage.devices.contains(&device) && roles.contains(&stage.role))
    };
    if has(&[Role::Embed, Role::Attention, Role::Sampling]) {
        Work::Attention
    } else if has(&[Role::Ffn]) {
        Work::Ffn
    } else {
        Work::Transfer
    }
}

/// Whether `device` counts the tokens that its router `stage` routes. Behind a transfer all devices of a replica of the FFN route
/// the same rows: the first of them counts.
pub(crate) fn counts_routing(table: &TaskTable, graph: &StageGraph, stage: StageIndex, device: DeviceIndex) -> bool {
    let own = table.tasks.iter().filter(|task| task.stage == stage && task.device == device);
    let gathers = own.flat_map(|task| &task.after).any(|before| !table.tasks[*before].computes());
    // The FFN of the layers that it routes for.
    let layers = |stage: StageIndex| graph.graph.node_weights().filter(move |node| node.stage == stage);
    let shares_layer = |ffn: StageIndex| layers(ffn).any(|node| layers(stage).any(|own| own.layer == node.layer));
    let repeats = (0..graph.stages.len()).any(|ffn| {
        let place = graph.stages[ffn].devices.iter().position(|other| *other == device);
        let per_replica = ShardCounts::of(graph.stages[ffn].spec.shard.as_ref()).per_replica();
        let in_the_middle = place.is_some_and(|place| place % per_replica != 0);
        in_the_middle && graph.stages[ffn].role == Role::Ffn && shares_layer(ffn)
    });
    !(gathers && repeats)
}
