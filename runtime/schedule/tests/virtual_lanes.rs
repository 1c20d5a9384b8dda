//! Plans on virtual time: exact where theory is exact, bounded where it gives bounds, and the same twice.

mod cases;
mod common;

use cases::cases;
use common::{at_once, planner, request, table};
use proptest::prelude::*;
use rally_graph::kinds::{Key, KindRegistry, Role, StageKindInfo, Value};
use rally_graph::model::LayerKind;
use rally_graph::plan::{Plan, TaskRole, TaskTable};
use rally_graph::spec::DeploymentSpec;
use rally_graph::stage_graph::StageGraph;
use rally_schedule::planner::FinishReason;
use rally_schedule::policy::{PingPong, Policy, Sequential};
use rally_schedule::virtual_lanes::{
    Arrival, Transit, VirtualCosts, VirtualOptions, VirtualReport, VirtualRun, VirtualTask,
};

const TAU: u64 = 1000;

fn plan(table: TaskTable, policy: &dyn Policy, micro_batches: usize) -> Plan {
    let orders = policy.orders(&table, micro_batches);
    Plan::compile(table, micro_batches, &orders).expect("built-in policies make plans")
}

/// Devices of the attention stages come first in the toy graphs.
fn run(plan: &Plan, attention: usize, costs: &dyn VirtualCosts, arrivals: Vec<Arrival>) -> VirtualReport {
    let devices: Vec<usize> = (0..attention).collect();
    let planner = planner(plan.micro_batches, attention);
    let run = VirtualRun { plan, planner, attention: &devices, costs, token: &|_, _| 1 };
    run.run(arrivals).expect("the requests fit")
}

/// Attention and FFN take τ, a wire half of it, the rest nothing.
fn balanced(task: &VirtualTask<'_>) -> u64 {
    let stage = &task.table.stages[task.table.tasks[task.task].stage];
    match stage.role {
        Role::Attention | Role::Ffn => TAU,
        Role::Rowwise => TAU / 2,
        _ => 0,
    }
}

/// A direction of the network as a stage of its own.
struct Wire;

impl StageKindInfo for Wire {
    fn name(&self) -> &str {
        "wire"
    }
    fn doc(&self) -> &str {
        "One direction of a network."
    }
    fn role(&self) -> Role {
        Role::Rowwise
    }
    fn keys(&self) -> &[Key] {
        const KEYS: &[Key] = &[Key::required("on")];
        KEYS
    }
    fn reads(&self) -> &[Value] {
        &[]
    }
    fn writes(&self) -> &[Value] {
        &[]
    }
}

/// Attention, A→F, FFN and F→A each on a lane of its own, as in the Step-3 paper's figure 7.
fn four_lanes(layers: usize) -> TaskTable {
    let transfer =
        |id: &str, from: &str, to: &str| serde_json::json!({ "kind": "transfer", "id": id, "from": from, "to": to });
    let cpu = || serde_json::json!({ "backend": "cpu" });
    let spec: DeploymentSpec = serde_json::from_value(serde_json::json!({
        "version": 1, "name": "four lanes", "model": "none",
        "devices": { "a": cpu(), "up": cpu(), "f": cpu(), "down": cpu() },
        "stages": [
            { "kind": "embed", "on": "a" },
            { "layers": [
                { "kind": "mfa_attention", "on": "a" },
                transfer("leave_a", "a", "up"),
                { "kind": "wire", "id": "a2f", "on": "up" },
                transfer("reach_f", "up", "f"),
                { "kind": "dense_ffn", "on": "f" },
                transfer("leave_f", "f", "down"),
                { "kind": "wire", "id": "f2a", "on": "down" },
                transfer("reach_a", "down", "a"),
                { "kind": "combine", "on": "a" },
            ]},
            { "kind": "sampling", "on": "a" },
        ],
        "limits": { "sequences": 8, "rows_per_micro_batch": 8, "prefill_chunk": 4, "kv_tokens": 512, "page_tokens": 8 },
        "schedule": { "policy": "ping_pong", "micro_batches": 3 },
    }))
    .expect("the graph is well formed");
    let mut kinds = KindRegistry::builtin();
    kinds.register(Box::new(Wire));
    let mut shape = common::shape(layers);
    shape.layers.fill(LayerKind::Dense);
    TaskTable::new(&StageGraph::build(&spec, &shape, &kinds).expect("the graph unrolls"))
}

/// Attention and FFN take τ, and each way of a link `latency_ns` beside them.
struct Linked {
    latency_ns: u64,
}

impl VirtualCosts for Linked {
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64 {
        balanced(task)
    }

    fn transit(&self, task: &VirtualTask<'_>) -> Option<Transit> {
        let sends = task.table.tasks[task.task].role == TaskRole::Send;
        sends.then(|| Transit { latency_ns: self.latency_ns, ..Transit::default() })
    }
}

/// A link of a third of a slot each way hides behind two other micro-batches, filling and draining apart, and one waits for all of it.
#[test]
fn three_micro_batches_hide_links_of_a_third_of_a_slot_and_one_hides_nothing() {
    let (layers, steps) = (20, 10);
    let hidden = |micro_batches: u64| {
        let plan = plan(table(1, 1, layers), &PingPong, micro_batches as usize);
        let wall_ns = |latency_ns: u64| run(&plan, 1, &Linked { latency_ns }, at_once(micro_batches, 1, steps)).wall_ns;
        let link_ns = TAU / 3;
        let exposed_ns = wall_ns(link_ns) - wall_ns(0);
        // Those of one micro-batch: all that could ever add to a step.
        1.0 - exposed_ns as f64 / (2 * link_ns * layers as u64 * steps as u64) as f64
    };
    assert!(hidden(3) >= 0.9, "{}", hidden(3));
    assert!(hidden(1).abs() < 1e-9, "{}", hidden(1));
    assert!(hidden(2) < 0.9, "{}", hidden(2));
}

/// Step-3 paper, section 7.1: where A = F = A2F + F2A, three micro-batches leave no bubble: a step takes 3·L·τ, and the run one
/// trip of the last micro-batch through wire, FFN and wire more.
#[test]
fn three_micro_batches_over_four_lanes_leave_no_bubble() {
    for (layers, steps) in [(1, 1), (1, 7), (2, 3), (61, 2), (61, 20)] {
        let plan = plan(four_lanes(layers), &PingPong, 3);
        let report = run(&plan, 1, &balanced, at_once(3, 1, steps));
        let busy = 3 * layers as u64 * steps as u64 * TAU;
        assert_eq!(report.wall_ns, busy + 2 * TAU, "{layers} layers, {steps} steps");
        let [attention, up, ffn, down] = &report.lanes[..] else { panic!("four lanes") };
        for lane in [attention, ffn] {
            assert_eq!((lane.report.busy_ns, lane.bubble_ns), (busy, 2 * TAU), "only fill and drain");
        }
        assert_eq!((up.report.busy_ns, down.report.busy_ns), (busy / 2, busy / 2));
        // Between its first and its last task neither side ever waits. (Sampling of the last step, which takes nothing, is
        // attention's last task.)
        assert_eq!(ffn.report.active_ns, busy);
    }
}

#[test]
fn two_micro_batches_over_two_lanes_leave_no_bubble() {
    for (layers, steps) in [(1, 1), (3, 4), (61, 9)] {
        let report = run(&plan(table(1, 1, layers), &PingPong, 2), 1, &balanced, at_once(2, 1, steps));
        let busy = 2 * layers as u64 * steps as u64 * TAU;
        assert_eq!(report.wall_ns, busy + TAU);
        assert!(report.lanes.iter().all(|lane| (lane.report.busy_ns, lane.bubble_ns) == (busy, TAU)));
        let sequential = run(&plan(table(1, 1, layers), &Sequential, 2), 1, &balanced, at_once(2, 1, steps));
        assert_eq!(sequential.wall_ns, 2 * busy, "nothing overlaps");
    }
}

#[test]
fn stops_arrivals_and_pages() {
    let plan = plan(table(1, 1, 2), &PingPong, 3);
    let late = 1_000_000;
    let mut arrivals = at_once(2, 9, 5);
    arrivals.push(Arrival { at_ns: late, request: request(2, 1, 40) });
    let token = |id: u64, index: u64| if id == 2 && index == 3 { 7 } else { 1 };
    let planner = planner(3, 1);
    let virtual_run = VirtualRun { plan: &plan, planner, attention: &[0], costs: &balanced, token: &token };
    let report = virtual_run.run(arrivals).expect("the requests fit");
    assert_eq!(report.free_pages, planner.pages_per_device as usize);
    let [first, second, third] = [0, 1, 2].map(|id| &report.sequences[&id]);
    for sequence in [first, second] {
        assert_eq!(sequence.tokens.len(), 5);
        assert!(matches!(sequence.finished, Some((FinishReason::Length, at)) if at < late));
    }
    assert_eq!((third.arrived_ns, third.admitted_ns), (late, Some(late)), "an idle run takes it at once");
    assert_eq!(third.tokens.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 1, 1, 7]);
    assert_eq!(third.finished, Some((FinishReason::Stop, report.wall_ns)));
    assert_eq!(report.wall_ns, late + 4 * 2 * 2 * TAU, "alone: four steps of two layers, one side after the other");
}

#[test]
fn what_never_fits_is_said() {
    let plan = plan(table(1, 1, 1), &PingPong, 2);
    let run = VirtualRun { plan: &plan, planner: planner(2, 1), attention: &[0], costs: &balanced, token: &|_, _| 1 };
    assert!(run.run(at_once(1, 0, 5)).is_err());
    assert_eq!(run.run(Vec::new()).expect("nothing is fine").wall_ns, 0);
}

/// Wakes cost what they are said to cost.
struct Slow;

impl VirtualCosts for Slow {
    fn task_ns(&self, task: &VirtualTask<'_>) -> u64 {
        balanced(task)
    }
    fn wake_ns(&self) -> u64 {
        10
    }
}

#[test]
fn a_wake_is_paid_at_every_handover() {
    let report = run(&plan(table(1, 1, 4), &Sequential, 1), 1, &Slow, at_once(1, 1, 3));
    // Two handovers a layer, of which none is free where nothing overlaps.
    assert_eq!(report.wall_ns, 3 * 4 * 2 * (TAU + 10));
}

/// A cost from a seed: the same for the same task, whatever else runs.
fn seeded(seed: u64) -> impl Fn(&VirtualTask<'_>) -> u64 {
    move |task| {
        let template = &task.table.tasks[task.task];
        let mixed = (seed ^ (template.stage as u64 * 31 + template.layer.unwrap_or(0) as u64))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let small = if template.role == TaskRole::Compute { 4096 } else { 64 };
        (mixed >> 40) % small
    }
}

/// Longest way through one step, in nanoseconds.
fn critical_path(table: &TaskTable, costs: &dyn VirtualCosts) -> u64 {
    let mut ends: Vec<u64> = Vec::new();
    for (task, template) in table.tasks.iter().enumerate() {
        let load = rally_schedule::virtual_lanes::Load { rows: 1, context: 1 };
        let start = template.after.iter().map(|before| ends[*before]).max().unwrap_or(0);
        ends.push(
            start + costs.task_ns(&VirtualTask { table, task, micro_batch: 0, step: 0, load, sampled: 0, warm: false }),
        );
    }
    ends.into_iter().max().unwrap_or(0)
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn bounds_and_sums_hold(
        attention in 1usize..4, ffn in 1usize..4, layers in 1usize..5, micro_batches in 1usize..6, ping_pong: bool, seed: u64,
        requests in prop::collection::vec((1usize..20, 1usize..12, 0u64..200_000), 1..20),
    ) {
        let policy: &dyn Policy = if ping_pong { &PingPong } else { &Sequential };
        let plan = plan(table(attention, ffn, layers), policy, micro_batches);
        let costs = seeded(seed);
        let arrivals = || {
            let each = requests.iter().enumerate();
            each.map(|(id, (prompt, tokens, at_ns))| Arrival { at_ns: *at_ns, request: request(id as u64, *prompt, *tokens) }).collect()
        };
        let report = run(&plan, attention, &costs, arrivals());
        prop_assert_eq!(&report, &run(&plan, attention, &costs, arrivals()), "the same twice");
        for lane in &report.lanes {
            prop_assert_eq!(lane.report.busy_ns + lane.bubble_ns, report.wall_ns);
            prop_assert!(lane.report.spans.windows(2).all(|pair| pair[0].end_ns <= pair[1].start_ns), "one task at a time");
            prop_assert!(lane.report.spans.iter().all(|span| span.ready_ns <= span.start_ns && span.start_ns <= span.end_ns));
        }
        for (id, (_, tokens, at_ns)) in requests.iter().enumerate() {
            let sequence = &report.sequences[&(id as u64)];
            prop_assert_eq!(sequence.tokens.len(), *tokens);
            prop_assert!(sequence.finished.is_some() && sequence.admitted_ns >= Some(*at_ns));
            if attention == 1 {
                let least = *tokens as u64 * critical_path(&plan.table, &costs);
                let took = sequence.finished.map_or(0, |(_, at)| at) - at_ns;
                prop_assert!(took >= least, "{took} < {least}: faster than the longest way through its steps");
            }
        }
        prop_assert_eq!(report.free_pages, attention << 12);
    }
}

#[test]
fn lanes_share_the_cores_there_are() {
    let plan = plan(table(2, 2, 4), &PingPong, 3);
    let of = |cores: Option<usize>| {
        let run =
            VirtualRun { plan: &plan, planner: planner(3, 2), attention: &[0, 1], costs: &balanced, token: &|_, _| 1 };
        run.run_with(at_once(12, 2, 6), VirtualOptions { cores, ..VirtualOptions::default() }).expect("they fit")
    };
    let busy = |report: &VirtualReport| report.lanes.iter().map(|lane| lane.report.busy_ns).sum::<u64>();
    let (one, two, all) = (of(Some(1)), of(Some(2)), of(None));
    assert_eq!(of(Some(4)), all, "as many cores as lanes are a core a lane");
    // One core is never idle while any lane has work, and all requests are there from the start.
    assert_eq!(one.wall_ns, busy(&one));
    assert!(one.wall_ns > two.wall_ns && two.wall_ns > all.wall_ns);
    for (cores, report) in [(1, &one), (2, &two)] {
        assert!(report.sequences.values().all(|times| times.tokens.len() == 6), "every request has its tokens");
        let spans = report.lanes.iter().flat_map(|lane| &lane.report.spans).filter(|span| span.end_ns > span.start_ns);
        // An end frees the core for whoever begins in the same moment.
        let mut changes: Vec<(u64, i32)> = spans.flat_map(|span| [(span.start_ns, 1), (span.end_ns, -1)]).collect();
        changes.sort_unstable();
        let mut at_work = 0;
        for (at_ns, change) in changes {
            at_work += change;
            assert!(at_work <= cores, "{at_work} lanes work at {at_ns} ns on {cores} cores");
        }
    }
}
