//! Weights that are nothing but as large as a model's: to find out what a device needs before any are read.

use super::{CheckpointError, Part, RandomWeights, Rule, WeightSource};
use half::bf16;
use rally_graph::model::{FP8_TILE, WeightFormat};
use rally_kernels::matrix::Matrix;

/// Zeros, stored as a checkpoint of the model's format stores them.
pub(crate) struct Outline(pub(crate) WeightFormat);

impl WeightSource for Outline {
    fn vector(&self, _name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        Ok(vec![0.0; len])
    }

    fn matrix(&self, name: &str, _rows: usize, _cols: usize, part: Part) -> Result<Matrix, CheckpointError> {
        let (rows, cols) = (part.rows.len(), part.cols.len());
        let count = rows * cols;
        Ok(match RandomWeights::new(0, self.0).format_of(name) {
            WeightFormat::F32 => Matrix::from_f32(rows, cols, vec![0.0; count]),
            WeightFormat::Bf16 => Matrix::from_bf16(rows, cols, vec![bf16::ZERO; count]),
            WeightFormat::Fp8Block => {
                let scales = rows.div_ceil(FP8_TILE) * cols.div_ceil(FP8_TILE);
                Matrix::from_fp8_block(rows, cols, vec![0; count], vec![0.0; scales])
            }
        })
    }

    fn expert_matrix(
        &self,
        name: &str,
        _expert: usize,
        _experts: usize,
        rows: usize,
        cols: usize,
        part: Part,
    ) -> Result<Matrix, CheckpointError> {
        self.matrix(name, rows, cols, part)
    }

    fn rule(
        &self,
        name: &str,
        _expert: Option<(usize, usize)>,
        _whole: (usize, usize),
        _part: &Part,
    ) -> Result<Option<Rule>, CheckpointError> {
        let format = RandomWeights::new(0, self.0).format_of(name);
        Ok(Some(Rule { format, stream: 0, scale_stream: 0, bound: 0.0, scale: 0.0 }))
    }

    fn contains(&self, name: &str) -> bool {
        !name.ends_with("_scale_inv")
    }
}
