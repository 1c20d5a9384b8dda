//! What the host takes between two steps: tokens counted, the next step planned, events handed over. Timed in a short run of the
//! deployment as it is, since all of it depends on what really goes on.

use super::{WARM_UP, summarise};
use crate::error::{Blame, CliError};
use rally_engine::schedule::batch::{SamplingParams, SequenceRequest, TokenDetail};
use rally_engine::schedule::cost_table::{CostAxis, CostPart, CostPoint, StageCost};
use rally_engine::{Engine, EngineParts, RunEvent, RunReport};
use rally_graph::plan::Plan;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tokens of a sequence. With its one token of prompt it has a step for each.
const TOKENS: usize = 32;

/// Runs as many short sequences as fill all micro-batches with `rows`, for each number of rows, and shows each point to `add`.
pub fn measure(parts: EngineParts, rows: &[usize], mut add: impl FnMut(StageCost, CostPoint)) -> Result<(), CliError> {
    let (graph, plan, planner) = (Arc::clone(&parts.graph), Arc::clone(&parts.plan), parts.planner);
    let Some(exit) = plan.table.exits.first().map(|task| plan.table.tasks[*task].clone()) else { return Ok(()) };
    let engine = Engine::start(parts).or_failure()?;
    let tokens = TOKENS.min(planner.max_positions - 1).min(planner.device_kv_tokens());
    let mut id = 0;
    for rows in rows {
        let most = planner.sequences.min(planner.pages_per_device as usize * planner.devices);
        let count = (rows * planner.micro_batches * planner.devices).min(most);
        let request = |id: u64| SequenceRequest {
            generated: std::sync::Arc::default(),
            id,
            prompt: vec![1].into(),
            max_new_tokens: tokens,
            stop_token_ids: [].into(),
            sampling: SamplingParams::default(),
            detail: TokenDetail::default(),
        };
        engine.submit((id..id + count as u64).map(request)).or_failure()?;
        id += count as u64;
        let mut open = count;
        while open > 0 {
            match engine.events().recv().or_failure()? {
                RunEvent::Failed(error) => return Err(error).or_failure(),
                event => open -= usize::from(matches!(event, RunEvent::Finished(..))),
            }
        }
    }
    engine.close();
    let stage = &graph.stages[exit.stage];
    for (rows, seconds) in gaps(&plan, &engine.join()) {
        let cost = StageCost {
            stage: stage.id.clone(),
            kind: stage.kind.clone(),
            part: CostPart::Plan,
            device: graph.devices[exit.device].name.clone(),
            warm: false,
            axis: CostAxis::None,
            experts: 0,
            routed_share: 0.0,
            width: 0,
            shared: false,
            sms: graph.devices[exit.device].sms.unwrap_or_default(),
            kv_dtype: None,
            points: Vec::new(),
        };
        if seconds.len() > WARM_UP as usize {
            add(cost, summarise(rows, 0, seconds));
        }
    }
    Ok(())
}

/// Seconds of host by the rows of the exit task before it. Of several exits of a step the last one's lane has planned, so the longest
/// gap is the planner's.
fn gaps(plan: &Plan, report: &RunReport) -> BTreeMap<usize, Vec<f64>> {
    let mut longest: BTreeMap<(u64, usize), (usize, u64)> = BTreeMap::new();
    for (lane, report) in plan.lanes.iter().zip(&report.lanes) {
        for pair in report.spans.windows(2) {
            let task = &lane.tasks[pair[0].position as usize];
            if plan.table.exits.contains(&task.task) && pair[1].admission_ns == 0 {
                let gap = pair[1].ready_ns.saturating_sub(pair[0].end_ns);
                let known = longest.entry((pair[0].step, task.micro_batch)).or_default();
                if gap >= known.1 {
                    *known = (pair[0].rows as usize, gap);
                }
            }
        }
    }
    let mut gaps: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (rows, gap) in longest.into_values() {
        gaps.entry(rows).or_default().push(gap as f64 * 1e-9);
    }
    gaps
}
