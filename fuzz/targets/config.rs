//! A `config.json` of any bytes: shapes within their ranges, or an error that names the key.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rally_stages::config::parse_model_shape;
use std::path::Path;

fuzz_target!(|text: &str| {
    match parse_model_shape(text, Path::new("config.json")) {
        Ok(shape) => {
            assert!(shape.hidden > 0 && shape.vocab > 0 && shape.max_positions > 0 && !shape.layers.is_empty());
            assert!(shape.top_k <= shape.experts && shape.eos_token_ids.iter().all(|id| (*id as usize) < shape.vocab));
            assert!(shape.rms_norm_eps.is_finite() && shape.rope_theta.is_finite());
        }
        Err(error) => assert!(error.to_string().starts_with("config.json"), "{error}"),
    }
});
