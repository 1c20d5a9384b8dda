//! Hosts whose rows go over NIXL, each a real process: the same tokens and logits as in one process, and a run that goes on when one is
//! lost. NIXL's library must be there (`RALLY_NIXL`).

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hosts.rs"]
mod hosts;

use binary::path_text;
use hosts::{Deployment, Divided, Process};
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn one_attention_host_and_one_ffn_host() {
    Deployment::over("nixl", 1, 1, Divided::Replicas).assert_as_in_one_process();
}

#[test]
fn two_attention_hosts_and_experts_on_two() {
    Deployment::over("nixl", 2, 2, Divided::Experts).assert_as_in_one_process();
}

#[test]
fn three_attention_hosts_and_two_copies_of_the_ffn() {
    Deployment::over("nixl", 3, 2, Divided::Replicas).assert_as_in_one_process();
}

#[test]
fn one_attention_host_and_experts_on_three() {
    Deployment::over("nixl", 1, 3, Divided::Experts).assert_as_in_one_process();
}

/// What a host says whose slots are in a device's memory.
const THERE: &str = "rows over NIXL cross from and to the memory of devices";

/// Rows go from one device's own memory to the other's.
#[test]
fn devices_with_memory_of_their_own() {
    // Three micro-batches, forth and back: to and from each attention device.
    let deployment = Deployment::over("nixl", 2, 2, Divided::Experts).on_cuda(&["a", "f"], ("f32", "f32"));
    let said = deployment.assert_as_in_one_process();
    assert!(said.contains(THERE) && said.contains("slots=12"), "{said}");
}

/// One end is the host's memory; rows cross narrowed.
#[test]
fn devices_of_both_kinds() {
    let deployment = Deployment::over("nixl", 1, 2, Divided::Experts).on_cuda(&["f"], ("fp8_e4m3", "bf16"));
    let said = deployment.assert_as_in_one_process();
    assert!(said.contains(THERE), "{said}");
}

/// Killed as with `kill -9` in the middle of its writes: told, the run goes on without it or waits, and it comes back under another name.
#[track_caller]
fn survives(divided: Divided, victim: usize, said: &str) {
    let deployment = Deployment::over("nixl", 2, 2, divided);
    let mut workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    let host = &deployment.hosts[1 + victim];
    workers[victim].kill();
    let killed = Instant::now();
    let told = run.says(&format!("host `{host}` is lost"));
    assert!(told.contains(said), "{told}");
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    let _back = deployment.worker(host);
    run.good_end();
    deployment.assert_same("alone", "across");
}

#[test]
fn an_attention_host_that_dies_changes_no_token() {
    survives(Divided::Experts, 0, "the run goes on without it");
}

#[test]
fn an_ffn_host_that_dies_changes_no_token_where_it_has_a_replica() {
    survives(Divided::Replicas, 1, "the run goes on without it");
}

#[test]
fn an_ffn_host_that_dies_and_comes_back_changes_no_token() {
    survives(Divided::Experts, 2, "the run waits for it");
}

/// A write to a process that is stopped never ends by itself.
#[test]
fn a_host_that_stalls_is_given_up_and_changes_nothing_when_it_wakes() {
    let deployment = Deployment::over("nixl", 1, 2, Divided::Replicas);
    let workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    binary::signal(workers[1].id(), "-STOP");
    let stopped = Instant::now();
    run.says("the run goes on without it");
    let told = stopped.elapsed();
    std::thread::sleep(Duration::from_secs(5).saturating_sub(stopped.elapsed()));
    binary::signal(workers[1].id(), "-CONT");
    run.good_end();
    deployment.assert_same("alone", "across");
    assert!(told < Duration::from_secs(8), "{told:?}");
}

/// Rows that come late, twice or in another order are what they were; one whose notification is garbled loses its host, which comes back.
#[test]
fn faults_on_purpose_change_no_token() {
    faults_change_no_token(Deployment::over("nixl", 2, 2, Divided::Experts));
}

#[test]
fn nor_do_they_where_rows_stay_in_devices_memory() {
    faults_change_no_token(Deployment::over("nixl", 2, 2, Divided::Experts).on_cuda(&["a0", "f"], ("f32", "f32")));
}

#[track_caller]
fn faults_change_no_token(deployment: Deployment) {
    let requests = deployment.requests(9, 24);
    deployment.run_alone(&requests, "alone");
    let plan = deployment.file("faults.json");
    let faults = json!({ "version": 1, "seed": 11, "faults": [
        { "fault": "delay", "share": 0.05, "ms": 8 },
        { "fault": "reorder", "edge": "a2f", "share": 0.1, "ms": 6 },
        { "fault": "duplicate", "edge": "f2a", "share": 0.2, "ms": 3 },
        { "fault": "corrupt", "from": "f0", "edge": "f2a", "steps": "6..", "times": 1 },
        { "fault": "restart", "host": "f1", "steps": "12..", "ms": 100 },
    ] });
    std::fs::write(&plan, faults.to_string()).expect("the folder takes files");
    let more = ["--faults", path_text(&plan)];
    let workers: Vec<Process> = deployment.hosts[1..].iter().map(|host| deployment.worker_with(host, &more)).collect();
    let said = deployment.run(&requests, "across", &more).good_end();
    deployment.assert_same("alone", "across");
    assert!(said.contains("host `f0` is lost") && said.contains("host `f1` is lost"), "{said}");
    let told: Vec<String> = workers.iter().map(Process::everything).collect();
    for name in ["delay", "duplicate", "corrupt"] {
        assert!(told.concat().contains(&format!("fault=\"{name}\"")), "no `{name}` happened: {told:?}");
    }
    assert!(told.iter().all(|told| !told.contains("panicked")), "{told:?}");
}

/// Without its library a host says what is missing, and does not die of it.
#[test]
fn without_the_library_a_host_says_so() {
    let deployment = Deployment::over("nixl", 1, 1, Divided::Replicas);
    let mut command = deployment.command("worker", &["--host", "f0"]);
    command.env("RALLY_NIXL", deployment.file("no-such-library.so"));
    let (code, said) = Process::start(command).end();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("transfer `a2f` goes over `nixl`") && said.contains("RALLY_NIXL"), "{said}");
}
