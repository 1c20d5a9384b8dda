//! Which holder computes a row of a copied expert.
//!
//! All devices of a replica see the same rows and routing, so each works out the same answer and no message says it. The choice
//! changes no bit: it says who computes a term of a sum, not where or in which order the terms are added.

use rally_engine::values::Values;
use rally_graph::placement::ExpertPlacement;

/// The holders of a micro-batch's rows in one layer. Buffers are reused.
pub(super) struct Spread {
    /// Expert shard, by row and place in the routing, `[rows, top_k]`.
    holders: Vec<u32>,
    /// Rows given to each shard, the shared expert's among them.
    loads: Vec<usize>,
}

impl Spread {
    pub(super) fn new(rows: usize, top_k: usize, shards: usize) -> Self {
        Self { holders: vec![0; rows * top_k], loads: vec![0; shards] }
    }

    /// Rows of experts without a copy go where those are; each other row, in order, to its expert's least loaded holder, of
    /// equal ones to the home, then to the lowest. `shared`: what the shared expert costs the first shard, in expert rows.
    pub(super) fn level(&mut self, placed: &ExpertPlacement, values: &Values, shared: usize) {
        let chosen = &values.expert_ids[..values.rows * values.widths.top_k];
        self.loads.fill(0);
        self.loads[0] = shared;
        for (expert, holder) in chosen.iter().zip(&mut self.holders) {
            if let [only] = placed.holders(*expert as usize) {
                *holder = *only as u32;
                self.loads[*only] += 1;
            }
        }
        for (expert, holder) in chosen.iter().zip(&mut self.holders) {
            let (expert, loads) = (*expert as usize, &mut self.loads);
            if let holders @ [_, _, ..] = placed.holders(expert) {
                let home = placed.home(expert);
                let least = holders.iter().copied().min_by_key(|shard| (loads[*shard], *shard != home, *shard));
                let least = least.unwrap_or(home);
                *holder = least as u32;
                loads[least] += 1;
            }
        }
    }

    /// The shard that computes a row's expert at `place` of the routing (`row * top_k + k`).
    pub(super) fn holder(&self, place: usize) -> usize {
        self.holders[place] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rally_engine::Widths;
    use rally_graph::spec::HeldExperts;

    #[test]
    fn a_hot_experts_rows_level_the_shards() {
        let lists = [vec![0, 1], vec![2, 3, 0], vec![4, 5, 0]].map(HeldExperts);
        let placed = ExpertPlacement::listed(6, &lists);
        let mut values = Values::new(20, Widths { hidden: 1, top_k: 2 });
        values.rows = 20;
        // Every row wants expert 0, and half of them expert 1 beside it.
        for (row, chosen) in values.expert_ids.chunks_exact_mut(2).enumerate() {
            chosen.copy_from_slice(&[0, if row % 2 == 0 { 1 } else { 2 + row as u32 % 3 }]);
        }
        let mut spread = Spread::new(20, 2, 3);
        spread.level(&placed, &values, 0);
        let most = spread.loads.iter().max().zip(spread.loads.iter().min());
        assert!(most.is_some_and(|(most, least)| most - least <= 1), "{:?}", spread.loads);
        for (place, expert) in values.expert_ids.iter().enumerate() {
            assert!(placed.holders(*expert as usize).contains(&spread.holder(place)));
        }
        spread.level(&placed, &values, 20);
        assert_eq!(spread.loads[0], 30, "with the shared expert the first shard is the fullest and gets no more");
    }
}
