//! Configurations: the forms that are accepted, and the broken ones, each with the key its error names.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;
use rally_graph::model::{LayerKind, ModelShape, WeightFormat};
use rally_stages::config::{ConfigError, load_model_shape, parse_model_shape};

const BARE: &str = r#"{
  "architectures": ["Step3TextForCausalLM"],
  "model_type": "step3_text",
  "hidden_size": 128,
  "intermediate_size": 256,
  "num_attention_heads": 8,
  "num_attention_groups": 1,
  "num_hidden_layers": 4,
  "max_seq_len": 65536,
  "vocab_size": 512,
  "rms_norm_eps": 1e-05,
  "moe_intermediate_size": 96,
  "moe_num_experts": 8,
  "moe_top_k": 3,
  "rope_theta": 500000,
  "rope_scaling": null,
  "max_position_embedding": 65536,
  "share_expert_dim": 96,
  "share_q_dim": 64,
  "head_dim": 32,
  "norm_expert_weight": false,
  "moe_layers_enum": "1,2,3",
  "torch_dtype": "bfloat16",
  "eos_token_id": 2,
  "tie_word_embeddings": false,
  "bos_token_id": 0, "transformers_version": "4.55.0", "use_cache": true, "sliding_window": null
}"#;

fn parse(text: &str) -> Result<ModelShape, ConfigError> {
    parse_model_shape(text, Path::new("m/config.json"))
}

fn nested(text_config: &str, outer: &str) -> String {
    format!("{{\"model_type\": \"step3_vl\", \"vision_config\": {{}}, {outer} \"text_config\": {text_config}}}")
}

/// `BARE` with one piece replaced.
fn with(from: &str, to: &str) -> String {
    assert!(BARE.contains(from), "{from}");
    BARE.replacen(from, to, 1)
}

#[test]
fn bare_and_nested_forms_are_equal() {
    let shape = parse(BARE).unwrap();
    assert_eq!(shape.layers, [LayerKind::Dense, LayerKind::Moe, LayerKind::Moe, LayerKind::Moe]);
    assert_eq!((shape.eos_token_ids.as_slice(), shape.weight_format), ([2].as_slice(), WeightFormat::Bf16));
    assert_eq!(parse(&nested(BARE, "")).unwrap(), shape);
    assert_eq!(parse(&format!("\u{feff}{BARE}")).unwrap(), shape);
}

#[test]
fn other_spellings_are_accepted() {
    let shape = parse(BARE).unwrap();
    for (from, to) in [
        ("\"1,2,3\"", "[1, 2, 3]"),
        ("\"1,2,3\"", "\" 3, 1 ,2\""),
        ("\"eos_token_id\": 2", "\"eos_token_id\": [2]"),
        ("\"rope_scaling\": null", "\"rope_scaling\": {\"rope_type\": \"default\"}"),
        ("\"rope_scaling\": null", "\"rope_parameters\": {\"type\": \"default\", \"rope_theta\": 5e5}"),
        ("\"rope_theta\": 500000,", "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500000},"),
        ("\"max_position_embedding\": 65536,", ""),
        ("\"torch_dtype\"", "\"dtype\""),
        ("\"torch_dtype\": \"bfloat16\",", ""),
        ("\"num_attention_groups\": 1,", ""),
        ("\"norm_expert_weight\": false,", ""),
        ("\"model_type\": \"step3_text\",", ""),
        ("\"use_cache\": true", "\"hidden_act\": \"silu\", \"attention_bias\": false, \"quantization_config\": null"),
    ] {
        assert_eq!(parse(&with(from, to)).unwrap(), shape, "{to}");
    }
    assert_eq!(parse(&with("\"max_seq_len\": 65536", "\"max_seq_len\": 2048")).unwrap().max_positions, 2048);
    assert_eq!(parse(&with("\"bfloat16\"", "\"float32\"")).unwrap().weight_format, WeightFormat::F32);
    assert!(
        parse(&with("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true")).unwrap().tie_word_embeddings
    );
    let dense = with("\"moe_num_experts\": 8,", "").replace("\"1,2,3\"", "\"\"");
    assert_eq!(parse(&dense).unwrap().layers, [LayerKind::Dense; 4]);
}

#[test]
fn quantisation_stands_inside_or_outside() {
    let fp8 =
        "\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"activation_scheme\": \"dynamic\",
        \"weight_block_size\": [128, 128]},";
    let inner = with("\"use_cache\"", &format!("{fp8} \"use_cache\""));
    for text in [inner.clone(), nested(&inner, ""), nested(BARE, fp8), nested(&inner, fp8)] {
        assert_eq!(parse(&text).unwrap().weight_format, WeightFormat::Fp8Block);
    }
}

/// (what is replaced, by what, the key that the error names, what it says)
const BROKEN: &[(&str, &str, &str, &str)] = &[
    ("\"hidden_size\": 128,", "", "hidden_size", "is missing; expected a whole number"),
    ("\"hidden_size\": 128", "\"hidden_size\": 0", "hidden_size", "is 0; expected a whole number from 1"),
    ("\"hidden_size\": 128", "\"hidden_size\": -128", "hidden_size", "is -128"),
    ("\"hidden_size\": 128", "\"hidden_size\": 1e300", "hidden_size", "expected a whole number"),
    ("\"hidden_size\": 128", "\"hidden_size\": 128.5", "hidden_size", "is 128.5"),
    ("\"hidden_size\": 128", "\"hidden_size\": \"128\"", "hidden_size", "is \"128\""),
    (
        "\"hidden_size\": 128",
        "\"hidden_size\": 99999999",
        "hidden_size",
        "is 99999999; expected a whole number from 1 to 131072",
    ),
    ("\"vocab_size\": 512", "\"vocab_size\": 18446744073709551615", "vocab_size", "is 18446744073709551615"),
    ("\"num_attention_heads\": 8", "\"num_attention_heads\": 0", "num_attention_heads", "is 0"),
    (
        "\"num_attention_groups\": 1",
        "\"num_attention_groups\": 4",
        "num_attention_groups",
        "does not support; expected 1",
    ),
    ("\"head_dim\": 32", "\"head_dim\": 33", "head_dim", "is 33; expected an even number"),
    ("\"head_dim\": 32", "\"head_dim\": 0", "head_dim", "is 0"),
    (
        "\"num_hidden_layers\": 4",
        "\"num_hidden_layers\": 1000000000",
        "num_hidden_layers",
        "expected a whole number from 1 to 1024",
    ),
    ("\"share_q_dim\": 64", "\"share_q_dim\": null", "share_q_dim", "is missing"),
    ("\"moe_top_k\": 3", "\"moe_top_k\": 9", "moe_top_k", "is 9; expected a whole number from 1 to 8"),
    ("\"moe_num_experts\": 8,", "", "moe_num_experts", "is missing"),
    ("\"moe_layers_enum\": \"1,2,3\",", "", "moe_layers_enum", "is missing; expected distinct layer numbers below 4"),
    ("\"1,2,3\"", "\"1,2,4\"", "moe_layers_enum", "is 4; expected distinct"),
    ("\"1,2,3\"", "\"1,,3\"", "moe_layers_enum", "is \"1,,3\"; expected distinct"),
    ("\"1,2,3\"", "[1, 1]", "moe_layers_enum", "is 1 twice"),
    ("\"1,2,3\"", "[1, -1]", "moe_layers_enum", "is [1,-1]"),
    ("\"1,2,3\"", "\"1-3\"", "moe_layers_enum", "is \"1-3\""),
    ("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": -1e-5", "rms_norm_eps", "expected a number from 1e-20"),
    ("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 0", "rms_norm_eps", "expected a number"),
    ("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-60", "rms_norm_eps", "expected a number"),
    ("\"rope_theta\": 500000,", "", "rope_theta", "is missing"),
    ("\"rope_theta\": 500000", "\"rope_theta\": 0", "rope_theta", "is 0; expected a number from 1e0"),
    (
        "\"rope_scaling\": null",
        "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}",
        "rope_scaling.type",
        "is \"yarn\"",
    ),
    (
        "\"rope_scaling\": null",
        "\"rope_scaling\": {\"type\": \"default\", \"factor\": 4}",
        "rope_scaling.factor",
        "is 4",
    ),
    ("\"rope_scaling\": null", "\"rope_scaling\": 4", "rope_scaling", "is 4; expected null"),
    (
        "\"rope_scaling\": null",
        "\"rope_parameters\": {\"rope_theta\": 1e4}",
        "rope_parameters.rope_theta",
        "the same as rope_theta",
    ),
    ("\"max_position_embedding\": 65536", "\"max_position_embedding\": 0", "max_position_embedding", "is 0"),
    (
        "\"norm_expert_weight\": false",
        "\"norm_expert_weight\": \"no\"",
        "norm_expert_weight",
        "is \"no\"; expected true or false",
    ),
    ("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": 0", "tie_word_embeddings", "expected true or false"),
    ("\"eos_token_id\": 2", "\"eos_token_id\": 512", "eos_token_id", "is 512; expected a token id below 512"),
    ("\"eos_token_id\": 2", "\"eos_token_id\": [1, \"2\"]", "eos_token_id", "is \"2\""),
    ("\"bfloat16\"", "\"int8\"", "torch_dtype", "is \"int8\", which rally does not support"),
    ("\"step3_text\"", "\"llama\"", "model_type", "is \"llama\", which rally does not support"),
    ("\"use_cache\": true", "\"hidden_act\": \"gelu\"", "hidden_act", "is \"gelu\", which rally does not support"),
    ("\"use_cache\": true", "\"attention_bias\": true", "attention_bias", "is true, which rally does not support"),
    (
        "\"use_cache\": true",
        "\"routed_scaling_factor\": 2.5",
        "routed_scaling_factor",
        "is 2.5, which rally does not support",
    ),
    ("\"sliding_window\": null", "\"sliding_window\": 512", "sliding_window", "is 512"),
    (
        "\"use_cache\": true",
        "\"quantization_config\": {\"quant_method\": \"gptq\"}",
        "quantization_config.quant_method",
        "\"gptq\"",
    ),
    (
        "\"use_cache\": true",
        "\"quantization_config\": {\"quant_method\": \"fp8\"}",
        "quantization_config.weight_block_size",
        "is missing",
    ),
    (
        "\"use_cache\": true",
        "\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [64, 128]}",
        "quantization_config.weight_block_size",
        "is [64,128], which rally does not support; expected [128,128]",
    ),
    (
        "\"use_cache\": true",
        "\"quantization_config\": {\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128],
        \"activation_scheme\": \"static\"}",
        "quantization_config.activation_scheme",
        "is \"static\"",
    ),
];

#[test]
fn broken_configurations_name_the_key() {
    for (from, to, key, says) in BROKEN {
        let text = with(from, to);
        for (text, prefix) in [(text.clone(), ""), (nested(&text, ""), "text_config.")] {
            let shown = parse(&text).expect_err(to).to_string();
            let place = format!("m/config.json: `{prefix}{key}`");
            assert!(shown.starts_with(&place) && shown.contains(says), "{to}\n{shown}\nexpected: {place} {says}");
        }
    }
}

#[test]
fn files_that_are_no_configuration_are_named() {
    for (text, says) in [
        ("", ":1:0: not valid JSON"),
        ("{\"hidden_size\": 128,}", ":1:21: not valid JSON"),
        ("[1]", "`(the whole file)` is [1]; expected an object"),
        ("{}", "`model_type` is missing"),
        ("{\"text_config\": 3}", "`text_config` is 3; expected an object"),
        ("{\"model_type\": \"step3_vl\", \"text_config\": {}}", "`text_config.num_hidden_layers` is missing"),
        ("{\"hidden_size\": 1, \"hidden_size\": 2}", "the key `hidden_size` appears twice"),
    ] {
        let shown = parse(text).unwrap_err().to_string();
        assert!(shown.starts_with("m/config.json:") && shown.contains(says), "{shown}\nexpected: {says}");
    }
    let deep = format!("{{\"a\": {}", "[".repeat(1_000_000));
    assert!(matches!(parse(&deep), Err(ConfigError::Syntax { .. })));
    let shown = parse(&nested(BARE, "\"tie_word_embeddings\": true,")).unwrap_err().to_string();
    assert!(shown.contains("`tie_word_embeddings` is true but `text_config.tie_word_embeddings` is false"), "{shown}");
}

#[test]
fn files_are_found_in_a_folder_or_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    assert!(matches!(load_model_shape(dir.path()), Err(ConfigError::Io { .. })));
    std::fs::write(&file, BARE).unwrap();
    assert_eq!(load_model_shape(dir.path()).unwrap(), load_model_shape(&file).unwrap());
    std::fs::write(&file, b"{\"a\": \"\xff\"}").unwrap();
    assert!(matches!(load_model_shape(&file), Err(ConfigError::NotUtf8 { offset: 7, .. })));
    std::fs::write(&file, vec![b' '; 5 << 20]).unwrap();
    assert!(matches!(load_model_shape(&file), Err(ConfigError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn damaged_configurations_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), 32_u8..127), 1..8)) {
        let mut bytes = BARE.as_bytes().to_vec();
        for (index, byte) in changes {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        let _ = parse(&String::from_utf8(bytes).unwrap());
    }

    #[test]
    fn sizes_are_bounded(number in any::<u64>(), key in prop::sample::select(vec!["hidden_size", "vocab_size",
        "num_attention_heads", "head_dim", "share_q_dim", "intermediate_size", "moe_intermediate_size",
        "share_expert_dim", "moe_num_experts", "num_hidden_layers"])) {
        let start = BARE.find(&format!("\"{key}\"")).unwrap();
        let end = start + BARE[start..].find(',').unwrap();
        if let Ok(shape) = parse(&format!("{}\"{key}\": {number}{}", &BARE[..start], &BARE[end..])) {
            prop_assert!(shape.hidden <= 1 << 17 && shape.heads * shape.head_dim <= 1 << 20 && shape.layers.len() <= 1024);
        }
    }
}
