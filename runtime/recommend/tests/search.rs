//! The search against all there is, the dead zone, the baseline.

use rally_cost::library::{hardware_named, model_named};
use rally_cost::{Dtype, Hardware};
use rally_recommend::pipeline::{Layout, Outcome, Workload};
use rally_recommend::search::{Pool, dead_zone, layouts, search};
use std::path::Path;

const TPOT_S: f64 = 0.050;

fn workload(model: &str, context: u64) -> Workload {
    Workload::at(model_named(model).expect("in the library"), context)
}

fn pool(name: &str, count: u32) -> Pool {
    Pool { hardware: hardware_named(name).expect("in the library"), count }
}

/// The cheapest of every layout at every batch that its attention devices can share evenly.
fn exhausted(workload: &Workload, pool: &[Pool], tpot_s: f64) -> f64 {
    let mut best = f64::INFINITY;
    for (attention_on, ffn_on, layout) in layouts(pool) {
        let on = (&pool[attention_on].hardware, &pool[ffn_on].hardware);
        for rows in (1..=600).map(|own| f64::from(own * layout.attention * layout.devices)) {
            let outcome = Outcome::of(workload, on, &layout, rows).expect("specs are whole");
            if outcome.holds(tpot_s) {
                best = best.min(outcome.usd_per_mtok());
            }
        }
    }
    best
}

#[test]
fn the_search_is_within_5_percent_of_trying_everything() {
    let cases = [
        ("Step-3", 4096, vec![pool("H800", 16)], TPOT_S),
        ("Step-3", 32_768, vec![pool("H800", 8), pool("H20", 8)], TPOT_S),
        ("Qwen3 MoE", 8192, vec![pool("H20", 8)], 0.1),
    ];
    for (model, context, pool, tpot_s) in cases {
        let workload = workload(model, context);
        let found = search(&workload, &pool, tpot_s).expect("specs are whole");
        let best = found.best.map(|best| best.outcome.usd_per_mtok());
        let all = exhausted(&workload, &pool, tpot_s);
        assert!(best.is_some_and(|best| best <= all * 1.05), "{model}: {best:?} of {all}");
    }
}

#[test]
fn thirty_two_accelerators_have_a_best_layout_and_fronts() {
    let found = search(&workload("Step-3", 4096), &[pool("H800", 32)], TPOT_S).expect("specs are whole");
    let best = found.best.as_ref().expect("32 H800 serve Step-3").clone();
    assert!(best.outcome.holds(TPOT_S) && best.outcome.layout.total_devices() <= 32);
    let advantage = found.advantage().expect("both are possible");
    println!(
        "{} of {} devices, {} micro-batches, batch {}, {:.0} TGS, {:.1} ms, {}; undivided {:?}; advantage {advantage:.2}; {} tried, {} pruned",
        best.outcome.layout.name(),
        best.outcome.layout.devices,
        best.outcome.layout.micro_batches,
        best.outcome.batch,
        best.outcome.tgs(),
        best.outcome.tpot_s * 1e3,
        best.outcome.bound(),
        found.undivided,
        found.tried,
        found.pruned
    );
    for front in [&found.cost_front, &found.throughput_front] {
        assert!(front.len() > 1 && front.windows(2).all(|pair| pair[0].outcome.tpot_s < pair[1].outcome.tpot_s));
    }
    let cheaper =
        |pair: &[rally_recommend::search::Candidate]| pair[1].outcome.usd_per_mtok() < pair[0].outcome.usd_per_mtok();
    assert!(found.cost_front.windows(2).all(cheaper), "who waits longer pays less");
}

/// H800 with another network: bytes a second of a server.
fn with_network(bytes_per_s: f64) -> Hardware {
    let text = include_str!("../../cost/hardware/h800.json");
    let mut spec: serde_json::Value = serde_json::from_str(text).expect("JSON");
    spec["links"]["network_bytes_per_s"] = bytes_per_s.into();
    Hardware::parse(&spec.to_string(), Path::new("slow.json")).expect("a good spec")
}

#[test]
fn more_ffn_instances_stop_helping_where_the_network_caps_the_batch() {
    let workload = workload("Step-3", 4096);
    let zone = |hardware: &Hardware| {
        let (attention, ffn, devices, o_proj) = (6, 1, 8, 1);
        let layout = Layout { attention, ffn, devices, micro_batches: 3, o_proj, replicas: false, wire: Dtype::Fp8 };
        dead_zone(&workload, (hardware, hardware), &layout, TPOT_S, 6).expect("specs are whole")
    };
    // 8 × 25 Gb/s, an ordinary network, against 8 × 400 Gb/s.
    let (slow, fast) = (zone(&with_network(2.5e10)), zone(&with_network(4e11)));
    let (from, bound) = slow.from.expect("a slow network ends the growth");
    assert!(bound.contains("network"), "bound by {bound}");
    assert!(fast.from.is_none_or(|(later, _)| later > from), "{slow:?} {fast:?}");
    println!("ordinary {slow:?}, 8 x 400 Gb/s {fast:?}");
}

#[test]
fn not_to_disaggregate_is_an_answer() {
    // 8 × 10 Gb/s: every row crosses it in AFD, and an undivided server needs none of it.
    let slow = with_network(1e10);
    let found = search(&workload("Qwen3 MoE", 4096), &[Pool { hardware: slow, count: 16 }], TPOT_S).expect("specs");
    assert!(found.undivided.is_some() && found.advantage().is_none_or(|advantage| advantage < 0.0), "{found:?}");
}
