//! The files of a checkpoint: one safetensors file, or shards behind an index; mapped when first needed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rally_ffi::MappedFile;
use serde_json::Value;

use super::CheckpointError;
use super::header::{Entry, read_header};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Largest index that is read; a real one has a few megabytes.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// First words of tensors that belong to the vision part, which a text model skips.
const VISION: &[&str] = &["vision_model.", "vit_downsampler", "vit_large_projector", "vision_tower.", "visual."];

/// A mapped file and its header.
pub(super) struct Opened {
    pub(super) map: MappedFile,
    pub(super) entries: HashMap<String, Entry>,
}

/// One file of the checkpoint.
pub(super) struct Shard {
    pub(super) file: PathBuf,
    bytes: u64,
    opened: Mutex<Option<Arc<Opened>>>,
}

impl Shard {
    fn new(file: PathBuf, bytes: u64) -> Self {
        Self { file, bytes, opened: Mutex::new(None) }
    }

    /// Maps the file and reads its header, once. A failure is not kept: the next call tries again.
    pub(super) fn open(&self) -> Result<Arc<Opened>, CheckpointError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = opened.as_ref() {
            return Ok(Arc::clone(opened));
        }
        let map = rally_ffi::map_file(&self.file)
            .map_err(|source| CheckpointError::Io { file: self.file.clone(), source })?;
        let entries = read_header(&map, &self.file)?;
        Ok(Arc::clone(opened.insert(Arc::new(Opened { map, entries }))))
    }
}

/// All files of a checkpoint, and which tensor is in which.
pub(super) struct Files {
    /// The file that lists the tensors: the single one, or the index.
    pub(super) listing: PathBuf,
    pub(super) shards: Vec<Shard>,
    shard_of: HashMap<String, usize>,
}

impl Files {
    pub(super) fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            let source = io::Error::new(io::ErrorKind::NotADirectory, "not a model folder");
            return Err(CheckpointError::Io { file: dir.to_path_buf(), source });
        }
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if exists(&single) {
            return Self::open_single(single);
        }
        if exists(&index) {
            return Self::open_index(dir, index);
        }
        Err(CheckpointError::NoWeights { dir: dir.to_path_buf() })
    }

    fn open_single(file: PathBuf) -> Result<Self, CheckpointError> {
        let bytes = file_bytes(&file).map_err(|source| CheckpointError::Io { file: file.clone(), source })?;
        let shard = Shard::new(file.clone(), bytes);
        let shard_of = shard.open()?.entries.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { listing: file, shards: vec![shard], shard_of })
    }

    fn open_index(dir: &Path, index: PathBuf) -> Result<Self, CheckpointError> {
        let mut shards: Vec<Shard> = Vec::new();
        let mut by_name: HashMap<String, usize> = HashMap::new();
        let mut shard_of = HashMap::new();
        for (tensor, shard) in read_index(&index)? {
            if VISION.iter().any(|prefix| tensor.trim_start_matches("model.").starts_with(prefix)) {
                continue;
            }
            let number = match by_name.get(&shard) {
                Some(number) => *number,
                None => {
                    let file = dir.join(&shard);
                    let bytes = file_bytes(&file).map_err(|source| CheckpointError::MissingShard {
                        file: index.clone(),
                        tensor: tensor.clone(),
                        shard: shard.clone(),
                        source,
                    })?;
                    shards.push(Shard::new(file, bytes));
                    by_name.insert(shard, shards.len() - 1);
                    shards.len() - 1
                }
            };
            shard_of.insert(tensor, number);
        }
        Ok(Self { listing: index, shards, shard_of })
    }

    /// The file that holds the tensor of exactly this name.
    pub(super) fn shard(&self, name: &str) -> Option<&Shard> {
        self.shard_of.get(name).and_then(|number| self.shards.get(*number))
    }

    /// Bytes of all files that hold a tensor of the text model.
    pub(super) fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }
}

/// A dangling link counts as there, so that the error names it instead of the folder.
fn exists(file: &Path) -> bool {
    fs::symlink_metadata(file).is_ok()
}

fn file_bytes(file: &Path) -> io::Result<u64> {
    let metadata = fs::metadata(file)?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// The pairs (tensor, file name) of an index.
fn read_index(file: &Path) -> Result<Vec<(String, String)>, CheckpointError> {
    let io = |source| CheckpointError::Io { file: file.to_path_buf(), source };
    let wrong = |key: &str, found: String, expected: &str| CheckpointError::Index {
        file: file.to_path_buf(),
        key: key.to_owned(),
        found,
        expected: expected.to_owned(),
    };
    let bytes = file_bytes(file).map_err(io)?;
    if bytes > MAX_INDEX_BYTES {
        return Err(wrong("(the whole file)", format!("{bytes} bytes"), &format!("at most {MAX_INDEX_BYTES}")));
    }
    let text = String::from_utf8(fs::read(file).map_err(io)?).map_err(|source| {
        let offset = source.utf8_error().valid_up_to();
        wrong("(the whole file)", format!("not UTF-8 at byte {offset}"), "UTF-8 text")
    })?;
    let root = crate::json::parse_unique(&text).map_err(|source| CheckpointError::IndexSyntax {
        file: file.to_path_buf(),
        line: source.line(),
        column: source.column(),
        message: source.to_string(),
    })?;
    let Some(Value::Object(weight_map)) = root.get("weight_map") else {
        let found = if root.get("weight_map").is_some() { "not an object" } else { "missing" };
        return Err(wrong("weight_map", found.to_owned(), "an object of tensor names and file names"));
    };
    let mut pairs = Vec::with_capacity(weight_map.len());
    for (tensor, shard) in weight_map {
        match shard.as_str() {
            Some(name) if is_plain_name(name) => pairs.push((tensor.clone(), name.to_owned())),
            _ => {
                let key = format!("weight_map.{tensor}");
                return Err(wrong(&key, shard.to_string(), "the name of a file beside the index"));
            }
        }
    }
    Ok(pairs)
}

/// Whether `name` stays in its folder. Weights from elsewhere could be anything.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}
