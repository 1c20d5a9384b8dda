//! Which device holds which expert: plain shards, or a placement given as data, with copies of hot experts.
//!
//! Every expert has one *home* among the shards, and a row's sum is formed there whoever computes its terms. So a result
//! depends on the homes alone, and copies change no bit. Which holder computes a row is decided at run time, by the stage.

use crate::model::LayerKind;
use crate::shard::part;
use crate::spec::{HeldExperts, PlacementSpec, StageSpec};
use crate::stage_graph::selector_takes;

/// The experts of one layer over the expert shards of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertPlacement {
    /// By shard, ascending.
    shards: Vec<Vec<usize>>,
    /// By expert, the shards that hold it, ascending.
    holders: Vec<Vec<usize>>,
    /// By expert.
    homes: Vec<usize>,
}

impl ExpertPlacement {
    /// `experts` in consecutive parts, the first ones take one more: what `shard.experts` alone means.
    pub fn consecutive(experts: usize, shards: usize) -> Self {
        let parts = (0..shards).map(|shard| part(experts, shards, shard).collect()).collect();
        Self::new(experts, parts)
    }

    /// As a graph lists it, one list a shard. The home of an expert is the shard that plain sharding would give it, if that holds
    /// it, else the first that does. Ids from `experts` on are left out, and an expert that nobody holds is at home where plain
    /// sharding has it: validation refuses both.
    pub fn listed(experts: usize, lists: &[HeldExperts]) -> Self {
        let known = |HeldExperts(list): &HeldExperts| -> Vec<usize> {
            let mut ids: Vec<usize> = list.iter().map(|id| *id as usize).filter(|id| *id < experts).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        Self::new(experts, lists.iter().map(known).collect())
    }

    /// What a stage has in `layer`, with `experts` experts over `shards` expert shards.
    pub fn of(stage: &StageSpec, layer: usize, experts: usize, shards: usize) -> Self {
        let lists = stage.placement.as_ref().and_then(|placement| placement.in_layer(layer));
        // Lists of another number than the shards were refused by the checker.
        match lists.filter(|lists| lists.len() == shards) {
            Some(lists) => Self::listed(experts, lists),
            None => Self::consecutive(experts, shards),
        }
    }

    fn new(experts: usize, shards: Vec<Vec<usize>>) -> Self {
        let mut holders: Vec<Vec<usize>> = vec![Vec::new(); experts];
        for (shard, ids) in shards.iter().enumerate() {
            ids.iter().for_each(|expert| holders[*expert].push(shard));
        }
        let mut homes = Vec::with_capacity(experts);
        for shard in 0..shards.len() {
            homes.extend(std::iter::repeat_n(shard, part(experts, shards.len(), shard).len()));
        }
        for (home, holders) in homes.iter_mut().zip(&holders) {
            if let (false, Some(first)) = (holders.contains(home), holders.first()) {
                *home = *first;
            }
        }
        Self { shards, holders, homes }
    }

    /// Expert shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Experts of the layer.
    pub fn experts(&self) -> usize {
        self.homes.len()
    }

    /// Experts that a shard holds, ascending.
    pub fn held_by(&self, shard: usize) -> &[usize] {
        &self.shards[shard]
    }

    /// Shards that hold an expert, ascending.
    pub fn holders(&self, expert: usize) -> &[usize] {
        &self.holders[expert]
    }

    /// The shard whose part of y the expert belongs to.
    pub fn home(&self, expert: usize) -> usize {
        self.homes[expert]
    }

    /// Experts held by more than one shard, each further holder counted.
    pub fn copies(&self) -> usize {
        self.holders.iter().map(|holders| holders.len().saturating_sub(1)).sum()
    }

    /// Most experts of one row that a shard computes for another, of `top_k` that the row has.
    pub fn lent_at_once(&self, top_k: usize) -> usize {
        let lent = |from: usize, to: usize| self.held_by(from).iter().filter(|id| self.home(**id) == to).count();
        let pairs = (0..self.shards()).flat_map(|from| (0..self.shards()).map(move |to| (from, to)));
        pairs.filter(|(from, to)| from != to).map(|(from, to)| lent(from, to)).max().unwrap_or(0).min(top_k)
    }
}

impl PlacementSpec {
    /// The lists of a layer with routed experts: one a shard. `None` where the data says nothing of it.
    pub fn in_layer(&self, layer: usize) -> Option<&[HeldExperts]> {
        match self {
            Self::Everywhere(lists) => Some(lists),
            Self::ByLayer(layers) => layers
                .iter()
                .find(|(selector, _)| selector_takes(selector, layer, LayerKind::Moe) == Some(true))
                .map(|(_, lists)| lists.as_slice()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_where_plain_shards_are_while_those_hold_the_expert() {
        let placed = ExpertPlacement::listed(5, &[HeldExperts(vec![3, 0, 1, 2]), HeldExperts(vec![3, 4, 0])]);
        let plain = ExpertPlacement::consecutive(5, 2);
        assert_eq!(homes_of(&placed), homes_of(&plain));
        assert_eq!((placed.copies(), plain.copies()), (2, 0));
        assert_eq!((placed.holders(3), placed.held_by(1)), (&[0, 1][..], &[0, 3, 4][..]));
        let swapped = ExpertPlacement::listed(4, &[HeldExperts(vec![2, 3]), HeldExperts(vec![0, 1])]);
        assert_eq!(homes_of(&swapped), [1, 1, 0, 0]);
    }

    fn homes_of(placed: &ExpertPlacement) -> Vec<usize> {
        (0..placed.experts()).map(|expert| placed.home(expert)).collect()
    }
}
