//! `rally serve`: an OpenAI-compatible front for a deployment, until it is told to stop.

mod across;

use crate::error::{Blame, CliError};
use crate::hosts::{CoordinatorArgs, Meeting};
use crate::interrupt;
use crate::observe::{address, model_name};
use crate::session::{self, SessionArgs};
use across::{Across, EachEngine};
use clap::Args;
use crossbeam::channel::select;
use rally_engine::Engine;
use rally_engine::meter::RequestMeter;
use rally_metrics::{Exporter, Health, Identity};
use rally_serve::{ChatTemplate, Front, FrontParts, Keys, Limits, Model, Revive, Server, ServerOptions, Tls, Waiting};
use rally_stages::deployment::{AssembleOptions, Deployment};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Arguments of `rally serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Where to listen; port 0 takes a free one, and stderr says which. Only this machine can reach the default.
    #[arg(long, value_name = "ADDR", value_parser = address, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// What requests call the model, instead of its folder's name.
    #[arg(long, value_name = "NAME")]
    served_model_name: Option<String>,
    /// Keys of which `/v1` wants one (`Authorization: Bearer KEY`), one a line. Without this, those in the environment variable
    /// RALLY_API_KEYS, separated by commas; without that, none.
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Speak TLS with this certificate, or chain of them, the server's own first (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, not encrypted (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Most answers that wait to be decoded. Requests beyond get 429: the newest, or else the youngest of a client with more of them.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_waiting: u32,
    /// An answer that has waited for so many seconds is refused with 429.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    max_wait_seconds: u32,
    /// Keep the graph's slo.tpot_ms: answers wait, and prompts are read in smaller pieces, where steps would take longer; few answers
    /// share fewer micro-batches where that is quicker.
    #[arg(long)]
    hold_tpot: bool,
    /// Let every answer read all of its prompt. Otherwise prompts that begin alike share KV pages, and what was read is not read again.
    #[arg(long)]
    no_prefix_reuse: bool,
    /// Most connections; those beyond get 503.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Most bytes of a request's body; longer ones get 413.
    #[arg(long, value_name = "N", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    max_body_bytes: u32,
    /// Seconds for a request's head to come, and for its body; slower ones get 408.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    request_seconds: u32,
    #[command(flatten)]
    coordinator: CoordinatorArgs,
    /// After Ctrl-C or SIGTERM, seconds for what is under way to end. A second signal stops at once.
    #[arg(long, value_name = "S", default_value_t = 30)]
    drain_seconds: u32,
}

/// Runs the command.
pub fn run(args: &ServeArgs) -> Result<ExitCode, CliError> {
    let interrupts = interrupt::channel()?;
    let deployment = session::open(&args.session)?;
    let hosts = args.coordinator.hosts(&deployment)?;
    let model = model(args, &deployment)?;
    let keys = keys(args)?;
    let tls = args.tls_cert.as_deref().zip(args.tls_key.as_deref());
    let tls = tls.map(|(certificate, key)| Tls::from_files(certificate, key)).transpose().or_mistake()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let identity = Identity::new(&model.name);
    let exporter = Exporter::install(identity.clone()).or_failure()?;
    // Before the weights are read: a wrong address costs no time, and who asks hears that they are.
    let options = ServerOptions { address: args.listen, limits: limits(args), exporter: exporter.clone(), keys, tls };
    let mut server = Server::start(options).or_mistake()?;
    eprintln!("listening on {scheme}://{}", server.address());
    let slo_tpot_s = deployment.spec.slo.map(|slo| slo.tpot_ms / 1e3);
    let each = EachEngine {
        exporter: exporter.clone(),
        identity: identity.clone(),
        keep_tpot_s: keep_tpot_s(args, slo_tpot_s, hosts.is_some())?,
        reuse_prefixes: !args.no_prefix_reuse,
    };
    if let Some(hosts) = &hosts {
        hosts.await_etcd(Some(args.coordinator.wait()), &interrupts)?;
    }
    // What stages cost on other hosts is not told here.
    let (learn, host) = (hosts.is_none(), hosts.as_ref().map(|hosts| hosts.own));
    let parts = session::assemble(&deployment, AssembleOptions { learn, host, ..AssembleOptions::default() })?;
    let on_what = parts.on_what(crate::doctor::available_cores());
    let wait = args.coordinator.wait();
    let meeting = hosts.map(|hosts| Meeting::new(hosts, Arc::clone(&parts.graph), deployment.shape.vocab, wait));
    let (engine, across) = match meeting {
        Some(meeting) => {
            Across::begin(meeting, parts, &interrupts, &each).map(|(engine, across)| (engine, Some(across)))?
        }
        None => (Engine::start(parts).or_failure()?, None),
    };
    each.begins(&engine);
    exporter.set_health(Health::Serving);
    let stop_waiting = across.as_ref().map(Across::stop_waiting);
    let front = Front::start(FrontParts {
        engine,
        planner: deployment.planner_config(),
        meter: RequestMeter::new(&identity, slo_tpot_s),
        exporter,
        waiting: Waiting {
            most: args.max_waiting as usize,
            longest: Duration::from_secs(args.max_wait_seconds.into()),
        },
        revive: across.map(|across| Box::new(across) as Box<dyn Revive>),
    });
    let front = front.or_failure()?;
    let failures = front.failures();
    let name = model.name.clone();
    server.serve(model, front);
    interrupt::begin_work();
    eprintln!("ready: {name}, {} {} on {on_what}", deployment.spec.name, deployment.schedule.label);
    select! {
        recv(interrupts) -> _ => {}
        recv(failures) -> reason => {
            // Clients hear of it before the process goes.
            server.drain(Duration::ZERO);
            return Err(CliError::Failure(reason.unwrap_or_else(|_| "the run ended early".into())));
        }
    }
    // Closed before it is said.
    server.close();
    eprintln!("stopping: {} s for what is under way; another signal stops at once", args.drain_seconds);
    match server.drain(Duration::from_secs(args.drain_seconds.into())) {
        0 => eprintln!("stopped"),
        cut_off => eprintln!("stopped; {cut_off} answers were cut off"),
    }
    if let Some(stop_waiting) = stop_waiting {
        // It may not be waiting for a host.
        let _ = stop_waiting.try_send(());
    }
    Ok(ExitCode::SUCCESS)
}

/// The time per token to keep to, in seconds, if it was asked for.
fn keep_tpot_s(args: &ServeArgs, slo_tpot_s: Option<f64>, across: bool) -> Result<Option<f64>, CliError> {
    let mistake = |why: &str| Err(CliError::Mistake(format!("--hold-tpot: {why}")));
    match slo_tpot_s {
        _ if !args.hold_tpot => Ok(None),
        _ if across => {
            mistake("what stages cost on other hosts is not told here; limit rows_per_micro_batch in the graph instead")
        }
        None => mistake("the graph has no slo.tpot_ms to keep"),
        target => Ok(target),
    }
}

fn limits(args: &ServeArgs) -> Limits {
    let for_requests = Duration::from_secs(args.request_seconds.into());
    Limits {
        head_timeout: for_requests,
        body_timeout: for_requests,
        max_body_bytes: args.max_body_bytes as usize,
        max_connections: args.max_connections as usize,
        ..Limits::default()
    }
}

fn keys(args: &ServeArgs) -> Result<Option<Keys>, CliError> {
    match &args.api_keys {
        Some(file) => Keys::from_file(file).map(Some).or_mistake(),
        None => Keys::from_environment().or_mistake(),
    }
}

fn model(args: &ServeArgs, deployment: &Deployment) -> Result<Model, CliError> {
    let named = || model_name(deployment, args.session.model.as_deref());
    // Weights that are made by a rule come without a folder.
    let folder = Some(Path::new(&deployment.weights_source)).filter(|folder| folder.is_dir());
    let template = folder.map(ChatTemplate::load).transpose().or_mistake()?.flatten();
    Ok(Model {
        name: args.served_model_name.clone().unwrap_or_else(named),
        codec: deployment.codec.clone(),
        vocab: deployment.shape.vocab,
        max_positions: deployment.shape.max_positions,
        eos_token_ids: Arc::from(deployment.shape.eos_token_ids.as_slice()),
        template,
        slo_tpot_ms: deployment.spec.slo.map(|slo| slo.tpot_ms),
    })
}
