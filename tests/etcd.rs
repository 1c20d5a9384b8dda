//! Membership by a real etcd: hosts that find each other by their keys, wherever they listen, and what becomes of a run when keys or etcd
//! itself go away.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hosts.rs"]
mod hosts;

use hosts::{Deployment, Divided, Process, free_ports};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Of every host's key: what etcd is asked for at least.
const LEASE_SECONDS: u32 = 2;

/// An etcd of one member, in a folder of its own.
struct Etcd {
    ports: Vec<u16>,
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Etcd {
    /// One that is not started yet.
    fn new() -> Self {
        Self { ports: free_ports(2), folder: tempfile::tempdir().expect("a folder can be had"), process: None }
    }

    fn started() -> Self {
        let mut etcd = Self::new();
        etcd.start();
        etcd
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    /// Starts it, again with what it knew before, and waits until it answers.
    fn start(&mut self) {
        let (client, peer) = (self.address(), format!("http://127.0.0.1:{}", self.ports[1]));
        let mut command = Command::new("etcd");
        command.args(["--data-dir".as_ref(), self.folder.path().join("data").as_os_str()]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().expect("etcd is installed: scripts/install-test-tools"));
        let until = Instant::now() + hosts::SOON;
        while self.ask("kv/range", &json!({ "key": "AA==" })).is_none() {
            assert!(Instant::now() < until, "etcd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it is ours");
        process.wait().expect("it is ours");
    }

    fn ask(&self, method: &str, body: &Value) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports[0])).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let body = body.to_string();
        let head = format!("POST /v3/{method} HTTP/1.0\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// All keys, with their values as in etcd: in base64.
    fn keys(&self) -> Vec<(String, String)> {
        let answer = self.ask("kv/range", &json!({ "key": "AA==", "range_end": "AA==" })).expect("etcd answers");
        let text = |value: &Value| value.as_str().expect("it is text").to_owned();
        let keys = answer["kvs"].as_array().cloned().unwrap_or_default();
        keys.iter().map(|pair| (decode(&text(&pair["key"])), text(&pair["value"]))).collect()
    }

    fn member(&self, host: &str) -> Option<Value> {
        let (_, value) = self.keys().into_iter().find(|(key, _)| *key == format!("/rally/hosts/hosts/{host}"))?;
        Some(serde_json::from_str(&decode(&value)).expect("a member is JSON"))
    }

    /// Waits until a host's key is, or is not, as wanted.
    #[track_caller]
    fn until(&self, host: &str, wanted: impl Fn(Option<&Value>) -> bool) {
        let until = Instant::now() + hosts::SOON;
        while !wanted(self.member(host).as_ref()) {
            assert!(Instant::now() < until, "{host}: {:?}", self.member(host));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Text out of base64.
fn decode(text: &str) -> String {
    let digits = text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte));
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in digits {
        (bits, count) = (bits << 6 | digit as u32, count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    String::from_utf8(bytes).expect("it is text")
}

/// Text into base64; its length is divisible by three.
fn encode(text: &str) -> String {
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[(bits >> shift) as usize & 63]))
    };
    text.as_bytes().chunks(3).flat_map(group).collect()
}

/// Hosts that are found by `etcd` and listen on whatever port is free.
fn deployment(etcd: &Etcd, attention: usize, ffn: usize) -> Deployment {
    let deployment = Deployment::new(attention, ffn, Divided::Replicas);
    deployment.edit(|graph| {
        graph["membership"] = json!({ "etcd": [etcd.address()], "lease_seconds": LEASE_SECONDS });
        graph["hosts"] = deployment.hosts.iter().map(|host| (host.clone(), json!({}))).collect();
    });
    deployment
}

const LISTEN: [&str; 2] = ["--listen", "127.0.0.1:0"];

fn workers(deployment: &Deployment) -> Vec<Process> {
    deployment.hosts[1..].iter().map(|host| deployment.worker_with(host, &LISTEN)).collect()
}

/// The run first, then etcd, then the hosts from the last to the first.
#[test]
fn hosts_that_start_in_any_order_find_each_other() {
    let mut etcd = Etcd::new();
    let deployment = deployment(&etcd, 2, 2);
    let requests = deployment.requests(9, 12);
    deployment.run_alone(&requests, "alone");
    let run = deployment.run(&requests, "across", &["--wait-hosts", "120"]);
    let said = run.says("waiting for etcd, for 120 s");
    assert!(said.contains(&etcd.address()), "{said}");
    etcd.start();
    run.says("waiting for host");
    let mut workers: Vec<Process> =
        deployment.hosts[1..].iter().rev().map(|host| deployment.worker_with(host, &LISTEN)).collect();
    run.good_end();
    deployment.assert_same("alone", "across");
    let member = etcd.member("f1").expect("its key is there");
    assert_eq!((&member["host"], &member["transports"]), (&json!("f1"), &json!(["tcp"])), "{member}");
    assert_eq!(member["serves"], json!({ "f1": ["expert_ffn", "dense_ffn"] }), "{member}");
    assert!(member["address"].as_str().is_some_and(|address| address.starts_with("127.0.0.1:")), "{member}");
    assert_eq!(member["plan"].as_str().map(str::len), Some(16), "{member}");
    etcd.until("f1", |member| member.is_some_and(|member| member["epoch"].is_null()));
    // Asked to leave, a host takes its key along.
    let leaving = workers.remove(0);
    binary::signal(leaving.id(), "-TERM");
    leaving.good_end();
    assert_eq!(etcd.member("f1"), None);
    assert_eq!(etcd.keys().len(), 2);
}

#[test]
fn a_lease_that_runs_out_removes_a_host_until_it_wakes() {
    let etcd = Etcd::started();
    let deployment = deployment(&etcd, 1, 2);
    let requests = deployment.requests(12, 160);
    deployment.run_alone(&requests, "alone");
    let workers = workers(&deployment);
    etcd.until("f1", |member| member.is_some());
    binary::signal(workers[1].id(), "-STOP");
    etcd.until("f1", |member| member.is_none());
    let run = deployment.run(&requests, "across", &["--wait-hosts", "1"]);
    let said = run.says("the run begins without it");
    assert!(said.contains("host `f1` (not in etcd) is missing after 1 s"), "{said}");
    binary::signal(workers[1].id(), "-CONT");
    run.says("host `f1` is back");
    etcd.until("f1", |member| member.is_some_and(|member| member["epoch"].is_string()));
    run.good_end();
    deployment.assert_same("alone", "across");
}

/// Even hosts are lost and left out meanwhile: what etcd said last holds. One that comes is found once etcd is back.
#[test]
fn an_etcd_that_goes_away_stops_no_run() {
    let mut etcd = Etcd::started();
    let deployment = deployment(&etcd, 2, 2);
    let requests = deployment.requests(12, 400);
    deployment.run_alone(&requests, "alone");
    let mut workers = workers(&deployment);
    let run = deployment.run(&requests, "across", &[]);
    workers.iter().for_each(|worker| drop(worker.says("a run begins")));
    etcd.kill();
    let killed = Instant::now();
    // Longer than a lease.
    std::thread::sleep(Duration::from_millis(500));
    workers[2].kill();
    run.says("host `f1` is lost");
    workers[0].says("a run begins");
    let mut command = deployment.command("worker", &[&["--host", "f1"], LISTEN.as_slice()].concat());
    command.env("RALLY_LOG", "info");
    workers[2] = Process::start(command);
    let said = workers[2].says("waiting for etcd, until it answers");
    assert!(said.contains(&etcd.address()), "{said}");
    etcd.start();
    let away = killed.elapsed();
    workers[2].says("waits for a run");
    if run.says_or_ends("host `f1` is back") {
        workers[2].says("a run begins");
    }
    run.good_end();
    deployment.assert_same("alone", "across");
    println!("etcd was away for {} ms", away.as_millis());
    // All keys are there again, whatever etcd forgot.
    ["a1", "f0", "f1"].into_iter().for_each(|host| etcd.until(host, |member| member.is_some()));
    deployment.run(&requests, "again", &[]).good_end();
    deployment.assert_same("alone", "again");
}

#[test]
fn hosts_that_would_do_other_work_or_are_there_already_are_refused() {
    let etcd = Etcd::started();
    let deployment = deployment(&etcd, 1, 2);
    let _worker = deployment.worker_with("f0", &LISTEN);
    let refused = |host: &str, listen: &[&str], more: &[&str]| {
        let arguments = [&["--host", host], listen, more].concat();
        let (code, said) = Process::start(deployment.command("worker", &arguments)).end();
        assert_eq!(code, Some(2), "{said}");
        said
    };
    let said = refused("f1", &LISTEN, &["--schedule", "ping_pong:2"]);
    assert!(said.contains("host `f0` has another plan: ") && said.contains(" here, "), "{said}");
    let said = refused("f0", &LISTEN, &[]);
    assert!(said.contains("host `f0` is up already, at 127.0.0.1:"), "{said}");
    let said = refused("f1", &["--listen", "0.0.0.0:0"], &[]);
    assert!(said.contains("--listen 0.0.0.0:0: that is every interface"), "{said}");
    let said = refused("f1", &[], &[]);
    assert!(said.contains("the graph gives host `f1` no address"), "{said}");
}

/// Another process comes as a host that was killed, before its lease has run out.
#[test]
fn a_host_that_was_killed_takes_its_name_over() {
    let etcd = Etcd::started();
    let deployment = deployment(&etcd, 1, 1);
    let requests = deployment.requests(3, 8);
    deployment.run_alone(&requests, "alone");
    let mut worker = deployment.worker_with("f0", &LISTEN);
    let before = etcd.member("f0").expect("its key is there");
    worker.kill();
    let _worker = deployment.worker_with("f0", &LISTEN);
    let after = etcd.member("f0").expect("its key is there");
    assert_ne!(before["incarnation"], after["incarnation"]);
    deployment.run(&requests, "across", &[]).good_end();
    deployment.assert_same("alone", "across");
    // The first one's lease takes nothing along that is the second one's.
    std::thread::sleep(Duration::from_secs(u64::from(LEASE_SECONDS) * 3));
    assert_eq!(etcd.member("f0").map(|member| member["incarnation"].clone()), Some(after["incarnation"].clone()));
}

/// Who can write to etcd, and has not the shared key, is believed nothing.
#[test]
fn keys_of_strangers_are_no_hosts() {
    let etcd = Etcd::started();
    let deployment = deployment(&etcd, 1, 2);
    let requests = deployment.requests(3, 8);
    deployment.run_alone(&requests, "alone");
    let _worker = deployment.worker_with("f0", &LISTEN);
    let f0 = etcd.keys().into_iter().find(|(key, _)| key.ends_with("/f0")).expect("its key is there").1;
    // What f0 signed, as f1's; junk; a host that the graph has not.
    let put = |key: &str, value: &str| {
        let key = format!("/rally/hosts/hosts/{key}");
        assert_eq!(key.len() % 3, 0, "{key}");
        etcd.ask("kv/put", &json!({ "key": encode(&key), "value": value })).expect("etcd takes it");
    };
    put("f1", &f0);
    put("zz", &encode("junk!!"));
    put("f0/00", &f0);
    let run = deployment.run(&requests, "across", &["--wait-hosts", "1"]);
    let said = run.good_end();
    assert!(said.contains("host `f1` (not in etcd) is missing"), "{said}");
    assert_eq!(said.matches("of no host of this graph").count(), 3, "each is told once: {said}");
    deployment.assert_same("alone", "across");
}
