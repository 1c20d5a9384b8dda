//! A `model.safetensors.index.json` of any bytes beside a sound shard: its tensors, or an error that names a file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rally_stages::checkpoint::{Checkpoint, CheckpointError, WeightSource as _};
use std::path::Path;
use std::sync::LazyLock;
use tempfile::TempDir;

/// The vector `model.norm.weight`, `[3]`.
fn shard() -> Vec<u8> {
    let header = r#"{"model.norm.weight":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([1.0_f32; 3].iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("model-0.safetensors"), shard()).expect("the temporary file can be written");
    folder
});

fn read_all(dir: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::open(dir)?;
    checkpoint.contains("model.layers.1.moe.up_proj.weight");
    checkpoint.vector("model.norm.weight", 3).map(drop)
}

fuzz_target!(|bytes: &[u8]| {
    let file = FOLDER.path().join("model.safetensors.index.json");
    std::fs::write(&file, bytes).expect("the temporary file can be written");
    if let Err(error) = read_all(FOLDER.path()) {
        assert!(error.to_string().contains(".safetensors"), "{error}");
    }
});
