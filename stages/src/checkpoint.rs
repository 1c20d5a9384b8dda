//! The weights of a model, from a folder of safetensors files or from a seed.
//!
//! Owns the names under which a checkpoint stores the text model's tensors, their types, and the cutting of slices, so
//! that a device reads only the bytes it needs. What a stage needs is the stage's business; what a matrix is, that of
//! `rally-kernels`.

mod error;
mod files;
mod header;
mod names;
#[cfg(feature = "cuda")]
mod outline;
mod random;
mod read;
mod shared;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rally_graph::model::{FP8_TILE, WeightFormat};
use rally_kernels::matrix::Matrix;

pub use error::CheckpointError;
use files::Files;
#[cfg(feature = "cuda")]
pub(crate) use outline::Outline;
pub use random::RandomWeights;
use read::{Located, Slice};
pub use shared::{AssemblyWeights, SharedWeights};

/// The slice of a matrix that a device keeps: half-open ranges of rows (outputs) and columns (inputs).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Rows to read.
    pub rows: Range<usize>,
    /// Columns to read.
    pub cols: Range<usize>,
}

impl Part {
    /// The whole of a `[rows, cols]` matrix.
    pub fn all(rows: usize, cols: usize) -> Self {
        Self { rows: 0..rows, cols: 0..cols }
    }

    /// Some rows of a matrix, all `cols` columns.
    pub fn rows(rows: Range<usize>, cols: usize) -> Self {
        Self { rows, cols: 0..cols }
    }

    /// Some columns of a matrix, all `rows` rows.
    pub fn cols(rows: usize, cols: Range<usize>) -> Self {
        Self { rows: 0..rows, cols }
    }

    /// The same part, counted in fp8 tiles.
    fn in_tiles(&self) -> Self {
        let tiles = |range: &Range<usize>| range.start / FP8_TILE..range.end.div_ceil(FP8_TILE);
        Self { rows: tiles(&self.rows), cols: tiles(&self.cols) }
    }

    /// Whether the part takes each tile of `[rows, cols]` as a whole or not at all.
    fn is_on_tiles(&self, rows: usize, cols: usize) -> bool {
        let fits = |range: &Range<usize>, size: usize| {
            range.start.is_multiple_of(FP8_TILE) && (range.end == size || range.end.is_multiple_of(FP8_TILE))
        };
        fits(&self.rows, rows) && fits(&self.cols, cols)
    }

    /// Refuses a part that is empty or not inside `[rows, cols]`.
    fn check(&self, name: &str, rows: usize, cols: usize) -> Result<(), CheckpointError> {
        let inside = |range: &Range<usize>, size: usize| range.start < range.end && range.end <= size;
        if inside(&self.rows, rows) && inside(&self.cols, cols) {
            return Ok(());
        }
        Err(CheckpointError::Part { tensor: name.to_owned(), shape: vec![rows, cols], found: self.to_string() })
    }
}

/// Refuses an expert that a stack of shape `[experts, rows, cols]` does not have.
fn check_expert(name: &str, expert: usize, shape: [usize; 3]) -> Result<(), CheckpointError> {
    if expert < shape[0] {
        return Ok(());
    }
    let found = format!("of expert {expert}");
    Err(CheckpointError::Part { tensor: name.to_owned(), shape: shape.to_vec(), found })
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "[{:?}, {:?}]", self.rows, self.cols)
    }
}

/// Where a stage gets its weights from. Names are those of the Step-3 checkpoint, `model.layers.3.moe.gate.weight`;
/// a source knows the other spellings.
///
/// All methods fail with [`CheckpointError`] if the tensor is missing, of another shape or type, cut where it cannot be
/// cut, or not finite.
pub trait WeightSource: Send + Sync {
    /// The `len` values of a vector, widened to f32 (exact).
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError>;

    /// The part `part` of a matrix whose whole is `[rows, cols]`.
    fn matrix(&self, name: &str, rows: usize, cols: usize, part: Part) -> Result<Matrix, CheckpointError>;

    /// The part `part` of the matrix `[rows, cols]` of expert `expert` of `experts`. `name` is that of the stacked
    /// tensor, `model.layers.3.moe.gate_proj.weight`.
    fn expert_matrix(
        &self,
        name: &str,
        expert: usize,
        experts: usize,
        rows: usize,
        cols: usize,
        part: Part,
    ) -> Result<Matrix, CheckpointError>;

    /// What the part `part` of a matrix `[rows, cols]` is made by, if it is made by a rule: a device may then make it itself. `expert`: the
    /// expert and how many there are, of a stacked tensor.
    fn rule(
        &self,
        name: &str,
        expert: Option<(usize, usize)>,
        whole: (usize, usize),
        part: &Part,
    ) -> Result<Option<Rule>, CheckpointError> {
        let _ = (name, expert, whole, part);
        Ok(None)
    }

    /// Whether there is a tensor of this name (for a stacked tensor also: the experts one by one).
    fn contains(&self, name: &str) -> bool;
}

/// What a matrix is made by: the number at position p of the whole matrix is `bound × u(stream, p)` as `format` stores it, and of fp8 the
/// scale of tile t `scale × (1 + u(scale_stream, t) / 4)`, where u is [`RandomWeights`]' uniform number of [-1, 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// How it is stored.
    pub format: WeightFormat,
    /// Of its numbers.
    pub stream: u64,
    /// Of its scales.
    pub scale_stream: u64,
    /// Largest magnitude, before scales.
    pub bound: f32,
    /// What scales lie around.
    pub scale: f32,
}

/// A model folder with `model.safetensors`, or with `model.safetensors.index.json` and the shards it names.
///
/// Files are memory-mapped when first needed, and a read copies the bytes of the slice asked for and no others. Files
/// must not be changed while they are open.
pub struct Checkpoint {
    dir: PathBuf,
    files: Files,
    bytes_read: Arc<AtomicU64>,
}

impl Checkpoint {
    /// Opens a model folder: reads the index, or the header of the single file, and no weights.
    ///
    /// # Errors
    /// [`CheckpointError`] if the folder holds no weights, or an index or header that is not in order.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        Ok(Self { dir: dir.to_path_buf(), files: Files::open(dir)?, bytes_read: Arc::default() })
    }

    /// The folder that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Counts the bytes of weights copied so far; for a progress display, which may keep it.
    pub fn bytes_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes_read)
    }

    /// Bytes of all files that hold tensors of the text model.
    pub fn total_bytes(&self) -> u64 {
        self.files.total_bytes()
    }

    /// What tells these weights from others with little reading: of every file its size, and bytes from evenly spread places, the
    /// header's among them.
    pub fn fingerprint(&self) -> Result<Vec<u8>, CheckpointError> {
        const PLACES: usize = 64;
        const BYTES: usize = 64;
        let mut found = Vec::new();
        for shard in &self.files.shards {
            let opened = shard.open()?;
            let bytes: &[u8] = &opened.map;
            found.extend((bytes.len() as u64).to_le_bytes());
            for place in 0..PLACES {
                let from = bytes.len() / PLACES * place;
                found.extend(&bytes[from..(from + BYTES).min(bytes.len())]);
            }
        }
        Ok(found)
    }

    /// Finds the tensor stored under one of `names`.
    fn locate(&self, tensor: &str, names: Vec<String>) -> Result<Located, CheckpointError> {
        let listing = || self.files.listing.clone();
        let mut found = names.iter().filter_map(|name| self.files.shard(name).map(|shard| (name, shard)));
        let Some((name, shard)) = found.next() else {
            return Err(CheckpointError::MissingTensor { file: listing(), tensor: tensor.to_owned(), names });
        };
        if let Some((second, _)) = found.next() {
            let (first, second) = (name.clone(), second.clone());
            return Err(CheckpointError::Ambiguous { file: listing(), first, second });
        }
        let opened = shard.open()?;
        let Some(entry) = opened.entries.get(name).cloned() else {
            let (file, index) = (shard.file.clone(), listing());
            return Err(CheckpointError::NotInShard { file, index, tensor: name.clone() });
        };
        Ok(Located { file: shard.file.clone(), name: name.clone(), entry, opened })
    }

    /// Reads a slice, with the tensor's scales if it has any.
    fn read(&self, tensor: Located, slice: &Slice) -> Result<Matrix, CheckpointError> {
        let scale_name = names::scale(&tensor.name);
        let has_scale = self.files.shard(&scale_name).is_some();
        if !tensor.is_fp8() {
            if has_scale {
                let (file, found) = (tensor.file, tensor.entry.dtype.to_string());
                return Err(CheckpointError::UnexpectedScale { file, tensor: tensor.name, found, scale: scale_name });
            }
            return self.counted(tensor.read_plain(slice));
        }
        tensor.check_tiles(slice)?;
        let scales = self.locate(&scale_name, vec![scale_name.clone()])?;
        self.counted(tensor.read_fp8(&scales, slice))
    }

    fn counted<T>(&self, read: Result<(T, u64), CheckpointError>) -> Result<T, CheckpointError> {
        let (value, bytes) = read?;
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        Ok(value)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Checkpoint").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl WeightSource for Checkpoint {
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.locate(name, names::variants(name))?;
        tensor.check_shape(&[len])?;
        self.counted(tensor.read_vector())
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize, part: Part) -> Result<Matrix, CheckpointError> {
        part.check(name, rows, cols)?;
        let tensor = self.locate(name, names::variants(name))?;
        tensor.check_shape(&[rows, cols])?;
        self.read(tensor, &Slice { stack: None, rows, cols, part })
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
        part.check(name, rows, cols)?;
        check_expert(name, expert, [experts, rows, cols])?;
        let mut spellings = names::variants(name);
        spellings.extend(names::expert(name, expert).iter().flat_map(|name| names::variants(name)));
        let tensor = self.locate(name, spellings)?;
        if names::variants(name).contains(&tensor.name) {
            tensor.check_shape(&[experts, rows, cols])?;
            return self.read(tensor, &Slice { stack: Some((expert, experts)), rows, cols, part });
        }
        tensor.check_shape(&[rows, cols])?;
        self.read(tensor, &Slice { stack: None, rows, cols, part })
    }

    fn contains(&self, name: &str) -> bool {
        let first_expert = names::expert(name, 0);
        let spellings = std::iter::once(name.to_owned()).chain(first_expert);
        spellings.flat_map(|name| names::variants(&name)).any(|name| self.files.shard(&name).is_some())
    }
}
