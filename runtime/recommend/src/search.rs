//! The layouts of a pool, the best of them under a time per token, and the fronts of cost and throughput against it.

use crate::baseline::Undivided;
use crate::pipeline::{Layout, Outcome, Workload, served};
use rally_cost::price::usd_per_mtok;
use rally_cost::{Dtype, Hardware, SpecError};
use std::collections::HashSet;

/// Accelerators there are.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Of this kind.
    pub hardware: Hardware,
    /// So many.
    pub count: u32,
}

/// A layout on kinds of a pool.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Index into the pool, for attention.
    pub attention_on: usize,
    /// Index into the pool, for the FFN.
    pub ffn_on: usize,
    /// What it does.
    pub outcome: Outcome,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The cheapest tokens that hold the target; none where nothing does.
    pub best: Option<Candidate>,
    /// The undivided deployment that is best by the same measure, on one kind of the pool: its index and what it does.
    pub undivided: Option<(usize, Undivided)>,
    /// The cheapest of every kind of layout (hardware, devices of an instance, sharding, wire, micro-batches), the cheapest kind first.
    pub kinds: Vec<Candidate>,
    /// No other layout is both cheaper and quicker, by time per token.
    pub cost_front: Vec<Candidate>,
    /// No other layout has more tokens a second and is quicker, by time per token.
    pub throughput_front: Vec<Candidate>,
    /// Layouts that were looked at.
    pub tried: usize,
    /// Layouts that a bound ruled out.
    pub pruned: usize,
}

impl Found {
    /// Whether disaggregation is worth it: by how much its tokens are cheaper than the undivided ones, as a share. Negative: do
    /// not disaggregate.
    pub fn advantage(&self) -> Option<f64> {
        let (best, (_, undivided)) = (self.best.as_ref()?, self.undivided.as_ref()?);
        Some(1.0 - best.outcome.usd_per_mtok() / undivided.usd_per_mtok())
    }
}

/// Micro-batches that are tried.
const MICRO_BATCHES: [u32; 4] = [2, 3, 4, 5];
/// Shares of the target at which fronts are sampled.
const FRONT_STEPS: [f64; 5] = [0.4, 0.55, 0.7, 0.85, 1.0];

/// All layouts that fit into `pool`, with the kinds they stand on.
pub fn layouts(pool: &[Pool]) -> Vec<(usize, usize, Layout)> {
    let mut all = Vec::new();
    for (attention_on, a_pool) in pool.iter().enumerate() {
        for (ffn_on, f_pool) in pool.iter().enumerate() {
            let server = |pool: &Pool| pool.hardware.links().devices_per_server.value as u32;
            let most = server(a_pool).min(server(f_pool));
            for devices in (0..).map(|power| 1 << power).take_while(|devices| *devices <= most) {
                let (a_most, f_most) = (a_pool.count / devices, f_pool.count / devices);
                for attention in 1..=a_most {
                    let f_left = if attention_on == ffn_on { a_most - attention } else { f_most };
                    for ffn in 1..=f_left {
                        let shape = (attention, ffn, devices);
                        all.extend(variants(shape).into_iter().map(|layout| (attention_on, ffn_on, layout)));
                    }
                }
            }
        }
    }
    all
}

fn variants((attention, ffn, devices): (u32, u32, u32)) -> Vec<Layout> {
    let o_projs = if devices > 1 { vec![1, devices] } else { vec![1] };
    let replicated: &[bool] = if ffn > 1 { &[false, true] } else { &[false] };
    let mut all = Vec::new();
    for micro_batches in MICRO_BATCHES {
        for o_proj in &o_projs {
            for replicas in replicated {
                for wire in [Dtype::Fp8, Dtype::Bf16] {
                    let (o_proj, replicas) = (*o_proj, *replicas);
                    all.push(Layout { attention, ffn, devices, micro_batches, o_proj, replicas, wire });
                }
            }
        }
    }
    all
}

/// The most rows a micro-batch that hold the target, by halving: time and memory grow with rows. A row a device at least. None where
/// nothing holds it, or where parts of the layout are [unknown](Workload::knows).
pub fn fullest(
    workload: &Workload,
    on: (&Hardware, &Hardware),
    layout: &Layout,
    tpot_s: f64,
) -> Result<Option<Outcome>, SpecError> {
    if !workload.knows(on, layout) {
        return Ok(None);
    }
    // Rows come in equal numbers on all attention devices.
    let step = f64::from(layout.attention * layout.devices);
    let of = |steps: u32| Outcome::of(workload, on, layout, step * f64::from(steps));
    let mut good = match of(1)? {
        outcome if outcome.holds(tpot_s) => (1, outcome),
        _ => return Ok(None),
    };
    let mut bad = 1 << 16;
    while bad - good.0 > 1 {
        let middle = good.0 + (bad - good.0) / 2;
        match of(middle)? {
            outcome if outcome.holds(tpot_s) => good = (middle, outcome),
            _ => bad = middle,
        }
    }
    Ok(Some(good.1))
}

/// USD per million tokens that no batch on these instances can undercut: those of rows that pass the slowest resource without its
/// fixed times, whatever the memory and the target. Cheap: two evaluations.
fn bound_usd_per_mtok(workload: &Workload, on: (&Hardware, &Hardware), layout: &Layout) -> Result<f64, SpecError> {
    const FEW: f64 = 1.0;
    const MANY: f64 = 65_536.0;
    let step = f64::from(layout.attention * layout.devices);
    let (few, many) = (Outcome::of(workload, on, layout, step * FEW)?, Outcome::of(workload, on, layout, step * MANY)?);
    // A time is a fixed one, or that of weights read once, and what rows add: no rate is above that of rows alone.
    let each = |outcome: &Outcome| served(&outcome.stages, outcome.fabric);
    let slope = (each(&few).iter().zip(each(&many)))
        .map(|((_, few), (_, many))| (many - few) / (step * (MANY - FEW)))
        .fold(f64::MIN_POSITIVE, f64::max);
    let most_tokens_per_s = 1.0 / (slope * workload.model.layer_count() as f64);
    Ok(usd_per_mtok(few.usd_per_hour, most_tokens_per_s))
}

/// Searches the layouts of `pool` for the cheapest tokens within `tpot_s`.
///
/// # Errors
/// [`SpecError`] where a spec lacks a peak or a price.
pub fn search(workload: &Workload, pool: &[Pool], tpot_s: f64) -> Result<Found, SpecError> {
    let mut all = layouts(pool);
    all.retain(|(attention, ffn, layout)| workload.knows((&pool[*attention].hardware, &pool[*ffn].hardware), layout));
    let (mut found, mut pruned): (Vec<Candidate>, usize) = (Vec::new(), 0);
    let mut best = f64::INFINITY;
    for (attention_on, ffn_on, layout) in &all {
        let (attention_on, ffn_on) = (*attention_on, *ffn_on);
        let on = (&pool[attention_on].hardware, &pool[ffn_on].hardware);
        // Half again as dear as the best is on no front that anyone looks at.
        if bound_usd_per_mtok(workload, on, layout)? > best * 1.5 {
            pruned += 1;
            continue;
        }
        for share in FRONT_STEPS {
            let Some(outcome) = fullest(workload, on, layout, tpot_s * share)? else { continue };
            best = best.min(outcome.usd_per_mtok());
            found.push(Candidate { attention_on, ffn_on, outcome });
        }
    }
    let cost = |candidate: &Candidate| candidate.outcome.usd_per_mtok();
    let rate = |candidate: &Candidate| -candidate.outcome.tokens_per_s;
    let winner = found.iter().min_by(|left, right| order(left, right, &cost)).cloned();
    let (cost_front, throughput_front) = (front(&found, &cost), front(&found, &rate));
    let undivided = undivided(workload, pool, tpot_s)?;
    let kinds = kinds(&found, &cost);
    Ok(Found { best: winner, undivided, kinds, cost_front, throughput_front, tried: all.len() - pruned, pruned })
}

/// The best of each kind of layout, by `of`.
fn kinds(all: &[Candidate], of: &dyn Fn(&Candidate) -> f64) -> Vec<Candidate> {
    let kind = |candidate: &Candidate| {
        let Layout { devices, micro_batches, o_proj, replicas, wire, .. } = candidate.outcome.layout;
        (candidate.attention_on, candidate.ffn_on, devices, micro_batches, o_proj, replicas, wire)
    };
    let mut sorted: Vec<&Candidate> = all.iter().collect();
    sorted.sort_by(|left, right| order(left, right, of));
    let mut seen = HashSet::new();
    sorted.into_iter().filter(|candidate| seen.insert(kind(candidate))).cloned().collect()
}

/// By `of`, then the quicker, then the plainer.
fn order(left: &Candidate, right: &Candidate, of: &dyn Fn(&Candidate) -> f64) -> std::cmp::Ordering {
    let plain =
        |candidate: &Candidate| (candidate.outcome.layout.micro_batches, candidate.outcome.layout.total_devices());
    of(left)
        .total_cmp(&of(right))
        .then(left.outcome.tpot_s.total_cmp(&right.outcome.tpot_s))
        .then(plain(left).cmp(&plain(right)))
}

/// Those that no quicker one equals in `of`, by time per token.
fn front(all: &[Candidate], of: &dyn Fn(&Candidate) -> f64) -> Vec<Candidate> {
    let mut sorted: Vec<&Candidate> = all.iter().collect();
    sorted.sort_by(|left, right| left.outcome.tpot_s.total_cmp(&right.outcome.tpot_s).then(order(left, right, of)));
    let mut front: Vec<Candidate> = Vec::new();
    for candidate in sorted {
        if front.last().is_none_or(|last| of(candidate) < of(last)) {
            front.push(candidate.clone());
        }
    }
    front
}

/// The best undivided deployment on whole servers of one kind.
fn undivided(workload: &Workload, pool: &[Pool], tpot_s: f64) -> Result<Option<(usize, Undivided)>, SpecError> {
    let mut best: Option<(usize, Undivided)> = None;
    for (index, Pool { hardware, count }) in pool.iter().enumerate() {
        let server = hardware.links().devices_per_server.value as u32;
        let whole_servers = (1..=count / server).map(|servers| servers * server);
        // Measured beside assumed would lose by having been measured.
        for devices in whole_servers.filter(|devices| workload.knows_undivided(hardware, *devices)) {
            // Doubling and halving would do; the whole range is quick enough and needs no monotony.
            for own in (1..=512).map(f64::from) {
                let outcome = Undivided::of(workload, hardware, devices, own * f64::from(devices))?;
                let better = best.is_none_or(|(_, best)| outcome.usd_per_mtok() < best.usd_per_mtok());
                if outcome.holds(tpot_s) && better {
                    best = Some((index, outcome));
                }
            }
        }
    }
    Ok(best)
}

/// What more FFN instances bring to a layout: tokens a second and accelerator for each number, and from which one on they bring
/// nothing because attention's network carries each row once more.
#[derive(Clone, Debug)]
pub struct DeadZone {
    /// By number of FFN instances, from 1 on; none where it does not fit.
    pub tokens_per_s: Vec<Option<f64>>,
    /// The first number from which tokens a second of the deployment no longer grow, and what bounds it there.
    pub from: Option<(u32, &'static str)>,
}

/// Adds FFN instances to `candidate`, up to `most`.
///
/// # Errors
/// [`SpecError`] where a spec lacks a peak or a price.
pub fn dead_zone(
    workload: &Workload,
    on: (&Hardware, &Hardware),
    layout: &Layout,
    tpot_s: f64,
    most: u32,
) -> Result<DeadZone, SpecError> {
    let mut outcomes = Vec::new();
    for ffn in 1..=most {
        outcomes.push(fullest(workload, on, &Layout { ffn, ..layout.clone() }, tpot_s)?);
    }
    let rate = |outcome: &Option<Outcome>| outcome.as_ref().map(|outcome| outcome.tokens_per_s);
    // A per mille is the step of rows, not growth.
    let ends = |index: &usize| {
        let (here, later) = (rate(&outcomes[*index]), outcomes[index + 1..].iter().filter_map(rate));
        here.is_some_and(|here| later.fold(0.0, f64::max) <= here * 1.001) && index + 1 < outcomes.len()
    };
    let from = (0..outcomes.len()).find(ends).map(|index| {
        let unknown = if workload.measured.are_any() { "memory, or parts that were not measured" } else { "memory" };
        let bound = outcomes[index + 1].as_ref().map_or(unknown, Outcome::bound);
        (index as u32 + 1, bound)
    });
    Ok(DeadZone { tokens_per_s: outcomes.iter().map(rate).collect(), from })
}
