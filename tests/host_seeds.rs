//! Hosts as threads of this process, over real connections, with faults on every edge that are drawn from a seed: frames lost, late,
//! twice, in another order, changed, a way cut, a lane that stands still. Whatever happens, the answers are those of one process, to the
//! bit, and nothing hangs.
//!
//! `RALLY_SEEDS=1000` runs so many, `RALLY_FIRST_SEED=17` begins there; the second test command runs a thousand.

#[path = "support/draw.rs"]
mod draw;
mod support;

use crossbeam::channel::never;
use draw::{Draw, number};
use rally::engine::hosts::{Across, follow};
use rally::engine::{Engine, EngineError, EngineParts, Kept, Paused, RunEvent};
use rally::graph::spec::DeploymentSpec;
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::AssembleOptions;
use rally_transport::Transport;
use rally_transport::faults::{FaultPlan, Faults};
use rally_transport::tcp::Tcp;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use support::{Answer, Ask, parts_with, request, small_shape};

/// Nothing moves for so long: someone is to blame, or something was lost. Signs of life come every 100 ms.
const STANDSTILL: Duration = Duration::from_millis(400);
/// A seed that takes longer hangs: there may be several standstills in it, each longer than the one before, on a busy machine.
const HANGS: Duration = Duration::from_secs(90);

/// A plan with something of every kind that a network can do, more or less of it.
fn plan(seed: u64, hosts: &[String], edges: &BTreeSet<String>) -> FaultPlan {
    let mut draw = Draw(seed);
    let mut faults = vec![
        json!({ "fault": "delay", "share": 0.05, "ms": draw.below(5) }),
        json!({ "fault": "reorder", "share": 0.05, "ms": 1 + draw.below(5) }),
        json!({ "fault": "duplicate", "share": 0.05, "ms": draw.below(3) }),
    ];
    if draw.below(2) == 0 {
        faults.push(json!({ "fault": "corrupt", "share": 0.005, "times": 2 }));
    }
    // The first words of an epoch are waited for otherwise, and longer.
    match draw.below(5) {
        0 => faults.push(json!({ "fault": "drop", "edge": "a2f", "share": 0.01, "times": 1 })),
        1 => faults.push(json!({ "fault": "drop", "edge": "f2a", "share": 0.01, "times": 1 })),
        2 => faults.push(json!({ "fault": "drop", "edge": "control", "steps": "3..", "share": 0.01, "times": 1 })),
        _ => {}
    }
    // The first host plans, and a lane of it that hangs ends the run.
    let slowed = &hosts[1 + draw.below(hosts.len() as u64 - 1) as usize];
    match draw.below(8) {
        0 => faults.push(json!({ "fault": "slow", "host": slowed, "steps": "1..", "times": 1, "ms": 900 })),
        1 => faults.push(json!({ "fault": "slow", "host": slowed, "share": 0.1, "times": 4, "ms": 20 })),
        _ => {}
    }
    let (from, to) = (draw.below(hosts.len() as u64) as usize, draw.below(hosts.len() as u64) as usize);
    if from != to && draw.below(3) == 0 {
        let (step, ms) = (draw.below(4), 20 + draw.below(200));
        let (from, to) = (&hosts[from], &hosts[to]);
        faults.push(json!({ "fault": "partition", "from": from, "to": to, "steps": format!("{step}.."), "ms": ms }));
    }
    let text = json!({ "version": 1, "seed": seed, "faults": faults }).to_string();
    FaultPlan::parse(&text, hosts, edges).expect("it is a plan")
}

/// `attention` and `ffn` devices, experts over the FFN, each on a host of its own if `across`.
fn spec(attention: usize, ffn: usize, across: bool) -> DeploymentSpec {
    let name = |prefix: &str, count: usize| (0..count).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
    let (a, f) = (name("a", attention), name("f", ffn));
    let hosts = [a.clone(), f.clone()].concat();
    let device = |name: &String| {
        let device = if across { json!({ "backend": "cpu", "host": name }) } else { json!({ "backend": "cpu" }) };
        (name.clone(), device)
    };
    let transfer = |id: &str, from: &[String], to: &[String]| {
        let mut stage = json!({ "kind": "transfer", "id": id, "from": from, "to": to, "dtype": "f32" });
        if across {
            stage["transport"] = json!("tcp");
        }
        stage
    };
    let mut graph = json!({
        "version": 1, "name": "seeds", "model": "none",
        "devices": hosts.iter().map(device).collect::<serde_json::Map<_, _>>(),
        "stages": [
            { "kind": "embed", "on": a },
            { "layers": [
                { "kind": "mfa_attention", "on": a },
                { "kind": "router", "on": a, "on_layers": "moe" },
                transfer("a2f", &a, &f),
                { "kind": "expert_ffn", "on": f, "on_layers": "moe", "shard": { "experts": ffn } },
                { "kind": "dense_ffn", "on": f, "on_layers": "dense", "shard": { "replicas": ffn } },
                transfer("f2a", &f, &a),
                { "kind": "combine", "on": a },
            ]},
            { "kind": "sampling", "on": a },
        ],
        "limits": { "sequences": 8, "rows_per_micro_batch": 16, "prefill_chunk": 8, "kv_tokens": 1024, "page_tokens": 8 },
        "schedule": { "policy": "ping_pong", "micro_batches": 3 },
    });
    if across {
        let address = |host: &String| (host.clone(), json!({ "address": "127.0.0.1:1" }));
        graph["hosts"] = hosts.iter().map(address).collect();
    }
    serde_json::from_value(graph).expect("the graph is well formed")
}

fn asks() -> Vec<Ask> {
    let ask = |i: u32| {
        let mut ask = Ask::greedy(&(0..2 + i * 3 % 11).map(|t| (i * 7 + t * 5) % 60).collect::<Vec<_>>(), 6);
        ask.sampling.temperature = if i.is_multiple_of(2) { 0.0 } else { 0.9 };
        ask.sampling.seed = u64::from(i);
        ask
    };
    (0..5).map(ask).collect()
}

/// Hosts and what they are made of; parts come back from every epoch.
struct Cluster {
    names: Vec<String>,
    edges: HashMap<u16, String>,
    parts: Vec<EngineParts>,
    /// What the coordinator knows of an epoch that failed.
    kept: Option<Kept>,
    vocab: usize,
}

impl Cluster {
    fn new(attention: usize, ffn: usize) -> Self {
        let (spec, shape) = (spec(attention, ffn, true), small_shape());
        let names: Vec<String> = spec.hosts.keys().cloned().collect();
        let part = |host: usize| {
            let options = AssembleOptions { host: Some(host), ..AssembleOptions::default() };
            parts_with(&spec, &shape, &RandomWeights::new(7, small_shape().weight_format), options)
        };
        let parts: Vec<EngineParts> = (0..names.len()).map(part).collect();
        let transfers = parts[0].graph.stages.iter().enumerate().filter(|(_, stage)| stage.transfer.is_some());
        let edges = transfers.map(|(index, stage)| (index as u16, stage.id.clone())).collect();
        Self { names, edges, parts, kept: None, vocab: shape.vocab }
    }

    /// A connection between any two, with the faults of each.
    fn connect(&self, faults: &[Arc<Faults>]) -> Vec<Arc<dyn Transport>> {
        let mut ends: Vec<Tcp> = self.names.iter().map(|_| Tcp::default()).collect();
        for near in 0..ends.len() {
            for far in near + 1..ends.len() {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port can be had");
                let address = listener.local_addr().expect("it listens");
                ends[near].add(far, TcpStream::connect(address).expect("it listens")).expect("it is connected");
                ends[far].add(near, listener.accept().expect("someone came").0).expect("it is connected");
            }
        }
        let wrapped = ends.into_iter().zip(faults).map(|(end, faults)| faults.wrap(Arc::new(end)));
        wrapped.map(|end| end.expect("a thread can be had")).collect()
    }

    /// One membership epoch; what was answered is added to `answers`. An error is why it is over before its end.
    fn epoch(&mut self, faults: &[Arc<Faults>], answers: &mut [Answer]) -> Result<(), EngineError> {
        let transports = self.connect(faults);
        let mut parts: Vec<EngineParts> = self.parts.drain(..).collect();
        for (host, (parts, transport)) in parts.iter_mut().zip(transports).enumerate() {
            parts.across = Some(Across {
                host,
                coordinator: 0,
                transport,
                names: self.names.clone(),
                vocab: self.vocab,
                present: vec![true; self.names.len()],
                standstill: STANDSTILL,
                // As coordinators do, the first plans on with what it knows of the epoch before; the others have what that left in them.
                keeps: self.kept.is_some(),
            });
        }
        let mut parts = parts.into_iter();
        let (first, kept) = (parts.next().expect("there is a host"), self.kept.take());
        std::thread::scope(|scope| {
            let followers: Vec<_> = parts.map(|parts| scope.spawn(|| follow(parts, &never()).0)).collect();
            let ((first, kept), ended) = coordinate((first, kept), answers);
            self.kept = kept;
            self.parts.push(first);
            let joined = followers.into_iter().map(|follower| follower.join().expect("no host panics"));
            self.parts.extend(joined);
            self.parts.iter_mut().for_each(|parts| parts.across = None);
            ended
        })
    }
}

fn coordinate((parts, kept): Paused, answers: &mut [Answer]) -> (Paused, Result<(), EngineError>) {
    let goes_on = kept.as_ref().is_some_and(Kept::has_sequences);
    let engine = match Engine::resume(parts, kept) {
        Ok(engine) => engine,
        Err((error, left)) => return (*left, Err(error)),
    };
    let asks = asks();
    if !goes_on {
        engine.submit(asks.iter().enumerate().map(|(id, ask)| request(id as u64, ask))).expect("there is room");
    }
    while answers.iter().any(|answer| answer.finish.is_none()) {
        match engine.events().recv().expect("an engine that lives says how it ends") {
            RunEvent::Failed(error) => return (engine.pause(), Err(error)),
            RunEvent::Token(report) => {
                let answer = &mut answers[report.sample.sequence as usize];
                assert_eq!(report.index, answer.tokens.len() as u64, "each token is told once");
                answer.tokens.push(report.sample.token);
                answer.logits.push(report.sample.logits.expect("logits were asked for"));
            }
            RunEvent::Finished(id, reason, _) => answers[id as usize].finish = Some(reason),
            RunEvent::Admitted(..) => {}
        }
    }
    engine.close();
    ((engine.join_and_return().1, None), Ok(()))
}

/// Ends this process if a seed hangs, which no thread that waits for it can.
fn watch(seeds: Receiver<u64>) {
    std::thread::spawn(move || {
        let mut last = None;
        loop {
            match seeds.recv_timeout(HANGS) {
                Ok(seed) => last = Some(seed),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("after {HANGS:?} seed {last:?} is still not over");
                    std::process::abort();
                }
            }
        }
    });
}

#[test]
fn answers_are_the_same_whatever_the_network_does() {
    let mut clusters = [(1, 1), (2, 2), (1, 3)].map(|(attention, ffn)| {
        let alone = run_alone(attention, ffn);
        (Cluster::new(attention, ffn), alone)
    });
    let (mut epochs, mut happened, began) = (0, 0, Instant::now());
    let mut ends = BTreeMap::<String, usize>::new();
    let (begins, watched) = channel();
    watch(watched);
    let (first, seeds) = (number("RALLY_FIRST_SEED", 0), number("RALLY_SEEDS", 12));
    for seed in first..first + seeds {
        begins.send(seed).expect("someone watches");
        let (cluster, alone) = &mut clusters[seed as usize % 3];
        let edges: BTreeSet<String> = cluster.edges.values().cloned().collect();
        let plan = plan(seed, &cluster.names, &edges);
        let faults = |own: usize| {
            let process = Box::new(|fault| panic!("{fault:?} was not asked for"));
            Arc::new(Faults::new(plan.clone(), (cluster.names.clone(), own), cluster.edges.clone(), &[], process))
        };
        let faults: Vec<Arc<Faults>> = (0..cluster.names.len()).map(faults).collect();
        let mut answers = vec![Answer::default(); alone.len()];
        let mut why = Vec::new();
        while let Err(error) = cluster.epoch(&faults, &mut answers) {
            let kind = match &error {
                EngineError::HostLost { why, .. } if why.contains("signs of life, but") => "a lane hung",
                EngineError::HostLost { .. } => "a host was lost",
                EngineError::Standstill { .. } => "all waited",
                _ => panic!("seed {seed}: its plan calls for no such end: {error}"),
            };
            *ends.entry(kind.into()).or_default() += 1;
            why.push(error.to_string());
            assert!(why.len() < 40, "seed {seed} comes to no end: {why:?}");
        }
        epochs += why.len() + 1;
        happened += faults.iter().map(|faults| faults.spent().iter().sum::<u64>()).sum::<u64>();
        for (id, (answer, alone)) in answers.iter().zip(&*alone).enumerate() {
            let same = answer.tokens == alone.tokens && answer.finish == alone.finish;
            assert!(same, "seed {seed}, sequence {id}: {:?}, not {:?}; {why:?}", answer.tokens, alone.tokens);
            assert!(answer.logits == alone.logits, "seed {seed}, sequence {id}: the logits are others; {why:?}");
        }
    }
    let took_s = began.elapsed().as_secs_f64();
    println!("{} seeds: {happened} faults, {epochs} epochs, {took_s:.1} s; epochs ended because {ends:?}", seeds);
    assert!(happened > 20 * seeds, "{happened} faults");
    assert!(epochs as u64 > seeds, "no fault ended an epoch");
    if seeds >= 30 {
        assert!(
            ["a host was lost", "all waited", "a lane hung"].iter().all(|kind| ends.contains_key(*kind)),
            "{ends:?}"
        );
    }
}

fn run_alone(attention: usize, ffn: usize) -> Vec<Answer> {
    let engine = support::start(
        &spec(attention, ffn, false),
        &small_shape(),
        &RandomWeights::new(7, small_shape().weight_format),
        None,
    );
    support::answers(engine, &asks())
}
