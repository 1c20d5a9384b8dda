//! Specs as users write them: what is read, and what every mistake is answered with.

use rally_cost::library::{hardware, hardware_named, model_named, models};
use rally_cost::{Dtype, Hardware, Model, SpecError};
use serde_json::{Value, json};
use std::path::Path;

const FILE: &str = "cards/mine.json";

fn good_hardware() -> Value {
    json!({
        "name": "mine", "price_usd_per_hour": 1.5, "peak_flops": {"bf16": 1e14, "fp8": {"value": 2e14, "source": "measured"}},
        "memory_bytes_per_s": 1e12, "memory_bytes": 24e9,
        "links": {"devices_per_server": 4, "fabric_bytes_per_s": 3e10, "network_bytes_per_s": 1e11},
    })
}

/// `base` with the value at a JSON pointer replaced, or taken away.
fn with(mut base: Value, pointer: &str, value: Option<Value>) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = base.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object there");
    match value {
        Some(value) => drop(parent.insert(key.into(), value)),
        None => drop(parent.shift_remove(key)),
    }
    base
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, SpecError>, key: &str, words: &str) {
    let error = result.expect_err("a mistake").to_string();
    assert!(error.contains(FILE) && error.contains(&format!("`{key}`")) && error.contains(words), "{error}");
}

#[test]
fn a_users_hardware_is_read() {
    let card = Hardware::parse(&good_hardware().to_string(), Path::new(FILE)).expect("a good spec");
    assert_eq!((card.peak(Dtype::Fp8).expect("there"), card.price().expect("there")), (2e14, 1.5));
    assert_eq!((card.memory_bytes_per_s(), card.memory_bytes()), (1e12, 24e9));
    assert_eq!(card.links().network_bytes_per_s_per_device(), 2.5e10);
    assert_eq!(card.at_price(3.0).expect("a price").price().expect("there"), 3.0);
}

#[test]
fn mistakes_in_hardware_name_file_and_key() {
    let cases: &[(&str, Option<Value>, &str, &str)] = &[
        ("/price_usd_per_hour", Some(json!(-2)), "price_usd_per_hour", "USD an hour, from 0"),
        ("/price_usd_per_hour", Some(json!({"value": -2})), "price_usd_per_hour", "is -2"),
        ("/price_usd_per_hour", Some(json!("2 USD")), "price_usd_per_hour", "USD an hour"),
        ("/memory_bytes_per_s", Some(json!(0)), "memory_bytes_per_s", "bytes a second, from 1e6"),
        ("/memory_bytes_per_s", Some(json!(3350)), "memory_bytes_per_s", "bytes a second, from 1e6"),
        ("/memory_bytes_per_s", None, "memory_bytes_per_s", "is missing"),
        ("/memory_bytes", Some(json!(null)), "memory_bytes", "is missing"),
        ("/peak_flops", None, "peak_flops", "by dtype"),
        ("/peak_flops/bf16", None, "peak_flops.bf16", "is missing"),
        ("/peak_flops/fp8", Some(json!(0)), "peak_flops.fp8", "FLOPs a second"),
        ("/peak_flops/fp_8", Some(json!(1e14)), "peak_flops.fp_8", "did you mean `fp8`?"),
        ("/memory_byte_per_s", Some(json!(1e12)), "memory_byte_per_s", "did you mean `memory_bytes_per_s`?"),
        ("/links", None, "links", "network_bytes_per_s"),
        ("/links", Some(json!(3)), "links", "an object"),
        ("/links/network_bytes_per_s", Some(json!(0)), "links.network_bytes_per_s", "bytes a second"),
        ("/links/nics", Some(json!(8)), "links.nics", "valid here"),
        ("/name", None, "name", "is missing"),
        ("/aliases", Some(json!("x")), "aliases", "a list of names"),
        ("/price_usd_per_hour", Some(json!({"value": 1, "sauce": "x"})), "price_usd_per_hour.sauce", "`source`"),
    ];
    for (pointer, value, key, words) in cases {
        let text = with(good_hardware(), pointer, value.clone()).to_string();
        refused(Hardware::parse(&text, Path::new(FILE)), key, words);
    }
    let error = Hardware::parse("{\n  \"name\": }", Path::new(FILE)).expect_err("no JSON").to_string();
    assert!(error.contains("cards/mine.json:2:11"), "{error}");
}

#[test]
fn what_a_spec_lacks_is_said_when_it_is_asked_for() {
    let free = with(good_hardware(), "/price_usd_per_hour", None).to_string();
    let card = Hardware::parse(&free, Path::new(FILE)).expect("a price is not needed to be read");
    refused(card.price(), "price_usd_per_hour", "--price mine=USD");
    refused(card.peak(Dtype::Int8), "peak_flops.int8", "mine has `fp8`, `bf16`");
    refused(card.at_price(f64::NAN), "price_usd_per_hour", "USD an hour");
}

fn good_model() -> Value {
    json!({"name": "small", "config": {
        "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2,
        "rope_theta": 1e6,
    }})
}

#[test]
fn a_bare_config_is_named_by_its_folder() {
    let config = good_model()["config"].to_string();
    let model = Model::parse(&config, Path::new("models/small-one/config.json")).expect("a good configuration");
    assert_eq!((model.name.as_str(), model.layer_count(), model.sparsity()), ("small-one", 2, 0.25));
    let shipped =
        model_named(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/step3")).expect("a folder with a configuration");
    let library = model_named("step-3").expect("in the library, in any case");
    assert_eq!((shipped.name.as_str(), shipped.layers), ("step3", library.layers));
}

#[test]
fn mistakes_in_models_name_file_and_key() {
    let cases: &[(&str, Option<Value>, &str, &str)] = &[
        ("/name", None, "name", "is missing"),
        ("/names", Some(json!(1)), "names", "did you mean `name`?"),
        ("/kv_dtype", Some(json!({"full": "bf17"})), "kv_dtype.full", "`bf16`"),
        ("/kv_dtype", Some(json!({"fully": "bf16"})), "kv_dtype.fully", "did you mean `full`?"),
        ("/config/model_type", Some(json!("qwen3moe")), "config.model_type", "did you mean `qwen3_moe`?"),
        ("/config/model_type", None, "config.model_type", "`deepseek_v3`"),
        ("/config/hidden_size", None, "config.hidden_size", "is missing"),
        ("/config/hidden_size", Some(json!(-1)), "config.hidden_size", "whole number"),
        ("/config/num_hidden_layers", Some(json!(100_000)), "config.num_hidden_layers", "at most"),
        ("/config/num_experts_per_tok", Some(json!(9)), "config.num_experts_per_tok", "at most the 8 experts"),
        ("/config/mlp_only_layers", Some(json!("0")), "config.mlp_only_layers", "a list of whole numbers"),
        ("/config/decoder_sparse_step", Some(json!(2)), "config.intermediate_size", "is missing"),
    ];
    for (pointer, value, key, words) in cases {
        let text = with(good_model(), pointer, value.clone()).to_string();
        refused(Model::parse(&text, Path::new(FILE)), key, words);
    }
}

#[test]
fn names_are_looked_up_in_any_case_and_the_nearest_is_told() {
    assert_eq!(hardware_named("h800").expect("known").name, "H800");
    assert_eq!(hardware_named("ascend910b").expect("an alias").name, "910B");
    for (error, words) in [
        (hardware_named("H80O").expect_err("unknown").to_string(), "did you mean `H800`?"),
        (model_named("DSv4").expect_err("unknown").to_string(), "did you mean `DSv3`?"),
        (hardware_named("none/here.json").expect_err("no file").to_string(), "none/here.json: cannot be read"),
    ] {
        assert!(error.contains(words), "{error}");
    }
}

/// The graph's own table of memory must not say another thing than the specs.
#[test]
fn memory_is_as_graphs_have_it() {
    let mut known = 0;
    for name in rally_graph::hardware::names() {
        let Ok(card) = hardware_named(name) else { continue };
        assert_eq!(
            rally_graph::hardware::memory_bytes(name).map(|bytes| bytes as f64),
            Some(card.memory_bytes()),
            "{name}"
        );
        known += 1;
    }
    assert!(known >= 8, "only {known} in common");
}

#[test]
fn every_figure_in_the_library_has_a_source() {
    assert_eq!((hardware().len(), models().len()), (9, 9));
    for card in hardware() {
        let figures = card.figures();
        assert!(figures.len() >= 7, "{}: a price, a peak, memory and links", card.name);
        for (key, figure) in figures {
            assert!(figure.source.as_ref().is_some_and(|source| !source.is_empty()), "{} {key}", card.name);
        }
    }
}
