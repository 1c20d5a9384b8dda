//! A deployment on several hosts: what of it this process runs, and how steps, samples and rows cross.
//!
//! Every host compiles the same plan and walks the lists of its own lanes. Where the plan waits for a lane of another host, this one
//! waits for what that lane sends: rows in a slot, or the descriptor of a step. Both are *signals*, progress counters behind those
//! of the lanes (`sync.rs`) that the transport's threads count up. The host that was asked to run requests is the **coordinator**:
//! it has the step planner, tells attention hosts what their rows are, and gets what they sampled.

mod coordinator;
mod crossings;
mod follower;
pub mod messages;
mod switchboard;

pub(crate) use coordinator::{Followers, Planning, count_ends};
pub(crate) use crossings::{Crossings, Signals};
pub use follower::follow;
pub(crate) use switchboard::{Switchboard, spawn_lanes};

use crate::engine::EngineParts;
use messages::Bounds;
use rally_graph::stage_graph::{DeviceIndex, StageGraph};
use rally_transport::{Peer, Transport};
use std::sync::Arc;

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
}

impl Across {
    /// What messages must keep to.
    pub(crate) fn bounds(&self, parts: &EngineParts) -> Bounds {
        Bounds { planner: parts.planner, vocab: self.vocab }
    }

    /// Whether this host runs the lanes of `device`.
    pub(crate) fn is_here(&self, graph: &StageGraph, device: DeviceIndex) -> bool {
        graph.devices[device].host == Some(self.host)
    }
}

/// Pairs of hosts between which rows cross, whichever way, and every host with the coordinator: who needs a connection to whom.
pub fn neighbours(graph: &StageGraph, host: Peer, coordinator: Peer) -> Vec<Peer> {
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
    (0..found.len()).filter(|other| *other != host && (found[*other] || all || *other == coordinator)).collect()
}
