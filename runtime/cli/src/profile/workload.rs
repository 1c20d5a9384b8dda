//! Rows for a walk: batches as the planner would write them, and a routing that hits so many experts and no more.

use super::grid::{Subject, Walk};
use rally_engine::Widths;
use rally_engine::exchange::ExchangeSize;
use rally_engine::schedule::batch::{DeviceBatch, GroupInput, RowGroup, SampleSpec, SamplingParams, TokenDetail};
use rally_engine::schedule::planner::PlannerConfig;
use rally_engine::stage::{Stage, StageError, TaskContext};
use rally_engine::values::Values;
use rally_graph::model::ModelShape;
use rally_load::random::SeededRandom;
use std::sync::{Arc, Mutex, PoisonError};

/// What the rows of a device choose, `[rows, top_k]` each, several that take turns; none there: as they are routed.
#[derive(Debug, Default)]
pub struct Choices {
    draws: Vec<Vec<u32>>,
    /// How often they were set.
    turn: usize,
}

impl Choices {
    /// From the next step on.
    pub fn set(&mut self, draws: Vec<Vec<u32>>) {
        self.draws = draws;
        self.turn += 1;
    }
}

/// Keeps the routing of a device's rows to what a walk wants: the router works, and then finds other experts chosen. One whose choice
/// stays in a device's memory is told before.
pub struct ForcedRouter {
    inner: Box<dyn Stage>,
    forced: Arc<Mutex<Choices>>,
    calls: usize,
    told: usize,
    chooses_itself: bool,
}

impl ForcedRouter {
    /// Around the router of a device, whose rows choose what is put into the other half.
    pub fn new(inner: Box<dyn Stage>) -> (Self, Arc<Mutex<Choices>>) {
        let forced = Arc::new(Mutex::new(Choices::default()));
        (Self { inner, forced: Arc::clone(&forced), calls: 0, told: 0, chooses_itself: false }, forced)
    }
}

impl Stage for ForcedRouter {
    fn run(&mut self, task: &mut TaskContext<'_>) -> Result<(), StageError> {
        let forced = self.forced.lock().unwrap_or_else(PoisonError::into_inner);
        if forced.turn != self.told {
            self.chooses_itself = self.inner.choose(&forced.draws)?;
            self.told = forced.turn;
        }
        self.inner.run(task)?;
        if !forced.draws.is_empty() && !self.chooses_itself {
            let ids = &forced.draws[self.calls % forced.draws.len()];
            let count = ids.len().min(task.values.rows * task.values.widths.top_k);
            task.values.expert_ids[..count].copy_from_slice(&ids[..count]);
            self.calls += 1;
        }
        Ok(())
    }

    fn exchanges(&self) -> Vec<ExchangeSize> {
        self.inner.exchanges()
    }

    fn routed_experts(&self) -> usize {
        self.inner.routed_experts()
    }
}

/// Batches by micro-batch and attention device, each of other sequences as far as there are so many.
pub fn batches(walk: &Walk, planner: &PlannerConfig, vocab: usize) -> Vec<Vec<DeviceBatch>> {
    let of_device = |m: usize, rows: usize| batch(rows, walk.context, m * rows, planner, vocab);
    (0..planner.micro_batches).map(|m| walk.rows.iter().map(|rows| of_device(m, *rows)).collect()).collect()
}

/// Rows that leave something in `pages` pages of every attention device, once in every 16 tokens: a page of memory that nobody ever
/// wrote to is none, and would be read faster than one that is.
pub fn fill(pages: usize, planner: &PlannerConfig) -> Vec<Vec<Vec<DeviceBatch>>> {
    let places: Vec<(u32, usize)> = (0..pages.min(planner.pages_per_device as usize))
        .flat_map(|page| (0..planner.page_tokens).step_by(16).map(move |token| (page as u32, token)))
        .collect();
    let of_device = |places: &[(u32, usize)]| {
        let mut batch = DeviceBatch { rows: places.len(), token_ids: vec![0; places.len()], ..DeviceBatch::default() };
        for (row, (page, token)) in places.iter().enumerate() {
            batch.pages.push(*page);
            batch.groups.push(RowGroup {
                sequence: row as u64,
                slot: row % planner.sequences_per_device,
                first_row: row,
                rows: 1,
                first_position: *token,
                input: GroupInput::Given,
                pages: row..row + 1,
                sample: None,
            });
        }
        batch
    };
    let turn = |places: &[(u32, usize)]| {
        let mut turn = vec![vec![DeviceBatch::default(); planner.devices]; planner.micro_batches];
        turn[0].fill(of_device(places));
        turn
    };
    places.chunks(planner.rows_per_device).map(turn).collect()
}

/// Ids of the experts that `rows` rows choose, `[rows, top_k]`: `hit` of the subject's. Other rows choose them in each `draw`.
pub fn routing(subject: &Subject, rows: usize, hit: usize, shape: &ModelShape, draw: u64) -> Vec<u32> {
    let mut values = Values::new(rows, Widths { hidden: 1, top_k: shape.top_k });
    values.rows = rows;
    route(&mut values, subject, hit, shape.experts, draw);
    values.expert_ids
}

/// `rows` rows over as many sequences as there may be; each sequence's last row attends to `context` positions.
/// The first is sequence `first` of as many as the device holds.
fn batch(rows: usize, context: usize, first: usize, planner: &PlannerConfig, vocab: usize) -> DeviceBatch {
    let mut batch =
        DeviceBatch { rows, token_ids: (0..rows).map(|row| (row % vocab) as u32).collect(), ..DeviceBatch::default() };
    let sequences = rows.min(planner.sequences_per_device);
    let pages = context.div_ceil(planner.page_tokens);
    let mut first_row = 0;
    for index in 0..sequences {
        let slot = (first + index) % planner.sequences_per_device;
        let own = rows / sequences + usize::from(index < rows % sequences);
        let first_page = batch.pages.len();
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

/// Gives every row different experts so that exactly `hit` of the device's, spread evenly over them, are chosen, by as many rows
/// each as chance has it: an even spread would fill blocks of rows as no router does. Experts elsewhere are chosen as much as those
/// here, as far as there are rows for it: rows go to them in a run, and where devices share the rows of copied experts by their
/// loads, the others would else seem to be free and take all.
fn route(values: &mut Values, subject: &Subject, hit: usize, all: usize, draw: u64) {
    let top_k = values.widths.top_k;
    let elsewhere: Vec<u32> = (0..all).filter(|id| !subject.experts.contains(id)).map(|id| id as u32).collect();
    let count = subject.experts.len();
    let here: Vec<usize> = (0..hit).map(|index| subject.experts[(2 * index + 1) * count / (2 * hit)]).collect();
    let spare = (values.rows * top_k).saturating_sub(hit);
    let even = (hit * elsewhere.len()).div_ceil(count);
    let others = even.min(spare).max(top_k.saturating_sub(hit)).min(elsewhere.len());
    let all = mixed(&here, &elsewhere[..others]);
    deal(&mut values.expert_ids[..values.rows * top_k], top_k, all, draw);
}

/// Every row different ones of `all`: each once over the first rows, then at random, since a rhythm would fall in with that in
/// which devices of equal load take turns.
fn deal(expert_ids: &mut [u32], top_k: usize, mut all: Vec<u32>, draw: u64) {
    let mut random = SeededRandom::new(draw, all.len() as u64);
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
    use super::super::grid::GatheredParts;
    use super::*;
    use rally_engine::schedule::cost_table::CostAxis;
    use std::collections::BTreeSet;

    fn subject(experts: Vec<usize>) -> Subject {
        let (gathers, axis) = (GatheredParts::All, CostAxis::Experts);
        Subject { stage: 0, device: 0, gathers, axis, experts, points: Vec::new() }
    }

    /// A device with `experts` of 8, rows that choose 2: the hit ones are exactly as many as asked for, and no row chooses twice.
    #[track_caller]
    fn check(experts: impl IntoIterator<Item = usize>, rows: usize, hit: usize) {
        let experts: Vec<usize> = experts.into_iter().collect();
        let mut values = Values::new(rows, Widths { hidden: 4, top_k: 2 });
        values.rows = rows;
        route(&mut values, &subject(experts.clone()), hit, 8, 1);
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
        route(&mut values, &subject(vec![0, 1, 2, 3, 6]), 3, 8, 1);
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
        let decode = batch(3, 20, 0, &planner, 100);
        assert_eq!((decode.groups.len(), decode.context(), decode.pages.len()), (3, 60, 9));
        let deep = batch(9, 20, 3, &planner, 100);
        let rows: Vec<usize> = deep.groups.iter().map(|group| group.rows).collect();
        assert_eq!(rows, [3, 2, 2, 2]);
        assert!(deep.groups.iter().all(|group| group.first_position + group.rows == 20));
        let slots: Vec<usize> = deep.groups.iter().map(|group| group.slot).collect();
        assert_eq!(slots, [3, 0, 1, 2]);
    }
}
