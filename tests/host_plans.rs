//! Plans of faults that are drawn from seeds, on real processes: what a network does, on every edge, and what happens to processes. Whoever
//! dies is started again, as a supervisor would. Every run ends, with the tokens and logits of the undisturbed one.
//!
//! On virtual lanes, which lose nothing and know no processes, the plans are what can be late there.
//!
//! `RALLY_SEEDS=1000` runs so many; `RALLY_FIRST_SEED=17` begins there.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/draw.rs"]
mod draw;
#[path = "support/hosts.rs"]
mod hosts;

use binary::path_text;
use draw::{Draw, number};
use hosts::{Deployment, Divided, Process};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A run that takes longer hangs: a lane that hangs costs some seconds, and a host that was lost again and again stays away for as long.
const HANGS: Duration = Duration::from_secs(120);

/// Something of every kind that a network can do, more or less of it, and perhaps something that happens to a process. The first host
/// coordinates: what becomes of a run whose coordinator dies is another test's (`resume.rs`).
fn plan(seed: u64, hosts: &[String]) -> Value {
    let mut draw = Draw(seed);
    let mut faults = vec![
        json!({ "fault": "delay", "share": 0.03, "ms": draw.below(6) }),
        json!({ "fault": "reorder", "share": 0.03, "ms": 1 + draw.below(6) }),
        json!({ "fault": "duplicate", "share": 0.05, "ms": draw.below(4) }),
    ];
    if draw.below(4) == 0 {
        let edge = ["a2f", "f2a", "control"][draw.below(3) as usize];
        faults.push(json!({ "fault": "drop", "edge": edge, "steps": "3..", "share": 0.02, "times": 1 }));
    }
    if draw.below(3) == 0 {
        faults.push(json!({ "fault": "corrupt", "share": 0.003, "times": 1 }));
    }
    if draw.below(4) == 0 {
        let (from, to) = (draw.one(hosts).clone(), draw.one(hosts).clone());
        if from != to {
            let (step, ms) = (draw.below(8), 50 + draw.below(3000));
            faults
                .push(json!({ "fault": "partition", "from": from, "to": to, "steps": format!("{step}.."), "ms": ms }));
        }
    }
    let (host, steps) = (draw.one(&hosts[1..]).clone(), format!("{}..", 1 + draw.below(10)));
    match draw.below(6) {
        0 => faults.push(json!({ "fault": "kill", "host": host, "steps": steps })),
        1 => faults.push(json!({ "fault": "restart", "host": host, "steps": steps, "ms": draw.below(500) })),
        2 => faults.push(json!({ "fault": "stop", "host": host, "steps": steps, "ms": 100 + draw.below(3000) })),
        3 => faults.push(json!({ "fault": "slow", "host": host, "share": 0.05, "times": 20, "ms": draw.below(40) })),
        4 => faults
            .push(json!({ "fault": "slow", "host": host, "steps": steps, "times": 1, "ms": 5000 + draw.below(4000) })),
        _ => {}
    }
    json!({ "version": 1, "seed": seed, "faults": faults })
}

/// A deployment that is used for many seeds.
struct Scene {
    deployment: Deployment,
    requests: PathBuf,
}

impl Scene {
    fn new(attention: usize, ffn: usize, divided: Divided) -> Self {
        let deployment = Deployment::new(attention, ffn, divided);
        let requests = deployment.requests(6, 16);
        deployment.run_alone(&requests, "alone");
        Self { deployment, requests }
    }

    /// Runs with the plan of a seed. Returns what the run said.
    fn run(&self, seed: u64) -> String {
        let Self { deployment, requests } = self;
        let (path, plan) = (deployment.file("faults.json"), plan(seed, &deployment.hosts));
        std::fs::write(&path, plan.to_string()).expect("the folder takes files");
        let more = ["--faults", path_text(&path)];
        let mut workers: Vec<(&String, Process)> =
            deployment.hosts[1..].iter().map(|host| (host, deployment.worker_with(host, &more))).collect();
        let (mut run, began) = (deployment.run(requests, "disturbed", &more), Instant::now());
        while !run.has_ended() {
            for (host, worker) in &mut workers {
                if worker.has_ended() {
                    // What was to happen to it has happened.
                    *worker = deployment.worker(host);
                }
            }
            if began.elapsed() >= HANGS {
                let said: Vec<String> = workers.iter().map(|(_, worker)| worker.everything()).collect();
                panic!("seed {seed} hangs: {plan}\n{}\n{}", run.everything(), said.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (code, said) = run.end();
        assert_eq!(code, Some(0), "seed {seed}: {plan}\n{said}");
        println!("seed {seed}, {:.1} s: {plan}", began.elapsed().as_secs_f64());
        deployment.assert_same("alone", "disturbed");
        said
    }
}

#[test]
fn whatever_happens_to_hosts_and_between_them_every_run_ends_with_the_same_tokens() {
    let (first, count) = (number("RALLY_FIRST_SEED", 0), number("RALLY_SEEDS", 2));
    let scenes = [(2, 2, Divided::Replicas), (2, 2, Divided::Experts), (1, 2, Divided::Experts)]
        .map(|(attention, ffn, divided)| Scene::new(attention, ffn, divided));
    let (mut told, began) = (BTreeMap::<&str, u64>::new(), Instant::now());
    for seed in first..first + count {
        let said = scenes[seed as usize % scenes.len()].run(seed);
        assert!(!said.contains("panicked"), "seed {seed}: {said}");
        for words in ["is lost", "is back", "shows signs of life, but", "something was lost between"] {
            *told.entry(words).or_default() += said.matches(words).count() as u64;
        }
    }
    println!("{count} seeds, {:.0} s; said: {told:?}", began.elapsed().as_secs_f64());
    if count >= 50 {
        assert!(told.values().all(|times| *times > 0), "{told:?}");
    }
}

/// What can be late on virtual lanes; the most milliseconds that each event is late by.
fn lateness(seed: u64, hosts: &[String]) -> (Value, f64) {
    let mut draw = Draw(seed);
    let mut faults = Vec::new();
    let mut most_ms = 0.0;
    for edge in ["a2f", "f2a"] {
        for kind in ["delay", "reorder"] {
            let ms = draw.below(200) as f64 / 10.0;
            most_ms += ms;
            faults.push(json!({ "fault": kind, "edge": edge, "share": 0.1, "ms": ms }));
        }
    }
    let (slow_ms, stop_ms) = (draw.below(30) as f64, draw.below(3000) as f64);
    faults.push(json!({ "fault": "slow", "host": draw.one(hosts), "share": 0.2, "ms": slow_ms }));
    let step = draw.below(10);
    faults.push(json!({ "fault": "stop", "host": draw.one(hosts), "steps": format!("{step}.."), "ms": stop_ms }));
    (json!({ "version": 1, "seed": seed, "faults": faults }), most_ms + slow_ms)
}

#[test]
fn whatever_is_late_on_virtual_lanes_they_come_to_the_same_end_and_by_the_same_way_again() {
    let (first, count) = (number("RALLY_FIRST_SEED", 0), number("RALLY_SEEDS", 25));
    let deployment = Deployment::new(2, 2, Divided::Experts);
    let path = deployment.file("late.json");
    let predict = |plan: &Value| -> Value {
        std::fs::write(&path, plan.to_string()).expect("the folder takes files");
        let load = ["--batch", "4", "--random-input-len", "2", "--random-output-len", "8", "--format", "json"];
        let graph = path_text(&deployment.graph);
        let predict = ["predict", graph, "--hardware", "h800", "--faults", path_text(&path)];
        let output = binary::good(&[&predict[..], &load].concat());
        let report: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
        report["runs"][0].clone()
    };
    let seconds = |run: &Value| run["duration"].as_f64().expect("it takes some time");
    let calm = predict(&json!({ "version": 1, "faults": [] }));
    assert_eq!(calm["total_output_tokens"], 32);
    let mut latest_s = 0.0f64;
    for seed in first..first + count {
        let (plan, most_ms) = lateness(seed, &deployment.hosts);
        let run = predict(&plan);
        for key in ["completed", "total_input_tokens", "total_output_tokens"] {
            assert_eq!(run[key], calm[key], "seed {seed}: {key}");
        }
        let late_s = seconds(&run) - seconds(&calm);
        // Every step of every layer as late as can be each way, and the time that a host stood still, at both ends of a wait.
        let bound_s = (f64::from(8 + 4) * 6.0 * 4.0 * most_ms + 2.0 * 3000.0) * 1e-3;
        assert!((-1e-9..bound_s).contains(&late_s), "seed {seed}: {late_s} s, at most {bound_s}: {plan}");
        assert_eq!(run, predict(&plan), "seed {seed}: the same again");
        latest_s = latest_s.max(late_s);
    }
    assert!(latest_s > 0.5, "{latest_s}: hardly anything was late");
}
