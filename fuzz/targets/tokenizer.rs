//! A `tokenizer.json` of any bytes: a tokenizer that encodes and decodes, or an error that names the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rally_stages::text::TextCodec;
use std::path::Path;

fuzz_target!(
    // The codec catches what its library panics on, so a panic alone is no finding; one that gets out still is.
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| {
        let codec = match TextCodec::from_bytes(bytes, Path::new("tokenizer.json")) {
            Ok(codec) => codec,
            Err(error) => {
                assert!(error.to_string().starts_with("tokenizer.json"), "{error}");
                return;
            }
        };
        let _ = codec.check_vocab(100);
        if let Ok(ids) = codec.encode("Once upon a time, Nora", true) {
            let _ = codec.decode(&ids);
            let mut stream = codec.stream();
            for id in ids {
                let _ = stream.push(id);
            }
        }
    }
);
