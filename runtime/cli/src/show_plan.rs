//! `rally show --plan`: the lane orders of one cycle, with the waits between lanes.

use crate::error::{Blame, CliError};
use rally_stages::deployment::Checked;

use crate::show::Form;
use rally_engine::schedule::policy::Schedule;
use rally_graph::kinds::KindRegistry;
use rally_graph::plan::{Plan, PlannedTask, TaskRole, TaskTable};
use rally_graph::stage_graph::StageGraph;
use serde::Serialize;

/// The plan of a checked graph, as text or JSON.
pub fn render(checked: &Checked, form: Option<Form>) -> Result<String, CliError> {
    let (Some(spec), Some(shape)) = (&checked.spec, &checked.shape) else { return Err(CliError::Reported) };
    let json = match form {
        None => false,
        Some(Form::Json) => true,
        Some(_) => return Err(CliError::Mistake("a plan is shown as text or with `--as json`".into())),
    };
    let graph = StageGraph::build(spec, shape, KindRegistry::shared()).or_mistake()?;
    let schedule = Schedule::from_spec(&spec.schedule).or_mistake()?;
    let plan = schedule.plan(TaskTable::new(&graph)).or_mistake()?;
    let shown = ShownPlan::new(&graph, &plan, &schedule.label);
    match json {
        true => Ok(format!("{}\n", serde_json::to_string_pretty(&shown).or_failure()?)),
        false => Ok(shown.text()),
    }
}

#[derive(Serialize)]
struct ShownPlan {
    schedule: String,
    micro_batches: usize,
    lanes: Vec<ShownLane>,
}

#[derive(Serialize)]
struct ShownLane {
    name: String,
    tasks: Vec<ShownTask>,
}

#[derive(Serialize)]
struct ShownTask {
    stage: String,
    role: TaskRole,
    layer: Option<usize>,
    micro_batch: usize,
    /// Whether it belongs to the step before.
    behind: bool,
    waits: Vec<ShownWait>,
}

#[derive(Serialize)]
struct ShownWait {
    lane: String,
    position: usize,
    cycles: i64,
}

impl ShownPlan {
    fn new(graph: &StageGraph, plan: &Plan, label: &str) -> Self {
        let task = |planned: &PlannedTask| {
            let template = &plan.table.tasks[planned.task];
            ShownTask {
                stage: graph.stages[template.stage].id.clone(),
                role: template.role,
                layer: template.layer,
                micro_batch: planned.micro_batch,
                behind: planned.behind,
                waits: planned
                    .waits
                    .iter()
                    .map(|wait| ShownWait {
                        lane: plan.lanes[wait.lane].name.clone(),
                        position: wait.position,
                        cycles: wait.cycles,
                    })
                    .collect(),
            }
        };
        let lane = |lane: &rally_graph::plan::PlannedLane| ShownLane {
            name: lane.name.clone(),
            tasks: lane.tasks.iter().map(task).collect(),
        };
        Self {
            schedule: label.to_owned(),
            micro_batches: plan.micro_batches,
            lanes: plan.lanes.iter().map(lane).collect(),
        }
    }

    fn text(&self) -> String {
        let mut out = format!("{}: one cycle of every lane, repeated for ever\n", self.schedule);
        for lane in &self.lanes {
            out.push_str(&format!("\n{}: {} tasks\n", lane.name, lane.tasks.len()));
            let width = lane.tasks.len().to_string().len();
            for (position, task) in lane.tasks.iter().enumerate() {
                out.push_str(&format!("  {position:>width$}  {}\n", task.line()));
            }
        }
        out
    }
}

impl ShownTask {
    fn line(&self) -> String {
        let role = match self.role {
            TaskRole::Compute => "",
            TaskRole::Send => " send",
            TaskRole::Receive => " receive",
        };
        let layer = self.layer.map(|layer| format!(" layer {layer}")).unwrap_or_default();
        let step = if self.behind { " (step before)" } else { "" };
        let mut line = format!("D{} {}{role}{layer}{step}", self.micro_batch + 1, self.stage);
        if !self.waits.is_empty() {
            let waits: Vec<String> = self
                .waits
                .iter()
                .map(|wait| match wait.cycles {
                    0 => format!("{}[{}]", wait.lane, wait.position),
                    cycles => format!("{}[{}] {cycles:+}", wait.lane, wait.position),
                })
                .collect();
            line.push_str(&format!("  ← {}", waits.join(", ")));
        }
        line
    }
}
