//! A request file of any bytes: requests within their ranges, or every fault with its line.

#![no_main]

mod shape;

use libfuzzer_sys::fuzz_target;
use rally_cli::requests::{Prompt, check_against, parse_requests};
use shape::SHAPE;
use std::collections::HashSet;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("requests.jsonl");
    let requests = match parse_requests(bytes, path) {
        Ok(requests) => requests,
        Err(errors) => {
            assert!(errors.to_string().contains("requests.jsonl"), "{errors}");
            return;
        }
    };
    let ids: HashSet<&str> = requests.iter().map(|request| request.id.as_str()).collect();
    assert_eq!(ids.len(), requests.len());
    for request in &requests {
        assert!(request.max_tokens >= 1 && (0.0..=100.0).contains(&request.temperature));
        assert!(request.top_p > 0.0 && request.top_p <= 1.0 && (0.0..=1.0).contains(&request.min_p));
        assert!(request.stop.iter().all(|stop| !stop.is_empty()));
        assert!(match &request.prompt {
            Prompt::Text(text) => !text.is_empty(),
            Prompt::TokenIds(ids) => !ids.is_empty(),
        });
        serde_json::to_string(&request.id).expect("an id is JSON");
    }
    let _ = check_against(&requests, &SHAPE, path);
});
