//! Reads a checkpoint's `config.json` into a [`ModelShape`].
//!
//! Owns the names and ranges of the Step-3 configuration, bare or inside the vision-language form (`text_config`).
//! Keys that rally does not know are left alone (Hugging Face configurations carry many), but every known key that
//! would change the arithmetic is either honoured or refused. Opens no device and reads no tensor.

mod error;
mod fields;

use std::io::Read as _;
use std::path::Path;

use rally_graph::model::{FP8_TILE, LayerKind, ModelShape, WeightFormat};
use serde_json::Value;

pub use error::ConfigError;
use fields::Fields;

/// Largest `config.json` that is read; real ones have a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

// The largest accepted sizes. Each is at least ten times what any published model has, and together they keep every
// byte count of a whole model below 2^63: 3 matrices × 2^12 experts × 2^20 × 2^17 × 4 bytes × 2^10 layers.
const MAX_HIDDEN: u64 = 1 << 17;
const MAX_WIDTH: u64 = 1 << 20;
const MAX_VOCAB: u64 = 1 << 22;
const MAX_HEADS: u64 = 1 << 12;
const MAX_HEAD_DIM: u64 = 1 << 12;
const MAX_EXPERTS: u64 = 1 << 12;
const MAX_LAYERS: u64 = 1 << 10;
const MAX_POSITIONS: u64 = 1 << 24;

/// Keys that other model families use to change the arithmetic, with the values that change nothing. Absent and null
/// are fine as well.
const NEUTRAL: &[(&str, &[Neutral])] = &[
    ("hidden_act", &[Neutral::Word("silu"), Neutral::Word("swish")]),
    ("attention_bias", &[Neutral::False]),
    ("attn_bias", &[Neutral::False]),
    ("qkv_bias", &[Neutral::False]),
    ("mlp_bias", &[Neutral::False]),
    ("use_bias", &[Neutral::False]),
    ("use_qk_norm", &[Neutral::False]),
    ("qk_norm", &[Neutral::False]),
    ("use_head_wise_attn_gate", &[Neutral::False]),
    ("use_moe_router_bias", &[Neutral::False]),
    ("use_sliding_window", &[Neutral::False]),
    ("sliding_window", &[Neutral::Number(0.0)]),
    ("partial_rotary_factor", &[Neutral::Number(1.0)]),
    ("routed_scaling_factor", &[Neutral::Number(1.0)]),
    ("moe_router_scaling_factor", &[Neutral::Number(1.0)]),
    ("moe_router_activation", &[Neutral::Word("softmax")]),
    ("scoring_func", &[Neutral::Word("softmax")]),
    ("attn_logit_softcapping", &[]),
    ("final_logit_softcapping", &[]),
    ("swiglu_limit", &[]),
    ("swiglu_limits", &[]),
    ("num_key_value_heads", &[Neutral::Number(1.0)]),
    ("layer_types", &[Neutral::EachWord("full_attention")]),
];

/// A value of a [`NEUTRAL`] key that changes nothing.
#[derive(Clone, Copy)]
enum Neutral {
    False,
    Number(f64),
    Word(&'static str),
    EachWord(&'static str),
}

impl Neutral {
    fn matches(self, value: &Value) -> bool {
        match self {
            Self::False => value == &Value::Bool(false),
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Word(word) => value.as_str() == Some(word),
            Self::EachWord(word) => {
                value.as_array().is_some_and(|values| values.iter().all(|value| value.as_str() == Some(word)))
            }
        }
    }

    fn describe(self) -> String {
        match self {
            Self::False => "false".to_owned(),
            Self::Number(number) => number.to_string(),
            Self::Word(word) => format!("\"{word}\""),
            Self::EachWord(word) => format!("\"{word}\" for every layer"),
        }
    }
}

/// Reads the shape of the model at `path`: a model folder, or its `config.json` itself.
///
/// # Errors
/// [`ConfigError`], naming the file and, where there is one, the key.
pub fn load_model_shape(path: &Path) -> Result<ModelShape, ConfigError> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let io = |source| ConfigError::Io { file: file.clone(), source };
    // Opening a pipe would wait for a writer.
    if !std::fs::metadata(&file).map_err(io)?.is_file() {
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(&file).map_err(io)?.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(ConfigError::TooLarge { file, limit: MAX_CONFIG_BYTES });
    }
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => return Err(ConfigError::NotUtf8 { file, offset: error.valid_up_to() }),
    };
    parse_model_shape(text, &file)
}

/// Parses the text of a `config.json`; `path` is only used to name the file in errors.
///
/// # Errors
/// [`ConfigError`], naming the file and, where there is one, the key.
pub fn parse_model_shape(text: &str, path: &Path) -> Result<ModelShape, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = crate::json::parse_unique(text).map_err(|error| ConfigError::Syntax {
        file: path.to_path_buf(),
        line: error.line(),
        column: error.column(),
        message: error.to_string(),
    })?;
    let fields = Fields::new(&root, path)?;
    check_family(&fields)?;
    check_neutral(&fields)?;
    let layers = layers(&fields)?;
    let has_moe = layers.contains(&LayerKind::Moe);
    let hidden = fields.size("hidden_size", 1, MAX_HIDDEN)?;
    let vocab = fields.size("vocab_size", 1, MAX_VOCAB)?;
    let experts = moe_size(&fields, "moe_num_experts", has_moe, MAX_EXPERTS)?;
    let (heads, head_dim) = attention(&fields)?;
    Ok(ModelShape {
        family: "step3".to_owned(),
        hidden,
        vocab,
        heads,
        head_dim,
        query_rank: fields.size("share_q_dim", 1, MAX_WIDTH)?,
        dense_width: fields.size("intermediate_size", 1, MAX_WIDTH)?,
        expert_width: moe_size(&fields, "moe_intermediate_size", has_moe, MAX_WIDTH)?,
        shared_width: moe_size(&fields, "share_expert_dim", has_moe, MAX_WIDTH)?,
        experts,
        top_k: moe_size(&fields, "moe_top_k", has_moe, experts as u64)?,
        norm_expert_weight: fields.flag("norm_expert_weight")?.unwrap_or(false),
        layers,
        rms_norm_eps: fields.real("rms_norm_eps", 1e-20, 1.0)? as f32,
        rope_theta: rope_theta(&fields)?,
        max_positions: max_positions(&fields)?,
        // Step-3 has a head of its own; a checkpoint that shares the embedding has to say so.
        tie_word_embeddings: fields.shared_flag("tie_word_embeddings")?.unwrap_or(false),
        eos_token_ids: eos_token_ids(&fields, vocab)?,
        weight_format: weight_format(&fields)?,
    })
}

fn check_family(fields: &Fields<'_>) -> Result<(), ConfigError> {
    const EXPECTED: &str = "\"step3_text\" or \"step3_vl\" with a text_config of \"step3_text\"";
    let outer_expected = if fields.is_nested() { "step3_vl" } else { "step3_text" };
    for (key, value, want) in fields.model_types(outer_expected) {
        if value.as_str() != Some(want) {
            return Err(fields.unsupported(&key, value, EXPECTED));
        }
    }
    if fields.has_no_model_type() && !fields.names_architecture("Step3") {
        return Err(fields.missing("model_type", EXPECTED));
    }
    Ok(())
}

fn check_neutral(fields: &Fields<'_>) -> Result<(), ConfigError> {
    for (key, allowed) in NEUTRAL {
        let Some((key, value)) = fields.find(key) else { continue };
        if !allowed.iter().any(|neutral| neutral.matches(value)) {
            let mut words: Vec<String> = allowed.iter().map(|neutral| neutral.describe()).collect();
            words.push("null".to_owned());
            return Err(fields.unsupported(&key, value, &words.join(" or ")));
        }
    }
    Ok(())
}

/// A size that only MoE layers read: a model without any may leave it out, which is kept as 0.
fn moe_size(fields: &Fields<'_>, key: &str, has_moe: bool, max: u64) -> Result<usize, ConfigError> {
    if has_moe {
        return fields.size(key, 1, max);
    }
    if fields.find(key).is_none() { Ok(0) } else { fields.size(key, 0, MAX_WIDTH) }
}

fn attention(fields: &Fields<'_>) -> Result<(usize, usize), ConfigError> {
    if let Some((key, value)) = fields.find("num_attention_groups").filter(|(_, value)| value.as_u64() != Some(1)) {
        return Err(fields.unsupported(&key, value, "1 (MFA has one K head and one V head)"));
    }
    let heads = fields.size("num_attention_heads", 1, MAX_HEADS)?;
    let head_dim = fields.size("head_dim", 2, MAX_HEAD_DIM)?;
    if head_dim % 2 != 0 {
        return Err(fields.invalid("head_dim", head_dim, "an even number (rotary embedding pairs the halves)"));
    }
    if (heads * head_dim) as u64 > MAX_WIDTH {
        let found = format!("{heads} heads of {head_dim}");
        return Err(fields.invalid("num_attention_heads", found, &format!("heads × head_dim of at most {MAX_WIDTH}")));
    }
    Ok((heads, head_dim))
}

fn layers(fields: &Fields<'_>) -> Result<Vec<LayerKind>, ConfigError> {
    const KEY: &str = "moe_layers_enum";
    let count = fields.size("num_hidden_layers", 1, MAX_LAYERS)?;
    let expected = format!("distinct layer numbers below {count}, as \"4,5,6\" or [4, 5, 6]");
    let Some((key, value)) = fields.find(KEY) else { return Err(fields.missing(KEY, &expected)) };
    let numbers: Option<Vec<u64>> = match value {
        Value::String(text) if text.trim().is_empty() => Some(Vec::new()),
        Value::String(text) => text.split(',').map(|word| word.trim().parse().ok()).collect(),
        Value::Array(values) => values.iter().map(Value::as_u64).collect(),
        _ => None,
    };
    let Some(numbers) = numbers else { return Err(fields.invalid_at(&key, value, &expected)) };
    let mut layers = vec![LayerKind::Dense; count];
    for number in numbers {
        let slot = usize::try_from(number).ok().and_then(|number| layers.get_mut(number));
        match slot {
            Some(slot) if *slot == LayerKind::Dense => *slot = LayerKind::Moe,
            Some(_) => return Err(fields.invalid_at(&key, format!("{number} twice"), &expected)),
            None => return Err(fields.invalid_at(&key, number, &expected)),
        }
    }
    Ok(layers)
}

/// `rope_theta`, after checking that nothing scales it. It stands on its own or inside `rope_parameters`.
fn rope_theta(fields: &Fields<'_>) -> Result<f64, ConfigError> {
    const EXPECTED: &str = "null or the type \"default\" (scaled rotary embeddings are not supported)";
    let mut nested = None;
    for name in ["rope_scaling", "rope_parameters"] {
        let Some((key, value)) = fields.find(name) else { continue };
        let Some(object) = value.as_object() else { return Err(fields.invalid_at(&key, value, EXPECTED)) };
        for (inner, setting) in object {
            match inner.as_str() {
                "rope_type" | "type" if setting.as_str() == Some("default") => {}
                "rope_theta" => nested = Some((format!("{key}.rope_theta"), setting)),
                "partial_rotary_factor" if setting.as_f64() == Some(1.0) => {}
                _ => return Err(fields.unsupported(&format!("{key}.{inner}"), setting, EXPECTED)),
            }
        }
    }
    let theta = match (fields.find("rope_theta"), nested) {
        (Some((_, outer)), Some((key, inner))) if outer.as_f64() != inner.as_f64() => {
            return Err(fields.invalid_at(&key, inner, &format!("the same as rope_theta, {outer}")));
        }
        (Some(found), _) | (None, Some(found)) => found,
        (None, None) => return Err(fields.missing("rope_theta", "a number")),
    };
    fields.real_at(&theta.0, theta.1, 1.0, 1e12)
}

/// The smallest of the limits that the configuration states.
fn max_positions(fields: &Fields<'_>) -> Result<usize, ConfigError> {
    let mut smallest = None;
    for key in ["max_position_embedding", "max_position_embeddings", "max_seq_len"] {
        if fields.find(key).is_some() {
            let limit = fields.size(key, 1, MAX_POSITIONS)?;
            smallest = Some(smallest.map_or(limit, |known: usize| known.min(limit)));
        }
    }
    smallest.ok_or_else(|| fields.missing("max_position_embedding", "a whole number (or max_seq_len)"))
}

fn eos_token_ids(fields: &Fields<'_>, vocab: usize) -> Result<Vec<u32>, ConfigError> {
    let expected = format!("a token id below {vocab}, or a list of them");
    let Some((key, value)) = fields.find_shared("eos_token_id")? else { return Ok(Vec::new()) };
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let mut ids = Vec::with_capacity(values.len());
    for value in values {
        match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) if (id as usize) < vocab => ids.push(id),
            _ => return Err(fields.invalid_at(&key, value, &expected)),
        }
    }
    Ok(ids)
}

fn weight_format(fields: &Fields<'_>) -> Result<WeightFormat, ConfigError> {
    if let Some((key, value)) = fields.find_shared("quantization_config")? {
        return fp8_format(fields, &key, value);
    }
    let torch_dtype = fields.find_shared("torch_dtype")?;
    let Some((key, value)) = (if torch_dtype.is_some() { torch_dtype } else { fields.find_shared("dtype")? }) else {
        return Ok(WeightFormat::Bf16);
    };
    match value.as_str() {
        Some("bfloat16") => Ok(WeightFormat::Bf16),
        // float16 is widened when it is read, since a bf16 would lose bits.
        Some("float32" | "float16") => Ok(WeightFormat::F32),
        _ => Err(fields.unsupported(&key, value, "\"bfloat16\", \"float16\" or \"float32\"")),
    }
}

fn fp8_format(fields: &Fields<'_>, key: &str, value: &Value) -> Result<WeightFormat, ConfigError> {
    let Some(object) = value.as_object() else { return Err(fields.invalid_at(key, value, "an object or null")) };
    let tile = Value::from(vec![FP8_TILE, FP8_TILE]);
    let rules: [(&str, bool, Value); 4] = [
        ("quant_method", true, "fp8".into()),
        ("weight_block_size", true, tile),
        ("fmt", false, "e4m3".into()),
        ("activation_scheme", false, "dynamic".into()),
    ];
    for (inner, required, want) in rules {
        let key = format!("{key}.{inner}");
        match object.get(inner) {
            None | Some(Value::Null) if required => return Err(fields.missing_at(&key, &want.to_string())),
            Some(found) if !found.is_null() && *found != want => {
                return Err(fields.unsupported(&key, found, &want.to_string()));
            }
            _ => {}
        }
    }
    Ok(WeightFormat::Fp8Block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_vision_language_form() {
        let text = r#"{"model_type": "step3_vl", "tie_word_embeddings": false, "eos_token_id": [3, 4], "text_config": {
            "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_attention_groups": 1,
            "num_hidden_layers": 4, "max_seq_len": 4096, "vocab_size": 512, "rms_norm_eps": 1e-05,
            "moe_intermediate_size": 96, "moe_num_experts": 8, "moe_top_k": 3, "rope_theta": 500000,
            "rope_scaling": null, "max_position_embedding": 65536, "share_expert_dim": 96, "share_q_dim": 64,
            "head_dim": 32, "norm_expert_weight": false, "moe_layers_enum": "1,2,3", "torch_dtype": "bfloat16"},
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}"#;
        let shape = parse_model_shape(text, Path::new("config.json")).expect("a valid configuration");
        assert_eq!(shape.layers, [LayerKind::Dense, LayerKind::Moe, LayerKind::Moe, LayerKind::Moe]);
        assert_eq!((shape.hidden, shape.heads, shape.head_dim, shape.query_rank), (128, 8, 32, 64));
        assert_eq!((shape.max_positions, shape.rope_theta), (4096, 500_000.0));
        assert_eq!(shape.eos_token_ids, [3, 4]);
        assert_eq!(shape.weight_format, WeightFormat::Fp8Block);
    }
}
