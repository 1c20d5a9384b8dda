//! Several hosts: what a process says of itself to the others, and how the coordinator comes together with them.

mod absent;
mod coordinator;
pub mod faults;
mod meeting;
mod membership;
mod transport;
pub mod worker;

pub use absent::LookOut;
pub use coordinator::{Break, CoordinatorArgs};
pub use meeting::Meeting;

use crate::error::{Blame, CliError};
use clap::Args;
use crossbeam::channel::Receiver;
use membership::Directory;
use membership::keeper::Keeper;
use membership::member::Member;
use rally_graph::kinds::Role;
use rally_graph::plan::TaskTable;
use rally_stages::deployment::Deployment;
use rally_transport::doorman::{HANDSHAKE, ReachError, reach};
use rally_transport::faults::Faults;
use rally_transport::handshake::{Claims, Hash, HostRole, random_u64};
use rally_transport::key::SharedKey;
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use transport::OverNixl;

/// Names the file with the key where no flag does.
const KEY_VARIABLE: &str = "RALLY_KEY_FILE";

/// Seconds as a flag gives them.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, such as 30 or 0.5".into()),
    }
}

/// The flag that every host of a deployment needs.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// File with the key that all hosts of a graph share, at least 16 bytes; the environment variable RALLY_KEY_FILE names it
    /// too.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl KeyArgs {
    fn read(&self) -> Result<SharedKey, CliError> {
        let named = self.key_file.clone().or_else(|| std::env::var_os(KEY_VARIABLE).map(PathBuf::from));
        let Some(path) = named else {
            return Err(CliError::Mistake(format!(
                "the hosts of this graph share a key: name its file with --key-file or {KEY_VARIABLE} (make one with \
                 `head -c 32 /dev/urandom | base64 > rally.key`, and copy it to every host)"
            )));
        };
        SharedKey::read(&path).or_mistake()
    }
}

/// A deployment's hosts, seen from one of them.
#[derive(Clone)]
pub struct Hosts {
    /// This host.
    pub own: usize,
    names: Vec<String>,
    directory: Directory,
    key: SharedKey,
    claims: Claims,
    /// What is to go wrong here on purpose.
    faults: Option<Arc<Faults>>,
    /// What carries rows besides TCP.
    nixl: Option<Arc<OverNixl>>,
}

impl Hosts {
    /// The host called `name`, before its part of the deployment is loaded. `listen`: its address, if the graph has none and it is known.
    pub fn open(deployment: &Deployment, name: &str, key: &KeyArgs, listen: Option<&str>) -> Result<Self, CliError> {
        let hosts = &deployment.spec.hosts;
        let names: Vec<String> = hosts.keys().cloned().collect();
        let Some(own) = hosts.get_index_of(name) else {
            let known = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(CliError::Mistake(match known.is_empty() {
                true => "this graph has no hosts: it runs in one process, with `rally run`".into(),
                false => format!("this graph has no host `{name}`, but {known}"),
            }));
        };
        let listed = hosts.get(name).and_then(|host| host.address.as_deref());
        let nixl = OverNixl::of(deployment.stage_graph(), listed.or(listen).unwrap_or_default())?.map(Arc::new);
        let claims = Claims {
            host: name.into(),
            to: String::new(),
            role: HostRole::Worker,
            version: env!("CARGO_PKG_VERSION").into(),
            plan: Hash::default(),
            model: Hash::of(&[&deployment.weights_fingerprint().or_mistake()?]),
            epoch: 0,
            incarnation: random_u64().or_failure()?,
        };
        let key = key.read()?;
        Ok(Self { own, names, directory: Directory::of(&deployment.spec, &key), key, claims, faults: None, nixl })
    }

    /// The host that `rally run` is on unless it says otherwise: that of the first attention device.
    pub fn first_attention(deployment: &Deployment) -> Option<String> {
        let graph = deployment.stage_graph();
        let device = *graph.devices_of_role(Role::Embed).first()?;
        Some(graph.hosts[graph.devices[device].host?].clone())
    }

    /// Compiles the plan and takes note of it: the others must have the same.
    pub fn with_plan_of(mut self, deployment: &Deployment) -> Result<Self, CliError> {
        // Where the model lies may differ; what it is has a hash of its own.
        let mut spec = serde_json::to_value(&deployment.spec).or_failure()?;
        for key in ["model", "$schema", "name", "slo", "membership"] {
            spec.as_object_mut().map(|spec| spec.remove(key));
        }
        let plan = deployment.schedule.plan(TaskTable::new(deployment.stage_graph())).or_mistake()?;
        let (plan, label) = (format!("{:?}", plan.lanes), &deployment.schedule.label);
        self.claims.plan = Hash::of(&[spec.to_string().as_bytes(), label.as_bytes(), plan.as_bytes()]);
        Ok(self)
    }

    /// What this host says to `peer` in a membership epoch.
    fn claims_for(&self, peer: usize, role: HostRole, epoch: u64) -> Claims {
        Claims { to: self.names[peer].clone(), role, epoch, ..self.claims.clone() }
    }

    /// Where a host is, for people.
    fn place(&self, host: usize) -> String {
        self.directory.address(host).unwrap_or_else(|_| "not in etcd".into())
    }

    /// Waits until etcd answers, where hosts are found by it: for `patience`, or for ever.
    pub fn await_etcd(&self, patience: Option<Duration>, interrupts: &Receiver<()>) -> Result<(), CliError> {
        self.directory.await_etcd(patience, interrupts)
    }

    /// Connects to `peer`, wherever it is now.
    fn reach(&self, peer: usize, role: HostRole, epoch: u64) -> Result<(TcpStream, Claims), ReachError> {
        let unknown = |why: String| ReachError::Unknown { host: self.names[peer].clone(), why };
        let address = self.directory.address(peer).map_err(unknown)?;
        reach(&address, &self.key, &self.claims_for(peer, role, epoch), HANDSHAKE)
    }

    /// Whether it makes sense to look again for a host that could not be reached. At an address that etcd gave somebody else may be by now;
    /// one in the graph is wrong then.
    fn may_pass(&self, error: &ReachError) -> bool {
        error.may_pass() || (self.directory.members().is_some() && !error.differs())
    }

    /// Makes this host, which listens on `address` and serves these stages by device, known to etcd, where hosts are found by it.
    ///
    /// # Errors
    /// [`CliError::Mistake`] where it would not do the same work as another host that is up, or is up already.
    fn join(
        &self,
        address: String,
        serves: BTreeMap<String, Vec<String>>,
        patience: Option<Duration>,
        interrupts: &Receiver<()>,
    ) -> Result<Option<Keeper>, CliError> {
        let Some(members) = self.directory.members() else { return Ok(None) };
        for other in members.persist(patience, interrupts, || members.all())? {
            let Some(host) = self.index_of(&other.host) else { continue };
            if host == self.own {
                // Its name is taken over from a process that is gone, and from no other.
                let claims = self.claims_for(host, HostRole::Probe, 0);
                let is_up = match reach(&other.address, &self.key, &claims, HANDSHAKE) {
                    Ok(_) => true,
                    Err(error) => error.differs(),
                };
                if is_up {
                    let Member { host, address, .. } = other;
                    return Err(CliError::Mistake(format!("host `{host}` is up already, at {address}")));
                }
            } else if !other.agrees(&self.claims)
                && let Err(error) = self.reach(host, HostRole::Probe, 0)
                && error.differs()
            {
                return Err(meeting::refused(&other.host, &error));
            }
        }
        let transports = if self.nixl.is_some() { &["tcp", "nixl"][..] } else { &["tcp"] };
        let member = Member::new(&self.claims, address, transports, serves);
        Keeper::start(members, member, patience, interrupts).map(Some)
    }

    fn index_of(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|other| other == name)
    }
}
