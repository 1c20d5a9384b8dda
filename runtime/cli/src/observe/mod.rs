//! Watching a run: `--metrics` and `--live`, for every command that decodes.
//!
//! An [`Observer`] sees the events of a run beside whoever the run is for, and lends its figures to a listener and to a view. It
//! never touches a lane. Without either flag it does nothing.

mod live;
pub mod screen;

use crate::error::{Blame, CliError};
use clap::Args;
use live::{LiveView, Subject};
use rally_engine::meter::RequestMeter;
use rally_engine::schedule::batch::{SequenceId, SequenceRequest};
use rally_engine::{Engine, RunEvent};
use rally_metrics::{Exporter, Health, Identity, MetricsServer};
use rally_stages::deployment::Deployment;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Arguments that choose how a run is watched.
#[derive(Clone, Debug, Default, Args)]
pub struct ObserveArgs {
    /// Serve Prometheus metrics on http://ADDR/metrics while this runs (`127.0.0.1:9090`); port 0 takes a free one. Stderr says
    /// where.
    #[arg(long, value_name = "ADDR", value_parser = address)]
    metrics: Option<SocketAddr>,
    /// Show lanes, latencies and queue while this runs, on stderr: redrawn in place on a terminal, a line every two seconds
    /// elsewhere.
    #[arg(long)]
    live: bool,
}

impl ObserveArgs {
    /// Whether the terminal is the view's.
    pub fn is_live(&self) -> bool {
        self.live
    }
}

/// A host and a port, names allowed.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| match text.contains(':') {
        true => format!("{error}; expected HOST:PORT, such as 127.0.0.1:9090"),
        false => "no port: expected HOST:PORT, such as 127.0.0.1:9090".into(),
    })?;
    found.next().ok_or_else(|| "this name has no address".into())
}

/// Sees all that happens in a command's runs.
pub struct Observer {
    identity: Identity,
    /// None without a flag: then nothing is counted.
    meter: Option<Arc<Mutex<RequestMeter>>>,
    exporter: Option<(Exporter, MetricsServer)>,
    live: bool,
    view: Option<LiveView>,
}

impl Observer {
    /// Listens, if it was asked to: before weights are read, so that a wrong address costs no time. `model_name` is what
    /// metrics are labelled with.
    pub fn start(args: &ObserveArgs, model_name: &str) -> Result<Self, CliError> {
        let identity = Identity::new(model_name);
        let exporter = args.metrics.map(|address| listen(address, &identity)).transpose()?;
        Ok(Self { identity, meter: None, exporter, live: args.live, view: None })
    }

    /// Sees nothing: for what does not count.
    pub fn blind() -> Self {
        Self { identity: Identity::new(""), meter: None, exporter: None, live: false, view: None }
    }

    /// Whether the terminal is the view's.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Watches a run from now on, in place of the one before. `title` says which it is; `contender`, which of several.
    pub fn watch(&mut self, engine: &Engine, deployment: &Deployment, title: &str, contender: Option<&str>) {
        self.view = None;
        if !self.live && self.exporter.is_none() {
            return;
        }
        let slo_tpot_ms = deployment.spec.slo.map(|slo| slo.tpot_ms);
        let identity = contender.map_or_else(|| self.identity.clone(), |name| self.identity.with_schedule(name));
        let meter = Arc::new(Mutex::new(RequestMeter::new(&identity, slo_tpot_ms.map(|ms| ms / 1e3))));
        if let Some((exporter, _)) = &self.exporter {
            exporter.watch(engine.figures(), identity);
            exporter.set_health(Health::Serving);
        }
        if self.live {
            let subject =
                Subject { title: title.into(), slo_tpot_ms, figures: engine.figures(), meter: Arc::clone(&meter) };
            self.view = LiveView::start(subject);
        }
        self.meter = Some(meter);
    }

    fn meter(&self) -> Option<MutexGuard<'_, RequestMeter>> {
        // Nothing panics while it holds the lock but a fault in counting, and then counts are all that is lost.
        self.meter.as_ref().map(|meter| meter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `requests` are about to be submitted.
    pub fn submitted(&self, requests: &[SequenceRequest]) {
        if let Some(mut meter) = self.meter() {
            let now = Instant::now();
            requests.iter().for_each(|request| meter.submitted(request.id, request.prompt.len(), now));
        }
    }

    /// Something happened.
    pub fn event(&self, event: &RunEvent) {
        if let Some(mut meter) = self.meter() {
            meter.event(event);
        }
        if let (RunEvent::Failed(_), Some((exporter, _))) = (event, &self.exporter) {
            exporter.set_health(Health::Failed);
        }
    }

    /// A stop string has ended a request.
    pub fn stopped(&self, id: SequenceId) {
        if let Some(mut meter) = self.meter() {
            meter.stopped(id);
        }
    }

    /// The run is over: its view stays as it is at the end, and what is printed follows below.
    pub fn finish(&mut self) {
        self.view = None;
    }
}

fn listen(address: SocketAddr, identity: &Identity) -> Result<(Exporter, MetricsServer), CliError> {
    let exporter = Exporter::install(identity.clone()).or_failure()?;
    let server = MetricsServer::start(address, &exporter).or_mistake()?;
    eprintln!("metrics on http://{}/metrics", server.address());
    Ok((exporter, server))
}

/// What a deployment's model is called: the folder's name, or the configuration it was made from.
pub fn model_name(deployment: &Deployment, folder: Option<&Path>) -> String {
    use rally_graph::spec::ModelSource;
    let written = match &deployment.spec.model {
        ModelSource::Folder(folder) => Path::new(folder),
        ModelSource::Config(source) => Path::new(&source.config),
    };
    let path = folder.unwrap_or(written);
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        assert_eq!(address("127.0.0.1:9090"), Ok(SocketAddr::from(([127, 0, 0, 1], 9090))));
        assert_eq!(address("[::1]:0").map(|address| address.is_ipv6()), Ok(true));
        for wrong in ["9090", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:", ":"] {
            let message = address(wrong).expect_err(wrong);
            assert!(message.contains("HOST:PORT"), "{wrong}: {message}");
        }
    }
}
