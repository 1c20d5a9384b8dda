//! A `model.safetensors` of any bytes: its tensors, or an error that names the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rally_stages::checkpoint::{Checkpoint, CheckpointError, Part, WeightSource as _};
use std::path::Path;
use std::sync::LazyLock;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// Reads the tensors that the seeds have, whole and cut.
fn read_all(dir: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::open(dir)?;
    let reads = [
        checkpoint.matrix("model.layers.0.mlp.up_proj.weight", 2, 3, Part::all(2, 3)).map(drop),
        checkpoint.matrix("model.layers.0.mlp.up_proj.weight", 2, 3, Part::cols(2, 1..3)).map(drop),
        checkpoint.vector("model.norm.weight", 3).map(drop),
        checkpoint.expert_matrix("model.layers.1.moe.up_proj.weight", 1, 2, 130, 128, Part::all(130, 128)).map(drop),
        checkpoint
            .expert_matrix("model.layers.1.moe.up_proj.weight", 0, 2, 130, 128, Part::rows(128..130, 128))
            .map(drop),
    ];
    reads.into_iter().collect()
}

fuzz_target!(|bytes: &[u8]| {
    let file = FOLDER.path().join("model.safetensors");
    std::fs::write(&file, bytes).expect("the temporary file can be written");
    if let Err(error) = read_all(FOLDER.path()) {
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
});
