//! Weights made from a seed: real shapes and real bytes without a checkpoint.
//!
//! A value depends on (seed, tensor name, position in the whole tensor) alone, so that a part equals the same part of
//! the whole, and every device that asks gets the same weights. Matrices are uniform with the variance 1 / columns,
//! which keeps activations at the size of their inputs; norm weights lie within 5 % of 1.

use std::path::PathBuf;

use half::bf16;
use rally_graph::model::{FP8_TILE, WeightFormat};
use rally_kernels::dtype::{E4M3_MAX, f32_to_e4m3};
use rally_kernels::matrix::Matrix;

use super::{CheckpointError, Part, Rule, WeightSource, check_expert, names};

/// Words that begin a description of random weights in a graph file.
const PREFIX: &str = "random:";

/// Weights of a model that was never trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomWeights {
    seed: u64,
    format: WeightFormat,
}

impl RandomWeights {
    /// Weights of the given seed, stored in `format` (the model shape's `weight_format`). As in real checkpoints,
    /// embedding, head and routers are bf16 where projections are fp8.
    pub fn new(seed: u64, format: WeightFormat) -> Self {
        Self { seed, format }
    }

    /// Whether a graph's `weights` asks for random ones, rather than naming a folder.
    pub fn is_spec(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Parses `random:7`.
    ///
    /// # Errors
    /// [`CheckpointError::RandomSpec`] for anything else.
    pub fn parse(text: &str, format: WeightFormat) -> Result<Self, CheckpointError> {
        let digits = text.strip_prefix(PREFIX).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        match digits.and_then(|digits| digits.parse().ok()) {
            Some(seed) => Ok(Self::new(seed, format)),
            None => Err(CheckpointError::RandomSpec { found: text.to_owned() }),
        }
    }

    /// How the tensor is stored.
    pub(super) fn format_of(&self, name: &str) -> WeightFormat {
        let plain = ["embed_tokens.weight", "lm_head.weight", ".moe.gate.weight"];
        match self.format {
            WeightFormat::Fp8Block if plain.iter().any(|end| name.ends_with(end)) => WeightFormat::Bf16,
            format => format,
        }
    }

    fn stream(&self, name: &str) -> Stream {
        // FNV-1a over the name.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Stream(mix(hash ^ mix(self.seed)))
    }

    fn rule_of(&self, name: &str, rows: usize, cols: usize, part: &Part) -> Result<Rule, CheckpointError> {
        part.check(name, rows, cols)?;
        let format = self.format_of(name);
        if format == WeightFormat::Fp8Block {
            self.check_tiles(name, rows, cols, part)?;
        }
        // A uniform number of [-1, 1) has the variance 1/3.
        let bound = (3.0 / cols as f32).sqrt();
        let (bound, scale) = if format == WeightFormat::Fp8Block { (E4M3_MAX, bound / E4M3_MAX) } else { (bound, 0.0) };
        let (Stream(stream), Stream(scale_stream)) = (self.stream(name), self.stream(&names::scale(name)));
        Ok(Rule { format, stream, scale_stream, bound, scale })
    }

    fn make(&self, name: &str, rows: usize, cols: usize, part: Part) -> Result<Matrix, CheckpointError> {
        let Rule { format, stream, scale_stream, bound, scale } = self.rule_of(name, rows, cols, &part)?;
        let (height, width) = (part.rows.len(), part.cols.len());
        let number = |position| bound * Stream(stream).uniform(position);
        Ok(match format {
            WeightFormat::F32 => Matrix::from_f32(height, width, values(cols, &part, 0.0, number)),
            WeightFormat::Bf16 => {
                let value = |position| bf16::from_f32(number(position));
                Matrix::from_bf16(height, width, values(cols, &part, bf16::ZERO, value))
            }
            WeightFormat::Fp8Block => {
                let codes = values(cols, &part, 0, |position| f32_to_e4m3(number(position)));
                Matrix::from_fp8_block(height, width, codes, scales(Stream(scale_stream), cols, &part, scale))
            }
        })
    }

    fn check_tiles(&self, name: &str, rows: usize, cols: usize, part: &Part) -> Result<(), CheckpointError> {
        if part.is_on_tiles(rows, cols) {
            return Ok(());
        }
        Err(CheckpointError::TileCut {
            file: PathBuf::from(format!("{PREFIX}{}", self.seed)),
            tensor: name.to_owned(),
            shape: vec![rows, cols],
            found: part.to_string(),
        })
    }
}

/// Values that are worth a thread of their own.
const OF_A_THREAD: usize = 1 << 18;

/// `value` at every position of a part of a matrix with so many columns, by as many threads as there are cores for: real shapes have
/// billions of them.
fn values<T: Copy + Send>(cols: usize, part: &Part, zero: T, value: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let (height, width) = (part.rows.len(), part.cols.len());
    let mut made = vec![zero; height * width];
    let fill = |first: usize, rows: &mut [T]| {
        for (row, values) in (part.rows.start + first..).zip(rows.chunks_exact_mut(width)) {
            let start = (row * cols + part.cols.start) as u64;
            for (to, position) in values.iter_mut().zip(start..) {
                *to = value(position);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(made.len() / OF_A_THREAD).max(1);
    let rows = height.div_ceil(threads);
    if threads == 1 {
        fill(0, &mut made);
        return made;
    }
    std::thread::scope(|scope| {
        for (index, rows_of_one) in made.chunks_mut(rows * width).enumerate() {
            let fill = &fill;
            scope.spawn(move || fill(index * rows, rows_of_one));
        }
    });
    made
}

/// One scale a tile, within a quarter of `base`, so that using a wrong tile's scale shows.
fn scales(stream: Stream, cols: usize, part: &Part, base: f32) -> Vec<f32> {
    let tiles = part.in_tiles();
    let across = cols.div_ceil(FP8_TILE);
    let positions = tiles.rows.flat_map(|row| tiles.cols.clone().map(move |col| (row * across + col) as u64));
    positions.map(|position| base * (1.0 + 0.25 * stream.uniform(position))).collect()
}

impl WeightSource for RandomWeights {
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        let stream = self.stream(name);
        let values = (0..len as u64).map(|position| 1.0 + 0.05 * stream.uniform(position));
        if self.format == WeightFormat::F32 {
            return Ok(values.collect());
        }
        Ok(values.map(|value| bf16::from_f32(value).to_f32()).collect())
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize, part: Part) -> Result<Matrix, CheckpointError> {
        self.make(name, rows, cols, part)
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
        check_expert(name, expert, [experts, rows, cols])?;
        self.make(&of_expert(name, expert), rows, cols, part)
    }

    fn rule(
        &self,
        name: &str,
        expert: Option<(usize, usize)>,
        (rows, cols): (usize, usize),
        part: &Part,
    ) -> Result<Option<Rule>, CheckpointError> {
        let Some((expert, experts)) = expert else { return self.rule_of(name, rows, cols, part).map(Some) };
        check_expert(name, expert, [experts, rows, cols])?;
        self.rule_of(&of_expert(name, expert), rows, cols, part).map(Some)
    }

    fn contains(&self, name: &str) -> bool {
        !name.ends_with("_scale_inv")
    }
}

/// The name of one expert's matrix.
fn of_expert(name: &str, expert: usize) -> String {
    names::expert(name, expert).unwrap_or_else(|| format!("{name}.{expert}"))
}

/// A sequence of random numbers with access to any of them.
#[derive(Clone, Copy)]
struct Stream(u64);

impl Stream {
    /// The number at `position`, of [-1, 1), in steps of 2^-23.
    fn uniform(self, position: u64) -> f32 {
        let bits = mix(self.0.wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 40;
        bits as f32 * (1.0 / (1_u32 << 23) as f32) - 1.0
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
