//! Shapes and graphs that the tests share.
#![allow(dead_code, reason = "each test binary uses a part")]

use rally_graph::diagnostic::Diagnostic;
use rally_graph::hardware::Machine;
use rally_graph::kinds::KindRegistry;
use rally_graph::model::{LayerKind, ModelShape, WeightFormat};
use rally_graph::parse::parse_graph;
use rally_graph::validate::{Validation, validate};
use std::path::PathBuf;

pub const TINY: &str = include_str!("../../../../graphs/tiny-ping-pong.json");
pub const ONE_DEVICE: &str = include_str!("../../../../graphs/one-device.json");
pub const STEP3: &str = include_str!("../../../../graphs/step3-2a2f.json");

/// Six layers, the first and the last dense, in bf16.
pub fn tiny() -> ModelShape {
    let mut layers = vec![LayerKind::Moe; 6];
    (layers[0], layers[5]) = (LayerKind::Dense, LayerKind::Dense);
    ModelShape {
        family: "step3".into(),
        hidden: 256,
        vocab: 512,
        heads: 4,
        head_dim: 64,
        query_rank: 128,
        dense_width: 768,
        expert_width: 256,
        shared_width: 256,
        experts: 8,
        top_k: 2,
        norm_expert_weight: false,
        layers,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        max_positions: 4096,
        tie_word_embeddings: false,
        eos_token_ids: vec![],
        weight_format: WeightFormat::Bf16,
    }
}

/// Step-3 as published (paper, table 1).
pub fn step3() -> ModelShape {
    let dense = |layer: usize| layer < 4 || layer == 60;
    ModelShape {
        hidden: 7168,
        vocab: 128_815,
        heads: 64,
        head_dim: 256,
        query_rank: 2048,
        dense_width: 18_432,
        expert_width: 5120,
        shared_width: 5120,
        experts: 48,
        top_k: 3,
        layers: (0..61).map(|layer| if dense(layer) { LayerKind::Dense } else { LayerKind::Moe }).collect(),
        max_positions: 65_536,
        weight_format: WeightFormat::Fp8Block,
        ..tiny()
    }
}

/// Everything that is wrong with a graph, on a machine of four cores and 16 GB.
pub fn check(bytes: &[u8], shape: Option<&ModelShape>) -> Vec<Diagnostic> {
    let registry = KindRegistry::shared();
    let parsed = parse_graph(bytes, registry);
    let Some((spec, touched)) = parsed.judgeable() else { return parsed.diagnostics };
    let machine = Machine { cores: Some(4), memory_bytes: Some(16_000_000_000) };
    let validation = Validation { spec, positions: &parsed.positions, registry, shape, machine, touched: &touched };
    let mut all = parsed.diagnostics.clone();
    all.extend(validate(&validation));
    all.sort_by_key(|diagnostic| diagnostic.span.start);
    all
}

/// A path of the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Compares with a committed file, or writes it where `RALLY_UPDATE` is set.
pub fn golden(path: &str, got: &str) {
    let file = repository(path);
    if std::env::var_os("RALLY_UPDATE").is_some() {
        std::fs::write(&file, got).expect("the golden file can be written");
        return;
    }
    let want = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(want == got, "{path} is out of date: run the tests with RALLY_UPDATE=1 and read the difference");
}
