//! A deployment on several hosts: what of it this process runs, and how steps, samples and rows cross.
//!
//! Every host compiles the same plan and walks the lists of its own lanes. Where the plan waits for a lane of another host, this one
//! waits for what that lane sends: rows in a slot, or the descriptor of a step. Both are *signals*, progress counters behind those
//! of the lanes (`sync.rs`) that the transport's threads count up. The host that was asked to run requests is the **coordinator**:
//! it has the step planner, tells attention hosts what their rows are, and gets what they sampled.
//!
//! A host that is away takes no part: nobody sends to its devices or waits for them. A deployment runs as long as some attention
//! device and a whole copy of every layer's FFN are left.

mod coordinator;
mod crossings;
mod follower;
mod hops;
pub mod messages;
pub mod samples;
mod standstill;
mod switchboard;

pub(crate) use coordinator::{Followers, Planning, count_ends};
pub(crate) use crossings::{Crossings, Signals};
pub use follower::{Followed, follow};
pub(crate) use hops::Hops;
pub(crate) use standstill::Patience;
pub use standstill::STANDSTILL;
pub(crate) use switchboard::{Switchboard, spawn_lanes};

use crate::engine::EngineParts;
use messages::Bounds;
use rally_graph::kinds::Role;
use rally_graph::routes::FfnLayout;
use rally_graph::stage_graph::{DeviceIndex, StageGraph};
use rally_transport::{Peer, Transport};
use std::sync::Arc;
use std::time::Duration;

/// This process's part of a deployment on several hosts, for one membership epoch.
#[derive(Clone)]
pub struct Across {
    /// This host, an index into the graph's hosts.
    pub host: Peer,
    /// The host that plans.
    pub coordinator: Peer,
    /// The way to the others.
    pub transport: Arc<dyn Transport>,
    /// Names of all hosts.
    pub names: Vec<String>,
    /// Tokens of the model.
    pub vocab: usize,
    /// By host: whether it takes part.
    pub present: Vec<bool>,
    /// Of the coordinator: for how long nothing may move at least before someone is given up for it, [`STANDSTILL`] unless it is a test.
    pub standstill: Duration,
    /// This host's attention devices have what the epoch before this one left in them; it was of the same run.
    pub keeps: bool,
}

impl Across {
    /// What messages must keep to.
    pub(crate) fn bounds(&self, parts: &EngineParts) -> Bounds {
        Bounds { planner: parts.planner, vocab: self.vocab }
    }

    /// Whether the host of `device` takes no part.
    pub(crate) fn is_away(&self, graph: &StageGraph, device: DeviceIndex) -> bool {
        is_away(graph, &self.present, device)
    }

    /// Whether this host runs the lanes of `device`.
    pub(crate) fn is_here(&self, graph: &StageGraph, device: DeviceIndex) -> bool {
        graph.devices[device].host == Some(self.host)
    }
}

fn is_away(graph: &StageGraph, present: &[bool], device: DeviceIndex) -> bool {
    graph.devices[device].host.is_some_and(|host| !present[host])
}

/// Hosts that must come for a deployment to run, of those that are not `present`: all that could bring what it lacks. None if it
/// lacks nothing.
pub fn missed(graph: &StageGraph, present: &[bool]) -> Vec<Peer> {
    let away = |device: DeviceIndex| is_away(graph, present, device);
    let mut needed: Vec<DeviceIndex> = Vec::new();
    let attention = graph.devices_of_role(Role::Embed);
    if attention.iter().all(|device| away(*device)) {
        needed.extend(attention);
    }
    for ffn in FfnLayout::by_layer(graph).into_iter().flatten() {
        let ffn = ffn.without(away);
        if ffn.working().is_empty() {
            needed.extend(ffn.devices());
        }
    }
    let hosts = needed.into_iter().filter_map(|device| graph.devices[device].host);
    let mut hosts: Vec<Peer> = hosts.filter(|host| !present[*host]).collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

/// Hosts that `host` needs a connection to, of those that are `present`: rows cross between them, whichever way, or one of the two
/// coordinates.
pub fn neighbours(graph: &StageGraph, host: Peer, coordinator: Peer, present: &[bool]) -> Vec<Peer> {
    let on = |device: &DeviceIndex| graph.devices[*device].host;
    let mut found = vec![false; graph.hosts.len()];
    for transfer in graph.stages.iter().filter_map(|stage| stage.transfer.as_ref()) {
        let (from, to): (Vec<_>, Vec<_>) =
            (transfer.from.iter().filter_map(on).collect(), transfer.to.iter().filter_map(on).collect());
        for (ends, others) in [(&from, &to), (&to, &from)] {
            if ends.contains(&host) {
                others.iter().for_each(|other| found[*other] = true);
            }
        }
    }
    let all = host == coordinator;
    let wanted = |other: &Peer| *other != host && present[*other] && (found[*other] || all || *other == coordinator);
    (0..found.len()).filter(wanted).collect()
}
