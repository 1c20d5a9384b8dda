//! Plans of faults on real processes: `rally run --faults`, `rally worker --faults`.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hosts.rs"]
mod hosts;

use binary::{path_text, refused};
use hosts::{Deployment, Divided, Process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

fn write_plan(deployment: &Deployment, faults: &Value) -> PathBuf {
    let path = deployment.file("faults.json");
    let plan = json!({ "version": 1, "seed": 11, "faults": faults });
    std::fs::write(&path, plan.to_string()).expect("the folder takes files");
    path
}

/// A run on all hosts, each with the plan. What the run and its workers said.
fn run_with(deployment: &Deployment, name: &str, faults: &Value) -> Vec<String> {
    let plan = write_plan(deployment, faults);
    let more = ["--faults", path_text(&plan)];
    let requests = deployment.requests(9, 24);
    let workers: Vec<Process> = deployment.hosts[1..].iter().map(|host| deployment.worker_with(host, &more)).collect();
    let said = deployment.run(&requests, name, &more).good_end();
    std::iter::once(said).chain(workers.iter().map(Process::everything)).collect()
}

#[track_caller]
fn changes_no_token(faults: &Value) -> Vec<String> {
    let deployment = Deployment::new(2, 2, Divided::Experts);
    deployment.run_alone(&deployment.requests(9, 24), "alone");
    let said = run_with(&deployment, "across", faults);
    deployment.assert_same("alone", "across");
    assert!(said.iter().all(|said| !said.contains("panicked")), "{said:?}");
    // What happens at the coordinator is told where others miss it.
    assert!(["a fault", "is lost"].iter().any(|words| said.concat().contains(words)), "nothing happened: {said:?}");
    said
}

#[test]
fn late_doubled_and_reordered_frames_change_no_token() {
    changes_no_token(&json!([
        { "fault": "delay", "share": 0.05, "ms": 8 },
        { "fault": "reorder", "edge": "a2f", "share": 0.1, "ms": 6 },
        { "fault": "duplicate", "edge": "f2a", "share": 0.2, "ms": 3 },
    ]));
}

#[test]
fn changed_frames_are_noticed_and_change_no_token() {
    let said =
        changes_no_token(&json!([{ "fault": "corrupt", "from": "f0", "edge": "f2a", "steps": "3..", "times": 2 }]));
    assert!(said[0].contains("is lost"), "{}", said[0]);
}

#[test]
fn hosts_that_are_restarted_or_stopped_by_plan_change_no_token() {
    let said = changes_no_token(&json!([
        { "fault": "restart", "host": "f1", "steps": "4..", "ms": 100 },
        { "fault": "stop", "host": "a1", "steps": "12..", "ms": 3500 },
        { "fault": "slow", "host": "f0", "steps": "2..3", "ms": 1 },
    ]));
    assert!(said[0].contains("host `f1` is lost"), "{}", said[0]);
    assert!(said[0].contains("host `a1` is lost"), "{}", said[0]);
}

#[test]
fn a_way_that_is_cut_for_a_while_changes_no_token() {
    let said =
        changes_no_token(&json!([{ "fault": "partition", "from": "a0", "to": "f1", "steps": "5..", "ms": 3000 }]));
    assert!(said[0].contains("is lost"), "{}", said[0]);
}

/// Which events are hit follows from plan, seed and event: as long as two runs plan the same steps, from nothing else.
#[test]
fn a_plan_hits_the_same_events_again() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let faults = json!([{ "fault": "delay", "steps": "1..8", "share": 0.3, "ms": 1 }]);
    // A machine that is very busy may have lost a host meanwhile; then there were other steps.
    let events = || loop {
        let said = run_with(&deployment, "across", &faults).concat();
        if !said.contains("is lost") {
            let line = |line: &str| line.split_once("a fault ").map(|(_, event)| event.to_owned());
            let events = said.lines().filter_map(line).filter(|event| !event.contains("control"));
            return events.collect::<BTreeSet<String>>();
        }
    };
    let first = events();
    assert!(first.len() > 20, "{first:?}");
    assert_eq!(first, events());
}

#[test]
fn plans_that_are_wrong_are_refused() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let plan = write_plan(&deployment, &json!([{ "fault": "kill", "host": "f7" }]));
    let (graph, key) = (path_text(&deployment.graph), path_text(&deployment.key));
    let run = ["run", graph, "--key-file", key, "--prompt", "x", "--faults", path_text(&plan)];
    refused(&run, "faults[0] (`kill`): host: the graph has no host `f7`, but a0, f0");
    refused(
        &["run", path_text(&deployment.alone), "--prompt", "x", "--faults", path_text(&plan)],
        "this graph has no hosts",
    );
}

/// The same plan on virtual lanes, as far as they have what it is about.
#[test]
fn virtual_lanes_have_links_that_are_late_and_hosts_that_are_slow() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let predict = |faults: &Value, micro_batches: usize| {
        let (plan, schedule) = (write_plan(&deployment, faults), format!("ping_pong:{micro_batches}"));
        let load = ["--batch", "3", "--random-input-len", "1", "--random-output-len", "20", "--format", "json"];
        let graph = path_text(&deployment.graph);
        let predict = ["predict", graph, "--hardware", "h800", "--schedule", &schedule, "--faults", path_text(&plan)];
        let output = binary::good(&[&predict[..], &load].concat());
        let report: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
        report["runs"][0]["duration"].as_f64().expect("it takes some time")
    };
    let slow = json!([
        { "fault": "slow", "host": "a0", "edge": "a2f", "ms": 3 },
        { "fault": "slow", "host": "f0", "edge": "f2a", "ms": 3 },
    ]);
    let linked = |ms: f64| {
        let mut faults = slow.clone();
        let links = ["a2f", "f2a"].map(|edge| json!({ "fault": "delay", "edge": edge, "ms": ms }));
        faults.as_array_mut().expect("it is a list").extend(links);
        faults
    };
    let (calm, one) = (predict(&json!([]), 1), predict(&slow, 1));
    // 20 steps of 6 layers, a slot of 3 ms on either side.
    let steps_s = 20.0 * 6.0 * 2.0 * 3e-3;
    assert!((one - calm - steps_s).abs() < 0.05 * steps_s, "{calm} {one}");
    let transfers_s = steps_s / 3.0;
    let hidden = |micro_batches: usize| {
        1.0 - (predict(&linked(1.0), micro_batches) - predict(&slow, micro_batches)) / transfers_s
    };
    assert!(hidden(1).abs() < 0.01, "{}", hidden(1));
    assert!(hidden(3) >= 0.9, "{}", hidden(3));
    let stopped = predict(&json!([{ "fault": "stop", "host": "f0", "steps": 5, "ms": 700 }]), 3);
    assert!(stopped - predict(&json!([]), 3) > 0.69, "{stopped}");
    let plan = write_plan(&deployment, &json!([{ "fault": "drop" }]));
    let graph = path_text(&deployment.graph);
    refused(&["predict", graph, "--hardware", "h800", "--faults", path_text(&plan)], "virtual lanes lose nothing");
}

/// The schema and the reader agree on what is a plan.
#[test]
fn the_schema_says_what_the_reader_says() {
    let text = include_str!("../runtime/cli/schema/faults.v1.schema.json");
    let schema: Value = serde_json::from_str(text).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    let edges = BTreeSet::from(["a2f".to_owned()]);
    let hosts = ["a0".to_owned(), "f0".to_owned()];
    let good = |fault: &Value| {
        let plan = json!({ "version": 1, "faults": [fault] });
        let read = rally_transport::faults::FaultPlan::parse(&plan.to_string(), &hosts, &edges);
        assert_eq!(validator.is_valid(&plan), read.is_ok(), "{plan}: {read:?}");
        read.is_ok()
    };
    let kinds =
        ["drop", "delay", "duplicate", "reorder", "corrupt", "partition", "kill", "stop", "slow", "restart", "else"];
    let mut count = 0;
    for kind in kinds {
        for keys in 0..32 {
            let mut fault = json!({ "fault": kind });
            let mut give = |bit: u32, key: &str, value: Value| {
                if keys >> bit & 1 == 1 {
                    fault[key] = value;
                }
            };
            give(0, "host", json!("f0"));
            give(1, "ms", json!(2.5));
            give(2, "from", json!("a0"));
            give(3, "to", json!("f0"));
            give(4, "edge", json!("a2f"));
            count += u32::from(good(&fault));
        }
    }
    assert!(count > 50, "{count}");
    for (key, value, is_good) in [
        ("steps", json!(3), true),
        ("steps", json!("3..9"), true),
        ("steps", json!("3.."), true),
        ("steps", json!("x"), false),
        ("steps", json!(-1), false),
        ("share", json!(0), false),
        ("share", json!(1), true),
        ("share", json!(1.5), false),
        ("times", json!(-1), false),
        ("layer", json!(1.5), false),
        ("sum", json!(1), false),
    ] {
        let mut fault = json!({ "fault": "drop" });
        fault[key] = value;
        assert_eq!(good(&fault), is_good, "{fault}");
    }
}

/// Attention and FFN take a slot each, a link a third of one each way (all of it slept: nothing here needs a core for itself). With three
/// micro-batches the links hide behind the others' work; one waits for all of it.
#[cfg(feature = "more-tests")]
#[test]
fn three_micro_batches_hide_the_links_and_one_hides_nothing() {
    // Long, because a busy machine wakes who sleeps some milliseconds late.
    const SLOT_MS: f64 = 60.0;
    const LINK_MS: f64 = SLOT_MS / 3.0;
    // Filling and draining the pipeline is a link each way, whatever the number of steps.
    let (steps, layers) = (8, 6);
    // No rows of a prompt beside those that decode: every step is alike.
    let line =
        |index: u32| json!({ "prompt_token_ids": [5 + index], "max_tokens": steps, "ignore_eos": true }).to_string();
    let seconds = |deployment: &Deployment, micro_batches: usize, link_ms: f64| {
        let requests = deployment.file("requests.jsonl");
        let lines: Vec<String> = (0..micro_batches as u32).map(line).collect();
        std::fs::write(&requests, lines.join("\n")).expect("the folder takes files");
        let plan = write_plan(
            deployment,
            &json!([
                { "fault": "slow", "host": "a0", "edge": "a2f", "ms": SLOT_MS },
                { "fault": "slow", "host": "f0", "edge": "f2a", "ms": SLOT_MS },
                { "fault": "delay", "edge": "a2f", "ms": link_ms },
                { "fault": "delay", "edge": "f2a", "ms": link_ms },
            ]),
        );
        let schedule = format!("ping_pong:{micro_batches}");
        let more = ["--faults", path_text(&plan), "--schedule", &schedule];
        let _worker = deployment.worker_with("f0", &more);
        let run = [&more[..], &["--requests", path_text(&requests), "--format", "json"]].concat();
        let output = deployment.command("run", &run).output().expect("the binary starts");
        assert!(output.status.success(), "{}", hosts::stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
        report["duration_s"].as_f64().expect("it took some time")
    };
    let transfers_s = f64::from(steps * layers * 2) * LINK_MS * 1e-3;
    // Side by side, as all of them sleep, so that each has the same machine; three times, and the least of each: what else the machine
    // does only adds.
    let runs =
        [(3, LINK_MS), (3, 0.0), (1, LINK_MS), (1, 0.0)].map(|run| (Deployment::new(1, 1, Divided::Replicas), run));
    let mut least = [f64::INFINITY; 4];
    for _ in 0..3 {
        std::thread::scope(|scope| {
            let started = runs.each_ref().map(|(deployment, (micro_batches, link_ms))| {
                scope.spawn(|| seconds(deployment, *micro_batches, *link_ms))
            });
            for (least, run) in least.iter_mut().zip(started) {
                *least = least.min(run.join().expect("the run comes to its end"));
            }
        });
    }
    let hidden = |linked: f64, free: f64| 1.0 - (linked - free) / transfers_s;
    let (three, one) = (hidden(least[0], least[1]), hidden(least[2], least[3]));
    println!(
        "links of a third of a slot each way, hidden: ping_pong:3 {:.0} %, ping_pong:1 {:.0} %",
        three * 100.0,
        one * 100.0
    );
    assert!(three >= 0.9, "{three}");
    assert!(one <= 0.1, "{one}");
}
