//! A deployment served in this process, so that runs with and without HTTP differ in nothing else.

use rally::engine::meter::RequestMeter;
use rally::engine::schedule::planner::PlannerConfig;
use rally::engine::{Engine, EngineParts};
use rally::metrics::{Exporter, Identity};
use rally::serve::{Front, FrontParts, Limits, Model, Server, ServerOptions, Waiting};
use rally::stages::deployment::{AssembleOptions, Choices, Deployment};
use rally::stages::kinds::StageRegistry;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub const MODEL: &str = "served";

pub fn open(graph: &str) -> Deployment {
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("graphs").join(graph);
    Deployment::open(&graph, &Choices::default()).expect("the graph has no faults")
}

pub fn parts(deployment: &Deployment) -> EngineParts {
    let options = AssembleOptions { learn: true, ..AssembleOptions::default() };
    deployment.assemble(&StageRegistry::builtin(), options).expect("the graph can run")
}

/// What is served beside the run.
pub struct Served {
    pub server: Server,
}

/// How it is served.
#[derive(Clone, Copy, Default)]
pub struct How {
    /// Seconds a token that are kept to.
    pub keep_tpot_s: Option<f64>,
    pub waiting: Option<Waiting>,
}

impl Served {
    /// `model`: its tokenizer and sizes.
    pub fn start(parts: EngineParts, model: Model, how: How) -> Self {
        // There is one in a process.
        static EXPORTER: OnceLock<Exporter> = OnceLock::new();
        let identity = Identity::new(MODEL);
        let exporter = EXPORTER.get_or_init(|| Exporter::install(identity.clone()).expect("there is no other"));
        let planner: PlannerConfig = parts.planner;
        let engine = Engine::start(parts).expect("threads can be had");
        exporter.watch(engine.figures(), identity.clone());
        if let Some(target_s) = how.keep_tpot_s {
            engine.keep_tpot(target_s);
        }
        let options = ServerOptions {
            address: ([127, 0, 0, 1], 0).into(),
            limits: Limits { max_connections: 1 << 14, ..Limits::default() },
            exporter: exporter.clone(),
            keys: None,
            tls: None,
        };
        let mut server = Server::start(options).expect("a port is free");
        let front = Front::start(FrontParts {
            engine,
            planner,
            meter: RequestMeter::new(&identity, how.keep_tpot_s),
            exporter: exporter.clone(),
            waiting: how.waiting.unwrap_or(Waiting { most: 1 << 14, longest: Duration::from_secs(3600) }),
            revive: None,
        });
        server.serve(model, front.expect("threads can be had"));
        Self { server }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

/// The model of a deployment, as it is served.
pub fn model(deployment: &Deployment) -> Model {
    Model {
        name: MODEL.into(),
        codec: deployment.codec.clone(),
        vocab: deployment.shape.vocab,
        max_positions: deployment.shape.max_positions,
        eos_token_ids: Arc::from(deployment.shape.eos_token_ids.as_slice()),
        template: None,
        slo_tpot_ms: None,
    }
}
