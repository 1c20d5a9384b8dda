//! Hosts that are drained and added while a run goes on: SIGTERM asks a worker to leave, and starting one adds it. Nothing is lost, no
//! token and no logit changes, and whoever leaves ends with 0.
//!
//! `RALLY_KILLS=100` drains so many; the second test command does.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/draw.rs"]
mod draw;
#[path = "support/hosts.rs"]
mod hosts;

use draw::{draw, number};
use hosts::{Deployment, Divided, Process};
use std::time::{Duration, Instant};

/// Asks a host to leave, and waits until it has.
#[track_caller]
fn drain(worker: Process) -> String {
    binary::signal(worker.id(), "-TERM");
    let (code, said) = worker.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("has left"), "{said}");
    said
}

#[test]
fn hosts_are_drained_and_added_at_any_moment_and_no_token_changes() {
    let drains = number("RALLY_KILLS", 20);
    let deployment = Deployment::new(3, 2, Divided::Replicas);
    let requests = deployment.requests(9, 160);
    deployment.run_alone(&requests, "alone");
    // By host behind the first, which coordinates.
    let mut workers: Vec<Option<Process>> = deployment.workers().into_iter().map(Some).collect();
    let (mut seed, mut in_runs, mut took_ms) = (0, 0, Vec::new());
    while in_runs < drains {
        let run = deployment.run(&requests, "disturbed", &[]);
        // It is under way: what is said before is of the run before.
        run.says("decoding");
        let mut gone: Option<usize> = None;
        loop {
            seed += 1;
            assert!(seed < 20 * drains + 100, "runs are over before anything happens to them: {in_runs} of {seed}");
            std::thread::sleep(Duration::from_millis(draw(seed, 1, 120)));
            // One is away at any time: either FFN host has all experts, and the first host can attend alone.
            if let Some(host) = gone.take() {
                workers[host] = Some(deployment.worker(&deployment.hosts[1 + host]));
                if !run.says_or_ends(&format!("host `{}` is back", deployment.hosts[1 + host])) {
                    break;
                }
                continue;
            }
            let host = draw(seed, 2, workers.len() as u64) as usize;
            let asked = Instant::now();
            drain(workers[host].take().expect("only one is away"));
            gone = Some(host);
            if !run.says_or_ends(&format!("host `{}` leaves; the run goes on without it", deployment.hosts[1 + host])) {
                break;
            }
            took_ms.push(asked.elapsed().as_millis());
            in_runs += 1;
        }
        run.good_end();
        deployment.assert_same("alone", "disturbed");
        if let Some(host) = gone {
            workers[host] = Some(deployment.worker(&deployment.hosts[1 + host]));
        }
    }
    took_ms.sort_unstable();
    println!(
        "{in_runs} drained in runs, of {seed} moments; asked and gone after {} ms (median)",
        took_ms[took_ms.len() / 2]
    );
}

#[test]
fn a_host_that_nobody_can_stand_in_for_leaves_when_the_run_is_over() {
    let deployment = Deployment::new(1, 2, Divided::Experts);
    let mut workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    let leaving = workers.remove(1);
    binary::signal(leaving.id(), "-TERM");
    leaving.says("nobody else has what this host has");
    run.good_end();
    deployment.assert_same("alone", "across");
    let (code, said) = leaving.end();
    assert_eq!(code, Some(0), "{said}");
}

/// The last but one may go, and then the last must stay.
#[test]
fn of_two_replicas_that_are_asked_to_leave_at_once_one_stays() {
    let deployment = Deployment::new(1, 2, Divided::Replicas);
    let workers = deployment.workers();
    let run = deployment.in_the_middle("across", &workers, &[]);
    workers.iter().for_each(|worker| binary::signal(worker.id(), "-TERM"));
    run.says("leaves; the run goes on without it");
    run.good_end();
    deployment.assert_same("alone", "across");
    let said: Vec<String> = workers.into_iter().map(Process::good_end).collect();
    assert_eq!(said.iter().filter(|said| said.contains("nobody else has")).count(), 1, "{said:?}");
}

#[test]
fn without_a_run_a_host_leaves_at_once() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let worker = deployment.worker("f0");
    let asked = Instant::now();
    drain(worker);
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
}

/// A graph lists more hosts than there are: a run begins without them, and takes one in that is started later.
#[test]
fn a_host_that_was_never_there_is_added() {
    let deployment = Deployment::new(2, 2, Divided::Replicas);
    let workers = vec![deployment.worker("f0")];
    let run = deployment.in_the_middle("across", &workers, &["--wait-hosts", "0.5"]);
    let added = deployment.worker("f1");
    run.says("host `f1` is back");
    added.says("a run begins");
    run.good_end();
    deployment.assert_same("alone", "across");
}
