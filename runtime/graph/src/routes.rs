//! Which rows go where: the FFN's parts in each layer, how rows are divided over its replicas, and who is on which rail.
//!
//! It decides nothing at run time: all of it follows from the graph, so senders and receivers agree without asking each other.

use crate::kinds::Role;
use crate::shard::{ShardCounts, part};
use crate::spec::Routing;
use crate::stage_graph::{DeviceIndex, ResolvedStage, ResolvedTransfer, StageGraph};
use std::collections::HashSet;
use std::ops::Range;

/// The `index`-th of `parts` consecutive parts of a device's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which part.
    pub index: usize,
    /// Of how many.
    pub parts: usize,
}

impl Share {
    /// All rows.
    pub const ALL: Self = Self { index: 0, parts: 1 };

    /// The rows, of `rows` in all.
    pub fn of(self, rows: usize) -> Range<usize> {
        part(rows, self.parts, self.index)
    }
}

/// The FFN of a layer: its devices, replica by replica, and what each computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FfnLayout {
    devices: Vec<DeviceIndex>,
    counts: ShardCounts,
    home_groups: Vec<Vec<usize>>,
    /// Replicas that work: all of them unless some of their devices are away.
    working: Vec<usize>,
}

impl FfnLayout {
    /// The FFN of every layer; `None` where a layer has none.
    pub fn by_layer(graph: &StageGraph) -> Vec<Option<Self>> {
        let mut layers: Vec<Option<Self>> = vec![None; graph.layers];
        for instance in graph.graph.node_weights() {
            let stage = &graph.stages[instance.stage];
            if let (Role::Ffn, Some(layer)) = (stage.role, instance.layer) {
                let counts = ShardCounts::of(stage.spec.shard.as_ref());
                // The checker refuses shards that are not as many as the devices.
                layers[layer] = Some(match counts.product() == stage.devices.len() {
                    true => Self::new(graph, &stage.devices, counts),
                    false => Self::one_copy(graph, &stage.devices),
                });
            }
        }
        layers
    }

    /// One copy, a part of it on each of `devices`.
    pub fn one_copy(graph: &StageGraph, devices: &[DeviceIndex]) -> Self {
        let counts = ShardCounts { experts: devices.len(), tensor: 1, replicas: 1, o_proj: 1 };
        Self::new(graph, devices, counts)
    }

    fn new(graph: &StageGraph, devices: &[DeviceIndex], counts: ShardCounts) -> Self {
        let home = &devices[..counts.per_replica().min(devices.len())];
        let place = |device: &DeviceIndex| home.iter().position(|other| other == device);
        let groups = by_group(graph, home);
        let home_groups = groups.iter().map(|group| group.iter().filter_map(place).collect()).collect();
        Self { devices: devices.to_vec(), counts, home_groups, working: (0..counts.replicas).collect() }
    }

    /// The same while some devices are `away`. A replica works with all of its devices or not at all.
    pub fn without(self, away: impl Fn(DeviceIndex) -> bool) -> Self {
        let whole = |replica: &usize| (0..self.parts()).all(|part| !away(self.device(*replica, part)));
        let working = (0..self.replicas()).filter(whole).collect();
        Self { working, ..self }
    }

    /// Replicas that work, ascending.
    pub fn working(&self) -> &[usize] {
        &self.working
    }

    /// Whether a device has rows to work on.
    pub fn works(&self, device: DeviceIndex) -> bool {
        self.replica_of(device).is_some_and(|replica| self.working.contains(&replica))
    }

    /// Its devices, as the stage names them.
    pub fn devices(&self) -> &[DeviceIndex] {
        &self.devices
    }

    /// Copies of everything.
    pub fn replicas(&self) -> usize {
        self.counts.replicas
    }

    /// Parts that a row's y has: one from every device of a replica.
    pub fn parts(&self) -> usize {
        self.counts.per_replica()
    }

    /// The device that holds part `part` in replica `replica`.
    pub fn device(&self, replica: usize, part: usize) -> DeviceIndex {
        self.devices[replica * self.parts() + part]
    }

    /// The replica that a device belongs to.
    pub fn replica_of(&self, device: DeviceIndex) -> Option<usize> {
        self.devices.iter().position(|other| *other == device).map(|index| index / self.parts())
    }

    /// The parts by group, in the order in which they are summed: groups in order, devices of a group in order. A part belongs
    /// to its home, the device of the first replica, whichever replica computes it: so a row's sum does not depend on that.
    pub fn home_groups(&self) -> &[Vec<usize>] {
        &self.home_groups
    }

    /// Rows of the `source`-th attention device that `replica`, which works, computes. Every source begins with another replica, so
    /// that few rows are spread as well as many.
    pub fn share(&self, source: usize, replica: usize) -> Share {
        let parts = self.working.len();
        let place = self.working.iter().position(|working| *working == replica).expect("rows go to replicas that work");
        Share { index: (place + source) % parts, parts }
    }

    /// Whether all replicas lie in their groups as the first one does, and no group holds devices of two: what a rail needs,
    /// since it sums inside the groups where the parts are.
    pub fn replicas_keep_groups(&self, graph: &StageGraph) -> bool {
        let group = |device: DeviceIndex| graph.devices[device].group.as_str();
        let mut seen: Vec<&str> = Vec::new();
        (0..self.replicas()).all(|replica| {
            let devices: Vec<DeviceIndex> = (0..self.parts()).map(|part| self.device(replica, part)).collect();
            let own = by_group(graph, &devices);
            let fresh = own.iter().all(|members| !seen.contains(&group(members[0])));
            seen.extend(own.iter().map(|members| group(members[0])));
            let place = |device: &DeviceIndex| devices.iter().position(|other| other == device);
            let groups: Vec<Vec<usize>> = own.iter().map(|group| group.iter().filter_map(place).collect()).collect();
            fresh && groups == self.home_groups
        })
    }
}

/// How a stage's devices work on each other's rows: in parts, with an exchange inside each group of peers between two parts.
///
/// * `shard.o_proj`: attention, then every peer's slice of the output projection for the rows of all peers, then the sum of
///   the slices' parts and what follows it.
/// * Copied experts: the rows of each expert on the holder that is given them, then the sum on the experts' homes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchanges {
    /// Parts of the stage, at least 2.
    pub parts: usize,
    /// Devices that exchange with each other, in order: of slices, or of expert shards.
    pub peers: Vec<Vec<DeviceIndex>>,
}

impl Exchanges {
    /// The exchanges of a stage in a layer; `None` where every device works alone.
    pub fn of(graph: &StageGraph, stage: &ResolvedStage, layer: usize) -> Option<Self> {
        let counts = ShardCounts::of(stage.spec.shard.as_ref());
        match stage.role {
            Role::Attention if counts.o_proj > 1 => {
                let groups = by_group(graph, &stage.devices);
                let peers = groups.iter().flat_map(|group| group.chunks(counts.o_proj)).map(<[_]>::to_vec).collect();
                Some(Self { parts: 3, peers })
            }
            Role::Ffn if copies_experts(stage, layer) && counts.product() == stage.devices.len() => {
                let same = |replica: usize, tensor: usize| {
                    let device = |expert: usize| (replica * counts.experts + expert) * counts.tensor + tensor;
                    (0..counts.experts).map(|expert| stage.devices[device(expert)]).collect()
                };
                let places = (0..counts.replicas).flat_map(|replica| (0..counts.tensor).map(move |t| (replica, t)));
                Some(Self { parts: 2, peers: places.map(|(replica, tensor)| same(replica, tensor)).collect() })
            }
            _ => None,
        }
    }

    /// The peers of a device, itself among them.
    pub fn peers_of(&self, device: DeviceIndex) -> &[DeviceIndex] {
        Rails::group(&self.peers, device)
    }
}

/// Whether some expert of the layer is on more than one shard.
fn copies_experts(stage: &ResolvedStage, layer: usize) -> bool {
    let lists = stage.spec.placement.as_ref().and_then(|placement| placement.in_layer(layer));
    let mut seen = HashSet::new();
    lists.is_some_and(|lists| lists.iter().flat_map(|held| &held.0).any(|expert| !seen.insert(*expert)))
}

/// Devices by group, groups and devices in the order in which they first appear.
pub fn by_group(graph: &StageGraph, devices: &[DeviceIndex]) -> Vec<Vec<DeviceIndex>> {
    let mut groups: Vec<Vec<DeviceIndex>> = Vec::new();
    for device in devices {
        let name = &graph.devices[*device].group;
        match groups.iter_mut().find(|group| graph.devices[group[0]].group == *name) {
            Some(group) => group.push(*device),
            None => groups.push(vec![*device]),
        }
    }
    groups
}

/// The ends of a transfer by rail: device i of a group talks to device i of every other, and to its own group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rails {
    /// Groups it starts from.
    pub from: Vec<Vec<DeviceIndex>>,
    /// Groups it ends at.
    pub to: Vec<Vec<DeviceIndex>>,
}

impl Rails {
    /// The rails of a transfer; `None` if it is a broadcast. In groups of one the two are the same.
    pub fn of(graph: &StageGraph, transfer: &ResolvedTransfer) -> Option<Self> {
        let rails = Self { from: by_group(graph, &transfer.from), to: by_group(graph, &transfer.to) };
        let size = rails.from.first().map_or(1, Vec::len);
        // Groups of different sizes were refused by the checker.
        let even = rails.from.iter().chain(&rails.to).all(|group| group.len() == size);
        (transfer.routing == Routing::Rail && even && size > 1).then_some(rails)
    }

    /// The group of `device` among `ends`.
    pub fn group(ends: &[Vec<DeviceIndex>], device: DeviceIndex) -> &[DeviceIndex] {
        ends.iter().find(|group| group.contains(&device)).map_or(&[], Vec::as_slice)
    }

    /// Devices of `others` on the same rail as `device`, which is one of `ends`.
    pub fn opposite(ends: &[Vec<DeviceIndex>], device: DeviceIndex, others: &[Vec<DeviceIndex>]) -> Vec<DeviceIndex> {
        let index = Self::group(ends, device).iter().position(|other| *other == device);
        index.map(|index| others.iter().map(|group| group[index]).collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_spread_over_replicas_by_source() {
        let counts = ShardCounts { experts: 2, tensor: 1, replicas: 2, o_proj: 1 };
        let home_groups = vec![vec![0], vec![1]];
        let layout = FfnLayout { devices: vec![4, 5, 6, 7], counts, home_groups, working: vec![0, 1] };
        let rows = |source, replica| layout.share(source, replica).of(1).len();
        assert_eq!((rows(0, 0), rows(0, 1)), (1, 0));
        assert_eq!((rows(1, 0), rows(1, 1)), (0, 1));
        assert_eq!((layout.device(1, 0), layout.replica_of(7), layout.replica_of(3)), (6, Some(1), None));
    }

    #[test]
    fn a_replica_that_lacks_a_device_leaves_its_rows_to_the_others() {
        let counts = ShardCounts { experts: 2, tensor: 1, replicas: 3, o_proj: 1 };
        let layout = FfnLayout {
            devices: (4..10).collect(),
            counts,
            home_groups: vec![vec![0], vec![1]],
            working: vec![0, 1, 2],
        };
        let left = layout.clone().without(|device| device == 7);
        assert_eq!((left.working(), left.works(6), left.works(7), left.works(8)), (&[0, 2][..], false, false, true));
        for source in 0..4 {
            let mut rows: Vec<usize> = left.working().iter().flat_map(|r| left.share(source, *r).of(7)).collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..7).collect::<Vec<_>>(), "every row has one replica");
        }
        assert!(layout.without(|device| device % 2 == 0).working().is_empty());
    }
}
