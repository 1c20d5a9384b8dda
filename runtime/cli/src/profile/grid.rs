//! Which points are measured: rows × context for attention, rows × experts hit for routed FFNs, rows for the rest.
//!
//! A point that the deployment can never have (more sequences than it holds, a context longer than its cache, more experts than
//! its rows reach) is left out, so a grid depends on the graph and the flags alone.

use rally_engine::schedule::cost_table::CostAxis;
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::stage_timer::TimedLayer;
use rally_graph::kinds::Role;
use rally_graph::model::ModelShape;
use rally_graph::placement::ExpertPlacement;
use rally_graph::routes::Exchanges;
use rally_graph::shard::ShardCounts;
use rally_graph::stage_graph::{DeviceIndex, ResolvedStage, StageGraph, StageIndex};
use rally_stages::deployment::Deployment;
use serde::{Deserialize, Serialize};

/// Values of the axes, as given or by default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axes {
    /// Rows of a task.
    pub rows: Vec<usize>,
    /// Positions a row attends to.
    pub contexts: Vec<usize>,
    /// Experts hit.
    pub experts: Vec<usize>,
}

/// One stage (or transfer) on the first device of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// Which stage.
    pub stage: StageIndex,
    /// Where.
    pub device: DeviceIndex,
    /// Layers it runs in, and in how many parts; a 0 for stages outside the layers.
    pub layers: Vec<TimedLayer>,
    /// What its time depends on beside rows.
    pub axis: CostAxis,
    /// Ids of the experts the device holds, ascending, in the first layer; empty where that does not matter.
    pub experts: Vec<usize>,
    /// Rows and place on the axis of every point, ascending.
    pub points: Vec<(usize, usize)>,
}

impl Subject {
    /// Whether its devices hand each other rows between parts, in some layer.
    pub fn is_split(&self) -> bool {
        self.layers.iter().any(|layer| layer.peers > 0)
    }

    /// Parts that it is done in, at most.
    pub fn parts(&self) -> usize {
        self.layers.iter().map(|layer| layer.parts).max().unwrap_or(1)
    }
}

/// Sizes that bound a grid.
pub struct Bounds<'a> {
    /// The model.
    pub shape: &'a ModelShape,
    /// What each attention device keeps to.
    pub planner: PlannerConfig,
    /// Attention devices.
    pub attention_devices: usize,
}

impl<'a> Bounds<'a> {
    /// Of a deployment.
    pub fn of(deployment: &'a Deployment) -> Self {
        let planner = deployment.planner_config();
        Self { shape: &deployment.shape, attention_devices: planner.devices, planner }
    }

    /// Most rows a task of a device may have that holds sequences, or that gets those of all which do.
    fn most_rows(&self, role: Role) -> usize {
        match role {
            Role::Ffn => self.planner.rows_per_device * self.attention_devices,
            // A sequence samples once a step.
            Role::Sampling => self.planner.rows_per_device.min(self.planner.sequences_per_device),
            _ => self.planner.rows_per_device,
        }
    }

    /// Longest context a sequence may have.
    fn most_context(&self) -> usize {
        self.shape.max_positions.min(self.planner.device_kv_tokens())
    }

    /// Powers of two to the most rows, powers of four of context, powers of two times a row's experts; each with its largest.
    pub fn default_axes(&self) -> Axes {
        let (rows, context) = (self.most_rows(Role::Ffn), self.most_context());
        let top_k = self.shape.top_k.max(1);
        Axes {
            rows: steps(1, 2, rows),
            contexts: steps(16.min(context), 4, context),
            experts: steps(top_k, 2, self.shape.experts),
        }
    }

    /// The points of a stage.
    fn points(&self, axes: &Axes, role: Role, axis: CostAxis, experts: usize) -> Vec<(usize, usize)> {
        let rows = axes.rows.iter().copied().filter(|rows| *rows <= self.most_rows(role));
        let along = |rows: usize| -> Vec<usize> {
            match axis {
                CostAxis::None => vec![0],
                CostAxis::Context => {
                    axes.contexts.iter().copied().filter(|context| self.holds(rows, *context)).collect()
                }
                CostAxis::Experts => {
                    let (top_k, elsewhere) = (self.shape.top_k, self.shape.experts - experts);
                    let reached = experts.min(rows * top_k);
                    // What a row does not choose here it must find elsewhere.
                    let least = top_k.saturating_sub(elsewhere);
                    axes.experts.iter().copied().filter(|count| (least..=reached).contains(count)).collect()
                }
            }
        };
        rows.flat_map(|rows| along(rows).into_iter().map(move |along| (rows, along))).collect()
    }

    /// Whether a device can have so many rows, each of a sequence with that context.
    fn holds(&self, rows: usize, context: usize) -> bool {
        let sequences = rows.min(self.planner.sequences_per_device);
        // Several rows of one sequence stand behind each other.
        let deepest = rows.div_ceil(sequences);
        let pages = sequences * context.div_ceil(self.planner.page_tokens);
        context >= deepest && context <= self.most_context() && pages <= self.planner.pages_per_device as usize
    }
}

/// `first`, times `factor` and again, up to `last`, which is always among them.
fn steps(first: usize, factor: usize, last: usize) -> Vec<usize> {
    let mut steps: Vec<usize> =
        std::iter::successors(Some(first), |step| step.checked_mul(factor)).take_while(|step| *step < last).collect();
    steps.push(last.max(1));
    steps
}

/// Everything that is measured, in the graph's order.
pub fn subjects(graph: &StageGraph, bounds: &Bounds<'_>, axes: &Axes) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for (index, stage) in graph.stages.iter().enumerate() {
        let layers: Vec<usize> =
            graph.graph.node_weights().filter(|i| i.stage == index).map(|i| i.layer.unwrap_or(0)).collect();
        let devices = match &stage.transfer {
            Some(transfer) => &transfer.from,
            None => &stage.devices,
        };
        // A selector may match no layer of this model.
        for device in firsts(graph, devices).into_iter().filter(|_| !layers.is_empty()) {
            let mut layers = layers.clone();
            layers.sort_unstable();
            layers.dedup();
            let routed = stage.kind == "expert_ffn";
            let experts = if routed { held(stage, device, layers[0], bounds.shape) } else { Vec::new() };
            let axis = match (stage.role, experts.is_empty()) {
                (Role::Attention, _) => CostAxis::Context,
                (Role::Ffn, false) => CostAxis::Experts,
                _ => CostAxis::None,
            };
            let layers = layers.iter().map(|layer| timed_layer(graph, stage, device, *layer)).collect();
            let points = bounds.points(axes, stage.role, axis, experts.len());
            subjects.push(Subject { stage: index, device, layers, axis, experts, points });
        }
    }
    subjects
}

/// The first device of every group.
fn firsts(graph: &StageGraph, devices: &[DeviceIndex]) -> Vec<DeviceIndex> {
    let mut firsts: Vec<DeviceIndex> = Vec::new();
    for device in devices {
        if firsts.iter().all(|first| graph.devices[*first].group != graph.devices[*device].group) {
            firsts.push(*device);
        }
    }
    firsts
}

/// How a stage is done in a layer.
fn timed_layer(graph: &StageGraph, stage: &ResolvedStage, device: DeviceIndex, layer: usize) -> TimedLayer {
    match Exchanges::of(graph, stage, layer) {
        Some(exchanges) => TimedLayer { layer, parts: exchanges.parts, peers: exchanges.peers_of(device).len() },
        None => TimedLayer { layer, parts: 1, peers: 0 },
    }
}

/// Ids of the experts a device holds in a layer.
fn held(stage: &ResolvedStage, device: DeviceIndex, layer: usize, shape: &ModelShape) -> Vec<usize> {
    let counts = ShardCounts::of(stage.spec.shard.as_ref());
    let place = stage.devices.iter().position(|other| *other == device).unwrap_or(0);
    let placed = ExpertPlacement::of(&stage.spec, layer, shape.experts, counts.experts);
    placed.held_by(counts.position(place).expert).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_with_the_last() {
        assert_eq!(steps(1, 2, 64), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(steps(1, 2, 100), [1, 2, 4, 8, 16, 32, 64, 100]);
        assert_eq!(steps(16, 4, 16), [16]);
        assert_eq!(steps(2, 2, 0), [1]);
    }
}
