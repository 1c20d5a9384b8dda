//! Micro-batches cost the same: lengths with a heavy tail, and what a cost is learned from.

mod world;

use rally_schedule::batch::{GroupInput, RowGroup};
use rally_schedule::cost::{CostLearner, CostModel};
use rally_schedule::planner::PlannerConfig;
use world::World;

/// Numbers that look random and are the same every time (a linear congruential generator's upper bits).
struct Numbers(u64);

impl Numbers {
    /// In 0..1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A length whose tail is so heavy that its variance is infinite (Pareto, exponent 1.2).
    fn heavy(&mut self, least: f64, most: f64) -> usize {
        (least * (1.0 - self.next()).powf(-1.0 / 1.2)).min(most) as usize
    }
}

fn config(micro_batches: usize, devices: usize, sequences: usize) -> PlannerConfig {
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

/// Long contexts weigh: a row costs as much as 100 positions.
const MODEL: CostModel = CostModel { per_row: 1.0, per_context: 0.01 };

/// A quarter of a chunk: what prompts of a device read together in a step of a micro-batch, whatever that does to
/// balance.
const FLOOR: usize = 16;

fn cost(group: &RowGroup, rows: usize) -> f64 {
    MODEL.of(rows, rows * group.first_position + rows * (rows + 1) / 2)
}

/// How level the steps in flight are, one of each micro-batch: all devices together, or one.
struct Level {
    /// Slowest over mean.
    ratio: f64,
    /// Whether the steps could be level, as far as can be seen from outside. With prompts at their floor, the slowest
    /// is less than 15 % above the mean; or it has a member light enough to go. (Members that all weigh more than 0.14
    /// of the mean may fit nowhere.)
    can_be: bool,
}

fn level(world: &World, device: Option<usize>) -> Level {
    let micro_batches = world.batches.len() as f64;
    let mut costs = Vec::new();
    let mut floors: Vec<(f64, f64)> = Vec::new();
    for batches in &world.batches {
        let (mut all, mut floor, mut lightest) = (0.0, 0.0, f64::INFINITY);
        let own = batches.iter().enumerate().filter(|(index, _)| device.is_none_or(|device| device == *index));
        for (_, batch) in own {
            let mut left = FLOOR;
            for group in &batch.groups {
                let rows = if group.input == GroupInput::LastSampled { 1 } else { group.rows.min(left) };
                left -= if group.input == GroupInput::LastSampled { 0 } else { rows };
                all += cost(group, group.rows);
                floor += cost(group, rows);
                lightest = lightest.min(cost(group, rows));
            }
        }
        costs.push(all);
        floors.push((floor, lightest));
    }
    let mean = costs.iter().sum::<f64>() / micro_batches;
    let floor_mean = floors.iter().map(|floor| floor.0).sum::<f64>() / micro_batches;
    let heaviest = floors.iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("there is one");
    let can_be = heaviest.0 <= 1.15 * floor_mean || heaviest.1 < 0.14 * floor_mean;
    Level { ratio: costs.iter().fold(0.0, |a, b| f64::max(a, *b)) / mean, can_be }
}

/// Sequences of heavy-tailed lengths, all admitted at once, none ends: level from the second round after the last prompt on.
#[test]
fn heavy_tails_are_level_where_they_can_be() {
    let (mut worst, mut stuck, mut rounds) = (0.0f64, 0, 0);
    for seed in 0..200 {
        let mut numbers = Numbers(seed);
        let (micro_batches, sequences) = (2 + seed as usize % 5, 8 + (numbers.next() * 80.0) as usize);
        let mut world = World::new(config(micro_batches, 1, sequences), u64::MAX);
        world.planner.set_cost_model(MODEL);
        (0..sequences as u64).for_each(|id| world.submit(id, numbers.heavy(20.0, 2000.0), 100_000));
        while world.seen.values().any(|seen| seen.tokens == 0) {
            world.steps(1);
        }
        world.steps(2 * micro_batches + world.steps_to_round());
        for _ in 0..10 {
            world.steps(micro_batches);
            let Level { ratio, can_be } = level(&world, None);
            rounds += 1;
            if can_be {
                worst = worst.max(ratio);
            } else {
                stuck += usize::from(ratio > 1.15);
            }
        }
    }
    println!("worst slowest / mean {worst:.3} where it can be; not level where it cannot: {stuck} of {rounds} rounds");
    assert!(worst <= 1.15, "{worst}");
    assert!(stuck * 5 < rounds, "the test would say nothing");
}

/// Ratios at 50, 95 and 99 %.
fn shares(mut ratios: Vec<f64>) -> [f64; 3] {
    ratios.sort_by(f64::total_cmp);
    [0.5, 0.95, 0.99].map(|share| ratios[(ratios.len() as f64 * share) as usize])
}

/// The levels of every round of a service: of all devices together, and of each.
struct Service {
    all: Vec<Level>,
    parts: Vec<Level>,
    longest_silence: usize,
}

impl Service {
    /// Most rounds in a row that could be level, all devices together, and are not.
    fn longest_uneven(&self) -> usize {
        let level = |level: &Level| !level.can_be || level.ratio <= 1.15;
        self.all.split(level).map(<[Level]>::len).max().unwrap_or(0)
    }
}

/// Three micro-batches; at each round as many sequences come as `arrive` says. The first 200 rounds do not count.
fn serve(seed: u64, devices: usize, rounds: usize, arrive: impl Fn(usize, &World) -> usize) -> Service {
    let (micro_batches, mut numbers) = (3, Numbers(seed));
    let mut world = World::new(config(micro_batches, devices, 96), u64::MAX);
    world.planner.set_cost_model(MODEL);
    let (mut all, mut parts, mut next) = (Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        for _ in 0..arrive(round, &world) {
            world.submit(next, numbers.heavy(4.0, 500.0), numbers.heavy(30.0, 2000.0));
            next += 1;
        }
        world.steps(micro_batches);
        world.forget_finished();
        if round >= 200 {
            all.push(level(&world, None));
            parts.extend((0..devices).map(|device| level(&world, Some(device))));
        }
    }
    Service { all, parts, longest_silence: world.longest_silence }
}

/// Prints and returns slowest / mean of all devices together and of each, where the steps can be level.
fn judge(what: &str, service: &Service) -> [[f64; 3]; 2] {
    let [all, parts] = [&service.all, &service.parts].map(|levels| {
        let can_be: Vec<f64> = levels.iter().filter(|level| level.can_be).map(|level| level.ratio).collect();
        assert!(can_be.len() * 2 > levels.len(), "the test would say nothing");
        println!("{what}: {} of {} steps can be level", can_be.len(), levels.len());
        shares(can_be)
    });
    let uneven = service.longest_uneven();
    println!(
        "{what}: slowest / mean, at 50, 95, 99 %: all devices {all:.3?}, each {parts:.3?}; \
         at most {uneven} rounds in a row above 1.15"
    );
    // Whoever moves has rows before it moves again.
    assert!(service.longest_silence < 2 * 3, "running sequences keep their pace: {}", service.longest_silence);
    [all, parts]
}

/// Prompts counted: sequences come and go all the time, on one device and on several.
#[test]
fn coming_and_going_stays_level() {
    for (devices, seed) in [(1, 1), (2, 2), (3, 3), (1, 4), (2, 5), (3, 6)] {
        let service = serve(seed, devices, 3000, |_, world| 4usize.saturating_sub(world.planner.waiting()));
        let [all, parts] = judge(&format!("steady, {devices} devices"), &service);
        assert!(all[0] <= 1.05 && all[1] <= 1.1 && all[2] <= 1.15, "{all:.3?}");
        assert!(service.longest_uneven() <= 2, "what an arrival or an end has moved is level again soon");
        // A third of the sequences level a device less finely.
        assert!(parts[0] <= 1.08 && parts[1] <= 1.2, "{parts:.3?}");
    }
}

/// Sequences come in crowds, which read their prompts while the crowd before them decodes.
#[test]
fn crowds_are_level() {
    for (devices, seed) in [(1, 1), (2, 2), (3, 3), (1, 4), (2, 5), (3, 6)] {
        let service = serve(seed, devices, 3000, |round, _| if round % 100 == 0 { 40 } else { 0 });
        let [all, _] = judge(&format!("crowds, {devices} devices"), &service);
        assert!(all[0] <= 1.05 && all[1] <= 1.12, "{all:.3?}");
        assert!(service.longest_uneven() <= 5, "level again a few rounds after a crowd has come");
    }
}

/// Balance holds no prompt back where it has nothing to gain: one alone reads whole chunks.
#[test]
fn a_prompt_alone_reads_whole_chunks() {
    let mut world = World::new(config(3, 1, 12), u64::MAX);
    world.submit(0, 1000, 5);
    for round in 1..=15 {
        world.steps(3);
        assert_eq!(world.seen[&0].next_position, 64 * round);
    }
}

/// One long prompt among many that decode: it reads at least its floor, and no more than leaves the steps level.
#[test]
fn a_prompt_among_many_reads_what_the_others_leave() {
    let mut world = World::new(config(3, 1, 60), u64::MAX);
    world.planner.set_cost_model(MODEL);
    (1..60).for_each(|id| world.submit(id, 300, 5000));
    while world.seen.values().any(|seen| seen.tokens == 0) {
        world.steps(1);
    }
    world.submit(0, 500, 5);
    world.steps(2 * 3 + world.steps_to_round());
    let mut before = world.seen[&0].next_position;
    while world.seen[&0].tokens == 0 {
        world.steps(3);
        let Level { ratio, can_be } = level(&world, None);
        assert!(can_be && ratio <= 1.15, "{ratio:.3} at {before}");
        let now = world.seen[&0].next_position;
        assert!(now >= 500 || (FLOOR..=64).contains(&(now - before)), "{} rows at {before}", now - before);
        before = now;
    }
}

/// Twelve equal sequences: nobody moves, and the planner does not keep trying.
#[test]
fn equal_sequences_stay_where_they_are() {
    let mut world = World::new(config(3, 1, 12), u64::MAX);
    (0..12).for_each(|id| world.submit(id, 10, 200));
    world.steps(6);
    let members = |world: &World, m: usize| world.batches[m][0].groups.iter().map(|g| g.sequence).collect::<Vec<_>>();
    let before = [0, 1, 2].map(|m| members(&world, m));
    assert_eq!(before.each_ref().map(Vec::len), [4, 4, 4]);
    world.steps(300);
    assert_eq!([0, 1, 2].map(|m| members(&world, m)), before);
}

/// Times of steps that cost a row 3 µs, a position 50 ns, and 2 ms whatever there is; half of them a fifth too long or short.
#[test]
fn costs_are_learned_from_times() {
    let mut world = World::new(config(3, 1, 12), u64::MAX);
    let mut numbers = Numbers(4);
    assert_eq!(world.planner.cost_model(), CostModel::default());
    for _ in 0..400 {
        let rows = 1 + (numbers.next() * 60.0) as usize;
        let context = rows * (1 + numbers.heavy(100.0, 4000.0));
        let noise = 0.98 + 0.04 * numbers.next();
        world.planner.learn(rows, context, noise * (2e-3 + 3e-6 * rows as f64 + 50e-9 * context as f64));
    }
    let model = world.planner.cost_model();
    let ratio = model.per_context / model.per_row;
    println!("learned {model:?}");
    assert!((model.per_context / 50e-9 - 1.0).abs() < 0.05, "{model:?}");
    assert!(ratio > 50e-9 / 3e-6 / 2.0 && ratio < 50e-9 / 3e-6 * 2.0, "{model:?}");
}

/// Every fiftieth step lost its core for a second: the costs are found all the same, and they are never negative on the
/// way.
#[test]
fn outliers_do_not_spoil_what_is_learned() {
    let mut learner = CostLearner::new(CostModel::default());
    let mut numbers = Numbers(5);
    for step in 0..2000 {
        let rows = 1 + (numbers.next() * 60.0) as usize;
        let context = rows * (1 + numbers.heavy(100.0, 4000.0));
        let stalled = if step % 50 == 49 { 1.0 } else { 0.0 };
        learner.observe(rows, context, 1e-4 + 3e-6 * rows as f64 + 50e-9 * context as f64 + stalled);
        let model = learner.model();
        assert!(model.per_row >= 0.0 && model.per_context >= 0.0 && model.per_row + model.per_context > 0.0);
    }
    let model = learner.model();
    println!("learned {model:?}");
    assert!((model.per_context / 50e-9 - 1.0).abs() < 0.2, "{model:?}");
}

/// Times that are nearly all noise say little of what a position costs: it stays near the prior, and does not come out
/// as nothing.
#[test]
fn noise_leaves_the_prior() {
    let prior = CostModel::default();
    for seed in 0..20 {
        let (mut learner, mut numbers) = (CostLearner::new(prior), Numbers(seed));
        for step in 0..200 {
            learner.observe(1, 20 + step, 1e-3 * (0.5 + numbers.next()));
        }
        let CostModel { per_row, per_context } = learner.model();
        let ratio = per_context / per_row / (prior.per_context / prior.per_row);
        assert!((0.3..3.0).contains(&ratio), "seed {seed}: {ratio} of the prior's");
    }
}

/// A machine becomes ten times slower: clipping delays that, and does not hide it.
#[test]
fn costs_that_rise_are_found() {
    let mut learner = CostLearner::new(CostModel::default());
    let mut numbers = Numbers(6);
    for step in 0..1500 {
        let (rows, context) = (1 + (numbers.next() * 60.0) as usize, (numbers.next() * 1e5) as usize);
        let slower = if step < 500 { 1.0 } else { 10.0 };
        learner.observe(rows, context, slower * (1e-4 + 3e-6 * rows as f64 + 50e-9 * context as f64));
    }
    let CostModel { per_row, per_context } = learner.model();
    assert!(
        (per_context / 500e-9 - 1.0).abs() < 0.05 && (per_row / 30e-6 - 1.0).abs() < 0.3,
        "{per_row} {per_context}"
    );
}

/// The planner believes in rows, the truth is context: from the times of its own steps it finds that out, and levels
/// what is true.
#[test]
fn a_wrong_belief_is_mended_by_the_steps_themselves() {
    let ratios = |learn: bool| {
        let mut ratios = Vec::new();
        for seed in 0..20 {
            let (mut world, mut numbers) = (World::new(config(3, 1, 30), u64::MAX), Numbers(seed));
            world.planner.set_cost_model(CostModel { per_row: 1.0, per_context: 0.0 });
            (0..30).for_each(|id| world.submit(id, numbers.heavy(20.0, 2000.0), 5000));
            for round in 0..300 {
                for m in 0..3 {
                    let (rows, context) = (world.batches[m][0].rows, world.batches[m][0].context());
                    if learn {
                        world.planner.learn(rows, context, 1e-6 * (50.0 + MODEL.of(rows, context)));
                    }
                    world.step(m);
                }
                let level = level(&world, None);
                if round >= 200 && level.can_be {
                    ratios.push(level.ratio);
                }
            }
        }
        shares(ratios)
    };
    let (ignorant, learned) = (ratios(false), ratios(true));
    println!("slowest / mean at 50, 95, 99 %: believing in rows {ignorant:.3?}, having learned {learned:.3?}");
    assert!(ignorant[1] > 1.2, "the test would say nothing");
    assert!(learned[2] <= 1.1, "{learned:.3?}");
}

/// Nonsense changes nothing, and where times say nothing the prior stays.
#[test]
fn useless_times_leave_the_prior() {
    let mut world = World::new(config(3, 1, 12), u64::MAX);
    assert_eq!(world.planner.learned_costs(), None);
    for seconds in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
        world.planner.learn(5, 100, seconds);
    }
    world.planner.learn(0, 0, 1.0);
    assert_eq!(world.planner.cost_model(), CostModel::default());
    (0..50).for_each(|_| world.planner.learn(8, 800, 1e-3));
    let (model, prior) = (world.planner.cost_model(), CostModel::default());
    let ratio = (model.per_context / model.per_row) / (prior.per_context / prior.per_row);
    assert!((ratio - 1.0).abs() < 1e-6, "{model:?}");
}

/// A planner that has learned that context is what costs levels context, one that believes in rows levels rows.
#[test]
fn what_is_learned_decides_the_balance() {
    let context = |per_context: f64| {
        let mut world = World::new(config(2, 1, 12), u64::MAX);
        world.planner.set_cost_model(CostModel { per_row: 1.0, per_context: 0.0 });
        for step in 1..200 {
            let (rows, context) = (1 + step % 7, 1 + step * 37 % 1000);
            world.planner.learn(rows, context, 1e-3 + 1e-6 * rows as f64 + per_context * context as f64);
        }
        (0..12).for_each(|id| world.submit(id, if id < 2 { 1500 } else { 20 + id as usize }, 5000));
        while world.seen.values().any(|seen| seen.tokens < 10) {
            world.steps(1);
        }
        [0, 1].map(|m| world.batches[m][0].groups.len())
    };
    assert_eq!(context(0.0), [6, 6]);
    let by_context = context(1e-6);
    assert_ne!(by_context[0].max(by_context[1]), 12);
}
