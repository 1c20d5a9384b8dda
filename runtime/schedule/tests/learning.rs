//! What a step costs is learned from the times of steps, and decides the balance.

mod level;
mod world;

use level::{MODEL, Numbers, Tally, config, level};
use rally_schedule::cost::{CostLearner, CostModel};
use world::World;

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
        let mut ratios = Tally::default();
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
                if round >= 200 {
                    ratios.add(level(&world, None));
                }
            }
        }
        ratios.shares([0.5, 0.95, 0.99])
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
