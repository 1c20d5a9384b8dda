//! Several hosts: what a process says of itself to the others, and how the coordinator comes together with them.

mod absent;
pub mod faults;
mod meeting;
mod transport;
pub mod worker;

pub use meeting::Meeting;

use crate::error::{Blame, CliError};
use clap::Args;
use rally_graph::kinds::Role;
use rally_graph::plan::TaskTable;
use rally_stages::deployment::Deployment;
use rally_transport::faults::Faults;
use rally_transport::handshake::{Claims, Hash, HostRole, random_u64};
use rally_transport::key::SharedKey;
use std::path::PathBuf;
use std::sync::Arc;
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
    addresses: Vec<String>,
    key: SharedKey,
    claims: Claims,
    /// What is to go wrong here on purpose.
    faults: Option<Arc<Faults>>,
    /// What carries rows besides TCP.
    nixl: Option<Arc<OverNixl>>,
}

impl Hosts {
    /// The host called `name`, before its part of the deployment is loaded.
    pub fn open(deployment: &Deployment, name: &str, key: &KeyArgs) -> Result<Self, CliError> {
        let hosts = &deployment.spec.hosts;
        let names: Vec<String> = hosts.keys().cloned().collect();
        let Some(own) = hosts.get_index_of(name) else {
            let known = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(CliError::Mistake(match known.is_empty() {
                true => "this graph has no hosts: it runs in one process, with `rally run`".into(),
                false => format!("this graph has no host `{name}`, but {known}"),
            }));
        };
        let addresses: Vec<String> = hosts.values().map(|host| host.address.clone()).collect();
        let nixl = OverNixl::of(deployment.stage_graph(), &addresses[own])?.map(Arc::new);
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
        Ok(Self { own, names, addresses, key: key.read()?, claims, faults: None, nixl })
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
        for key in ["model", "$schema", "name", "slo"] {
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

    fn index_of(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|other| other == name)
    }
}
