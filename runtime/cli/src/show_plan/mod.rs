//! `rally show --plan`: the lane orders of one cycle in words, with the waits between lanes, and a timeline.

mod text;
mod timeline;

use crate::error::{Blame, CliError};
use crate::show::Form;
use rally_engine::schedule::policy::Schedule;
use rally_graph::kinds::KindRegistry;
use rally_graph::plan::{Plan, PlannedTask, TaskRole, TaskTable};
use rally_graph::render;
use rally_graph::stage_graph::StageGraph;
use rally_stages::deployment::{Checked, with_costs};
use serde::Serialize;
use timeline::Timeline;

/// The plan of a checked graph, under the schedule that `schedule` names if that is given.
pub fn render(checked: &Checked, form: Option<Form>, schedule: Option<&str>) -> Result<String, CliError> {
    let (Some(spec), Some(shape)) = (&checked.spec, &checked.shape) else { return Err(CliError::Reported) };
    if matches!(form, Some(Form::Dot | Form::Mermaid)) {
        return Err(CliError::Mistake("a plan is shown as text or with `--as svg`, `html` or `json`".into()));
    }
    let graph = StageGraph::build(spec, shape, KindRegistry::shared()).or_mistake()?;
    let schedule = match schedule {
        Some(text) => Schedule::parse(text, &spec.schedule),
        None => Schedule::from_spec(&spec.schedule),
    };
    let schedule = schedule.or_mistake()?;
    let schedule = with_costs(schedule, &graph, spec, shape, KindRegistry::shared(), None);
    let plan = schedule.plan(TaskTable::new(&graph)).or_mistake()?;
    if form == Some(Form::Json) {
        let shown = ShownPlan::new(&graph, &plan, &schedule.label);
        return Ok(format!("{}\n", serde_json::to_string_pretty(&shown).or_failure()?));
    }
    let timeline = Timeline::new(&graph, &plan).or_failure()?;
    Ok(match form {
        Some(Form::Svg) => timeline.svg(&spec.name, &schedule.label),
        Some(Form::Html) => render::html_page(&spec.name, &timeline.svg(&spec.name, &schedule.label)),
        _ => format!("{}\n{}", text::text(&plan, &schedule.label), timeline.text()),
    })
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
}
