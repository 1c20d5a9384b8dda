//! How weights are divided over the devices of a stage.
//!
//! Devices of a sharded stage count replica-major, then expert shard, then tensor shard:
//! `device = (replica · E + expert) · T + tensor`, so tensor shards are neighbours inside a group.

use crate::spec::ShardSpec;
use std::ops::Range;

/// Which part of a stage's weights a device holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ShardPosition {
    /// Copy of everything.
    pub replica: usize,
    /// Shard of the routed experts.
    pub expert: usize,
    /// Shard of the inner width.
    pub tensor: usize,
}

/// Shards of each sort, absent ones counted as 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShardCounts {
    /// Shards of the routed experts.
    pub experts: usize,
    /// Shards of the inner width.
    pub tensor: usize,
    /// Copies of everything.
    pub replicas: usize,
    /// Shards of the output projection.
    pub o_proj: usize,
}

impl ShardCounts {
    /// Counts of a stage's `shard` key.
    pub fn of(shard: Option<&ShardSpec>) -> Self {
        let shard = shard.copied().unwrap_or_default();
        let count = |value: Option<u32>| value.unwrap_or(1).max(1) as usize;
        Self {
            experts: count(shard.experts),
            tensor: count(shard.tensor),
            replicas: count(shard.replicas),
            o_proj: count(shard.o_proj),
        }
    }

    /// Devices an FFN stage needs: experts × tensor × replicas.
    pub fn product(&self) -> usize {
        self.experts.saturating_mul(self.tensor).saturating_mul(self.replicas)
    }

    /// Devices of one replica.
    pub fn per_replica(&self) -> usize {
        self.experts.saturating_mul(self.tensor)
    }

    /// The part that the `device`-th device of the stage holds.
    pub fn position(&self, device: usize) -> ShardPosition {
        ShardPosition {
            tensor: device % self.tensor,
            expert: device / self.tensor % self.experts,
            replica: device / self.per_replica(),
        }
    }
}

/// The `index`-th of `parts` consecutive parts of `0..total`, as equal as can be: the first ones take one more.
pub fn part(total: usize, parts: usize, index: usize) -> Range<usize> {
    let (base, more) = (total / parts, total % parts);
    let start = index * base + index.min(more);
    start..start + base + usize::from(index < more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        for (total, parts) in [(48, 2), (7, 3), (5, 5), (3, 4)] {
            let all: Vec<usize> = (0..parts).flat_map(|index| part(total, parts, index)).collect();
            assert_eq!(all, (0..total).collect::<Vec<_>>());
        }
    }

    #[test]
    fn tensor_shards_are_neighbours() {
        let shard = ShardSpec { experts: Some(2), tensor: Some(8), ..ShardSpec::default() };
        let counts = ShardCounts::of(Some(&shard));
        assert_eq!(counts.position(9), ShardPosition { replica: 0, expert: 1, tensor: 1 });
        assert_eq!(counts.product(), 16);
    }
}
