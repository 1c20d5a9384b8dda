//! How results name the graph and the model they were measured with.

use rally_stages::deployment::Deployment;
use serde_json::{Value, json};
use std::path::Path;

/// The graph, with a hash, so that a figure cannot be held against another version of the file.
pub fn graph(deployment: &Deployment, path: &Path) -> Value {
    json!({
        "name": deployment.spec.name,
        "path": path.display().to_string(),
        "hash": format!("{:016x}", fnv1a(deployment.positions.text().as_bytes())),
    })
}

/// The model.
pub fn model(deployment: &Deployment) -> Value {
    let shape = &deployment.shape;
    json!({
        "family": shape.family,
        "layers": shape.layers.len(),
        "hidden": shape.hidden,
        "experts": shape.experts,
        "vocab": shape.vocab,
        "weights": deployment.weights_source,
    })
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
