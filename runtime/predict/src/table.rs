//! Durations from a cost table: what `rally profile` measured, between and beyond its points.

use crate::durations::Durations;
use crate::experts::{ExpertLoad, Luck};
use crate::prediction::PredictError;
use rally_graph::model::ModelShape;
use rally_graph::plan::{TaskId, TaskTable, TaskTemplate};
use rally_graph::stage_graph::StageGraph;
use rally_schedule::cost_table::{CostAxis, CostPart, CostTable, StageCost, TaskSize};
use rally_schedule::virtual_lanes::VirtualTask;

/// A cost table, its entries found once for every task.
pub struct TableDurations<'a> {
    /// By task; where its weights are near by; where they are not.
    costs: Vec<[&'a StageCost; 2]>,
    /// By task: what planning after it takes; of exits.
    plans: Vec<Option<&'a StageCost>>,
    /// By task: ids of the experts its device holds.
    held: Vec<Vec<usize>>,
    experts: &'a ExpertLoad,
    shape: &'a ModelShape,
    /// Seed of what rows choose by chance; `None`: as many experts as in the mean.
    luck: Option<u64>,
}

impl<'a> TableDurations<'a> {
    /// For the tasks of `tasks`.
    ///
    /// # Errors
    /// [`PredictError::NotMeasured`] if the table lacks one of them.
    pub fn new(
        table: &'a CostTable,
        graph: &StageGraph,
        tasks: &TaskTable,
        shape: &'a ModelShape,
        experts: &'a ExpertLoad,
    ) -> Result<Self, PredictError> {
        let find = |task: &TaskTemplate, part: CostPart, warm: bool| {
            let (stage, device) = (&graph.stages[task.stage].id, &graph.devices[task.device]);
            let here =
                || table.stages.iter().filter(|cost| cost.stage == *stage && cost.part == part && cost.warm == warm);
            // Devices of a group are alike, and one of them was measured.
            let of_group = |cost: &&StageCost| {
                graph.devices.iter().any(|other| other.name == cost.device && other.group == device.group)
            };
            here().find(|cost| cost.device == device.name).or_else(|| here().find(of_group)).or_else(|| here().next())
        };
        let cost = |id: TaskId| {
            let task = &tasks.tasks[id];
            let part = CostPart::of(task);
            let cold = find(task, part, false).or_else(|| find(task, part, true)).ok_or_else(|| {
                PredictError::NotMeasured { stage: graph.stages[task.stage].id.clone(), part: part.name() }
            })?;
            Ok([find(task, part, true).unwrap_or(cold), cold])
        };
        let ids = 0..tasks.tasks.len();
        let plan =
            |id: TaskId| tasks.exits.contains(&id).then(|| find(&tasks.tasks[id], CostPart::Plan, false)).flatten();
        Ok(Self {
            costs: ids.clone().map(cost).collect::<Result<_, PredictError>>()?,
            plans: ids.clone().map(plan).collect(),
            held: ids.map(|id| held(graph, &tasks.tasks[id], shape)).collect(),
            experts,
            shape,
            luck: None,
        })
    }

    /// Lets chance say which experts rows choose, drawn from `seed`, instead of counting as many as in the mean.
    pub fn by_chance(self, seed: u64) -> Self {
        Self { luck: Some(seed), ..self }
    }

    /// Experts that a task's rows hit on its device.
    fn hit(&self, task: &VirtualTask<'_>, rows: usize) -> f64 {
        let (held, shape) = (&self.held[task.task], self.shape);
        let layer = task.table.tasks[task.task].layer.unwrap_or(0);
        match self.luck {
            Some(seed) => {
                let stream = (layer as u64) << 48 ^ (task.micro_batch as u64) << 40 ^ task.step;
                self.experts.draw(Luck { seed, stream }, rows, layer, held, shape.top_k, shape.experts)
            }
            None => self.experts.hit(rows, layer, held, shape.top_k, shape.experts),
        }
    }
}

/// Ids of the experts that a task's device holds; none where it has no part in them.
fn held(graph: &StageGraph, task: &TaskTemplate, shape: &ModelShape) -> Vec<usize> {
    let stage = &graph.stages[task.stage];
    match stage.kind == "expert_ffn" {
        true => stage.held_experts(task.device, task.layer.unwrap_or(0), shape.experts),
        false => Vec::new(),
    }
}

impl Durations for TableDurations<'_> {
    fn task_s(&self, task: &VirtualTask<'_>) -> f64 {
        let (cost, load) = (self.costs[task.task][usize::from(!task.warm)], task.load);
        let rows = task.rows();
        let hit = (cost.axis == CostAxis::Experts).then(|| self.hit(task, rows));
        cost.seconds(TaskSize { rows, context: load.context as f64 / load.rows.max(1) as f64, experts: hit })
    }

    fn plan_s(&self, exit: &VirtualTask<'_>) -> f64 {
        let size = TaskSize { rows: exit.load.rows.max(1), context: 0.0, experts: None };
        self.plans[exit.task].map_or(0.0, |cost| cost.seconds(size))
    }
}
