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

/// Gives every row different experts so that exactly `hit` of the device's, spread evenly over them, are chosen, by about equally
/// many rows: copies of others' experts are among them as among all. Where the device holds fewer than a row chooses, the rest go to experts elsewhere. Where devices share the rows of copied experts by
/// their loads, experts elsewhere are chosen as much as those here, as far as there are rows for it: else the others would seem
/// to be free and take all.
fn route(values: &mut Values, subject: &Subject, hit: usize, all: usize) {
    let top_k = values.widths.top_k;
    let elsewhere: Vec<u32> = (0..all).filter(|id| !subject.experts.contains(id)).map(|id| id as u32).collect();
    let count = subject.experts.len();
    let here: Vec<usize> = (0..hit).map(|index| subject.experts[(2 * index + 1) * count / (2 * hit)]).collect();
    if subject.is_split() {
        let spare = (values.rows * top_k).saturating_sub(hit);
        let even = (hit * elsewhere.len()).div_ceil(count);
        let others = even.min(spare).max(top_k.saturating_sub(hit)).min(elsewhere.len());
        let all = mixed(&here, &elsewhere[..others]);
        deal(&mut values.expert_ids[..values.rows * top_k], top_k, all);
        return;
    }
    for (row, chosen) in values.expert_ids.chunks_exact_mut(top_k).enumerate() {
        for (place, id) in chosen.iter_mut().enumerate() {
            *id = match place < hit {
                true => here[(row * top_k.min(hit) + place) % hit] as u32,
                false => elsewhere[(place - hit) % elsewhere.len()],
            };
        }
    }
}

/// Every row different ones of `all`: each once over the first rows, then at random, since a rhythm would fall in with that in
/// which devices of equal load take turns.
fn deal(expert_ids: &mut [u32], top_k: usize, mut all: Vec<u32>) {
    let mut random = SeededRandom::new(1, all.len() as u64);
    let (in_turn, first_random) = (all.clone(), all.len().next_multiple_of(top_k));
    for (row, chosen) in expert_ids.chunks_exact_mut(top_k).enumerate() {
        for (place, id) in chosen.iter_mut().enumerate() {
            let at = row * top_k + place;
            *id = if at < first_random {
                in_turn[at % in_turn.len()]
            } else {
                all.swap(place, random.between(place, in_turn.len() - 1));
                all[place]
            };
        }
    }
}

/// All of both, each spread evenly.
fn mixed(here: &[usize], elsewhere: &[u32]) -> Vec<u32> {
    let spread = |index: usize, count: usize| (2 * index + 1) as f64 / (2 * count) as f64;
    let here = here.iter().enumerate().map(|(index, id)| (spread(index, here.len()), *id as u32));
    let others = elsewhere.iter().enumerate().map(|(index, id)| (spread(index, elsewhere.len()), *id));
    let mut all: Vec<(f64, u32)> = here.chain(others).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rally_engine::stage_timer::TimedLayer;
    use std::collections::BTreeSet;

    fn subject(experts: Vec<usize>, peers: usize) -> Subject {
        let layers = vec![TimedLayer { layer: 0, parts: peers.max(1), peers }];
        Subject { stage: 0, device: 0, layers, axis: CostAxis::Experts, experts, points: Vec::new() }
    }

    /// A device with `experts` of 8, rows that choose 2: the hit ones are exactly as many as asked for, and no row chooses twice.
    #[track_caller]
    fn check(experts: impl IntoIterator<Item = usize>, rows: usize, hit: usize) {
        let experts: Vec<usize> = experts.into_iter().collect();
        check_of(&subject(experts.clone(), 0), rows, hit);
        check_of(&subject(experts, 2), rows, hit);
    }

    #[track_caller]
    fn check_of(subject: &Subject, rows: usize, hit: usize) {
        let (mut values, experts) = (Values::new(rows, Widths { hidden: 4, top_k: 2 }), &subject.experts);
        values.rows = rows;
        route(&mut values, subject, hit, 8);
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
        check([0, 1, 2, 3, 6], 8, 5);
        check([0, 1, 2, 3, 6], 2, 3);
    }

    #[test]
    fn copies_are_hit_beside_the_device_s_own_and_others_as_much() {
        let mut values = Values::new(8, Widths { hidden: 4, top_k: 3 });
        values.rows = 8;
        route(&mut values, &subject(vec![0, 1, 2, 3, 6], 2), 3, 8);
        let of = |id: u32| values.expert_ids.iter().filter(|chosen| **chosen == id).count();
        // Of three elsewhere, two are chosen: 24 choices among five experts.
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|id| of(id) > 0), [true, false, true, false, true, true, true, false]);
        assert!([0, 2, 4, 5, 6].iter().all(|id| of(*id) >= 2), "{:?}", values.expert_ids);
        let differ = |chosen: &[u32]| chosen.iter().collect::<BTreeSet<_>>().len() == 3;
        assert!(values.expert_ids.chunks(3).all(differ), "{:?}", values.expert_ids);
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
