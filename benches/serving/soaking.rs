//! 100,000 short requests at 256 connections before `rally serve` as a process of its own.

use crate::clients::on_this_thread;
use crate::soak::{memory_kb, soak};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

const REQUESTS: usize = 100_000;
const CONNECTIONS: usize = 256;
/// Growth after that which is still flat: allocators keep some.
const BAR_KB: usize = 4096;

pub fn run() {
    let requests = crate::size("RALLY_REQUESTS", REQUESTS).max(20);
    // Until then pools and caches are reached for the first time.
    let warm_at = requests / 10;
    let mut server = Command::new(env!("CARGO_BIN_EXE_rally"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["serve", "graphs/tiny-ping-pong.json", "--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(server.stderr.take().expect("stderr is piped")).lines().map_while(Result::ok);
    let address = lines.next().and_then(|line| line.split_once("://")?.1.parse().ok()).expect("it listens");
    assert!(lines.next().is_some_and(|line| line.starts_with("ready")), "it serves");

    let samples = Arc::new(Mutex::new(Vec::new()));
    let (theirs, process) = (Arc::clone(&samples), server.id());
    let sample = move |answered: usize| {
        if answered.is_multiple_of(requests / 20) {
            theirs.lock().expect("nobody panics").push((answered, memory_kb(process)));
        }
    };
    let began = Instant::now();
    let soaked = on_this_thread(soak(address, requests, CONNECTIONS, sample));
    let seconds = began.elapsed().as_secs_f64();
    server.kill().expect("it still runs");
    server.wait().expect("it is ours");

    let samples = samples.lock().expect("nobody panics");
    let warm: Vec<usize> = samples.iter().filter(|(answered, _)| *answered >= warm_at).map(|(_, kb)| *kb).collect();
    let (first, last, most) = (warm[0], warm[warm.len() - 1], warm.iter().max().copied().unwrap_or(0));
    println!(
        "soak: {requests} requests at {CONNECTIONS} connections in {seconds:.0} s ({:.0} a second, {:.0} tokens/s): {} streams ended with \
         [DONE], {} whole answers, {} faults; bar 0: {}",
        requests as f64 / seconds,
        soaked.tokens as f64 / seconds,
        soaked.streams,
        soaked.whole,
        soaked.faults.len(),
        if soaked.faults.is_empty() && soaked.streams + soaked.whole == requests { "kept" } else { "NOT KEPT" },
    );
    soaked.faults.iter().take(5).for_each(|fault| println!("  {fault:.300}"));
    println!(
        "  memory after {warm_at} requests {first} kB, at the end {last} kB, at most {most} kB; growth {} kB, bar {BAR_KB}: {}",
        last.saturating_sub(first),
        if last <= first + BAR_KB { "flat" } else { "GROWS" },
    );
    println!("  samples (kB): {:?}", samples.iter().map(|(_, kb)| *kb).collect::<Vec<_>>());
}
