//! A deployment on several hosts, each a process of the real binary on this machine.
// Each test binary uses its own part of this module.
#![allow(dead_code)]

use crate::binary::{path_text, rally, text};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Nothing of a test takes longer than this, or it hangs.
pub const SOON: Duration = Duration::from_secs(180);

/// How the FFN is divided over its hosts.
#[derive(Clone, Copy, Debug)]
pub enum Divided {
    /// Whole copies.
    Replicas,
    /// Parts of the experts; dense layers are copied.
    Experts,
}

/// A graph whose attention and FFN devices have a host each.
pub struct Deployment {
    /// Where its files are.
    pub folder: tempfile::TempDir,
    /// The graph with hosts.
    pub graph: PathBuf,
    /// The same in one process.
    pub alone: PathBuf,
    /// The shared key.
    pub key: PathBuf,
    /// The hosts' names, attention first.
    pub hosts: Vec<String>,
    /// By host.
    pub addresses: Vec<String>,
    /// What its processes find in their environment besides.
    pub environment: Vec<(&'static str, String)>,
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(path).expect("it was written");
    let mut graph = serde_json::from_str(&text).expect("it was written as JSON");
    change(&mut graph);
    std::fs::write(path, graph.to_string()).expect("the folder takes files");
}

/// Ports that were free a moment ago.
pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port can be had")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("it listens").port()).collect()
}

impl Deployment {
    /// `attention` and `ffn` devices, f32 on every wire.
    pub fn new(attention: usize, ffn: usize, divided: Divided) -> Self {
        Self::over("tcp", attention, ffn, divided)
    }

    /// The same, with rows over this transport.
    pub fn over(transport: &str, attention: usize, ffn: usize, divided: Divided) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be had");
        let name = |prefix: &str, count: usize| (0..count).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        let (a, f) = (name("a", attention), name("f", ffn));
        let hosts = [a.clone(), f.clone()].concat();
        let addresses: Vec<String> =
            free_ports(hosts.len()).into_iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let (experts, dense) = match divided {
            Divided::Replicas => (json!({ "replicas": ffn }), json!({ "replicas": ffn })),
            Divided::Experts => (json!({ "experts": ffn }), json!({ "replicas": ffn })),
        };
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-step3");
        let graph = |across: bool| {
            let device = |name: &String| {
                let mut device = json!({ "backend": "cpu" });
                if across {
                    device["host"] = json!(name);
                }
                (name.clone(), device)
            };
            let transfer = |id: &str, from: &[String], to: &[String]| {
                let mut stage = json!({ "kind": "transfer", "id": id, "from": from, "to": to, "dtype": "f32" });
                if across {
                    stage["transport"] = json!(transport);
                }
                stage
            };
            let mut graph = json!({
                "version": 1, "name": "hosts", "model": model,
                "devices": hosts.iter().map(device).collect::<serde_json::Map<_, _>>(),
                "stages": [
                    { "kind": "embed", "on": a },
                    { "layers": [
                        { "kind": "mfa_attention", "on": a, "kv_dtype": "bf16" },
                        { "kind": "router", "on": a, "on_layers": "moe" },
                        transfer("a2f", &a, &f),
                        { "kind": "expert_ffn", "on": f, "on_layers": "moe", "shard": experts },
                        { "kind": "dense_ffn", "on": f, "on_layers": "dense", "shard": dense },
                        transfer("f2a", &f, &a),
                        { "kind": "combine", "on": a },
                    ]},
                    { "kind": "sampling", "on": a },
                ],
                "limits": {
                    "sequences": 24, "rows_per_micro_batch": 48, "prefill_chunk": 16, "kv_tokens": 8192,
                    "page_tokens": 16,
                },
                "schedule": { "policy": "ping_pong", "micro_batches": 3 },
            });
            if across {
                let pairs = hosts.iter().zip(&addresses);
                graph["hosts"] = pairs.map(|(host, address)| (host.clone(), json!({ "address": address }))).collect();
            }
            graph
        };
        let write = |name: &str, value: &Value| {
            let path = folder.path().join(name);
            std::fs::write(&path, value.to_string()).expect("the folder takes files");
            path
        };
        let (across, alone) = (write("graph.json", &graph(true)), write("alone.json", &graph(false)));
        let key = write("rally.key", &json!("a key that only these hosts have"));
        Self { folder, graph: across, alone, key, hosts, addresses, environment: Vec::new() }
    }

    /// Changes the graph with hosts.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        edit(&self.graph, change);
    }

    /// Makes those devices whose names begin with one of `names` CUDA devices, which the processor stands in for unless `RALLY_CUDA` says
    /// `card`; rows cross as `forth` and `back`. In both graphs.
    pub fn on_cuda(mut self, names: &[&str], (forth, back): (&str, &str)) -> Self {
        let machines = std::env::var("RALLY_CUDA").unwrap_or_else(|_| "stand-in".into());
        self.environment.push(("RALLY_CUDA", machines));
        for path in [&self.graph, &self.alone] {
            edit(path, |graph| {
                for (name, device) in graph["devices"].as_object_mut().expect("devices are an object") {
                    if names.iter().any(|prefix| name.starts_with(prefix)) {
                        device["backend"] = json!("cuda");
                    }
                }
                let layers = graph["stages"][1]["layers"].as_array_mut().expect("there are layers");
                for stage in layers.iter_mut().filter(|stage| stage["kind"] == "transfer") {
                    stage["dtype"] = json!(if stage["id"] == "a2f" { forth } else { back });
                }
            });
        }
        self
    }

    /// A path for a file of the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `rally COMMAND GRAPH …` with the key.
    pub fn command(&self, command: &str, more: &[&str]) -> Command {
        let mut arguments = vec![command, path_text(&self.graph), "--key-file", path_text(&self.key)];
        arguments.extend(more);
        self.rally(&arguments)
    }

    fn rally(&self, arguments: &[&str]) -> Command {
        let mut command = rally(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts a host and waits until it listens.
    pub fn worker(&self, host: &str) -> Process {
        self.worker_with(host, &[])
    }

    /// The same with further arguments.
    pub fn worker_with(&self, host: &str, more: &[&str]) -> Process {
        let mut command = self.command("worker", &[&["--host", host], more].concat());
        command.env("RALLY_LOG", "info");
        let process = Process::start(command);
        process.says("waits for a run");
        process
    }

    /// All hosts but the first, which `rally run` is on.
    pub fn workers(&self) -> Vec<Process> {
        self.hosts[1..].iter().map(|host| self.worker(host)).collect()
    }

    /// `rally run` of a file of requests on all hosts; its results go to `NAME.jsonl` and `NAME.safetensors`.
    pub fn run(&self, requests: &Path, name: &str, more: &[&str]) -> Process {
        let (out, logits) = (self.file(&format!("{name}.jsonl")), self.file(&format!("{name}.safetensors")));
        let mut arguments = vec!["--requests", path_text(requests), "--out", path_text(&out)];
        arguments.extend(["--logits", path_text(&logits)]);
        arguments.extend(more);
        let mut command = self.command("run", &arguments);
        command.env("RALLY_LOG", "info");
        Process::start(command)
    }

    /// The same in one process.
    pub fn run_alone(&self, requests: &Path, name: &str) {
        let (out, logits) = (self.file(&format!("{name}.jsonl")), self.file(&format!("{name}.safetensors")));
        let mut command = self.rally(&[
            "run",
            path_text(&self.alone),
            "--requests",
            path_text(requests),
            "--out",
            path_text(&out),
            "--logits",
            path_text(&logits),
        ]);
        let output = command.output().expect("the binary starts");
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// `count` requests of `tokens` tokens each, some sampled.
    pub fn requests(&self, count: usize, tokens: usize) -> PathBuf {
        let line = |index: usize| {
            let prompt: Vec<usize> = (0..3 + index * 5 % 37).map(|i| 5 + (index * 131 + i * 17) % 4000).collect();
            let temperature = if index.is_multiple_of(3) { 0.8 } else { 0.0 };
            json!({
                "id": format!("r{index}"), "prompt_token_ids": prompt, "max_tokens": tokens, "ignore_eos": true,
                "temperature": temperature, "seed": index,
            })
            .to_string()
        };
        let path = self.file("requests.jsonl");
        let lines: Vec<String> = (0..count).map(line).collect();
        std::fs::write(&path, lines.join("\n")).expect("the folder takes files");
        path
    }

    /// Mean time between the tokens of a request, over all requests of a run.
    pub fn tpot_ms(&self, name: &str) -> f64 {
        let file = std::fs::read_to_string(self.file(&format!("{name}.jsonl"))).expect("results were written");
        let tpot = |line: &str| serde_json::from_str::<Value>(line).ok()?["tpot_ms"].as_f64();
        let times: Vec<f64> = file.lines().filter_map(tpot).collect();
        times.iter().sum::<f64>() / times.len() as f64
    }

    /// Two runs, one after the other on the same hosts, do what one process does. Returns what the workers say.
    #[track_caller]
    pub fn assert_as_in_one_process(&self) -> String {
        let requests = self.requests(9, 12);
        self.run_alone(&requests, "alone");
        let workers = self.workers();
        for name in ["across", "again"] {
            self.run(&requests, name, &[]).good_end();
            self.assert_same("alone", name);
        }
        workers.iter().map(Process::everything).collect()
    }

    /// Starts a run that is long enough to be disturbed, and returns once its hosts are at it: somewhere in it, another place every
    /// time; the whole takes several times as long.
    pub fn in_the_middle(&self, name: &str, workers: &[Process], more: &[&str]) -> Process {
        let requests = self.requests(12, 160);
        self.run_alone(&requests, "alone");
        let run = self.run(&requests, name, more);
        workers.iter().for_each(|worker| drop(worker.says("a run begins")));
        // Hosts say so while others may still be meeting, and who is lost then is missing.
        run.says("decoding");
        std::thread::sleep(Duration::from_millis(50 + u64::from(run.id()) % 150));
        run
    }

    /// Both runs have the same tokens, and the same logits to the bit.
    #[track_caller]
    pub fn assert_same(&self, one: &str, other: &str) {
        let tokens = |name: &str| -> Vec<(Value, Value, Value)> {
            let file = std::fs::read_to_string(self.file(&format!("{name}.jsonl"))).expect("results were written");
            let line = |line: &str| {
                let value: Value = serde_json::from_str(line).expect("a result is JSON");
                (value["id"].clone(), value["token_ids"].clone(), value["finish_reason"].clone())
            };
            file.lines().map(line).collect()
        };
        let (ours, theirs) = (tokens(one), tokens(other));
        assert_eq!(ours.len(), theirs.len(), "results");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(ours == theirs, "tokens and end of {one}: {ours:?}\nof {other}: {theirs:?}");
        }
        let logits =
            |name: &str| std::fs::read(self.file(&format!("{name}.safetensors"))).expect("logits were written");
        assert!(logits(one) == logits(other), "the tokens are the same, the logits are not");
    }
}

/// A process of the binary. It dies with the test.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    said: std::cell::RefCell<String>,
}

impl Process {
    /// Starts it; what it says on stderr is collected.
    pub fn start(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary can be started");
        let stderr = child.stderr.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, said: Default::default() }
    }

    /// Waits until it says `what`. Returns the line.
    #[track_caller]
    pub fn says(&self, what: &str) -> String {
        let until = Instant::now() + SOON;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("it never said `{what}`, but: {}", self.said.borrow());
            };
            let found = line.contains(what);
            self.said.borrow_mut().push_str(&format!("{line}\n"));
            if found {
                return line;
            }
        }
    }

    /// Waits until it says `what`, or ends without. Returns whether it did.
    #[track_caller]
    pub fn says_or_ends(&self, what: &str) -> bool {
        let until = Instant::now() + SOON;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.borrow_mut().push_str(&format!("{line}\n"));
                    if line.contains(what) {
                        return true;
                    }
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return false,
                Err(_) => panic!("it neither says `{what}` nor ends; it said: {}", self.said.borrow()),
            }
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_some()
    }

    /// Waits for its end; its exit code and what it said.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        let until = Instant::now() + SOON;
        while !self.has_ended() {
            if Instant::now() > until {
                panic!("it does not end; it said: {}", self.everything());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let code = self.child.wait().expect("it is ours").code();
        (code, self.everything())
    }

    /// Waits for its good end.
    #[track_caller]
    pub fn good_end(self) -> String {
        let (code, said) = self.end();
        assert_eq!(code, Some(0), "{said}");
        said
    }

    /// All that it said so far.
    pub fn everything(&self) -> String {
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(100)) {
            self.said.borrow_mut().push_str(&format!("{line}\n"));
        }
        self.said.borrow().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stderr of something that has ended.
pub fn stderr(output: &Output) -> String {
    text(&output.stderr)
}
