//! Weights that are read once and then shared by deployments that are run one after the other, as when they are compared.
//!
//! Two devices of one deployment never share memory through it: as in a single run, each that asks for the same matrix has a
//! copy of its own, and the caches see what they would see there.

use super::{CheckpointError, Part, Rule, WeightSource};
use rally_kernels::matrix::Matrix;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A matrix's name, its expert if it is one of a stack, and the part of it.
type Key = (String, Option<usize>, Range<usize>, Range<usize>);

/// What was read from `source` so far.
pub struct SharedWeights {
    source: Arc<dyn WeightSource>,
    matrices: Mutex<HashMap<Key, Vec<Matrix>>>,
}

impl SharedWeights {
    /// Nothing read yet.
    pub fn new(source: Arc<dyn WeightSource>) -> Self {
        Self { source, matrices: Mutex::default() }
    }

    /// The weights for one assembly: the first that asks for a matrix gets the first copy, the second the second.
    pub fn assembly(&self) -> AssemblyWeights<'_> {
        AssemblyWeights { shared: self, taken: Mutex::default() }
    }

    fn copy(
        &self,
        key: &Key,
        index: usize,
        read: impl FnOnce() -> Result<Matrix, CheckpointError>,
    ) -> Result<Matrix, CheckpointError> {
        let mut matrices = self.matrices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(matrix) = matrices.get(key).and_then(|copies| copies.get(index)) {
            return Ok(matrix.clone());
        }
        let matrix = read()?;
        matrices.entry(key.clone()).or_default().push(matrix.clone());
        Ok(matrix)
    }
}

/// [`SharedWeights`] as one deployment reads them.
pub struct AssemblyWeights<'a> {
    shared: &'a SharedWeights,
    /// Copies this assembly was given.
    taken: Mutex<HashMap<Key, usize>>,
}

impl AssemblyWeights<'_> {
    fn next(
        &self,
        key: Key,
        read: impl FnOnce() -> Result<Matrix, CheckpointError>,
    ) -> Result<Matrix, CheckpointError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(key.clone()).or_default();
        let matrix = self.shared.copy(&key, *count, read)?;
        *count += 1;
        Ok(matrix)
    }
}

impl WeightSource for AssemblyWeights<'_> {
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        self.shared.source.vector(name, len)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize, part: Part) -> Result<Matrix, CheckpointError> {
        let key = (name.to_owned(), None, part.rows.clone(), part.cols.clone());
        self.next(key, || self.shared.source.matrix(name, rows, cols, part))
    }

    fn expert_matrix(
        &self,
        name: &str,
        expert: usize,
        experts: usize,
        rows: usize,
        cols: usize,
        part: Part,
    ) -> Result<Matrix, CheckpointError> {
        let key = (name.to_owned(), Some(expert), part.rows.clone(), part.cols.clone());
        self.next(key, || self.shared.source.expert_matrix(name, expert, experts, rows, cols, part))
    }

    fn rule(
        &self,
        name: &str,
        expert: Option<(usize, usize)>,
        whole: (usize, usize),
        part: &Part,
    ) -> Result<Option<Rule>, CheckpointError> {
        self.shared.source.rule(name, expert, whole, part)
    }

    fn contains(&self, name: &str) -> bool {
        self.shared.source.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::RandomWeights;
    use super::*;
    use rally_graph::model::WeightFormat;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counting(RandomWeights, AtomicUsize);

    impl WeightSource for Counting {
        fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
            self.0.vector(name, len)
        }
        fn matrix(&self, name: &str, rows: usize, cols: usize, part: Part) -> Result<Matrix, CheckpointError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.matrix(name, rows, cols, part)
        }
        fn expert_matrix(
            &self,
            name: &str,
            expert: usize,
            experts: usize,
            rows: usize,
            cols: usize,
            part: Part,
        ) -> Result<Matrix, CheckpointError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.expert_matrix(name, expert, experts, rows, cols, part)
        }
        fn contains(&self, name: &str) -> bool {
            self.0.contains(name)
        }
    }

    #[test]
    fn a_second_assembly_reads_nothing_and_devices_have_copies_of_their_own() {
        let source = Arc::new(Counting(RandomWeights::new(1, WeightFormat::F32), AtomicUsize::new(0)));
        let shared = SharedWeights::new(Arc::clone(&source) as Arc<dyn WeightSource>);
        let assemble = || {
            let weights = shared.assembly();
            let get = |name: &str, part| weights.matrix(name, 8, 8, part).expect("random weights are always there");
            // Two devices, and half of the same matrix.
            let all = || get("a", Part::all(8, 8));
            let matrices = [all(), all(), get("a", Part::rows(0..4, 8)), get("b", Part::all(8, 8))];
            matrices.map(|matrix| {
                let mut row = vec![0.0; 8];
                matrix.row_into(3, &mut row);
                (matrix.rows(), row)
            })
        };
        let first = assemble();
        assert_eq!(source.1.load(Ordering::Relaxed), 4);
        assert_eq!(assemble(), first);
        assert_eq!(source.1.load(Ordering::Relaxed), 4);
        assert_eq!(first[0], first[1]);
        assert_ne!(first[0].1, first[3].1);
    }
}
