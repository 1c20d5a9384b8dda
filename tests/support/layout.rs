//! Graphs as tests choose them.

use rally::graph::spec::DeploymentSpec;
use serde_json::{Value, json};

/// Choices of a generated graph.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Attention and FFN on devices of their own.
    pub split: bool,
    /// Attention devices, where there is an FFN device beside them.
    pub attention: usize,
    /// Transfers even where attention and FFN share a device: they move nothing and round alike.
    pub rounds: bool,
    pub a2f: &'static str,
    pub f2a: &'static str,
    pub kv: &'static str,
    /// Router on the FFN side.
    pub router_on_ffn: bool,
    pub policy: &'static str,
    /// With the policy `custom`: the last micro-batch goes first.
    pub reversed: bool,
    pub micro_batches: usize,
    pub prefill_chunk: usize,
    pub rows: usize,
    pub page_tokens: usize,
    /// Cores of each device; empty: not pinned.
    pub cores: Vec<u32>,
    /// Sequences at once; the others queue and take over slots and pages.
    pub sequences: usize,
    pub kv_tokens: usize,
    /// Several devices a side; then `split` and `rounds` mean nothing.
    pub places: Option<Places>,
}

/// Devices of a generated graph, and how the FFN's weights are divided over them.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Sizes of the attention groups `a0`, `a1`, …
    pub a: Vec<usize>,
    /// Sizes of the FFN groups `f0`, …; empty: the attention groups do both.
    pub f: Vec<usize>,
    /// Experts, tensor, replicas.
    pub expert: [usize; 3],
    /// Tensor, replicas.
    pub dense: [usize; 2],
    /// The dense FFN on a device `d` of its own.
    pub dense_apart: bool,
    pub rail: bool,
    /// Which experts each expert shard holds; consecutive parts if absent.
    pub placement: Option<Vec<Vec<u32>>>,
    /// Slices of the output projection inside a group; 0: the key is left out.
    pub o_proj: usize,
}

impl Places {
    fn names(prefix: &str, sizes: &[usize]) -> Vec<String> {
        (0..sizes.len()).map(|index| format!("{prefix}{index}")).collect()
    }

    fn devices(&self) -> Value {
        let mut devices = serde_json::Map::new();
        for (prefix, sizes) in [("a", &self.a), ("f", &self.f)] {
            for (index, count) in sizes.iter().enumerate() {
                let group = json!({ "backend": "cpu", "count": count, "fabric": "shared_memory" });
                devices.insert(format!("{prefix}{index}"), group);
            }
        }
        if self.dense_apart {
            devices.insert("d".into(), json!({ "backend": "cpu" }));
        }
        devices.into()
    }

    /// Attention, experts, dense.
    fn sides(&self) -> [Vec<String>; 3] {
        let a = Self::names("a", &self.a);
        let f = if self.f.is_empty() { a.clone() } else { Self::names("f", &self.f) };
        let d = if self.dense_apart { vec!["d".into()] } else { f.clone() };
        [a, f, d]
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            split: true,
            attention: 1,
            rounds: true,
            a2f: "f32",
            f2a: "f32",
            kv: "f32",
            router_on_ffn: false,
            policy: "ping_pong",
            reversed: false,
            micro_batches: 3,
            prefill_chunk: 32,
            rows: 64,
            page_tokens: 64,
            cores: Vec::new(),
            sequences: 64,
            kv_tokens: 16384,
            places: None,
        }
    }
}

impl Layout {
    /// The graph.
    pub fn spec(&self) -> DeploymentSpec {
        serde_json::from_value(self.json()).expect("generated graphs are well formed")
    }

    /// The graph as its file would have it.
    pub fn json(&self) -> Value {
        match &self.places {
            Some(places) => self.many(places),
            None => self.one_or_two(),
        }
    }

    fn one_or_two(&self) -> Value {
        let (a, f) = ("a", if self.split { "f" } else { "a" });
        let device = || json!({ "backend": "cpu", "cores": self.cores });
        let router = json!({ "kind": "router", "on": if self.router_on_ffn { f } else { a }, "on_layers": "moe" });
        let mut layers = vec![json!({ "kind": "mfa_attention", "on": a, "kv_dtype": self.kv })];
        if !self.router_on_ffn {
            layers.push(router.clone());
        }
        if self.split || self.rounds {
            layers.push(json!({ "kind": "transfer", "id": "a2f", "from": a, "to": f, "dtype": self.a2f }));
        }
        if self.router_on_ffn {
            layers.push(router);
        }
        layers.push(json!({ "kind": "expert_ffn", "on": f, "on_layers": "moe" }));
        layers.push(json!({ "kind": "dense_ffn", "on": f, "on_layers": "dense" }));
        if self.split || self.rounds {
            layers.push(json!({ "kind": "transfer", "id": "f2a", "from": f, "to": a, "dtype": self.f2a }));
        }
        layers.push(json!({ "kind": "combine", "on": a }));
        let mut group = device();
        if self.split && self.attention > 1 {
            group["count"] = json!(self.attention);
        }
        let devices = if self.split { json!({ "a": group, "f": device() }) } else { json!({ "a": group }) };
        let order = self.order(&[a.into()], &[f.into()], &[f.into()]);
        self.around(devices, &json!(a), layers, order)
    }

    fn many(&self, places: &Places) -> Value {
        let [a, f, d] = places.sides();
        let ([e, t, r], [dense_t, dense_r]) = (places.expert, places.dense);
        let shard = json!({ "experts": e, "tensor": t, "replicas": r });
        let routing = if places.rail { "rail" } else { "broadcast" };
        let transfer = |id: &str, from: &[String], to: &[String], dtype: &str, layers: &str| {
            json!({
                "kind": "transfer", "id": id, "from": from, "to": to, "dtype": dtype, "routing": routing,
                "on_layers": layers,
            })
        };
        let moe = if places.dense_apart { "moe" } else { "all" };
        let mut attention = json!({ "kind": "mfa_attention", "on": a, "kv_dtype": self.kv });
        if places.o_proj > 0 {
            attention["shard"] = json!({ "o_proj": places.o_proj });
        }
        let mut layers = vec![attention];
        let router = |on: &[String]| json!({ "kind": "router", "on": on, "on_layers": "moe" });
        if !self.router_on_ffn {
            layers.push(router(&a));
        }
        layers.push(transfer("a2f", &a, &f, self.a2f, moe));
        if places.dense_apart {
            layers.push(transfer("a2d", &a, &d, self.a2f, "dense"));
        }
        if self.router_on_ffn {
            layers.push(router(&f));
        }
        let mut experts = json!({ "kind": "expert_ffn", "on": f, "on_layers": "moe", "shard": shard });
        if let Some(placement) = &places.placement {
            experts["placement"] = json!(placement);
        }
        layers.push(experts);
        let shard = json!({ "tensor": dense_t, "replicas": dense_r });
        layers.push(json!({ "kind": "dense_ffn", "on": d, "on_layers": "dense", "shard": shard }));
        layers.push(transfer("f2a", &f, &a, self.f2a, moe));
        if places.dense_apart {
            layers.push(transfer("d2a", &d, &a, self.f2a, "dense"));
        }
        layers.push(json!({ "kind": "combine", "on": a }));
        self.around(places.devices(), &json!(a), layers, self.order(&a, &f, &d))
    }

    /// Of `custom`, one pattern a group: attention joins a layer's end with the next one's beginning, as ping-pong does; where a
    /// group does everything, one micro-batch follows the other.
    fn order(&self, a: &[String], f: &[String], d: &[String]) -> Value {
        let mut order = serde_json::Map::new();
        for group in a.iter().chain(f).chain(d) {
            let has = |side: &[String]| side.contains(group);
            let router = if self.router_on_ffn { has(f) } else { has(a) };
            let turns = [
                ("combine", has(a) && !has(f) && !has(d)),
                ("mfa_attention", has(a)),
                ("router", router),
                ("expert_ffn", has(f)),
                ("dense_ffn", has(d)),
                ("combine", has(a) && (has(f) || has(d))),
            ];
            let of_one = |m: usize| {
                turns
                    .iter()
                    .filter(|(_, there)| *there)
                    .map(move |(stage, _)| format!("{stage}:{m}"))
                    .collect::<Vec<_>>()
            };
            let mut micro_batches: Vec<usize> = (0..self.micro_batches).collect();
            if self.reversed {
                micro_batches.reverse();
            }
            order.insert(group.clone(), micro_batches.into_iter().flat_map(of_one).collect::<Vec<_>>().into());
        }
        order.into()
    }

    /// A graph of `layers`; `order` is for the policy `custom`.
    fn around(&self, devices: Value, a: &Value, layers: Vec<Value>, order: Value) -> Value {
        let mut graph = json!({
            "version": 1, "name": "generated", "model": "given by the test", "devices": devices,
            "stages": [{ "kind": "embed", "on": a }, { "layers": layers }, { "kind": "sampling", "on": a }],
            "limits": {
                "sequences": self.sequences, "rows_per_micro_batch": self.rows, "prefill_chunk": self.prefill_chunk,
                "kv_tokens": self.kv_tokens, "page_tokens": self.page_tokens,
            },
            "schedule": { "policy": self.policy, "micro_batches": self.micro_batches },
        });
        if self.policy == "custom" {
            graph["schedule"]["order"] = order;
        }
        graph
    }
}
