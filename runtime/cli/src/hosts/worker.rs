//! `rally worker`: one host of a deployment. It loads its devices, listens, and runs its lanes for whoever coordinates.

use super::faults::FaultArgs;
use super::meeting::refused;
use super::membership::keeper::Keeper;
use super::{Hosts, KeyArgs, seconds};
use crate::Format;
use crate::error::{Blame, CliError};
use crate::interrupt;
use crate::output::print;
use crate::session::{self, SessionArgs};
use clap::Args;
use crossbeam::channel::{Receiver, after, bounded, never, select};
use rally_engine::hosts::messages::{Bounds, Message};
use rally_engine::hosts::{Across, Followed, STANDSTILL, follow, neighbours};
use rally_engine::{EngineError, EngineParts};
use rally_stages::deployment::{AssembleOptions, Deployment};
use rally_transport::doorman::{Doorman, Guest};
use rally_transport::handshake::HostRole;
use rally_transport::link::DEADLINE;
use rally_transport::tcp::Tcp;
use rally_transport::{Transport, probe};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// For the hosts of an epoch to find each other once the coordinator has found them.
const FORMING: Duration = Duration::from_secs(3);
/// Between two tries to reach a host.
const AGAIN: Duration = Duration::from_millis(20);
/// A host that leaves stays for so long between two epochs of a run: the next one may need it.
const BETWEEN: Duration = Duration::from_secs(10);
/// For etcd, where ways are measured.
const CHECKING: Duration = Duration::from_secs(3);
/// Hosts of epochs that have not begun here yet; older ones are forgotten.
const MOST_EARLY: usize = 32;

/// Arguments of `rally worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    #[command(flatten)]
    session: SessionArgs,
    /// Which host of the graph this is.
    #[arg(long, value_name = "NAME")]
    host: String,
    /// Where this host listens, with membership by etcd and no address of it in the graph: `address:port`, port 0 for any that is free.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    #[command(flatten)]
    key: KeyArgs,
    /// How long to wait for a coordinator, at first and after each run, before this host ends. It keeps its devices meanwhile; for ever
    /// unless given.
    #[arg(long, value_name = "S", value_parser = seconds)]
    wait_coordinator: Option<f64>,
    #[command(flatten)]
    faults: FaultArgs,
    /// Say what the way to each other host is worth, from here, and end. The others must run.
    #[arg(long)]
    check: bool,
    /// Output format of --check.
    #[arg(long, value_enum, default_value_t, requires = "check")]
    format: Format,
}

/// Runs the command.
pub fn run(args: &WorkerArgs) -> Result<ExitCode, CliError> {
    let deployment = session::open(&args.session)?;
    let hosts = Hosts::open(&deployment, &args.host, &args.key, args.listen.as_deref())?;
    let interrupts = interrupt::channel()?;
    let patience = args.wait_coordinator.map(Duration::from_secs_f64);
    if args.check {
        hosts.await_etcd(Some(CHECKING), &interrupts)?;
        // A plan is needed for its hash, weights are not.
        return check(&hosts.with_plan_of(&deployment)?, args.format);
    }
    let address = listens(&deployment, args)?;
    // Before weights are read.
    hosts.await_etcd(patience, &interrupts)?;
    let options = AssembleOptions { host: Some(hosts.own), ..AssembleOptions::default() };
    let parts = session::assemble(&deployment, options)?;
    let hosts = hosts.with_plan_of(&deployment)?.with_faults(&args.faults, deployment.stage_graph())?;
    let doorman = Doorman::start(&address, hosts.key.clone(), hosts.claims.clone()).or_mistake()?;
    let here = |device: &&rally_graph::stage_graph::Device| device.host == Some(hosts.own);
    let devices: Vec<&str> = parts.graph.devices.iter().filter(here).map(|device| device.name.as_str()).collect();
    let keeper = hosts.join(doorman.address().to_string(), serves(&parts, hosts.own), patience, &interrupts)?;
    // Who reads that it waits may ask it to leave.
    interrupt::begin_work();
    eprintln!("host `{}` on {} has {}, and waits for a run", args.host, doorman.address(), devices.join(", "));
    let vocab = deployment.shape.vocab;
    let leaving = Leaving { interrupts, asked: false, may: true };
    let (early, next, kept_of) = (Vec::new(), None, None);
    let mut worker = Worker { hosts, vocab, keeper, doorman, early, next, kept_of, patience, leaving };
    let mut parts = Some(parts);
    loop {
        let left = worker.serve(parts.take().expect("the parts come back from every run"))?;
        if worker.leaving.is_due() {
            // Nobody finds this host any more, whatever its devices still take.
            drop(worker);
            eprintln!("host `{}` has left", args.host);
            return Ok(ExitCode::SUCCESS);
        }
        parts = Some(match whole(&left, worker.hosts.own) {
            true => left,
            false => {
                worker.kept_of = None;
                let options = AssembleOptions { host: Some(worker.hosts.own), ..AssembleOptions::default() };
                session::assemble(&deployment, options)?
            }
        });
    }
}

/// Where this host listens.
fn listens(deployment: &Deployment, args: &WorkerArgs) -> Result<String, CliError> {
    let host = &args.host;
    let listed = deployment.spec.hosts.get(host).and_then(|host| host.address.clone());
    let mistake = |message: String| Err(CliError::Mistake(message));
    match (listed, &args.listen) {
        (Some(_), Some(_)) => mistake(format!("--listen: the graph says where host `{host}` listens")),
        (None, None) => {
            mistake(format!("the graph gives host `{host}` no address: say where it listens with --listen"))
        }
        (Some(address), None) => Ok(address),
        (None, Some(address)) => {
            let bare = address.rsplit_once(':').map(|(name, _)| name.trim_matches(['[', ']']));
            match bare.and_then(|name| name.parse::<IpAddr>().ok()).is_some_and(|address| address.is_unspecified()) {
                true => mistake(format!("--listen {address}: that is every interface, and none that others can reach")),
                false => Ok(address.clone()),
            }
        }
    }
}

/// By device of this host, the stages on it.
fn serves(parts: &EngineParts, own: usize) -> BTreeMap<String, Vec<String>> {
    let graph = &parts.graph;
    let here = graph.devices.iter().enumerate().filter(|(_, device)| device.host == Some(own));
    let stages = |device: usize| graph.stages.iter().filter(move |stage| stage.devices.contains(&device));
    here.map(|(index, device)| (device.name.clone(), stages(index).map(|stage| stage.id.clone()).collect())).collect()
}

/// Whether all stages came back: not those of a lane that panicked.
fn whole(parts: &EngineParts, own: usize) -> bool {
    parts.graph.stages.iter().enumerate().all(|(index, stage)| {
        let here = |device: &&usize| parts.graph.devices[**device].host == Some(own);
        stage.devices.iter().filter(here).all(|device| parts.devices[*device].stages.contains_key(&index))
    })
}

struct Worker {
    hosts: Hosts,
    vocab: usize,
    /// Of this host's key, where etcd has one. Goes before the doorman does.
    keeper: Option<Keeper>,
    doorman: Doorman,
    /// Hosts that were here before the coordinator of their epoch.
    early: Vec<Guest>,
    /// A coordinator that came while the epoch before was being formed.
    next: Option<Guest>,
    /// The run that was the last to write to this host's devices.
    kept_of: Option<u64>,
    /// How long to wait for a coordinator, if not for ever.
    patience: Option<Duration>,
    leaving: Leaving,
}

/// A host's leaving: SIGTERM or Ctrl-C asks for it, and it goes when nothing needs it any more.
struct Leaving {
    interrupts: Receiver<()>,
    asked: bool,
    /// No run has this host in its next epoch.
    may: bool,
}

impl Leaving {
    fn is_due(&self) -> bool {
        self.asked && self.may
    }

    /// From which the wish comes to an epoch: one that was there before is there at once.
    fn wish(&self) -> Receiver<()> {
        if !self.asked {
            return self.interrupts.clone();
        }
        let (sender, wish) = bounded(1);
        // It has room for one.
        let _ = sender.send(());
        wish
    }
}

impl Worker {
    /// One membership epoch, from its coordinator's coming to its end; none where this host leaves.
    fn serve(&mut self, mut parts: EngineParts) -> Result<EngineParts, CliError> {
        // A run that goes on has this host's word until then.
        if !self.leaving.asked {
            self.doorman.works_for(None);
        }
        let Some(Guest { claims, stream }) = self.await_coordinator()? else { return Ok(parts) };
        self.doorman.works_for(Some(claims.clone()));
        let (name, run) = (claims.host, claims.incarnation);
        let Some(index) = self.hosts.index_of(&name) else { return Ok(parts) };
        let mut transport = Tcp::default();
        let Ok(line) = stream.try_clone() else { return Ok(parts) };
        if transport.add(index, stream).is_err() {
            return Ok(parts);
        }
        // Whoever coordinates may have others to look for first.
        let bounds = Bounds { planner: parts.planner, vocab: self.vocab };
        let present = match transport.receive(index, Duration::MAX).map(|bytes| Message::decode(&bytes, &bounds)) {
            Ok(Ok(Message::Epoch { present })) if self.takes_part(&present, index) => present,
            _ => return Ok(parts),
        };
        let until = Instant::now() + FORMING;
        let epoch = Epoch { epoch: claims.epoch, run, coordinator: index, present, line, until };
        if let Err((lost, reason)) = self.form(&mut transport, &parts, &epoch) {
            tracing::warn!(host = self.hosts.names[lost], reason, "a host cannot be reached");
            transport.send(index, Message::Failed { reason, lost: Some(lost) }.encode());
            transport.finish();
            return Ok(parts);
        }
        let (own, names) = (self.hosts.own, self.hosts.names.clone());
        let transport = self.hosts.transport(transport)?;
        let (present, keeps) = (epoch.present, self.kept_of == Some(run));
        let across = Across {
            host: own,
            coordinator: index,
            transport,
            names,
            vocab: self.vocab,
            present,
            standstill: STANDSTILL,
            keeps,
        };
        parts.across = Some(across);
        self.tell_epoch(Some(epoch.epoch));
        tracing::info!(coordinator = name, "a run begins");
        let (mut parts, Followed { begun, leaves, ended }) = follow(parts, &self.leaving.wish());
        parts.across = None;
        self.tell_epoch(None);
        self.leaving.asked |= leaves;
        self.leaving.may = match &ended {
            Ok(()) => true,
            // Told so by the others; whatever else went wrong, the run may go on with this host.
            Err(EngineError::HostLost { host, .. }) => *host == self.hosts.names[own],
            Err(_) => false,
        };
        if begun {
            self.kept_of = Some(run);
        }
        match ended {
            Ok(()) => tracing::info!(coordinator = name, "the run is over"),
            Err(_) if self.leaving.is_due() => tracing::info!(coordinator = name, "the run goes on without this host"),
            Err(EngineError::HostLost { host, why }) if host == self.hosts.names[own] => {
                tracing::warn!(coordinator = name, why, "the others have given this host up");
            }
            Err(EngineError::HostLost { host, why }) => tracing::warn!(host, why, "the run is over: a host is lost"),
            // Its devices are that lane's.
            Err(error @ EngineError::LaneHangs { .. }) => return Err(CliError::Failure(error.to_string())),
            Err(error) => tracing::warn!(%error, "the run is over"),
        }
        Ok(parts)
    }

    /// Tells etcd, where it wants to know.
    fn tell_epoch(&self, epoch: Option<u64>) {
        if let Some(keeper) = &self.keeper {
            keeper.takes_part(epoch);
        }
    }

    /// Whether an epoch is one of this graph's and has this host and its coordinator in it.
    fn takes_part(&self, present: &[bool], coordinator: usize) -> bool {
        present.len() == self.hosts.names.len() && present[self.hosts.own] && present[coordinator]
    }

    /// The coordinator that came last: those before it have given up. None where this host leaves.
    fn await_coordinator(&mut self) -> Result<Option<Guest>, CliError> {
        let mut found = self.next.take();
        let until = self.patience.map(|patience| Instant::now() + patience);
        loop {
            let guest = match &found {
                None => match self.await_anyone(until)? {
                    Some(guest) => guest,
                    None => return Ok(None),
                },
                Some(_) => match self.doorman.guests().try_recv() {
                    Ok(guest) => guest,
                    Err(_) => break,
                },
            };
            match guest.claims.role {
                HostRole::Coordinator => found = Some(guest),
                _ => self.keep(guest),
            }
        }
        Ok(found)
    }

    /// None where this host leaves: nobody needs it, or whoever did does not come again.
    fn await_anyone(&mut self, until: Option<Instant>) -> Result<Option<Guest>, CliError> {
        let left = |until: Instant| after(until.saturating_duration_since(Instant::now()));
        let (guests, too_late) = (self.doorman.guests().clone(), until.map_or_else(never, left));
        loop {
            if self.leaving.is_due() {
                return Ok(None);
            }
            let between = if self.leaving.asked { after(BETWEEN) } else { never() };
            select! {
                recv(guests) -> guest => {
                    return guest.map(Some).map_err(|_| CliError::Failure("the doorman has left".into()));
                }
                recv(self.leaving.interrupts) -> _ => self.leaving.asked = true,
                recv(between) -> _ => self.leaving.may = true,
                recv(too_late) -> _ => {
                    let seconds = self.patience.unwrap_or_default().as_secs_f64();
                    return Err(CliError::Failure(format!("no coordinator has come for {seconds} s")));
                }
            }
        }
    }

    fn keep(&mut self, guest: Guest) {
        if self.early.len() == MOST_EARLY {
            self.early.remove(0);
        }
        self.early.push(guest);
    }

    /// Connects with the hosts that rows go to or come from. Of two hosts the one that is first in the graph connects.
    fn form(&mut self, transport: &mut Tcp, parts: &EngineParts, epoch: &Epoch) -> Result<(), (usize, String)> {
        let mut others = neighbours(&parts.graph, self.hosts.own, epoch.coordinator, &epoch.present);
        others.retain(|host| *host != epoch.coordinator);
        let (before, after): (Vec<usize>, Vec<usize>) = others.into_iter().partition(|host| *host < self.hosts.own);
        for host in after {
            let stream = loop {
                match self.hosts.reach(host, HostRole::Worker, epoch.epoch) {
                    Ok((stream, _)) => break stream,
                    Err(error) if self.hosts.may_pass(&error) && epoch.goes_on() => std::thread::sleep(AGAIN),
                    Err(error) => return Err((host, error.to_string())),
                }
            };
            transport.add(host, stream).map_err(|error| (host, error.to_string()))?;
        }
        for host in before {
            let name = self.hosts.names[host].clone();
            let guest = self.await_guest(&name, epoch).ok_or_else(|| (host, "it has not come in time".to_owned()))?;
            transport.add(host, guest.stream).map_err(|error| (host, error.to_string()))?;
        }
        Ok(())
    }

    fn await_guest(&mut self, name: &str, epoch: &Epoch) -> Option<Guest> {
        let wanted = |guest: &Guest| guest.claims.host == name && guest.claims.epoch == epoch.epoch;
        loop {
            if let Some(place) = self.early.iter().position(wanted) {
                return Some(self.early.swap_remove(place));
            }
            match self.doorman.guests().recv_timeout(AGAIN) {
                Ok(guest) if guest.claims.role == HostRole::Worker => self.keep(guest),
                // The same coordinator, with another epoch: this one has come to nothing.
                Ok(guest) if guest.claims.incarnation == epoch.run => {
                    self.next = Some(guest);
                    return None;
                }
                Ok(_) => {}
                Err(_) if epoch.goes_on() => {}
                Err(_) => return None,
            }
        }
    }
}

/// A membership epoch that is being formed.
struct Epoch {
    epoch: u64,
    /// Of the coordinator's process.
    run: u64,
    coordinator: usize,
    /// By host: whether it takes part.
    present: Vec<bool>,
    /// To the coordinator; nobody reads from it yet.
    line: TcpStream,
    until: Instant,
}

impl Epoch {
    /// Whether there is time left, and the coordinator still there.
    fn goes_on(&self) -> bool {
        let quick = self.line.set_read_timeout(Some(Duration::from_millis(1)));
        let gone = quick.is_err() || matches!(self.line.peek(&mut [0]), Ok(0));
        let restored = self.line.set_read_timeout(Some(DEADLINE));
        !gone && restored.is_ok() && Instant::now() < self.until
    }
}

/// Latency and bandwidth to each other host.
fn check(hosts: &Hosts, format: Format) -> Result<ExitCode, CliError> {
    let mut ways = Vec::new();
    let mut good = true;
    for host in (0..hosts.names.len()).filter(|host| *host != hosts.own) {
        let (name, address) = (&hosts.names[host], hosts.place(host));
        let probed = hosts
            .reach(host, HostRole::Probe, 0)
            .map_err(|error| refused(name, &error).to_string())
            .and_then(|(stream, _)| probe::probe(&stream).map_err(|error| format!("host `{name}`: {error}")));
        good &= probed.is_ok();
        if format == Format::Text {
            print(&match &probed {
                Ok(way) => format!(
                    "{name} ({address}): {:.0} us there and back, {:.2} GB/s\n",
                    way.round_trip_us, way.gigabytes_per_second
                ),
                Err(error) => format!("{error}\n"),
            })?;
        }
        ways.push(match probed {
            Ok(way) => json!({
                "host": name, "address": address, "round_trip_us": way.round_trip_us,
                "gigabytes_per_second": way.gigabytes_per_second,
            }),
            Err(error) => json!({ "host": name, "address": address, "error": error }),
        });
    }
    if format == Format::Json {
        print(&format!("{}\n", json!({ "from": hosts.names[hosts.own], "ok": good, "hosts": ways })))?;
    }
    if good { Ok(ExitCode::SUCCESS) } else { Err(CliError::Failure("not every host can be reached".into())) }
}
