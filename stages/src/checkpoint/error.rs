//! What can be wrong with a checkpoint.

use std::path::PathBuf;

use thiserror::Error;

/// A checkpoint that cannot be read. Every variant names the file and, where there is one, the tensor.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be opened, read or mapped.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder holds no weights.
    #[error("{}: holds neither model.safetensors nor model.safetensors.index.json", dir.display())]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// A value of the index is not what it should be.
    #[error("{}: `{key}` is {found}; expected {expected}", file.display())]
    Index {
        /// The index.
        file: PathBuf,
        /// The key.
        key: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// The index is not JSON, or names a key twice.
    #[error("{}:{line}:{column}: not valid JSON: {message}", file.display())]
    IndexSyntax {
        /// The index.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser said.
        message: String,
    },
    /// The index places a tensor in a file that is not there.
    #[error("{}: says that `{tensor}` is in {shard}, which cannot be read: {source}", file.display())]
    MissingShard {
        /// The index.
        file: PathBuf,
        /// The first tensor placed there.
        tensor: String,
        /// Name of the file that is not there.
        shard: String,
        /// Why.
        source: std::io::Error,
    },
    /// The index places a tensor in a file that does not hold it.
    #[error("{}: has no tensor `{tensor}`, although {} says so", file.display(), index.display())]
    NotInShard {
        /// The file.
        file: PathBuf,
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The file is shorter, or longer, than its header says.
    #[error("{}: has {found} bytes; expected {expected}, as its header says (truncated download?)", file.display())]
    Length {
        /// The file.
        file: PathBuf,
        /// Bytes in the file.
        found: u64,
        /// Bytes by the header.
        expected: u64,
    },
    /// The header is not what the format says.
    #[error("{}: not a safetensors file: header {found}; expected {expected}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// The header describes a tensor in an impossible way.
    #[error("{}: tensor `{tensor}`: header says {found}; expected {expected}", file.display())]
    HeaderTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// A tensor that the model needs is not there under any of its names.
    #[error("{}: has no tensor `{tensor}`; expected it under one of the names {}", file.display(), names.join(", "))]
    MissingTensor {
        /// The file, the index, or the folder.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The names that were looked for.
        names: Vec<String>,
    },
    /// One tensor is there under two names.
    #[error("{}: has both `{first}` and `{second}`, which are names of one tensor; expected one", file.display())]
    Ambiguous {
        /// The file or the index.
        file: PathBuf,
        /// A name.
        first: String,
        /// Another name.
        second: String,
    },
    /// A tensor has another shape than the model's configuration asks for.
    #[error("{}: tensor `{tensor}` has shape {found:?}; expected {expected:?}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor has a type that cannot be used in its place.
    #[error("{}: tensor `{tensor}` {shape:?} has type {found}; expected {expected}", file.display())]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        found: String,
        /// The types that can be read there.
        expected: &'static str,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("{}: tensor `{tensor}` {shape:?} holds {found} at {at:?}; expected finite values", file.display())]
    NonFinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Index of the value, one number a dimension.
        at: Vec<usize>,
        /// The value.
        found: String,
    },
    /// A tensor that is not fp8 comes with scales.
    #[error("{}: tensor `{tensor}` has type {found} but there is also `{scale}`; expected F8_E4M3 or no scales",
        file.display())]
    UnexpectedScale {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
        /// Name of the scales.
        scale: String,
    },
    /// A part was asked for that the tensor does not have.
    #[error("tensor `{tensor}` {shape:?}: cannot read the part {found}; expected a part that is not empty and inside")]
    Part {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The part.
        found: String,
    },
    /// An fp8 tensor was cut inside a tile, which a scale belongs to as a whole.
    #[error("{}: tensor `{tensor}` {shape:?} is fp8 and cannot be cut to {found}; expected cuts at multiples of 128",
        file.display())]
    TileCut {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The part.
        found: String,
    },
    /// Not a description of random weights.
    #[error("weights `{found}`: expected `random:` and a seed, a whole number below 2^64")]
    RandomSpec {
        /// What was given.
        found: String,
    },
}
