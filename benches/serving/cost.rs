//! Tokens a second through HTTP against the same run without: interleaved pairs, the middle ratio.
//!
//! All sequences begin at once and are equally long, each on a connection of its own, an event a token. Without HTTP the same
//! requests go to the engine and its events are counted: no text is made of them. Two models: the tiny one, whose tokens cost some
//! tens of microseconds, so that what HTTP costs shows as it never does; and one whose layers are wide enough that a token costs
//! what it costs where a target of 50 ms is worth keeping.
//!
//! Ratios of times are as good as the machine is quiet. What the threads of the server used is not moved by neighbours: that is
//! printed too, by token, and as the share of all cores that it is at the rate of the run without HTTP.

use crate::clients::{Client, on_this_thread, request};
use crate::common::{self, median, sorted};
use crate::rig::{How, MODEL, Served, model, open, parts};
use rally::engine::schedule::batch::SequenceRequest;
use rally::engine::schedule::policy::Schedule;
use rally::engine::{Engine, EngineParts, RunEvent};
use rally::graph::kinds::KindRegistry;
use rally::graph::model::{LayerKind, ModelShape, WeightFormat};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::StageGraph;
use rally::serve::Model;
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::{AssembleOptions, assemble};
use rally::stages::kinds::StageRegistry;
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SEQUENCES: usize = 64;
const PROMPT_TOKENS: u32 = 16;
const PAIRS: usize = 9;
/// How long a client rests between looks: it stands for one on another machine, which costs nothing here.
const REST: Duration = Duration::from_millis(20);
const BAR: f64 = 0.97;

/// What is measured.
struct Case {
    name: &'static str,
    tokens: usize,
    vocab: u32,
    parts: Box<dyn Fn() -> EngineParts>,
    model: Box<dyn Fn() -> Model>,
}

pub fn run() {
    let pairs = crate::size("RALLY_PAIRS", PAIRS);
    println!("cost: {SEQUENCES} streams at once, {pairs} pairs");
    for case in [tiny(), wide()] {
        case.run(pairs);
    }
}

fn tiny() -> Case {
    let deployment = std::rc::Rc::new(open("tiny-ping-pong.json"));
    let theirs = std::rc::Rc::clone(&deployment);
    Case {
        name: "tiny model, with its tokenizer",
        tokens: 1000,
        vocab: deployment.shape.vocab as u32,
        parts: Box::new(move || parts(&deployment)),
        model: Box::new(move || model(&theirs)),
    }
}

/// Two lanes about equally long, random weights: a round of all streams takes some 50 ms on two cores.
fn wide() -> Case {
    let shape = ModelShape {
        family: "step3".into(),
        hidden: 512,
        vocab: 4096,
        heads: 64,
        head_dim: 64,
        query_rank: 1024,
        dense_width: 5120,
        max_positions: 2048,
        tie_word_embeddings: true,
        weight_format: WeightFormat::Bf16,
        ..ModelShape::toy(vec![LayerKind::Dense; 4])
    };
    let spec: DeploymentSpec = serde_json::from_value(json!({
        "version": 1, "name": "wide", "model": "random",
        "devices": { "attn": { "backend": "cpu", "cores": [0] }, "ffn": { "backend": "cpu", "cores": [1] } },
        "stages": [
            { "kind": "embed", "on": "attn" },
            { "layers": [
                { "kind": "mfa_attention", "on": "attn", "kv_dtype": "bf16" },
                { "kind": "transfer", "id": "a2f", "from": "attn", "to": "ffn", "dtype": "bf16" },
                { "kind": "dense_ffn", "on": "ffn" },
                { "kind": "transfer", "id": "f2a", "from": "ffn", "to": "attn", "dtype": "bf16" },
                { "kind": "combine", "on": "attn" },
            ]},
            { "kind": "sampling", "on": "attn" },
        ],
        "limits": {
            "sequences": 64, "rows_per_micro_batch": 64, "prefill_chunk": 32, "kv_tokens": 16384, "page_tokens": 64,
        },
        "schedule": { "policy": "ping_pong", "micro_batches": 2 },
    }))
    .expect("the graph above is well formed");
    let (vocab, max_positions) = (shape.vocab, shape.max_positions);
    let parts = move || {
        let weights = RandomWeights::new(7, WeightFormat::Bf16);
        let schedule = Schedule::parse("ping_pong:2", &spec.schedule).expect("a built-in schedule");
        let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("the graph above unrolls");
        let options = AssembleOptions { learn: true, ..AssembleOptions::default() };
        assemble(&spec, graph, &shape, &weights, &schedule, &StageRegistry::builtin(), options)
            .expect("the graph above can run")
    };
    let model = move || Model {
        name: MODEL.into(),
        codec: None,
        vocab,
        max_positions,
        eos_token_ids: [].into(),
        template: None,
        slo_tpot_ms: None,
    };
    Case {
        name: "wide layers, no tokenizer",
        tokens: 100,
        vocab: vocab as u32,
        parts: Box::new(parts),
        model: Box::new(model),
    }
}

impl Case {
    fn requests(&self) -> Vec<SequenceRequest> {
        (0..SEQUENCES as u64).map(|id| common::request(id, PROMPT_TOKENS, self.vocab, self.tokens)).collect()
    }

    fn run(&self, pairs: usize) {
        let (mut ratios, mut without, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for pair in 0..pairs {
            // Who is first alternates, so that a drift of the machine favours none.
            let (plain, http, cpu) = if pair % 2 == 0 {
                let plain = self.plain();
                let (http, cpu) = self.http();
                (plain, http, cpu)
            } else {
                let (http, cpu) = self.http();
                (self.plain(), http, cpu)
            };
            ratios.push(http / plain);
            without.push(plain);
            used.push(cpu);
        }
        let (ratios, without) = (sorted(ratios), sorted(without));
        let of = |index: usize| median(&sorted(used.iter().map(|cpu: &[f64; 3]| cpu[index])));
        let (server, front, client) = (of(0), of(1), of(2));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let share = (server + front) * 1e-6 * median(&without) / cores as f64;
        println!(
            "  {}: with / without HTTP = {:.4} (from {:.4} to {:.4}) of {:.0} tokens/s; bar {BAR}: {}",
            self.name,
            median(&ratios),
            ratios[0],
            ratios[pairs - 1],
            median(&without),
            if median(&ratios) >= BAR { "within" } else { "BELOW" },
        );
        println!(
            "    CPU time a token: connections {server:.2} us, front {front:.2} us, which is {:.2} % of {cores} cores; the clients \
             {client:.2} us",
            share * 100.0
        );
    }

    /// Tokens a second of the engine alone.
    fn plain(&self) -> f64 {
        let engine = Engine::start((self.parts)()).expect("threads can be had");
        let (began, mut tokens) = (Instant::now(), 0usize);
        let count = |event: RunEvent| tokens += usize::from(matches!(event, RunEvent::Token(_)));
        engine.run_to_end(self.requests(), count).expect("the run ends well");
        tokens as f64 / began.elapsed().as_secs_f64()
    }

    /// Tokens a second through HTTP, and the microseconds a token of connections, front and clients.
    fn http(&self) -> (f64, [f64; 3]) {
        let served = Served::start((self.parts)(), (self.model)(), How::default());
        let address = served.address();
        let bodies: Vec<Vec<u8>> = self.requests().iter().map(body).collect();
        let clients = std::thread::Builder::new().name("clients".into());
        let clients = clients.spawn(move || {
            let answer = on_this_thread(ask_all(address, bodies));
            (answer, thread_cpu_s())
        });
        let ((seconds, events), client_s) = clients.expect("threads can be had").join().expect("clients do not panic");
        let tokens = SEQUENCES * self.tokens;
        // An end may come by itself, after the last token.
        assert!((tokens..=tokens + SEQUENCES).contains(&events), "{events} events of {tokens} tokens");
        let cpu = [cpu_of("rally-http"), cpu_of("rally-front"), client_s].map(|s| s * 1e6 / tokens as f64);
        served.server.drain(Duration::ZERO);
        (tokens as f64 / seconds, cpu)
    }
}

fn body(request: &SequenceRequest) -> Vec<u8> {
    let body = json!({
        "model": MODEL, "prompt": &request.prompt[..], "max_tokens": request.max_new_tokens, "temperature": 0, "stream": true,
        "ignore_eos": true,
    });
    self::request("/v1/completions", &body.to_string())
}

/// Seconds that all of them took together, and the tokens that came.
async fn ask_all(address: SocketAddr, bodies: Vec<Vec<u8>>) -> (f64, usize) {
    let mut clients = Vec::new();
    for body in bodies {
        let mut client = Client::connect(address).await.expect("the server listens");
        client.rest = Some(REST);
        clients.push((client, body));
    }
    let began = Instant::now();
    let ask = |(mut client, body): (Client, Vec<u8>)| {
        tokio::spawn(async move {
            let mut lines = 0;
            let count = |piece: &[u8]| lines += piece.iter().filter(|byte| **byte == b'\n').count();
            let status = client.ask(&body, count).await.expect("the answer is whole");
            assert_eq!(status, 200);
            // Two an event; the last event is no token.
            lines / 2 - 1
        })
    };
    let all: Vec<_> = clients.into_iter().map(ask).collect();
    let mut tokens = 0;
    for one in all {
        tokens += one.await.expect("clients do not panic");
    }
    (began.elapsed().as_secs_f64(), tokens)
}

/// CPU seconds of this thread.
fn thread_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// CPU seconds of this process's threads of that name, as the scheduler counts them.
fn cpu_of(name: &str) -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux tells").filter_map(Result::ok);
    let of = |folder: std::path::PathBuf| {
        let own = std::fs::read_to_string(folder.join("comm")).ok()?;
        let times = std::fs::read_to_string(folder.join("schedstat")).ok()?;
        // The first of three: nanoseconds on a core.
        own.starts_with(name).then(|| times.split(' ').next()?.parse::<f64>().ok())?
    };
    tasks.filter_map(|task| of(task.path())).sum::<f64>() * 1e-9
}
