//! Lanes that hang in a host that still shows signs of life, and rows and words that are lost on a connection that lives: nobody waits
//! for ever.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hosts.rs"]
mod hosts;

use binary::path_text;
use hosts::{Deployment, Divided, Process};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longer than any test takes.
const FOR_EVER_MS: u64 = 600_000;
/// Five seconds in which nothing moves, what the run takes, and what a busy machine adds.
const SOON: Duration = Duration::from_secs(30);

struct Ended {
    code: Option<i32>,
    said: String,
    took: Duration,
}

fn run_with(deployment: &Deployment, faults: &Value, more: &[&str]) -> Ended {
    let (plan, requests) = (deployment.file("faults.json"), deployment.requests(6, 16));
    let text = json!({ "version": 1, "faults": faults }).to_string();
    std::fs::write(&plan, text).expect("the folder takes files");
    let with = ["--faults", path_text(&plan)];
    let _workers: Vec<Process> = deployment.hosts[1..].iter().map(|host| deployment.worker_with(host, &with)).collect();
    let began = Instant::now();
    let (code, said) = deployment.run(&requests, "across", &[&with[..], more].concat()).end();
    Ended { code, said, took: began.elapsed() }
}

#[track_caller]
fn goes_on(deployment: &Deployment, faults: &Value, told: &str) {
    deployment.run_alone(&deployment.requests(6, 16), "alone");
    let Ended { code, said, took } = run_with(deployment, faults, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(told), "{said}");
    assert!(took < SOON, "{took:?}: {said}");
    deployment.assert_same("alone", "across");
}

fn hangs(host: &str) -> Value {
    json!([{ "fault": "slow", "host": host, "steps": "4..", "times": 1, "ms": FOR_EVER_MS }])
}

#[test]
fn an_ffn_host_with_a_lane_that_hangs_is_given_up_and_a_replica_takes_over() {
    let told = "host `f1` is lost: it shows signs of life, but a lane of it has been at one task for";
    goes_on(&Deployment::new(1, 2, Divided::Replicas), &hangs("f1"), told);
}

#[test]
fn an_attention_host_with_a_lane_that_hangs_is_given_up_and_its_sequences_move() {
    let told = "host `a1` is lost: it shows signs of life, but a lane of it has been at one task for";
    goes_on(&Deployment::new(2, 1, Divided::Replicas), &hangs("a1"), told);
}

/// Nobody else has what it has, and it does not come back.
#[test]
fn the_only_ffn_host_with_a_lane_that_hangs_ends_the_run_with_its_name() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let Ended { code, said, took } = run_with(&deployment, &hangs("f0"), &["--wait-hosts", "1"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("host `f0` is lost: it shows signs of life"), "{said}");
    assert!(said.contains("host `f0`") && said.contains("is missing after 1 s"), "{said}");
    assert!(took < SOON, "{took:?}");
}

/// It waits six times as long: nobody can go on without it.
#[cfg(feature = "more-tests")]
#[test]
fn a_coordinator_with_a_lane_that_hangs_names_it_and_ends() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let Ended { code, said, took } = run_with(&deployment, &hangs("a0"), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("a lane of this host hangs: `a0"), "{said}");
    assert!(took < SOON * 2, "{took:?}");
}

/// Everybody waits, and nobody is to blame.
#[test]
fn rows_that_are_lost_are_missed_and_sent_again() {
    let lost = |edge: &str| json!([{ "fault": "drop", "edge": edge, "steps": "5..", "times": 1 }]);
    let deployment = Deployment::new(2, 1, Divided::Replicas);
    goes_on(&deployment, &lost("f2a"), "something was lost between the hosts; all hosts are asked again");
    goes_on(&deployment, &lost("control"), "something was lost between the hosts; all hosts are asked again");
}
