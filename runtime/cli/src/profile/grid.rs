//! Which points are measured: rows × context for attention, rows × experts hit for routed FFNs, rows for the rest; and the walks
//! over all stages that measure them.
//!
//! A point that the deployment can never have (more sequences than it holds, a context longer than its cache, more experts than
//! its rows reach) is left out, so a grid depends on the graph and the flags alone.

use rally_engine::schedule::cost_table::{CostAxis, CostPart};
use rally_engine::schedule::planner::PlannerConfig;
use rally_graph::kinds::Role;
use rally_graph::model::ModelShape;
use rally_graph::stage_graph::{DeviceIndex, Payload, StageGraph, StageIndex};
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
    /// Which of its parts work on rows of all attention devices.
    pub gathers: GatheredParts,
    /// What its time depends on beside rows.
    pub axis: CostAxis,
    /// Ids of the experts the device holds, ascending, in the first layer; empty where that does not matter.
    pub experts: Vec<usize>,
    /// Rows and place on the axis of every point, ascending.
    pub points: Vec<(usize, usize)>,
}

/// Which parts of a stage work on rows of all attention devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatheredParts {
    /// None: each device has its own rows.
    None,
    /// All: it is an FFN.
    All,
    /// The receive and what follows: a transfer to the FFN.
    Arriving,
    /// The send and what comes before: a transfer from it.
    Leaving,
}

impl GatheredParts {
    /// Whether `part` is one.
    pub fn has(self, part: CostPart) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Arriving => part != CostPart::Send,
            Self::Leaving => part != CostPart::Receive,
        }
    }
}

/// Steps on the same rows, in which every stage is timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Rows that were asked for: of each attention device, or of all together.
    pub asked: usize,
    /// Rows by attention device.
    pub rows: Vec<usize>,
    /// Whether tasks on a device's own rows have as many as were asked for.
    pub own: bool,
    /// Whether those on rows of all devices have.
    pub gathered: bool,
    /// Positions a row attends to.
    pub context: usize,
    /// Index of a subject with experts, and how many of them are hit.
    pub routed: Option<(usize, usize)>,
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

    /// Powers of two to the most rows, of context, and times a row's experts; each with its largest. Contexts stand in the middle of a
    /// page: attention works page by page, and at its end a page costs as little a token as nowhere else.
    pub fn default_axes(&self) -> Axes {
        let (rows, context) = (self.most_rows(Role::Ffn), self.most_context());
        let top_k = self.shape.top_k.max(1);
        Axes {
            rows: steps(1, 2, rows),
            contexts: in_mid_page(steps(16.min(context), 2, context), self.planner.page_tokens),
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

    /// The walks that come by every point of `subjects`: all contexts and all numbers of experts hit, for each number of rows.
    pub fn walks(&self, axes: &Axes, subjects: &[Subject]) -> Vec<Walk> {
        let (devices, most) = (self.attention_devices, self.planner.rows_per_device);
        let mut walks = Vec::new();
        for asked in &axes.rows {
            let (share, rest) = (asked / devices, asked % devices);
            let together: Vec<usize> = (0..devices).map(|device| share + usize::from(device < rest)).collect();
            let layouts = match devices {
                1 => vec![(together, true, true)],
                _ => vec![(vec![*asked; devices], true, false), (together, false, true)],
            };
            for (rows, own, gathered) in layouts.into_iter().filter(|(rows, ..)| rows[0] <= most) {
                let contexts: Vec<usize> =
                    axes.contexts.iter().copied().filter(|context| self.holds(rows[0], *context)).collect();
                let targets: Vec<(usize, usize)> = subjects
                    .iter()
                    .enumerate()
                    .filter(|(_, subject)| gathered && subject.axis == CostAxis::Experts)
                    .flat_map(|(index, subject)| {
                        let points = subject.points.iter().filter(|point| point.0 == *asked);
                        points.map(move |point| (index, point.1))
                    })
                    .collect();
                let contexts_wanted = if own { contexts.len() } else { contexts.len().min(1) };
                for turn in 0..contexts_wanted.max(targets.len()) {
                    let nth = |count: usize| turn.min(count.saturating_sub(1));
                    walks.push(Walk {
                        asked: *asked,
                        rows: rows.clone(),
                        own,
                        gathered,
                        context: contexts.get(nth(contexts_wanted)).copied().unwrap_or(rows[0]),
                        routed: targets.get(nth(targets.len())).copied(),
                    });
                }
            }
        }
        walks
    }
}

/// `first`, times `factor` and again, up to `last`, which is always among them.
fn steps(first: usize, factor: usize, last: usize) -> Vec<usize> {
    let mut steps: Vec<usize> =
        std::iter::successors(Some(first), |step| step.checked_mul(factor)).take_while(|step| *step < last).collect();
    steps.push(last.max(1));
    steps
}

/// Whole pages and a half, for each context of a page or more but the last.
fn in_mid_page(contexts: Vec<usize>, page_tokens: usize) -> Vec<usize> {
    let last = contexts.last().copied().unwrap_or(1);
    let middle = |context: usize| match context / page_tokens {
        0 => context,
        pages => (pages * page_tokens + page_tokens / 2).min(last),
    };
    let mut contexts: Vec<usize> = contexts.into_iter().map(middle).collect();
    contexts.dedup();
    if contexts.last() != Some(&last) {
        contexts.push(last);
    }
    contexts
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
            let experts = if routed { stage.held_experts(device, layers[0], bounds.shape.experts) } else { Vec::new() };
            let axis = match (stage.role, experts.is_empty()) {
                (Role::Attention, _) => CostAxis::Context,
                (Role::Ffn, false) => CostAxis::Experts,
                _ => CostAxis::None,
            };
            let points = bounds.points(axes, stage.role, axis, experts.len());
            let gathers = gathered_parts(graph, index, device);
            subjects.push(Subject { stage: index, device, gathers, axis, experts, points });
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

/// Which parts of a stage work on everyone's rows: an FFN's, and all of what stands on devices that hold no sequences.
fn gathered_parts(graph: &StageGraph, stage: StageIndex, device: DeviceIndex) -> GatheredParts {
    let payload = graph.graph.node_weights().find(|instance| instance.stage == stage).map(|instance| instance.payload);
    let holds_sequences = graph.devices_of_role(Role::Embed).contains(&device);
    match (graph.stages[stage].role, payload) {
        (Role::Transfer, Some(Payload::Input | Payload::RoutedInput)) => GatheredParts::Arriving,
        (Role::Transfer, Some(Payload::Output)) => GatheredParts::Leaving,
        (Role::Ffn, _) => GatheredParts::All,
        _ if holds_sequences => GatheredParts::None,
        _ => GatheredParts::All,
    }
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
        assert_eq!(in_mid_page(steps(16, 2, 512), 64), [16, 32, 96, 160, 288, 512]);
        assert_eq!(in_mid_page(steps(16, 2, 64), 64), [16, 32, 64]);
        assert_eq!(in_mid_page(vec![8, 16], 16), [8, 16]);
    }
}
