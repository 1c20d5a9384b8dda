//! Virtual lanes against the pipeline's arithmetic: the difference term by term, and who wins.

use rally_cost::library::{hardware_named, model_named};
use rally_cost::{Dtype, Hardware};
use rally_predict::measured::MeasuredCards;
use rally_recommend::finalists::Finalists;
use rally_recommend::pipeline::{Fabric, Layout, Outcome, Workload};
use rally_recommend::search::{Pool, search};
use rally_recommend::simulate::{Counted, Simulator};
use std::time::Instant;

fn hardware(name: &str) -> Hardware {
    hardware_named(name).expect("in the library")
}

fn step_3(context: u64) -> Workload {
    Workload::at(model_named("Step-3").expect("in the library"), context)
}

fn two_and_two(o_proj: u32, micro_batches: u32) -> Layout {
    Layout { attention: 2, ffn: 2, devices: 8, micro_batches, o_proj, replicas: false, wire: Dtype::Fp8 }
}

/// 2A2F at 4K with 6,144 sequences, as the Step-3 report runs it: 39.6 ms by arithmetic, 58 on virtual lanes.
#[test]
fn the_difference_is_explained_term_by_term() {
    let (workload, h800) = (step_3(4096), hardware("H800"));
    let (simulator, on) = (Simulator::new(&workload).expect("rally has its stages"), (&h800, &h800));
    let (layout, rows) = (two_and_two(8, 3), 2048.0);
    let terms = simulator.terms(on, &layout, rows).expect("it runs");
    println!("{terms:?}");
    let (micro_batches, layers, efficiency) = (3.0, 61.0, 0.943);
    // By hand. A lane stands still for its exchanges where arithmetic lets them hide: the slowest becomes FFN, gather and scatter.
    let hidden = Workload { fabric: Fabric::Hidden, ..workload.clone() };
    let stages = Outcome::of(&hidden, on, &layout, rows).expect("specs are whole").stages;
    let lane = f64::max(stages[0] + stages[1], stages[3] + stages[4] + stages[5]);
    let way: f64 = stages.iter().sum();
    let slowest = stages.iter().copied().fold(0.0, f64::max);
    let bare = layers * f64::max(way, micro_batches * slowest);
    let on_lanes = layers * f64::max(way, micro_batches * lane);
    let near = |got: f64, want: f64, ms: f64| assert!((got - want).abs() < ms * 1e-3, "{got} {want}");
    near(terms.pipeline, bare, 0.3);
    near(terms.fabric, on_lanes - bare, 0.3);
    // The head in bf16, read by every micro-batch; embedding looks rows up, sampling writes them.
    let head = micro_batches * 2.0 * 7168.0 * 128_815.0 / (3.35e12 * efficiency);
    near(terms.ends, head, 0.4);
    // 2 µs for each task of the lane that never rests, micro-batch and layer, and nothing for latencies that hide.
    let tasks = terms.overheads / (micro_batches * layers * 2e-6);
    assert!((3.0..=9.0).contains(&tasks), "{tasks} launches of a lane, layer and micro-batch");
    // Nothing else is large: shared experts on the first shard, scales and routing on the wire, dense layers that are quicker.
    assert!(terms.plan.abs() < 0.05 * terms.simulated(), "{terms:?}");
    // The terms are those of what is simulated.
    let all = simulator.run(on, &layout, rows, "ping_pong", Counted::ALL).expect("it runs");
    near(terms.simulated(), all.tpot_s, 0.001);
    assert_eq!(all.batch, 6144.0);
}

#[test]
fn orders_micro_batches_and_wires_are_told_apart() {
    let (workload, h800) = (step_3(4096), hardware("H800"));
    let simulator = Simulator::new(&workload).expect("rally has its stages");
    let tpot = |layout: &Layout, rows: f64, policy: &str| {
        simulator.run((&h800, &h800), layout, rows, policy, Counted::ALL).expect("it runs").tpot_s
    };
    let two = two_and_two(1, 2);
    let ping_pong = tpot(&two, 1024.0, "ping_pong");
    assert!(tpot(&two, 1024.0, "sequential") > 1.5 * ping_pong, "nothing overlaps");
    assert!(tpot(&two, 2048.0, "ping_pong") > ping_pong, "more rows");
    assert!(tpot(&Layout { wire: Dtype::Bf16, ..two.clone() }, 1024.0, "ping_pong") > ping_pong, "wider rows");
    let slow = Workload { link_share: 0.5, ..workload.clone() };
    let slow = Simulator::new(&slow).expect("rally has its stages");
    let slow = slow.run((&h800, &h800), &two, 1024.0, "ping_pong", Counted::ALL).expect("it runs");
    assert!(slow.tpot_s > ping_pong && slow.busy.iter().all(|share| *share < 1.0), "{slow:?}");
}

/// Contexts that differ, copies of the FFN, accelerators that differ.
#[test]
fn layouts_of_every_kind_run() {
    let mut workload = step_3(4096);
    let (h800, h20) = (hardware("H800"), hardware("H20"));
    let run = |workload: &Workload, layout: &Layout, rows: f64| {
        let simulator = Simulator::new(workload).expect("rally has its stages");
        simulator.run((&h20, &h800), layout, rows, "ping_pong", Counted::ALL).expect("it runs").tpot_s
    };
    let copies = Layout { replicas: true, ..two_and_two(1, 2) };
    let alone = Layout { attention: 3, ffn: 5, devices: 1, ..two_and_two(1, 3) };
    for (layout, rows) in [(&copies, 512.0), (&alone, 96.0)] {
        let tpot_s = run(&workload, layout, rows);
        let arithmetic = Outcome::of(&workload, (&h20, &h800), layout, rows).expect("specs are whole").tpot_s;
        println!("{}: {tpot_s:.4}, {arithmetic:.4} by arithmetic", layout.name());
        assert!((0.9..1.6).contains(&(tpot_s / arithmetic)), "{tpot_s} {arithmetic}");
    }
    let even = run(&workload, &two_and_two(1, 2), 512.0);
    workload.contexts = vec![(1024, 1.0), (7168, 1.0)];
    let ragged = run(&workload, &two_and_two(1, 2), 512.0);
    // As many positions in all; devices that have more than their share hold the others up.
    assert!((0.99..1.4).contains(&(ragged / even)), "{ragged} {even}");
}

#[test]
fn a_model_without_stages_is_not_simulated() {
    let workload = Workload::at(model_named("DSv3").expect("in the library"), 4096);
    assert!(Simulator::new(&workload).is_none());
}

/// The question of 32 accelerators, to its end: the winner keeps the target on virtual lanes, and the time it takes is told.
#[test]
fn finalists_keep_the_target_on_virtual_lanes() {
    let (workload, pool) = (step_3(4096), [Pool { hardware: hardware("H800"), count: 32 }]);
    let (begun, target) = (Instant::now(), 0.050);
    let found = search(&workload, &pool, target).expect("specs are whole");
    let searched = begun.elapsed();
    let finals = Finalists::new(&workload, &pool, target).expect("rally has its stages").run(&found).expect("it runs");
    println!("searched in {searched:?}, finalists in {:?}", begun.elapsed() - searched);
    let best = finals.best.expect("32 H800 serve Step-3");
    println!("{:?} {:?} {:?}", best.candidate.outcome.layout, best.simulated, finals.terms);
    for finalist in &finals.finalists {
        println!("{:?} off {:+.2}", finalist.candidate.outcome.layout, finalist.off());
    }
    assert!(best.simulated.tpot_s <= target, "{:?}", best.simulated);
    // Nothing that was simulated and keeps the target is cheaper.
    let kept = finals.finalists.iter().chain(&finals.front).filter(|finalist| finalist.simulated.tpot_s <= target);
    let cheapest = kept.map(|finalist| finalist.simulated.usd_per_mtok()).fold(f64::INFINITY, f64::min);
    assert!(best.simulated.usd_per_mtok() <= cheapest * 1.001, "{best:?} {cheapest}");
    // Arithmetic that knows of lanes is near enough to choose finalists by.
    assert!(finals.finalists.iter().all(|finalist| finalist.off().abs() < 0.35), "{:?}", finals.finalists);
}

/// 2A2F and 32 cards with stage times measured on an H200 and links of 8 × 400 Gb/s at 80 %: what `NOTES.md` says of them.
#[test]
fn stage_times_that_were_measured_bound_what_is_recommended() {
    let h200 = hardware("H200");
    let (target, mut workload) = (0.050, step_3(4096));
    workload.link_share = 0.8;
    for kv in [Dtype::Bf16, Dtype::Fp8] {
        let mut measured = workload.clone();
        measured.model.keep_kv_in(kv);
        assert!(measured.measure(MeasuredCards::BuiltIn, std::iter::once(&h200)), "H200 was measured");
        // Attention of 128 sequences and the shard of 24 × 640 columns with 2,048 rows are longer than the slot of 273 µs that 6,144
        // sequences would need.
        let attention = measured.attention_s(&h200, 128.0, 1.0).expect("a peak");
        let ffn = measured.ffn_s(&h200, 2048.0, 2.0, 8.0).expect("a peak");
        println!("{kv}: attention {:.0} µs, FFN {:.0} µs", attention * 1e6, ffn * 1e6);
        if kv == Dtype::Bf16 {
            assert!((attention * 1e6 - (137.7 + 90.5 + 58.3)).abs() < 0.1, "{attention}");
        }
        assert!((290e-6..330e-6).contains(&ffn), "measured 319 µs of routed experts in 56 of 61 layers: {ffn}");
        let pool = [Pool { hardware: h200.clone(), count: 32 }];
        let two = search_two_and_two(&measured, &h200, target);
        println!("2A2F: {two:?}");
        let found = search(&measured, &pool, target).expect("specs are whole");
        let finals =
            Finalists::new(&measured, &pool, target).expect("rally has its stages").run(&found).expect("it runs");
        let best = finals.best.expect("32 H200 serve Step-3");
        println!(
            "best of 32: {:?} {:?}, {:.0} TGS, bound by {}; µs {:.0?}; {:?}",
            best.candidate.outcome.layout,
            best.simulated,
            best.simulated.tgs(),
            best.candidate.outcome.bound(),
            best.candidate.outcome.stages.map(|seconds| seconds * 1e6),
            finals.terms
        );
        assert!(best.simulated.tpot_s <= target && best.simulated.tgs() >= two.0, "{:?} {two:?}", best.simulated);
        // What figures alone would promise is more: the kernels are not at the roofline. Undivided likewise: measured stands beside
        // measured.
        let figures = search(&Workload { measured: MeasuredCards::None, ..measured.clone() }, &pool, target)
            .expect("specs are whole");
        assert!(figures.best.expect("it holds").outcome.tgs() > best.simulated.tgs());
        let (known, assumed) = (found.undivided.expect("it holds").1, figures.undivided.expect("it holds").1);
        println!(
            "undivided on {}: {:.0} TGS; by figures on {}: {:.0}",
            known.devices,
            known.tgs(),
            assumed.devices,
            assumed.tgs()
        );
        assert!(measured.knows_undivided(&h200, known.devices) && known.tgs() < assumed.tgs());
    }
}

/// The most tokens a second and accelerator of 2A2F on virtual lanes within the target: with its micro-batches and rows, by halving.
fn search_two_and_two(workload: &Workload, on: &Hardware, target: f64) -> (f64, u32, f64, f64) {
    let simulator = Simulator::new(workload).expect("rally has its stages");
    let mut best = (0.0, 0, 0.0, 0.0);
    for micro_batches in [2, 3] {
        let layout = two_and_two(1, micro_batches);
        let (mut good, mut bad) = (0, 256);
        while bad - good > 2 {
            let middle = (good + bad) / 2;
            let rows = f64::from(16 * middle);
            let run = simulator.run((on, on), &layout, rows, "ping_pong", Counted::ALL).expect("it runs");
            match run.tpot_s <= target {
                true => {
                    good = middle;
                    if run.tgs() > best.0 {
                        best = (run.tgs(), micro_batches, run.batch, run.tpot_s);
                    }
                }
                false => bad = middle,
            }
        }
    }
    best
}

/// Where virtual lanes take much longer than arithmetic, rows are taken away until the target holds: H20 that attend, H800 behind them.
#[test]
fn a_finalist_that_is_far_off_is_given_fewer_rows() {
    let workload = step_3(4096);
    let pool = ["H20", "H800"].map(|name| Pool { hardware: hardware(name), count: 24 });
    let found = search(&workload, &pool, 0.050).expect("specs are whole");
    let finals = Finalists::new(&workload, &pool, 0.050).expect("rally has its stages").run(&found).expect("it runs");
    println!("{:?}", finals.finalists.iter().map(|finalist| finalist.off()).collect::<Vec<_>>());
    let best = finals.best.expect("fewer rows hold the target");
    println!("{:?}", best.simulated);
    assert!((0.045..=0.050).contains(&best.simulated.tpot_s), "{:?}", best.simulated);
}
