//! Request files: good ones, broken ones with the place each fault is reported at, and arbitrary bytes.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;
use rally_cli::requests::{
    DEFAULT_MAX_TOKENS, Prompt, RequestErrors, RequestFault, RequestSpec, check_against, parse_requests,
};
use rally_graph::model::{LayerKind, ModelShape, WeightFormat};

const FILE: &str = "requests.jsonl";

fn parse(text: impl AsRef<[u8]>) -> Result<Vec<RequestSpec>, RequestErrors> {
    parse_requests(text.as_ref(), Path::new(FILE))
}

#[test]
fn defaults_are_greedy() {
    let requests =
        parse("{\"prompt\": \"Once\"}\n\n{\"id\": \"b\", \"prompt_token_ids\": [0, 4294967295]}\r\n").unwrap();
    assert_eq!(requests.len(), 2);
    let first = &requests[0];
    assert_eq!((first.id.as_str(), first.line), ("0", 1));
    assert_eq!(first.prompt, Prompt::Text("Once".into()));
    assert_eq!((first.max_tokens, first.temperature, first.top_k), (DEFAULT_MAX_TOKENS, 0.0, 0));
    assert_eq!((first.top_p, first.min_p, first.seed, first.logprobs), (1.0, 0.0, None, None));
    assert!(!first.ignore_eos && first.stop.is_empty());
    assert_eq!((requests[1].id.as_str(), requests[1].line), ("b", 3));
    assert_eq!(requests[1].prompt, Prompt::TokenIds(vec![0, u32::MAX]));
}

#[test]
fn every_key_is_read() {
    let text = "\u{feff}{\"id\": 7, \"prompt\": \"\\u00e9\\n\", \"max_tokens\": 5, \"temperature\": 0.5, \"top_k\": 40,
        \"top_p\": 0.9, \"min_p\": 0.05, \"seed\": 18446744073709551615, \"stop\": [\"x\", \"\\n\\n\"],
        \"ignore_eos\": true, \"logprobs\": 20}"
        .replace('\n', " ");
    let request = parse(text).unwrap().remove(0);
    assert_eq!(serde_json::to_string(&request.id).unwrap(), "7");
    assert_eq!(request.prompt, Prompt::Text("é\n".into()));
    assert_eq!((request.max_tokens, request.temperature, request.top_k), (5, 0.5, 40));
    assert_eq!((request.top_p, request.min_p, request.seed), (0.9, 0.05, Some(u64::MAX)));
    assert_eq!(request.stop, ["x", "\n\n"]);
    assert_eq!((request.ignore_eos, request.logprobs), (true, Some(20)));
}

#[test]
fn ids_keep_their_type() {
    let requests = parse(
        "{\"id\": \"7\", \"prompt\": \"a\"}\n{\"id\": -3, \"prompt\": \"a\"}\n{\"id\":18446744073709551615,\"prompt\":\"a\"}",
    );
    let ids: Vec<String> =
        requests.unwrap().iter().map(|request| serde_json::to_string(&request.id).unwrap()).collect();
    assert_eq!(ids, ["\"7\"", "-3", "18446744073709551615"]);
}

/// Each file has exactly one fault: (content, line, column, what the message must say).
const BROKEN: &[(&str, usize, Option<usize>, &str)] = &[
    ("", 1, None, "no requests"),
    (" \n\t\r\n", 1, None, "no requests"),
    ("{\"prompt\": \"a\"", 1, Some(14), "not valid JSON"),
    ("{\"prompt\": \"a\",}", 1, Some(16), "not valid JSON"),
    ("{\"prompt\": 'a'}", 1, Some(12), "not valid JSON"),
    ("{\"prompt\": \"a\"} // greeting", 1, Some(17), "not valid JSON"),
    ("{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}{}", 2, Some(16), "not valid JSON"),
    ("{\"prompt\": \"\\ud800\"}", 1, Some(13), "not valid JSON"),
    ("{\"prompt\": \"a\", \"seed\": 0x10}", 1, Some(26), "not valid JSON"),
    ("[]", 1, Some(1), "an empty list; expected an object"),
    ("[{\"prompt\": \"a\"}]", 1, Some(1), "a list of 1; expected an object"),
    ("  null", 1, Some(1), "null; expected an object"),
    ("{}", 1, Some(1), "no prompt"),
    ("{\"max_tokens\": 4}", 1, Some(1), "no prompt"),
    ("{\"prompt\": \"a\", \"prompt_token_ids\": [1]}", 1, Some(37), "both `prompt` and `prompt_token_ids`"),
    ("{\"prompt\": \"a\", \"prompt\": \"b\"}", 1, Some(17), "`prompt` appears twice"),
    ("{\"prompt\": \"a\", \"top-p\": 0.5}", 1, Some(17), "did you mean `top_p`?"),
    ("{\"prompt\": \"é\", \"max_token\": 5}", 1, Some(17), "did you mean `max_tokens`?"),
    ("{\"prompt\": \"a\", \"Temperature\": 1}", 1, Some(17), "did you mean `temperature`?"),
    ("{\"prompt\": \"a\", \"n\": 2}", 1, Some(17), "expected one of id, prompt,"),
    ("{\"prompt\": \"\"}", 1, Some(12), "`prompt` is \"\"; expected text that is not empty"),
    ("{\"prompt\": 5}", 1, Some(12), "`prompt` is 5; expected text"),
    ("{\"prompt\": null}", 1, Some(12), "`prompt` is null; expected text"),
    ("{\"prompt_token_ids\": []}", 1, Some(22), "is an empty list; expected a list of token ids"),
    ("{\"prompt_token_ids\": \"1 2\"}", 1, Some(22), "expected a list of token ids"),
    ("{\"prompt_token_ids\": [1, -2]}", 1, Some(26), "`prompt_token_ids[1]` is -2; expected a token id"),
    ("{\"prompt_token_ids\": [4294967296]}", 1, Some(23), "`prompt_token_ids[0]` is 4294967296"),
    ("{\"prompt_token_ids\": [1.5]}", 1, Some(23), "`prompt_token_ids[0]` is 1.5"),
    ("{\"prompt_token_ids\": [[1]]}", 1, Some(23), "`prompt_token_ids[0]` is a list of 1"),
    ("{\"prompt\": \"a\", \"max_tokens\": 0}", 1, Some(31), "`max_tokens` is 0; expected a whole number from 1 to"),
    ("{\"prompt\": \"a\", \"max_tokens\": 99999999999999999999}", 1, Some(31), "`max_tokens` is 99999999999999999999"),
    ("{\"prompt\": \"a\", \"max_tokens\": 2.0}", 1, Some(31), "`max_tokens` is 2.0; expected a whole number"),
    ("{\"prompt\": \"a\", \"temperature\": -0.1}", 1, Some(32), "`temperature` is -0.1; expected a number from 0 to"),
    ("{\"prompt\": \"a\", \"temperature\": 101}", 1, Some(32), "`temperature` is 101"),
    ("{\"prompt\": \"a\", \"temperature\": 1e999}", 1, Some(32), "`temperature` is 1e999"),
    ("{\"prompt\": \"a\", \"temperature\": NaN}", 1, Some(32), "not valid JSON"),
    ("{\"prompt\": \"a\", \"temperature\": \"1\"}", 1, Some(32), "`temperature` is \"1\"; expected a number"),
    ("{\"prompt\": \"a\", \"top_k\": -1}", 1, Some(26), "`top_k` is -1; expected a whole number from 0"),
    ("{\"prompt\": \"a\", \"top_p\": 0}", 1, Some(26), "`top_p` is 0; expected a number above 0"),
    ("{\"prompt\": \"a\", \"top_p\": 1e-60}", 1, Some(26), "`top_p` is 1e-60; expected a number above 0"),
    ("{\"prompt\": \"a\", \"top_p\": 1.01}", 1, Some(26), "`top_p` is 1.01; expected a number above 0"),
    ("{\"prompt\": \"a\", \"min_p\": -0.5}", 1, Some(26), "`min_p` is -0.5; expected a number from 0 to 1"),
    ("{\"prompt\": \"a\", \"min_p\": 2}", 1, Some(26), "`min_p` is 2"),
    ("{\"prompt\": \"a\", \"seed\": -1}", 1, Some(25), "`seed` is -1; expected a whole number"),
    ("{\"prompt\": \"a\", \"seed\": 18446744073709551616}", 1, Some(25), "`seed` is 18446744073709551616"),
    ("{\"prompt\": \"a\", \"stop\": 3}", 1, Some(25), "`stop` is 3; expected a text, or a list"),
    ("{\"prompt\": \"a\", \"stop\": \"\"}", 1, Some(25), "`stop` is \"\"; expected"),
    ("{\"prompt\": \"a\", \"stop\": [\"x\", \"\"]}", 1, Some(31), "`stop` is \"\"; expected"),
    ("{\"prompt\": \"a\", \"ignore_eos\": 1}", 1, Some(31), "`ignore_eos` is 1; expected true or false"),
    ("{\"prompt\": \"a\", \"logprobs\": 21}", 1, Some(29), "`logprobs` is 21; expected a whole number from 0 to 20"),
    ("{\"prompt\": \"a\", \"logprobs\": true}", 1, Some(29), "`logprobs` is true; expected a whole number"),
    ("{\"prompt\": \"a\", \"id\": \"\"}", 1, Some(23), "`id` is \"\"; expected"),
    ("{\"prompt\": \"a\", \"id\": \"__metadata__\"}", 1, Some(23), "`id` is \"__metadata__\""),
    ("{\"prompt\": \"a\", \"id\": 1.5}", 1, Some(23), "`id` is 1.5; expected"),
    ("{\"id\": 1, \"prompt\": \"a\"}\n{\"id\": \"1\", \"prompt\": \"a\"}", 2, Some(8), "like the request in line 1"),
    ("{\"id\": 1, \"prompt\": \"a\"}\n\n{\"prompt\": \"a\"}", 3, None, "`id` is \"1\", like the request in line 1"),
];

#[test]
fn broken_files_name_the_place() {
    for (text, line, column, message) in BROKEN {
        let errors = parse(text).expect_err(text);
        assert_eq!(errors.errors().len(), 1, "{text}\n{errors}");
        let error = &errors.errors()[0];
        assert_eq!(error.line, *line, "{text}\n{errors}");
        assert_eq!(error.column, *column, "{text}\n{errors}");
        let place = format!("{FILE}:{line}:");
        let shown = errors.to_string();
        assert!(shown.starts_with(&place) && shown.contains(message), "{text}\n{shown}\nexpected: {message}");
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let text = "{\"prompt\": \"a\", \"top_p\": 2, \"temprature\": 1}\nnonsense\n{\"id\": 4, \"max_tokens\": 0}\n\
                {\"id\": 4, \"prompt\": \"b\"}";
    let shown = parse(text).unwrap_err().to_string();
    let expected = [
        "1:26: `top_p`",
        "1:29: unknown key `temprature`",
        "2:2: not valid JSON",
        "3:1: no prompt",
        "3:25: `max_tokens`",
        "4:8: `id`",
    ];
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{shown}");
    for (line, place) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("{FILE}:{place}")), "{line}\nexpected: {place}");
    }
}

#[test]
fn bytes_that_are_not_text_are_named() {
    let errors = parse(b"{\"prompt\": \"a\"}\n{\"prompt\": \"\xc3\xa9\xff\"}".as_slice()).unwrap_err();
    assert_eq!(errors.errors()[0].fault, RequestFault::NotUtf8);
    assert_eq!((errors.errors()[0].line, errors.errors()[0].column), (2, Some(14)));
}

#[test]
fn deep_and_long_lines_are_refused() {
    let deep = format!("{{\"prompt\": {}", "[".repeat(1_000_000));
    assert!(matches!(parse(deep).unwrap_err().errors()[0].fault, RequestFault::TooDeep { .. }));
    let brackets_in_text = format!("{{\"prompt\": \"\\\"{}\"}}", "[".repeat(1000));
    assert!(parse(brackets_in_text).is_ok());
    let long = format!("{{\"prompt\": \"{}\"}}", "a".repeat(17 << 20));
    assert!(matches!(parse(long).unwrap_err().errors()[0].fault, RequestFault::LineTooLong { .. }));
    let stops = format!("{{\"prompt\": \"a\", \"stop\": [{}\"x\"]}}", "\"x\",".repeat(64));
    assert!(parse(stops).unwrap_err().to_string().contains("`stop` is a list of 65"));
}

#[test]
fn a_file_of_nonsense_is_cut_short() {
    let errors = parse("x\n".repeat(1000)).unwrap_err();
    assert_eq!((errors.errors().len(), errors.dropped()), (100, 900));
    assert!(errors.to_string().ends_with("and 900 more"));
}

#[test]
fn requests_are_checked_against_the_model() {
    let shape = ModelShape {
        family: "step3".into(),
        hidden: 8,
        vocab: 100,
        heads: 1,
        head_dim: 8,
        query_rank: 8,
        dense_width: 8,
        expert_width: 0,
        shared_width: 0,
        experts: 0,
        top_k: 0,
        norm_expert_weight: false,
        layers: vec![LayerKind::Dense],
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_positions: 4,
        tie_word_embeddings: false,
        eos_token_ids: vec![],
        weight_format: WeightFormat::F32,
    };
    let check = |text: &str| check_against(&parse(text).unwrap(), &shape, Path::new(FILE));
    assert!(check("{\"prompt_token_ids\": [1, 2, 99]}").is_ok());
    let shown = check("{\"prompt\": \"a\"}\n{\"prompt_token_ids\": [1, 100]}").unwrap_err().to_string();
    assert!(shown.contains("requests.jsonl:2: `prompt_token_ids[1]` is 100; expected a token id below 100"), "{shown}");
    let shown = check("{\"prompt_token_ids\": [1, 2, 3, 4]}").unwrap_err().to_string();
    assert!(shown.contains("4 tokens long; expected fewer than 4"), "{shown}");
}

const VALID: &str = "{\"id\": 7, \"prompt\": \"\\u00e9 one\", \"max_tokens\": 5, \"temperature\": 0.5, \"top_p\": 0.9}\n\
    {\"prompt_token_ids\": [1, 2, 3], \"stop\": [\"x\", \"\\n\"], \"ignore_eos\": true, \"logprobs\": 2, \"seed\": 3}\n";

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(bytes);
    }

    #[test]
    fn damaged_files_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>()) {
        let mut bytes = VALID.as_bytes().to_vec();
        for (index, byte) in changes {
            let position = index.index(bytes.len());
            bytes[position] = byte;
        }
        bytes.truncate(cut.index(VALID.len()) + 1);
        if let Err(errors) = parse(bytes) {
            prop_assert!(errors.to_string().starts_with(FILE));
        }
    }

    #[test]
    fn json_pieces_never_panic(pieces in proptest::collection::vec(prop::sample::select(vec![
        "{", "}", "[", "]", ":", ",", "\"", "\\", "\\u", "d800", "\"prompt\"", "\"id\"", "\"top_p\"", "\"stop\"", "1", "-",
        "0.5", "1e9", "null", "true", "\n", " ", "é", "//", "'",
    ]), 0..40)) {
        let _ = parse(pieces.concat());
    }
}
