//! Rows for a point of the grid: a batch as the planner would write it, values that are ordinary numbers, and a routing that hits
//! so many experts and no more.

use super::grid::Subject;
use rally_engine::Widths;
use rally_engine::schedule::batch::{DeviceBatch, GroupInput, RowGroup, SampleSpec, SamplingParams, TokenDetail};
use rally_engine::schedule::cost_table::CostAxis;
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::stage_timer::Workload;
use rally_engine::values::Values;
use rally_graph::model::ModelShape;
use rally_load::random::SeededRandom;

/// Makes the rows of one point.
pub fn make(subject: &Subject, rows: usize, along: usize, planner: &PlannerConfig, shape: &ModelShape) -> Workload {
    let context = if subject.axis == CostAxis::Context { along } else { rows.div_ceil(planner.sequences_per_device) };
    let batch = batch(rows, context, planner, shape.vocab);
    let mut values = Values::new(rows, Widths { hidden: shape.hidden, top_k: shape.top_k });
    values.rows = rows;
    // Any fixed seed: what matters is that numbers are neither zero nor denormal.
    let mut random = SeededRandom::new(1, rows as u64);
    for buffer in [&mut values.x, &mut values.u, &mut values.y] {
        buffer.iter_mut().for_each(|value| *value = random.normal() as f32);
    }
    if subject.axis == CostAxis::Experts {
        route(&mut values, subject, along, shape.experts);
    } else {
        let ids = (0..shape.top_k as u32).cycle();
        values.expert_ids.iter_mut().zip(ids).for_each(|(id, chosen)| *id = chosen);
    }
    values.expert_weights.fill(1.0 / shape.top_k.max(1) as f32);
    Workload { batch, values, last_tokens: vec![0; planner.sequences_per_device] }
}

/// `rows` rows over as many sequences as there may be; each sequence's last row attends to `context` positions.
fn batch(rows: usize, context: usize, planner: &PlannerConfig, vocab: usize) -> DeviceBatch {
    let mut batch =
        DeviceBatch { rows, token_ids: (0..rows).map(|row| (row % vocab) as u32).collect(), ..DeviceBatch::default() };
    let sequences = rows.min(planner.sequences_per_device);
    let pages = context.div_ceil(planner.page_tokens);
    let mut first_row = 0;
    for slot in 0..sequences {
        let own = rows / sequences + usize::from(slot < rows % sequences);
        let first_page = batch.pages.len();
        // FFN devices get the rows of several attention devices, and look at no page.
        batch.pages.extend((0..pages).map(|page| ((slot * pages + page) % planner.pages_per_device as usize) as u32));
        let params = SamplingParams::default();
        batch.groups.push(RowGroup {
            sequence: slot as u64,
            slot,
            first_row,
            rows: own,
            first_position: context - own,
            input: GroupInput::Given,
            pages: first_page..batch.pages.len(),
            sample: Some(SampleSpec { token_index: 0, params, detail: TokenDetail::default() }),
        });
        first_row += own;
    }
    batch
}

/// Gives every row different experts so that exactly the first `hit` of the device's are chosen, by about equally many rows. Where
/// the device holds fewer than a row chooses, the rest go to experts elsewhere.
fn route(values: &mut Values, subject: &Subject, hit: usize, all: usize) {
    let top_k = values.widths.top_k;
    let elsewhere: Vec<u32> = (0..all).filter(|id| !subject.experts.contains(id)).map(|id| id as u32).collect();
    for (row, chosen) in values.expert_ids.chunks_exact_mut(top_k).enumerate() {
        for (place, id) in chosen.iter_mut().enumerate() {
            *id = match place < hit {
                true => (subject.experts.start + (row * top_k.min(hit) + place) % hit) as u32,
                false => elsewhere[(place - hit) % elsewhere.len()],
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn subject(experts: std::ops::Range<usize>) -> Subject {
        Subject { stage: 0, device: 0, layers: vec![0], axis: CostAxis::Experts, experts, points: Vec::new() }
    }

    /// A device with `experts` of 8, rows that choose 2: the hit ones are exactly as many as asked for, and no row chooses twice.
    #[track_caller]
    fn check(experts: std::ops::Range<usize>, rows: usize, hit: usize) {
        let mut values = Values::new(rows, Widths { hidden: 4, top_k: 2 });
        route(&mut values, &subject(experts.clone()), hit, 8);
        let here: BTreeSet<u32> =
            values.expert_ids.iter().copied().filter(|id| experts.contains(&(*id as usize))).collect();
        assert_eq!(here.len(), hit, "{experts:?}, {rows} rows: {:?}", values.expert_ids);
        assert!(values.expert_ids.chunks(2).all(|chosen| chosen[0] != chosen[1]));
    }

    #[test]
    fn routing_hits_as_many_experts_as_asked_for() {
        check(0..8, 1, 2);
        check(0..8, 4, 8);
        check(0..8, 16, 2);
        check(0..8, 5, 4);
        check(2..4, 3, 2);
        check(5..6, 3, 1);
    }

    #[test]
    fn rows_attend_to_their_context() {
        let planner = PlannerConfig {
            micro_batches: 1,
            devices: 1,
            sequences: 4,
            sequences_per_device: 4,
            rows_per_device: 16,
            rows_per_micro_batch: 16,
            prefill_chunk: 16,
            pages_per_device: 64,
            page_tokens: 8,
            max_positions: 128,
        };
        let decode = batch(3, 20, &planner, 100);
        assert_eq!((decode.groups.len(), decode.context(), decode.pages.len()), (3, 60, 9));
        let deep = batch(9, 20, &planner, 100);
        let rows: Vec<usize> = deep.groups.iter().map(|group| group.rows).collect();
        assert_eq!(rows, [3, 2, 2, 2]);
        assert!(deep.groups.iter().all(|group| group.first_position + group.rows == 20));
    }
}
