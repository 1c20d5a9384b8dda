//! Writes what the targets start from: `seeds FOLDER` makes `FOLDER/TARGET/*`, one file a seed, and `FOLDER/TARGET.dict`, the words
//! of the format.
//!
//! Seeds are what the repository has anyway: committed graphs and configurations, the table of broken graphs, keys of the schema.

#[path = "../../runtime/graph/tests/broken/case.rs"]
mod case;
#[path = "../../runtime/graph/tests/broken/cases/mod.rs"]
mod cases;

use case::{Case, case, edited};
use rally_cli::journal::record::{JournaledRequest, MAGIC, Origin, OutputPlace, Position, Record};
use rally_cli::requests::RequestId;
use rally_engine::hosts::messages::Message;
use rally_engine::schedule::batch::{
    DeviceBatch, GroupInput, RowGroup, SampleSpec, SamplingParams, SequenceRequest, TokenDetail,
};
use rally_engine::schedule::planner::FinishReason;
use rally_engine::stage::Sample;
use rally_graph::kinds::KindRegistry;
use rally_graph::schema::deployment_schema;
use rally_transport::frame::Frame;
use rally_transport::handshake::{Hash, PROTOCOL};
use rally_transport::{Pulse, SlotKey, Stamp};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The graphs that the table edits.
mod common {
    pub const TINY: &str = include_str!("../../graphs/tiny-ping-pong.json");
    pub const ONE_DEVICE: &str = include_str!("../../graphs/one-device.json");
    pub const STEP3: &str = include_str!("../../graphs/step3-2a2f.json");
}

const OPENAPI: &str = include_str!("../../runtime/serve/openapi.json");

fn main() {
    let folder = PathBuf::from(std::env::args().nth(1).expect("usage: seeds FOLDER"));
    let all = [
        ("graph", graphs(), graph_words()),
        (
            "schedule",
            schedules(),
            owned(&["sequential", "ping_pong:", "greedy:2", "custom", "mfa_attention:0", "attn"]),
        ),
        ("config", configs(), config_words()),
        ("safetensors", vec![safetensors(), vec![0xff; 8]], tensor_words()),
        (
            "index",
            indices(),
            owned(&["weight_map", "metadata", "total_size", "model-0.safetensors", "../", "vision_model."]),
        ),
        ("tokenizer", tokenizers(), tokenizer_words()),
        ("requests", requests(), request_words()),
        ("http", bodies(), body_words()),
        ("hosts", hosts(), owned(&["rallyv1\\x0a", "\\x01\\x00\\x00\\x00", "\\xff\\xff\\xff\\xff"])),
        (
            "faults",
            fault_plans(),
            owned(&["\"fault\":", "\"steps\":\"4..9\"", "\"share\":0.5", "partition", "restart", "control"]),
        ),
        ("journal", journals(), owned(&["rallyjl1", "\\x00\\x00\\x00\\x00", "\\x01\\x00\\x00\\x00"])),
    ];
    for (target, seeds, words) in all {
        write(&folder, target, &seeds, words);
    }
}

fn write(folder: &Path, target: &str, seeds: &[Vec<u8>], words: BTreeSet<String>) {
    let corpus = folder.join(target);
    fs::create_dir_all(&corpus).expect("the folder can be made");
    for (index, seed) in seeds.iter().enumerate() {
        fs::write(corpus.join(format!("seed-{index}")), seed).expect("a seed can be written");
    }
    let lines: String =
        words.iter().map(|word| format!("\"{}\"\n", word.replace('\\', "\\\\").replace('"', "\\\""))).collect();
    fs::write(folder.join(format!("{target}.dict")), lines).expect("the words can be written");
}

fn owned(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The contents of the files of the repository's `folder` that end in `ending`.
fn files(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    paths.sort();
    let wanted = paths.iter().filter(|path| path.to_string_lossy().ends_with(ending));
    wanted.map(|path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).collect()
}

/// A fault of every kind.
fn fault_plans() -> Vec<Vec<u8>> {
    let faults = json!([
        { "fault": "drop", "edge": "a2f", "steps": "4..9", "share": 0.01, "times": 3 },
        { "fault": "delay", "edge": "control", "ms": 20 },
        { "fault": "duplicate", "from": "a0", "to": "f0", "micro_batch": 1, "layer": 2 },
        { "fault": "reorder", "ms": 2.5 },
        { "fault": "corrupt", "steps": 7 },
        { "fault": "partition", "from": "f0", "to": "a0", "steps": "4..", "ms": 100 },
        { "fault": "kill", "host": "f0" },
        { "fault": "stop", "host": "f0", "ms": 5000 },
        { "fault": "slow", "host": "a0", "ms": 1 },
        { "fault": "restart", "host": "a0", "ms": 300 },
    ]);
    vec![json!({ "version": 1, "seed": 7, "faults": faults }).to_string().into_bytes()]
}

/// A journal, and the same records as the target makes a journal of: each behind two bytes of length.
fn journals() -> Vec<Vec<u8>> {
    let origin = Origin {
        version: "0.1.0".into(),
        graph_name: "graph".into(),
        graph: Hash::default(),
        model: Hash::default(),
        requests: 1,
        stdout: Some(OutputPlace { device: 1, inode: 2, bytes: 3 }),
    };
    let sequence = SequenceRequest {
        id: 0,
        prompt: [1, 2, 3].into(),
        generated: [].into(),
        max_new_tokens: 5,
        stop_token_ids: [2].into(),
        sampling: SamplingParams::default(),
        detail: TokenDetail { logprobs: Some(1), logits: true },
    };
    let id = RequestId::from_index(0);
    let request = JournaledRequest { id, opening: "Once".into(), sequence, stops: vec!["end".into()] };
    let sample = Sample { sequence: 0, token: 7, logprobs: Some((-1.0, vec![(7, -1.0)])), logits: Some(vec![0.5]) };
    let records = [
        Record::Begin(origin),
        Record::Request(Box::new(request)),
        Record::Token { index: 0, sample },
        Record::Printed(Position { requests: 0, opened: true, bytes: 4 }),
        Record::End { request: 0, reason: FinishReason::Stop },
    ];
    let encoded: Vec<Vec<u8>> = records.iter().map(Record::encode).collect();
    // Behind length and checksum.
    let payload = |record: &Vec<u8>| [&(record.len() as u16 - 12).to_le_bytes()[..], &record[12..]].concat();
    vec![[&MAGIC[..], &encoded.concat()].concat(), encoded.iter().flat_map(payload).collect()]
}

fn graphs() -> Vec<Vec<u8>> {
    let mut seeds = files("graphs", ".json");
    seeds.extend(cases::cases().map(|case| edited(case).into_bytes()));
    seeds
}

/// Keys and words of the schema.
fn graph_words() -> BTreeSet<String> {
    let mut words =
        owned(&["0..2", "random:7", "attn", "ffn", "{\"kind\":", "\"after\":[", "18446744073709551615", "-1", "1e999"]);
    collect(&deployment_schema(KindRegistry::shared()), &mut words);
    words
}

fn collect(schema: &Value, words: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Object(properties)) = map.get("properties") {
                words.extend(properties.keys().map(|key| format!("\"{key}\":")));
            }
            let choices = map.get("enum").and_then(Value::as_array).into_iter().flatten().chain(map.get("const"));
            words.extend(choices.filter_map(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| collect(value, words));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, words)),
        _ => {}
    }
}

/// Two bytes that choose a graph and its number of micro-batches, a schedule, an order.
fn schedules() -> Vec<Vec<u8>> {
    let graph: Value = serde_json::from_slice(include_bytes!("../../graphs/custom-order.json")).expect("it is JSON");
    let order = &graph["schedule"]["order"];
    let mut shifted = order.clone();
    if let Some(turns) = shifted["attn"].as_array_mut() {
        turns.rotate_left(1);
    }
    let one = json!({ "attn": ["mfa_attention:0", "router:0", "expert_ffn:0", "dense_ffn:0", "combine:0"] });
    let seed = |which: u8, written: u8, label: &str, order: &Value| {
        [&[which, written], label.as_bytes(), b"\n", order.to_string().as_bytes()].concat()
    };
    vec![
        seed(2, 2, "custom", order),
        seed(2, 2, "custom:3", &shifted),
        seed(1, 0, "custom:1", &one),
        seed(0, 2, "ping_pong:3", order),
        seed(3, 1, "greedy", &Value::Null),
        seed(0, 0, "sequential:64", &Value::Null),
    ]
}

fn configs() -> Vec<Vec<u8>> {
    let folders =
        ["models/tiny-step3", "models/step3", "tests/golden/step3-s", "tests/golden/step3-fp8", "tests/golden/step3-m"];
    let mut seeds: Vec<Vec<u8>> = folders.iter().flat_map(|folder| files(folder, "/config.json")).collect();
    let inner: Value = serde_json::from_slice(&seeds[0]).expect("it is JSON");
    seeds.push(json!({ "model_type": "step3_vl", "text_config": inner }).to_string().into_bytes());
    seeds
}

fn config_words() -> BTreeSet<String> {
    let mut words = owned(&[
        "bfloat16",
        "float32",
        "fp8",
        "e4m3",
        "null",
        "[128,128]",
        "\"1,2,3\"",
        "1e400",
        "-1",
        "full_attention",
    ]);
    for config in configs() {
        let config: Value = serde_json::from_slice(&config).expect("it is JSON");
        words.extend(config.as_object().into_iter().flatten().map(|(key, _)| format!("\"{key}\":")));
    }
    let optional =
        ["rope_parameters", "rope_scaling", "tie_word_embeddings", "quantization_config", "weight_block_size"];
    words.extend(optional.iter().map(|key| format!("\"{key}\":")));
    words
}

/// A matrix, fp8 experts with scales, a vector.
fn safetensors() -> Vec<u8> {
    let tensors = [
        ("model.layers.0.mlp.up_proj.weight", "BF16", vec![2, 3], 12),
        ("model.layers.1.moe.up_proj.weight", "F8_E4M3", vec![2, 130, 128], 33_280),
        ("model.layers.1.moe.up_proj.weight_scale_inv", "F32", vec![2, 2, 1], 16),
        ("model.norm.weight", "F32", vec![3], 12),
    ];
    let (mut header, mut start) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, bytes) in tensors {
        header.insert(name.into(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, start + bytes] }));
        start += bytes;
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; start]].concat()
}

fn tensor_words() -> BTreeSet<String> {
    owned(&[
        "\"dtype\":",
        "\"shape\":",
        "\"data_offsets\":",
        "__metadata__",
        "F32",
        "F16",
        "BF16",
        "F8_E4M3",
        "I64",
        "_scale_inv",
        "4611686018427387904",
    ])
}

fn indices() -> Vec<Vec<u8>> {
    let mut seeds = files("tests/golden/step3-m", ".index.json");
    seeds.push(br#"{"weight_map":{"model.norm.weight":"model-0.safetensors"}}"#.to_vec());
    seeds.push(br#"{"weight_map":{"vision_model.a":"none","model.norm.weight":"../model-0.safetensors"}}"#.to_vec());
    seeds
}

/// Small ones: the committed tokenizer is too large to be changed a byte at a time.
fn tokenizers() -> Vec<Vec<u8>> {
    let added = json!([{ "id": 3, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true }]);
    let whole = |model: Value, pre: Value, decoder: Value| {
        json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": pre, "post_processor": null, "decoder": decoder, "model": model })
        .to_string()
        .into_bytes()
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    vec![
        whole(
            json!({ "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": { "a": 0, "n": 1, "an": 2 }, "merges": [["a", "n"]] }),
            byte_level.clone(),
            byte_level,
        ),
        whole(
            json!({ "type": "WordLevel", "vocab": { "Once": 0, "[UNK]": 1 }, "unk_token": "[UNK]" }),
            json!({ "type": "Whitespace" }),
            Value::Null,
        ),
        whole(
            json!({ "type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]], "byte_fallback": true }),
            json!({ "type": "Metaspace" }),
            json!({ "type": "Metaspace" }),
        ),
    ]
}

fn tokenizer_words() -> BTreeSet<String> {
    owned(&[
        "BPE",
        "WordPiece",
        "Unigram",
        "ByteLevel",
        "Metaspace",
        "Split",
        "Sequence",
        "Replace",
        "Regex",
        "merges",
        "vocab",
        "\"type\":",
        "byte_fallback",
        "TemplateProcessing",
    ])
}

fn requests() -> Vec<Vec<u8>> {
    let every = json!({ "id": 7, "prompt": "é\n", "max_tokens": 5, "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.05,
        "seed": u64::MAX, "stop": ["x", "\n\n"], "ignore_eos": true, "logprobs": 20 });
    vec![
        format!("{every}\n\n{{\"id\": \"b\", \"prompt_token_ids\": [0, 4294967295]}}\r\n").into_bytes(),
        b"\xef\xbb\xbf{\"prompt\": \"Once\", \"stop\": \"x\", \"seed\": null}\n{\"id\": \"0\", \"prompt\": \"twice\"}"
            .to_vec(),
        b"{\"prompt\": \"\\ud800\", \"prompt_token_ids\": [-1, 1e3, 4294967296]}\n[[[[[[[[\n{\"a\": 1, \"a\": 2"
            .to_vec(),
    ]
}

/// Bodies that a server is sent: what its own document gives as examples, and every key once.
fn bodies() -> Vec<Vec<u8>> {
    let document: Value = serde_json::from_str(OPENAPI).expect("the document is JSON");
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    let mut seeds: Vec<Vec<u8>> = schemas.values().map(|schema| schema["example"].to_string().into_bytes()).collect();
    let every = json!({ "model": "m", "prompt": [[1, 2], [3]], "n": 2, "best_of": 2, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9,
        "top_k": -1, "min_p": 0.05, "seed": -1, "stop": ["x"], "stream": true, "stream_options": { "include_usage": true },
        "logprobs": 5, "ignore_eos": true, "priority": -3, "echo": false, "suffix": "", "logit_bias": {} });
    let chat = json!({ "model": "m", "messages": [{ "role": "system", "content": "é" }, { "role": "user", "name": "n", "content":
        [{ "type": "text", "text": "x" }] }], "max_completion_tokens": 5.0, "logprobs": true, "top_logprobs": 20, "tools": [] });
    seeds.extend([every, chat].map(|body| body.to_string().into_bytes()));
    seeds
}

fn body_words() -> BTreeSet<String> {
    let mut words =
        owned(&["true", "null", "1e999", "-0", "18446744073709551616", "\"role\":\"user\"", "\"type\":\"text\""]);
    let document: Value = serde_json::from_str(OPENAPI).expect("the document is JSON");
    for name in ["CompletionRequest", "ChatRequest", "Message"] {
        let properties = document["components"]["schemas"][name]["properties"].as_object().expect("properties");
        words.extend(properties.keys().map(|key| format!("\"{key}\":")));
    }
    words
}

/// A hello, frames, messages.
fn hosts() -> Vec<Vec<u8>> {
    let key = SlotKey { edge: 1, micro_batch: 2, from: 0, to: 1, leg: 0 };
    let stamp = Stamp { step: 9, layer: 1, rows: 2, routed: true };
    let group = RowGroup {
        sequence: 7,
        slot: 1,
        first_row: 0,
        rows: 2,
        first_position: 3,
        input: GroupInput::Given,
        pages: 0..2,
        sample: Some(SampleSpec { token_index: 0, params: SamplingParams::default(), detail: TokenDetail::default() }),
    };
    let batch = DeviceBatch { rows: 2, groups: vec![group], token_ids: vec![1, 2], pages: vec![3, 4] };
    let sample = Sample { sequence: 7, token: 3, logprobs: Some((-0.5, vec![(3, -0.5)])), logits: Some(vec![0.0; 16]) };
    let messages = [
        Message::Epoch { present: vec![true, false, true] },
        Message::Ready { keeps: true },
        Message::Planned { micro_batch: 1, step: 4, device: 0, batch },
        Message::StepEnded { micro_batch: 1, device: 1, cycle: 4, next: 5, samples: vec![sample] },
        Message::Failed { reason: "é".into(), lost: Some(1) },
        Message::Leaving,
        Message::Needed,
    ];
    let hello = [&b"rallyv1\n"[..], &PROTOCOL.to_le_bytes(), &[7; 32]].concat();
    let mut seeds = vec![hello, Frame::Rows { key, stamp, bytes: 64 }.encode().to_vec()];
    seeds.push([Frame::Ping(Pulse { done: 9, working: 1 }).encode(), Frame::Message { bytes: 8 }.encode(), Frame::Done.encode()].concat());
    seeds.extend(messages.iter().map(Message::encode));
    seeds
}

fn request_words() -> BTreeSet<String> {
    let mut words = owned(&["true", "null", "1e999", "-0", "18446744073709551616", "ud83d", "u0000"]);
    words.extend(rally_cli::requests::KEYS.iter().map(|key| format!("\"{key}\":")));
    words
}
