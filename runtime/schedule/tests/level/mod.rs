//! How level the steps in flight are, and whether they could be: a search over everything the planner might have done
//! with the sequences that are there, its own limits kept.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use super::world::World;
use rally_schedule::batch::{GroupInput, RowGroup};
use rally_schedule::cost::CostModel;
use rally_schedule::planner::PlannerConfig;
use std::fmt::{Display, Formatter, Result};

/// Long contexts weigh: a row costs as much as 100 positions.
pub const MODEL: CostModel = CostModel { per_row: 1.0, per_context: 0.01 };

/// Slowest over mean that counts as level.
pub const LEVEL: f64 = 1.15;

/// A quarter of a chunk: what prompts of a device read together in a step of a micro-batch, whatever that does to
/// balance.
pub const FLOOR: usize = 16;

/// Assignments that are all looked at.
const EXHAUSTIBLE: usize = 20_000;

/// Descents from drawn assignments where not all are looked at.
const DESCENTS: usize = 30;

/// Numbers that look random and are the same every time (a linear congruential generator's upper bits).
pub struct Numbers(pub u64);

impl Numbers {
    /// In 0..1.
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In 0..count.
    pub fn below(&mut self, count: usize) -> usize {
        (self.next() * count as f64) as usize
    }

    /// A length whose tail is so heavy that its variance is infinite (Pareto, exponent 1.2).
    pub fn heavy(&mut self, least: f64, most: f64) -> usize {
        (least * (1.0 - self.next()).powf(-1.0 / 1.2)).min(most) as usize
    }
}

pub fn config(micro_batches: usize, devices: usize, sequences: usize) -> PlannerConfig {
    PlannerConfig {
        micro_batches,
        devices,
        sequences,
        sequences_per_device: sequences.div_ceil(devices),
        rows_per_device: 256,
        rows_per_micro_batch: 256 * devices,
        prefill_chunk: 64,
        pages_per_device: 4096,
        page_tokens: 64,
        max_positions: 1 << 20,
    }
}

/// Whether there is a way for the steps to be level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanBe {
    /// One was found.
    Yes,
    /// All were looked at, or one sequence alone is too heavy.
    No,
    /// None was found.
    Unknown,
}

/// The steps in flight, one of each micro-batch: of all devices together, or of one.
pub struct Level {
    /// Slowest over mean.
    pub ratio: f64,
    pub can_be: CanBe,
}

/// Many of them.
#[derive(Default)]
pub struct Tally {
    /// Slowest over mean of those that can be level.
    ratios: Vec<f64>,
    /// Those that cannot.
    no: usize,
    /// Those for which no way was found.
    unknown: usize,
    uneven: usize,
    /// Most in a row that could be level and are not.
    pub longest_uneven: usize,
}

impl Tally {
    pub fn add(&mut self, level: Option<Level>) {
        let Some(Level { ratio, can_be }) = level else { return };
        match can_be {
            CanBe::Yes => self.ratios.push(ratio),
            CanBe::No => self.no += 1,
            CanBe::Unknown => self.unknown += 1,
        }
        self.uneven = if can_be == CanBe::Yes && ratio > LEVEL { self.uneven + 1 } else { 0 };
        self.longest_uneven = self.longest_uneven.max(self.uneven);
    }

    pub fn join(&mut self, other: Self) {
        self.ratios.extend(other.ratios);
        (self.no, self.unknown) = (self.no + other.no, self.unknown + other.unknown);
        self.longest_uneven = self.longest_uneven.max(other.longest_uneven);
    }

    /// Of those that can be level, the share that is.
    pub fn level_share(&self) -> f64 {
        self.ratios.iter().filter(|ratio| **ratio <= LEVEL).count() as f64 / self.ratios.len() as f64
    }

    /// The share that can be.
    pub fn could_be_share(&self) -> f64 {
        self.ratios.len() as f64 / (self.ratios.len() + self.no + self.unknown) as f64
    }

    /// Slowest over mean at shares of those that can be level.
    pub fn shares<const N: usize>(&self, shares: [f64; N]) -> [f64; N] {
        let mut ratios = self.ratios.clone();
        ratios.sort_by(f64::total_cmp);
        shares.map(|share| ratios[(ratios.len() as f64 * share).min(ratios.len() as f64 - 1.0) as usize])
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Self { ratios, no, unknown, longest_uneven, .. } = self;
        let (level, shares) = (100.0 * self.level_share(), self.shares([0.5, 0.95, 0.99, 1.0]));
        write!(
            f,
            "of {} steps that can be level {level:.2} % are; slowest / mean at 50, 95, 99, 100 %: {shares:.3?}; \
             {longest_uneven} uneven in a row at most; {no} cannot be level, no way was found for {unknown}",
            ratios.len()
        )
    }
}

/// A sequence that has rows in flight.
#[derive(Clone, Copy)]
struct Member {
    device: usize,
    /// Position of its first row.
    position: usize,
    /// What is left to read; 0 for one that decodes.
    unread: usize,
}

/// All that is in flight, wherever it is.
struct Flight {
    config: PlannerConfig,
    devices: std::ops::Range<usize>,
    members: Vec<Member>,
    /// Most rows that the prompts of a device have together in a step.
    prompt_rows: usize,
}

/// What micro-batches cost at least and at most, as prompts have the fewest and the most rows.
#[derive(Clone, Default)]
struct Bounds {
    least: Vec<f64>,
    most: Vec<f64>,
}

impl Bounds {
    /// Slowest over mean, at the best number of rows for prompts. Whatever is slowest costs the `least` of the heaviest
    /// micro-batch or more; the others are best filled up to just that (more would raise the slowest faster than the
    /// mean).
    fn ratio(&self) -> f64 {
        let slowest = self.least.iter().copied().fold(0.0, f64::max);
        let sum: f64 = self.most.iter().map(|most| most.min(slowest)).sum();
        slowest * self.most.len() as f64 / sum
    }

    fn squares(&self) -> f64 {
        self.least.iter().map(|cost| cost * cost).sum()
    }
}

impl Flight {
    /// Of all devices, or of one; and the micro-batch of each member.
    fn of(world: &World, device: Option<usize>) -> (Self, Vec<usize>) {
        let devices = device.map_or(0..world.config.devices, |device| device..device + 1);
        let groups = || world.batches.iter().flatten().flat_map(|batch| &batch.groups);
        let someone_decodes = groups().any(|group| group.input == GroupInput::LastSampled);
        let config = world.config;
        let prompt_rows = if someone_decodes { config.prefill_chunk } else { config.rows_per_device };
        let (mut members, mut places) = (Vec::new(), Vec::new());
        for (micro_batch, batches) in world.batches.iter().enumerate() {
            for device in devices.clone() {
                for RowGroup { sequence, first_position, input, .. } in &batches[device].groups {
                    let known = || world.seen.get(sequence).map_or(0, |seen| seen.prompt + seen.tokens);
                    let unread =
                        if *input == GroupInput::Given { known().saturating_sub(*first_position).max(1) } else { 0 };
                    members.push(Member { device, position: *first_position, unread });
                    places.push(micro_batch);
                }
            }
        }
        (Self { config, devices, members, prompt_rows }, places)
    }

    fn bounds(&self, places: &[usize]) -> Bounds {
        let mut bounds = Bounds::default();
        for micro_batch in 0..self.config.micro_batches {
            let (mut least, mut most) = (0.0, 0.0);
            for device in self.devices.clone() {
                let own = || {
                    let there = |(member, place): &(&Member, &usize)| **place == micro_batch && member.device == device;
                    self.members.iter().zip(places).filter(there).map(|(member, _)| member)
                };
                let decode = own().filter(|member| member.unread == 0);
                let decode: f64 = decode.map(|member| MODEL.of_prompt(1, member.position)).sum();
                let prompts = || own().filter(|member| member.unread > 0);
                least += decode + self.read(prompts(), FLOOR);
                most += decode + self.read(prompts(), self.prompt_rows);
            }
            bounds.least.push(least);
            bounds.most.push(most);
        }
        bounds
    }

    /// Cost of prompts of one device that share `rows` evenly.
    fn read<'a>(&self, prompts: impl Iterator<Item = &'a Member> + Clone, mut rows: usize) -> f64 {
        let mut sharing = prompts.clone().count();
        let mut cost = 0.0;
        for prompt in prompts {
            let own = rows.div_ceil(sharing).min(prompt.unread).min(self.config.prefill_chunk);
            (rows, sharing) = (rows - own, sharing - 1);
            cost += MODEL.of_prompt(own, prompt.position);
        }
        cost
    }

    /// Whether everyone has a row in its place.
    fn within_limits(&self, places: &[usize]) -> bool {
        (0..self.config.micro_batches).all(|m| {
            let count = |device: usize| {
                self.members
                    .iter()
                    .zip(places)
                    .filter(|(member, place)| **place == m && member.device == device)
                    .count()
            };
            let each = || self.devices.clone().map(count);
            each().all(|rows| rows <= self.config.rows_per_device)
                && each().sum::<usize>() <= self.config.rows_per_micro_batch
        })
    }

    fn can_be(&self, places: &[usize]) -> CanBe {
        let level = |places: &[usize]| self.within_limits(places) && self.bounds(places).ratio() <= LEVEL;
        if level(places) {
            return CanBe::Yes;
        }
        if self.one_is_too_heavy() {
            return CanBe::No;
        }
        let (count, micro_batches) = (self.members.len(), self.config.micro_batches);
        let all = u32::try_from(count).ok().and_then(|count| micro_batches.checked_pow(count));
        if let Some(all) = all.filter(|all| *all <= EXHAUSTIBLE) {
            let nth =
                |n: usize| (0..count as u32).map(|i| n / micro_batches.pow(i) % micro_batches).collect::<Vec<_>>();
            return if (0..all).any(|n| level(&nth(n))) { CanBe::Yes } else { CanBe::No };
        }
        let mut numbers = Numbers(count as u64);
        let mut starts = [places.to_vec(), self.heaviest_first()]
            .into_iter()
            .chain(std::iter::repeat_with(move || (0..count).map(|_| numbers.below(micro_batches)).collect()));
        let found = starts.by_ref().take(DESCENTS).any(|start| self.descend(start, &level));
        if found { CanBe::Yes } else { CanBe::Unknown }
    }

    /// A sequence that decodes weighs more than what all have on average with as much to read as may be.
    fn one_is_too_heavy(&self) -> bool {
        let most =
            |member: &Member| MODEL.of_prompt(member.unread.clamp(1, self.config.prefill_chunk), member.position);
        let mean = self.members.iter().map(most).sum::<f64>() / self.config.micro_batches as f64;
        let decoding = self.members.iter().filter(|member| member.unread == 0);
        decoding.map(most).fold(0.0, f64::max) > LEVEL * mean
    }

    /// What a member costs at least, alone.
    fn weight(&self, member: &Member) -> f64 {
        MODEL.of_prompt(member.unread.clamp(1, FLOOR), member.position)
    }

    /// The heaviest first, each to where least is.
    fn heaviest_first(&self) -> Vec<usize> {
        let mut costs = vec![0.0; self.config.micro_batches];
        let mut places = vec![0; self.members.len()];
        let mut order: Vec<(usize, f64)> = self.members.iter().map(|member| self.weight(member)).enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (index, weight) in order {
            let lightest =
                (0..costs.len()).min_by(|a, b| f64::total_cmp(&costs[*a], &costs[*b])).expect("one at least");
            places[index] = lightest;
            costs[lightest] += weight;
        }
        places
    }

    /// Moves and swaps members while that makes the squares of costs smaller; returns whether it came by a level
    /// assignment.
    fn descend(&self, mut places: Vec<usize>, level: &dyn Fn(&[usize]) -> bool) -> bool {
        let weights: Vec<f64> = self.members.iter().map(|member| self.weight(member)).collect();
        let mut costs = vec![0.0; self.config.micro_batches];
        places.iter().zip(&weights).for_each(|(place, weight)| costs[*place] += weight);
        loop {
            if level(&places) {
                return true;
            }
            let gain = |from: usize, to: usize, moved: f64| moved * (costs[from] - costs[to] - moved);
            let moves = (0..places.len()).flat_map(|a| (0..costs.len()).map(move |to| (a, None, to)));
            let swaps = (0..places.len()).flat_map(|a| (0..a).map(move |b| (a, Some(b), 0)));
            let changes = moves.chain(swaps).map(|(a, b, to)| match b {
                Some(b) => (gain(places[a], places[b], weights[a] - weights[b]), a, Some(b), places[b]),
                None => (gain(places[a], to, weights[a]), a, None, to),
            });
            let changes = changes.filter(|(_, a, _, to)| places[*a] != *to);
            let Some((gain, a, b, to)) = changes.max_by(|a, b| a.0.total_cmp(&b.0)) else { return false };
            if gain < 1e-9 {
                return false;
            }
            let (from, moved) = (places[a], weights[a] - b.map_or(0.0, |b| weights[b]));
            (costs[from], costs[to]) = (costs[from] - moved, costs[to] + moved);
            places[a] = to;
            if let Some(b) = b {
                places[b] = from;
            }
        }
    }
}

fn cost(group: &RowGroup) -> f64 {
    MODEL.of_prompt(group.rows, group.first_position)
}

/// Slowest over mean of the steps in flight, of all devices together or of one.
pub fn ratio(world: &World, device: Option<usize>) -> f64 {
    let of = |batches: &Vec<rally_schedule::batch::DeviceBatch>| -> f64 {
        let own = batches.iter().enumerate().filter(|(index, _)| device.is_none_or(|device| device == *index));
        own.flat_map(|(_, batch)| &batch.groups).map(cost).sum()
    };
    let costs: Vec<f64> = world.batches.iter().map(of).collect();
    let mean = costs.iter().sum::<f64>() / costs.len() as f64;
    costs.iter().copied().fold(0.0, f64::max) / mean
}

/// The steps in flight, and whether they could be level. `None` where nothing is in flight.
pub fn level(world: &World, device: Option<usize>) -> Option<Level> {
    let ratio = ratio(world, device);
    if ratio.is_nan() {
        return None;
    }
    let can_be = if ratio <= LEVEL {
        CanBe::Yes
    } else {
        let (flight, places) = Flight::of(world, device);
        flight.can_be(&places)
    };
    Some(Level { ratio, can_be })
}
