//! Deployments on several hosts, each a real process: the same tokens and logits as in one process, and clean ends when something is
//! wrong.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hosts.rs"]
mod hosts;

use binary::path_text;
use hosts::{Deployment, Divided, Process, free_ports};
use serde_json::json;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

#[test]
fn one_attention_host_and_one_ffn_host() {
    Deployment::new(1, 1, Divided::Replicas).assert_as_in_one_process();
}

#[test]
fn two_attention_hosts_and_experts_on_two() {
    Deployment::new(2, 2, Divided::Experts).assert_as_in_one_process();
}

#[test]
fn three_attention_hosts_and_two_copies_of_the_ffn() {
    Deployment::new(3, 2, Divided::Replicas).assert_as_in_one_process();
}

#[test]
fn one_attention_host_and_experts_on_three() {
    Deployment::new(1, 3, Divided::Experts).assert_as_in_one_process();
}

/// Page tables travel with the rows of a step: hosts that attend need know nothing of pages that sequences share.
#[test]
fn hosts_share_pages_as_one_process_does() {
    let deployment = Deployment::new(2, 1, Divided::Replicas);
    // More than are decoded at once: the later ones find what the others have read.
    let line = |index: usize| {
        let prompt: Vec<usize> = (0..40).map(|i| 5 + i * 17).chain([3000 + index, index]).collect();
        json!({ "id": format!("r{index}"), "prompt_token_ids": prompt, "max_tokens": 6, "ignore_eos": true })
            .to_string()
    };
    let requests = deployment.file("alike.jsonl");
    let lines: Vec<String> = (0..36).map(line).collect();
    std::fs::write(&requests, lines.join("\n")).expect("the folder takes files");
    deployment.run_alone(&requests, "alone");
    let _workers = deployment.workers();
    let said = deployment.run(&requests, "shared", &["--prefix-reuse"]).good_end();
    deployment.assert_same("alone", "shared");
    let told = said.split(", ").find_map(|part| part.split_once(" tokens of prompts reused"));
    let (reused, of) = told.and_then(|(told, _)| told.split_once(" of ")).unwrap_or_else(|| panic!("{said}"));
    // Two of the three pages of a prompt.
    assert!(reused.parse::<usize>().is_ok_and(|reused| reused >= 8 * 32) && of == "1512", "{said}");
}

/// A host dies as with `kill -9` and is started again: the run goes on by itself, and nobody can tell from what it wrote.
#[track_caller]
fn survives(victim: usize, goes_on: bool) {
    let deployment = Deployment::new(2, 2, Divided::Experts);
    let mut workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    let host = &deployment.hosts[1 + victim];
    workers[victim].kill();
    let killed = Instant::now();
    let lost = format!("host `{host}` is lost");
    let said = run.says(&lost);
    let told = killed.elapsed();
    if goes_on {
        assert!(said.contains("the run goes on without it"), "{said}");
    } else {
        assert!(said.contains("the run waits for it"), "{said}");
        run.says(&format!("waiting for host `{host}`"));
    }
    let back = deployment.worker(host);
    run.good_end();
    deployment.assert_same("alone", "across");
    // A closed connection is noticed at once; the time is what a busy machine adds.
    assert!(told < Duration::from_secs(2), "{told:?}");
    drop(back);
}

#[test]
fn an_attention_host_that_dies_and_comes_back_changes_no_token() {
    survives(0, true);
}

#[test]
fn an_ffn_host_that_dies_and_comes_back_changes_no_token() {
    survives(2, false);
}

/// Whoever coordinates has no attention device, and the only host that has one dies.
#[test]
fn without_any_attention_host_a_run_waits_for_one() {
    let deployment = Deployment::new(1, 2, Divided::Replicas);
    let mut workers = vec![deployment.worker("a0"), deployment.worker("f1")];
    let run = deployment.in_the_middle("across", &workers, &["--host", "f0"]);
    workers[0].kill();
    let said = run.says("host `a0` is lost");
    assert!(said.contains("the run waits for it"), "{said}");
    run.says("waiting for host `a0`");
    workers[0] = deployment.worker("a0");
    run.good_end();
    deployment.assert_same("alone", "across");
}

#[test]
fn a_host_that_stays_away_ends_the_run_with_its_name() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let mut workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &["--wait-hosts", "1"]);
    workers[0].kill();
    let killed = Instant::now();
    let (code, said) = run.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("host `f0`") && said.contains("is missing after 1 s"), "{said}");
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    assert!(!said.contains("panicked"), "{said}");
}

/// Stopped, a process keeps its connections: it is given up after two seconds, and when it wakes what it says is heard by nobody.
#[test]
fn a_host_that_stalls_is_given_up_and_changes_nothing_when_it_wakes() {
    let deployment = Deployment::new(1, 2, Divided::Experts);
    let workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    binary::signal(workers[1].id(), "-STOP");
    let stopped = Instant::now();
    run.says("is lost");
    let told = stopped.elapsed();
    binary::signal(workers[1].id(), "-CONT");
    run.good_end();
    deployment.assert_same("alone", "across");
    assert!(told < Duration::from_secs(8), "{told:?}");
}

/// Stopped for longer than anyone waits: its rows go to the other replica, and when it wakes it is told that it is out.
#[test]
fn a_replica_that_stalls_for_five_seconds_holds_nobody_up() {
    let deployment = Deployment::new(2, 2, Divided::Replicas);
    let workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    binary::signal(workers[2].id(), "-STOP");
    let stopped = Instant::now();
    run.says("the run goes on without it");
    let told = stopped.elapsed();
    std::thread::sleep(Duration::from_secs(5).saturating_sub(stopped.elapsed()));
    binary::signal(workers[2].id(), "-CONT");
    workers[2].says("have given this host up");
    run.good_end();
    deployment.assert_same("alone", "across");
    println!("a host that was stopped was given up after {} ms", told.as_millis());
    assert!(told < Duration::from_secs(4), "{told:?}");
    // It is there for the next run.
    let requests = deployment.requests(3, 4);
    deployment.run_alone(&requests, "alone");
    deployment.run(&requests, "again", &[]).good_end();
    deployment.assert_same("alone", "again");
}

#[test]
fn a_second_run_hears_whose_run_a_host_is_busy_with() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    let second = deployment.run(&deployment.requests(12, 160), "second", &["--wait-hosts", "0.2"]);
    let (code, said) = second.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("host `f0`") && said.contains("it is busy with a run of host `a0`"), "{said}");
    run.good_end();
    deployment.assert_same("alone", "across");
}

#[test]
fn hosts_that_do_other_work_are_refused_with_both_values() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let requests = deployment.requests(1, 2);
    let said = |run: Process| {
        let (code, said) = run.end();
        assert_eq!(code, Some(2), "{said}");
        said
    };
    let worker = deployment.worker("f0");
    let other = said(deployment.run(&requests, "across", &["--schedule", "ping_pong:2"]));
    assert!(other.contains("host `f0` has another plan: ") && other.contains(" here, "), "{other}");
    worker.says("has another plan");
    let key = deployment.file("other.key");
    std::fs::write(&key, "another key that is long enough").expect("the folder takes files");
    let run = ["run", path_text(&deployment.graph), "--key-file", path_text(&key), "--prompt", "x"];
    let other = said(Process::start(binary::rally(&run)));
    assert!(other.contains("key"), "{other}");
    let run = ["run", path_text(&deployment.graph), "--prompt", "x"];
    let other = said(Process::start(binary::rally(&run)));
    assert!(other.contains("--key-file"), "{other}");
    // After all of them, who has the right to may.
    deployment.run(&requests, "across", &[]).good_end();
}

/// A build without NIXL checks such a graph, and says how to get one that runs it.
#[cfg(not(feature = "nixl"))]
#[test]
fn rows_over_an_engine_that_was_not_built_are_refused_before_anything_is_loaded() {
    let deployment = Deployment::over("nixl", 1, 1, Divided::Replicas);
    for command in [deployment.command("worker", &["--host", "f0"]), deployment.command("run", &["--prompt", "x"])] {
        let (code, said) = Process::start(command).end();
        assert_eq!(code, Some(2), "{said}");
        for part in ["transfer `a2f` goes over `nixl`", "--features nixl", "`\"transport\": \"tcp\"`"] {
            assert!(said.contains(part), "`{part}` is not in: {said}");
        }
    }
    binary::good(&["check", path_text(&deployment.graph)]);
}

#[test]
fn an_etcd_that_does_not_answer_is_named_with_the_time_that_it_is_tried() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let address = format!("http://127.0.0.1:{}", free_ports(1)[0]);
    deployment.edit(|graph| graph["membership"] = json!({ "etcd": [address] }));
    let run = deployment.run(&deployment.requests(1, 2), "across", &["--wait-hosts", "0.5"]);
    let worker = deployment.command("worker", &["--host", "f0", "--wait-coordinator", "0.5"]);
    for process in [run, Process::start(worker)] {
        let (code, said) = process.end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("waiting for etcd, for 0.5 s: etcd at {address}: ")), "{said}");
        assert!(said.contains("no etcd after 0.5 s"), "{said}");
    }
}

#[test]
fn strangers_at_a_hosts_port_harm_no_run() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    for index in 0..200usize {
        let mut stranger = TcpStream::connect(&deployment.addresses[1]).expect("the host listens");
        let junk = [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"rallyv1\n\x01\0\0\0", b""][index % 3];
        stranger.write_all(junk).expect("it is taken");
    }
    run.good_end();
    deployment.assert_same("alone", "across");
    let said = workers[0].everything();
    assert!(said.matches("a connection was refused").count() <= 3, "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn the_ways_between_hosts_are_measured() {
    let deployment = Deployment::new(2, 1, Divided::Replicas);
    let _worker = deployment.worker("f0");
    let output = deployment.command("worker", &["--host", "a0", "--check", "--format", "json"]).output();
    let output = output.expect("the binary starts");
    assert_eq!(output.status.code(), Some(1), "one host is not there: {}", hosts::stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    assert_eq!((&report["from"], &report["ok"]), (&"a0".into(), &false.into()));
    let ways = report["hosts"].as_array().expect("a list");
    assert_eq!((&ways[0]["host"], &ways[1]["host"]), (&"a1".into(), &"f0".into()));
    assert!(ways[0]["error"].as_str().is_some_and(|error| error.contains("`a1`")), "{report}");
    assert!(ways[1]["round_trip_us"].as_f64().is_some_and(|us| us > 0.0), "{report}");
    assert!(ways[1]["gigabytes_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{report}");
}
