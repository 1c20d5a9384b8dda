//! What is slowed down on purpose is named: one stage, one device, one transfer, one layer, on virtual and on real lanes, by peers
//! and by a baseline. Twenty of twenty, and nobody is named where nobody is slow.

mod toy;

use rally_engine::schedule::virtual_lanes::VirtualTask;
use rally_graph::kinds::Role;
use rally_graph::plan::TaskRole;
use rally_trace::stragglers::{Baseline, Culprit, Evidence, stragglers};
use rally_trace::{Recording, Window};
use std::sync::Arc;
use toy::{Ran, SlowWire, Toy};

const SEEDS: u64 = 20;
const FACTOR: u64 = 3;

/// A random number of its own for each `what`.
fn draw(seed: u64, what: u64, below: usize) -> usize {
    let mixed = (seed * 1009 + what + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) as usize % below
}

/// What is slowed down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slow {
    Nothing,
    Device(usize),
    /// A stage, on one device or on all.
    Stage(&'static str, Option<usize>),
    Transfer(&'static str),
    Layer(&'static str, usize),
}

impl Slow {
    fn factor(self, stage: &str, part: TaskRole, device: usize, layer: usize) -> u64 {
        let compute = part == TaskRole::Compute;
        let hit = match self {
            Self::Nothing => false,
            Self::Device(slow) => slow == device,
            Self::Stage(id, on) => compute && id == stage && on.is_none_or(|on| on == device),
            Self::Transfer(id) => !compute && id == stage,
            Self::Layer(id, slow) => compute && id == stage && slow == layer,
        };
        if hit { FACTOR } else { 1 }
    }

    /// Whether the first verdict names it and nothing else is named. `layer_lane`: a layer is judged lane by lane.
    fn is_named(self, recording: &Recording<'_>, found: &[Culprit]) -> bool {
        let id = |stage: usize| recording.plan.table.stages[stage].id.as_str();
        let device = |lane: usize| recording.plan.lanes[lane].device;
        let alone = |stage: usize| {
            let lanes = recording.plan.table.lanes.iter();
            lanes.filter(|lane| lane.tasks.iter().any(|t| recording.plan.table.tasks[*t].stage == stage)).count() == 1
        };
        let right = |culprit: &Culprit| match (self, *culprit) {
            (Self::Device(slow), Culprit::Device { lane }) => device(lane) == slow,
            (Self::Stage(slow, on), Culprit::Stage { stage, lane, layer: None }) => {
                id(stage) == slow && (lane.map(device) == on || (lane.is_none() && alone(stage)))
            }
            (Self::Transfer(slow), Culprit::Transfer { stage, lane: None }) => id(stage) == slow,
            (Self::Layer(slow, at), Culprit::Stage { stage, layer, .. }) => id(stage) == slow && layer == Some(at),
            _ => false,
        };
        (self == Self::Nothing) == found.is_empty() && found.iter().all(right)
    }
}

fn costs_of(slow: Slow, seed: u64) -> impl Fn(&VirtualTask<'_>) -> u64 {
    move |task| {
        let template = &task.table.tasks[task.task];
        let stage = &task.table.stages[template.stage];
        let base = match (template.role, stage.role) {
            (TaskRole::Compute, Role::Attention) => 9000,
            (TaskRole::Compute, Role::Ffn) => 11_000,
            (TaskRole::Compute, _) => 3000,
            _ => 2500,
        };
        // A tenth of noise, another one for each task.
        let which = task.step * 8191 + task.task as u64 * 31 + task.micro_batch as u64;
        let noise = draw(seed, which, base as usize / 10) as u64;
        let factor = slow.factor(&stage.id, template.role, template.device, template.layer.unwrap_or(usize::MAX));
        (base + noise + 300 * task.load.rows as u64) * factor
    }
}

fn virtually(toy: &Toy, seed: u64, slow: Slow) -> Ran {
    let costs = costs_of(slow, seed);
    let requests: Vec<_> = (0..6).map(|id| (0, 2 + draw(seed, id, 6), 30)).collect();
    toy.virtually(&costs, &requests)
}

fn check(ran: &Ran, baseline: Option<&Ran>, slow: Slow, what: &str) {
    let recording = ran.recording();
    let window = Window::settled(&recording);
    let before = baseline.map(|ran| {
        let recording = ran.recording();
        Baseline::of(&recording, &Window::settled(&recording))
    });
    let found = stragglers(&recording, &window, before.as_ref());
    let culprits: Vec<Culprit> = found.iter().map(|straggler| straggler.culprit).collect();
    assert!(slow.is_named(&recording, &culprits), "{what}: {slow:?} is named as {found:#?}");
    for straggler in &found {
        assert!((2.5..3.5).contains(&straggler.ratio), "{what}: {slow:?} is {FACTOR} times as slow: {straggler:?}");
        let text = straggler.describe(&recording);
        assert!(text.contains("times as long as"), "{text}");
    }
}

/// Devices 0 and 1 are attention, 2 and 3 FFN.
const PAIRS: Toy = Toy { attention: 2, ffn: 2, layers: 4, ping_pong: true, micro_batches: 2, spans_per_lane: 1 << 16 };

#[test]
fn a_slow_device_is_told_from_its_siblings() {
    for seed in 0..SEEDS {
        let slow = Slow::Device(draw(seed, 0, 4));
        check(&virtually(&PAIRS, seed, slow), None, slow, &format!("seed {seed}"));
    }
}

#[test]
fn a_slow_stage_on_one_device_is_told_from_its_siblings() {
    for seed in 0..SEEDS {
        let stage = ["mfa_attention", "combine", "expert_ffn"][draw(seed, 0, 3)];
        let device = draw(seed, 1, 2) + if stage == "expert_ffn" { 2 } else { 0 };
        let slow = Slow::Stage(stage, Some(device));
        check(&virtually(&PAIRS, seed, slow), None, slow, &format!("seed {seed}"));
    }
}

/// The shards of a stage do unequal work for the same rows: on `device`, `work` quarters of what its sibling does, each unit of it
/// taking `slow` times as long.
fn shards(seed: u64, device: usize, work: u64, slow: u64) -> Ran {
    let is_shard = move |stage: &str, on: usize| stage == "expert_ffn" && on == device;
    let base = costs_of(Slow::Nothing, seed);
    let costs = move |task: &VirtualTask<'_>| {
        let template = &task.table.tasks[task.task];
        let hit = is_shard(&task.table.stages[template.stage].id, template.device);
        if hit { base(task) * work * slow / 4 } else { base(task) }
    };
    let requests: Vec<_> = (0..6).map(|id| (0, 2 + draw(seed, id, 6), 30)).collect();
    let mut ran = PAIRS.virtually(&costs, &requests);
    let plan = Arc::get_mut(&mut ran.plan).expect("nobody else holds the plan");
    let stage = plan.table.stages.iter().position(|stage| stage.id == "expert_ffn").expect("there is one");
    plan.table.uneven[stage] = true;
    for (lane, report) in ran.lanes.iter_mut().enumerate() {
        for span in &mut report.spans {
            let template = &plan.table.tasks[plan.lanes[lane].tasks[span.position as usize].task];
            let hit = is_shard(&plan.table.stages[template.stage].id, template.device);
            // Base costs are those of some 30 rows and of each row.
            let units = 30 + span.rows;
            span.effort = if hit { units * work as u32 } else { units * 4 };
        }
    }
    ran
}

#[test]
fn shards_are_judged_by_the_work_they_did() {
    for seed in 0..SEEDS {
        let device = 2 + draw(seed, 0, 2);
        for (work, slow) in [(4, 1), (12, 1), (2, 1), (4, 3), (2, 3), (12, 3)] {
            let ran = shards(seed, device, work, slow);
            let expected = if slow == 1 { Slow::Nothing } else { Slow::Stage("expert_ffn", Some(device)) };
            check(&ran, None, expected, &format!("seed {seed}, {work} quarters of the work"));
        }
    }
}

/// More rows may be routed in one layer than in another.
#[test]
fn a_layer_of_shards_is_not_accused_without_a_baseline() {
    for seed in 0..SEEDS {
        let mut ran = virtually(&PAIRS, seed, Slow::Layer("expert_ffn", 1 + draw(seed, 1, 3)));
        let plan = Arc::get_mut(&mut ran.plan).expect("nobody else holds the plan");
        let stage = plan.table.stages.iter().position(|stage| stage.id == "expert_ffn").expect("there is one");
        plan.table.uneven[stage] = true;
        check(&ran, None, Slow::Nothing, &format!("seed {seed}"));
    }
}

#[test]
fn who_was_hardly_seen_is_not_accused_without_a_baseline() {
    let slow = costs_of(Slow::Stage("mfa_attention", Some(0)), 0);
    for (tokens, named) in [(3, false), (30, true)] {
        let requests: Vec<_> = (0..6).map(|_| (0, 4, tokens)).collect();
        let ran = PAIRS.virtually(&slow, &requests);
        let recording = ran.recording();
        let found = stragglers(&recording, &Window::settled(&recording), None);
        assert_eq!(!found.is_empty(), named, "{tokens} tokens: {found:#?}");
    }
}

#[test]
fn against_a_baseline_nothing_needs_siblings() {
    for seed in 0..SEEDS {
        let toy = Toy { attention: 1 + draw(seed, 0, 2), ffn: 1 + draw(seed, 1, 2), ..PAIRS };
        let baseline = virtually(&toy, seed + 100, Slow::Nothing);
        let stage = ["mfa_attention", "router", "expert_ffn", "combine"][draw(seed, 2, 4)];
        let edge = ["a2f", "f2a"][draw(seed, 3, 2)];
        let device = draw(seed, 4, toy.attention + toy.ffn);
        for slow in [Slow::Nothing, Slow::Stage(stage, None), Slow::Transfer(edge), Slow::Device(device)] {
            check(&virtually(&toy, seed, slow), Some(&baseline), slow, &format!("seed {seed}"));
        }
    }
}

#[test]
fn a_slow_layer_is_told_from_the_others() {
    for seed in 0..SEEDS {
        let slow = Slow::Layer(["mfa_attention", "combine"][draw(seed, 0, 2)], draw(seed, 1, 4));
        let ran = virtually(&Toy { attention: 1, ffn: 1, ..PAIRS }, seed, slow);
        check(&ran, None, slow, &format!("seed {seed}"));
        let recording = ran.recording();
        let found = stragglers(&recording, &Window::settled(&recording), None);
        assert!(found.iter().all(|straggler| straggler.evidence == Evidence::Layers));
    }
}

/// A run on real lanes: stages, sends and receives keep their cores busy for as long as they are told. Medians bear a machine that
/// others use as well.
fn on_real_lanes(toy: &Toy, slow: Slow) -> Ran {
    let burn = move |stage: &str, device: usize, layer: usize| {
        let base = if stage.ends_with("ffn") || stage == "mfa_attention" { 15_000 } else { 6000 };
        base * slow.factor(stage, TaskRole::Compute, device, layer)
    };
    let moving = move |stage: &str| match stage {
        "a2f" | "f2a" => 4000 * slow.factor(stage, TaskRole::Send, usize::MAX, usize::MAX),
        _ => 0,
    };
    toy.really_probed(burn, Some(Arc::new(SlowWire(moving))), &[20, 20])
}

#[test]
fn on_real_lanes_as_well() {
    let toy = Toy { attention: 1, ffn: 1, layers: 3, ..PAIRS };
    let baseline = on_real_lanes(&toy, Slow::Nothing);
    for seed in 0..SEEDS {
        let stage = ["mfa_attention", "router", "expert_ffn", "combine"][draw(seed, 0, 4)];
        let edge = ["a2f", "f2a"][draw(seed, 1, 2)];
        for slow in [Slow::Stage(stage, None), Slow::Device(draw(seed, 2, 2)), Slow::Transfer(edge)] {
            check_real(&on_real_lanes(&toy, slow), &baseline, slow, seed);
        }
    }
}

/// As [`check`], but what a noisy machine adds of its own (a host that was kept waiting) is no wrong verdict.
fn check_real(ran: &Ran, baseline: &Ran, slow: Slow, seed: u64) {
    let (recording, before) = (ran.recording(), baseline.recording());
    let before = Baseline::of(&before, &Window::settled(&before));
    let found = stragglers(&recording, &Window::settled(&recording), Some(&before));
    let culprits = found.iter().map(|straggler| straggler.culprit);
    let told: Vec<Culprit> = culprits.filter(|culprit| !matches!(culprit, Culprit::Host { .. })).collect();
    assert!(slow.is_named(&recording, &told), "seed {seed}: {slow:?} is named as {found:#?}");
}
