//! Deployments of many servers, and what it takes to predict them.
// Each user has its own part of this module.
#![allow(dead_code)]

use rally::cost::library::hardware_named;
use rally::graph::kinds::{KindRegistry, Role};
use rally::graph::plan::{Plan, TaskTable};
use rally::graph::spec::DeploymentSpec;
use rally::graph::stage_graph::StageGraph;
use rally::load::{Load, LoadRequest};
use rally::predict::experts::ExpertLoad;
use rally::predict::fold::fold;
use rally::predict::roofline::{Efficiency, Machines, Roofline};
use rally::predict::{Prediction, Setting};
use rally::schedule::policy::Schedule;
use rally::schedule::virtual_lanes::Fold;
use rally::stages::config::load_model_shape;
use rally::stages::deployment::planner_config;
use serde_json::{Value, json};
use std::path::Path;

/// Accelerators of a server.
pub const SERVER: usize = 8;
/// Micro-batches that rotate.
pub const MICRO_BATCHES: usize = 3;

/// What is predicted: Step-3 on servers of 8 H800, rows on rails, experts divided over the FFN's servers and widths inside each.
#[derive(Clone, Copy)]
pub struct Case {
    /// Servers that attend.
    pub attention: usize,
    /// Servers with the FFN.
    pub ffn: usize,
    /// Sequences of a device and micro-batch.
    pub sequences: usize,
    /// Tokens of a prompt, read in one step, and tokens that are generated.
    pub prompt: usize,
    /// Steps that decode.
    pub steps: usize,
}

impl Case {
    /// Accelerators.
    pub fn devices(&self) -> usize {
        (self.attention + self.ffn) * SERVER
    }

    /// The graph file.
    pub fn spec(&self) -> DeploymentSpec {
        let names = |letter: char, count: usize| (0..count).map(|n| format!("{letter}{n}")).collect::<Vec<_>>();
        let (a, f) = (names('a', self.attention), names('f', self.ffn));
        let device = |name: &String| {
            let device =
                json!({ "backend": "cuda", "count": SERVER, "host": name, "fabric": "nvlink", "hardware": "h800" });
            (name.clone(), device)
        };
        let host = |(n, name): (usize, &String)| {
            (name.clone(), json!({ "address": format!("10.{}.{}.1:7000", n / 250, n % 250) }))
        };
        let devices: serde_json::Map<String, Value> = a.iter().chain(&f).map(device).collect();
        let hosts: serde_json::Map<String, Value> = a.iter().chain(&f).enumerate().map(host).collect();
        let transfer = |id: &str, from: &[String], to: &[String], dtype: &str| json!({ "kind": "transfer", "id": id, "from": from, "to": to, "dtype": dtype, "routing": "rail" });
        let rows = self.attention * SERVER * self.sequences;
        let spec = json!({
            "version": 1, "name": format!("{}a{}f", self.attention, self.ffn),
            "model": { "config": "models/step3/config.json", "weights": "random:7" }, "compute": "fp8",
            "hosts": hosts, "devices": devices,
            "stages": [
                { "kind": "embed", "on": a },
                { "layers": [
                    { "kind": "mfa_attention", "on": a, "kv_dtype": "fp8_e4m3", "shard": { "o_proj": SERVER } },
                    { "kind": "router", "on": a, "on_layers": "moe" },
                    transfer("a2f", &a, &f, "fp8_e4m3"),
                    { "kind": "expert_ffn", "on": f, "on_layers": "moe", "shard": { "experts": self.ffn, "tensor": SERVER } },
                    { "kind": "dense_ffn", "on": f, "on_layers": "dense", "shard": { "tensor": SERVER * self.ffn } },
                    transfer("f2a", &f, &a, "bf16"),
                    { "kind": "combine", "on": a },
                ]},
                { "kind": "sampling", "on": a },
            ],
            "limits": {
                "sequences": MICRO_BATCHES * rows, "rows_per_micro_batch": rows * self.prompt, "prefill_chunk": self.prompt * self.sequences,
                "kv_tokens": MICRO_BATCHES * rows * (self.prompt + self.steps + 64), "page_tokens": 64,
            },
            "schedule": { "policy": "ping_pong", "micro_batches": MICRO_BATCHES },
        });
        serde_json::from_value(spec).expect("it is a deployment")
    }

    /// What all sequences, there from the start, will do.
    pub fn predict(&self, folded: bool, keeps_spans: bool) -> (Prediction, Fold) {
        let (spec, registry) = (self.spec(), KindRegistry::shared());
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let shape = load_model_shape(&root.join("models/step3/config.json")).expect("a config");
        let graph = StageGraph::build(&spec, &shape, registry).expect("it unrolls");
        let experts = ExpertLoad::Natural;
        let fold = if folded { fold(&spec, &graph, &shape, &experts) } else { Fold::none(graph.devices.len()) };
        let schedule = Schedule::from_spec(&spec.schedule).expect("a schedule");
        let plan: Plan = schedule.plan(TaskTable::of_devices(&graph, |device| fold.runs(device))).expect("a plan");
        let hardware = vec![hardware_named("h800").expect("it is in the library"); graph.devices.len()];
        let efficiency = vec![Efficiency::default(); hardware.len()];
        let machines = Machines {
            hardware: &hardware,
            spec: &spec,
            efficiency: &efficiency,
            measured: &vec![None; hardware.len()],
            all_stages: false,
        };
        let durations =
            Roofline::new(machines, &graph, &plan.table, &shape, &experts, &fold).expect("H800 computes in fp8");
        let attention = graph.devices_of_role(Role::Embed);
        let request = LoadRequest { arrival_s: 0.0, prompt_tokens: self.prompt, output_tokens: self.steps + 1 };
        let requests = vec![request; MICRO_BATCHES * attention.len() * self.sequences];
        let setting = Setting {
            plan: &plan,
            planner: planner_config(&spec.limits, attention.len(), MICRO_BATCHES, &shape),
            attention: &attention,
            load: &Load { requests, max_concurrency: None },
            durations: &durations,
            jitter: 0.0,
            seed: 0,
            fold: &fold,
            keeps_spans,
            learns: false,
            pretend_read: 0,
            cores: None,
        };
        (setting.predict().expect("all devices do the same"), fold)
    }
}

/// Most bytes this process has had in memory.
pub fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    peak.unwrap_or(0usize) * 1024
}

/// Seconds that this process has computed.
pub fn cpu_seconds() -> f64 {
    let schedstat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    schedstat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) * 1e-9
}
