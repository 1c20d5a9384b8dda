//! The golden checkpoints: every tensor that their configuration asks for is there, with its shape and finite values.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use rally_graph::model::{LayerKind, ModelShape, WeightFormat};
use rally_stages::checkpoint::{Checkpoint, CheckpointError, Part, RandomWeights, WeightSource};
use rally_stages::config::load_model_shape;
use rally_stages::text::TextCodec;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// Reads all tensors of the text model, as a single device would; returns how many bytes the matrices have.
fn read_model(shape: &ModelShape, weights: &dyn WeightSource) -> Result<usize, CheckpointError> {
    let mut bytes = 0;
    let mut matrix = |name: &str, rows, cols| {
        bytes += weights.matrix(name, rows, cols, Part::all(rows, cols))?.bytes();
        Ok::<(), CheckpointError>(())
    };
    let (hidden, query) = (shape.hidden, shape.heads * shape.head_dim);
    matrix("model.embed_tokens.weight", shape.vocab, hidden)?;
    matrix("lm_head.weight", shape.vocab, hidden)?;
    weights.vector("model.norm.weight", hidden)?;
    for (number, kind) in shape.layers.iter().enumerate() {
        let layer = format!("model.layers.{number}");
        weights.vector(&format!("{layer}.input_layernorm.weight"), hidden)?;
        weights.vector(&format!("{layer}.post_attention_layernorm.weight"), hidden)?;
        weights.vector(&format!("{layer}.self_attn.inter_norm.weight"), shape.query_rank)?;
        matrix(&format!("{layer}.self_attn.q_proj.weight"), shape.query_rank, hidden)?;
        matrix(&format!("{layer}.self_attn.k_proj.weight"), shape.head_dim, hidden)?;
        matrix(&format!("{layer}.self_attn.v_proj.weight"), shape.head_dim, hidden)?;
        matrix(&format!("{layer}.self_attn.wq.weight"), query, shape.query_rank)?;
        matrix(&format!("{layer}.self_attn.o_proj.weight"), hidden, query)?;
        let (ffn, width) = match kind {
            LayerKind::Dense => (format!("{layer}.mlp"), shape.dense_width),
            LayerKind::Moe => (format!("{layer}.share_expert"), shape.shared_width),
        };
        matrix(&format!("{ffn}.gate_proj.weight"), width, hidden)?;
        matrix(&format!("{ffn}.up_proj.weight"), width, hidden)?;
        matrix(&format!("{ffn}.down_proj.weight"), hidden, width)?;
        if *kind == LayerKind::Moe {
            matrix(&format!("{layer}.moe.gate.weight"), shape.experts, hidden)?;
            let (experts, width) = (shape.experts, shape.expert_width);
            for expert in 0..experts {
                for (name, rows, cols) in
                    [("gate_proj", width, hidden), ("up_proj", width, hidden), ("down_proj", hidden, width)]
                {
                    let name = format!("{layer}.moe.{name}.weight");
                    weights.expert_matrix(&name, expert, experts, rows, cols, Part::all(rows, cols))?;
                }
            }
        }
    }
    Ok(bytes)
}

#[test]
fn golden_checkpoints_are_read_whole() {
    for (name, layers, experts, format) in [
        ("step3-s", 4, 8, WeightFormat::Bf16),
        ("step3-m", 3, 5, WeightFormat::Bf16),
        ("step3-fp8", 3, 4, WeightFormat::Fp8Block),
        ("step3-renorm", 2, 6, WeightFormat::Bf16),
    ] {
        let dir = folder(name);
        let shape = load_model_shape(&dir).unwrap();
        assert_eq!((shape.layers.len(), shape.experts, shape.weight_format), (layers, experts, format), "{name}");
        assert_eq!(shape.layers[0], LayerKind::Dense, "{name}");
        assert_eq!(shape.norm_expert_weight, name == "step3-renorm");
        assert!(shape.eos_token_ids.is_empty() && !shape.tie_word_embeddings);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let bytes = read_model(&shape, &checkpoint).unwrap_or_else(|error| panic!("{name}: {error}"));
        let random = read_model(&shape, &RandomWeights::new(7, format)).unwrap();
        assert_eq!(bytes, random, "{name}: random weights take the room of stored ones");
        let (read, total) =
            (checkpoint.bytes_read().load(std::sync::atomic::Ordering::Relaxed), checkpoint.total_bytes());
        assert!(read <= total && read > total * 9 / 10, "{name}: {read} of {total}");
        assert!(TextCodec::load(&dir).unwrap().is_none());
    }
}

#[test]
fn a_configuration_of_another_model_is_found_out() {
    let shape = load_model_shape(&folder("step3-s")).unwrap();
    let error = read_model(&shape, &Checkpoint::open(&folder("step3-m")).unwrap()).unwrap_err();
    let shown = error.to_string();
    assert!(shown.contains("tensor `model.embed_tokens.weight` has shape [1003, 192]; expected [512, 128]"), "{shown}");
}
