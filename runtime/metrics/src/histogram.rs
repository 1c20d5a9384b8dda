//! A histogram of whole numbers that one thread writes and others read.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts samples between fixed edges. One writer: it pays two plain loads and stores a sample, no locked instruction.
/// Readers may see a sample's bucket before its sum, never half a number.
#[derive(Debug)]
pub struct AtomicHistogram {
    /// Upper edges, in the writer's unit.
    edges: Box<[u64]>,
    /// Samples up to each edge and above the one before; the last is above all edges.
    cells: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// Samples up to here are not told: cells and sum.
    forgotten: OnceLock<(Vec<u64>, u64)>,
}

impl AtomicHistogram {
    /// For samples that count `per_unit` to the unit of `edges`: 1e9 for nanoseconds where edges are seconds.
    pub fn new(edges: &[f64], per_unit: f64) -> Self {
        Self {
            edges: edges.iter().map(|edge| (edge * per_unit).round() as u64).collect(),
            cells: (0..=edges.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            forgotten: OnceLock::new(),
        }
    }

    /// Leaves out what came so far, once: a warm-up. Its writer need not know.
    pub fn forget(&self) {
        self.forgotten.get_or_init(|| self.all());
    }

    /// Takes a sample. To be called from one thread only; from two, samples may be lost.
    pub fn record(&self, value: u64) {
        add(&self.sum, value);
        add(&self.cells[self.edges.partition_point(|edge| *edge < value)], 1);
    }

    /// Samples per bucket, not cumulative, the last above all edges; and the sum of all samples.
    pub fn read(&self) -> (Vec<u64>, u64) {
        let (mut cells, sum) = self.all();
        let Some((forgotten, before)) = self.forgotten.get() else { return (cells, sum) };
        cells.iter_mut().zip(forgotten).for_each(|(cell, forgotten)| *cell = cell.saturating_sub(*forgotten));
        (cells, sum.saturating_sub(*before))
    }

    /// How many samples there have been, forgotten ones included, and their sum.
    pub fn totals(&self) -> (u64, u64) {
        let (cells, sum) = self.all();
        (cells.iter().sum(), sum)
    }

    fn all(&self) -> (Vec<u64>, u64) {
        let cells = self.cells.iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
        (cells, self.sum.load(Ordering::Relaxed))
    }
}

fn add(cell: &AtomicU64, value: u64) {
    cell.store(cell.load(Ordering::Relaxed) + value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_belongs_to_the_bucket_below_it() {
        let histogram = AtomicHistogram::new(&[0.001, 0.05], 1e9);
        for value in [1, 1_000_000, 1_000_001, 50_000_000, 50_000_001] {
            histogram.record(value);
        }
        assert_eq!(histogram.read(), (vec![2, 2, 1], 1 + 1_000_000 + 1_000_001 + 50_000_000 + 50_000_001));
        histogram.forget();
        histogram.record(7);
        histogram.forget();
        assert_eq!(histogram.read(), (vec![1, 0, 0], 7), "what came before the first time is left out");
        assert_eq!(
            histogram.totals(),
            (6, 1 + 1_000_000 + 1_000_001 + 50_000_000 + 50_000_001 + 7),
            "but counted here"
        );
    }
}
