//! The tiny trained model writes what PyTorch writes: greedy text in f32, token for token, and its tokenizer agrees.

mod support;

use rally::stages::config::load_model_shape;
use rally::stages::text::TextCodec;
use serde_json::Value;
use support::{Ask, Layout, exact, graph_file, repository, run};

fn fixture() -> Value {
    let text = std::fs::read_to_string(repository("models/tiny-step3-greedy.json")).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture parses")
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list of ids");
    list.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

#[test]
fn greedy_text_equals_pytorch() {
    let (fixture, model) = (fixture(), repository("models/tiny-step3"));
    let prompts = list(&fixture["prompts"]);
    assert_eq!(prompts.len(), 20);
    let most = fixture["max_new"].as_u64().expect("a count") as usize;
    let stop_token_ids = load_model_shape(&model).expect("the configuration is in order").eos_token_ids;
    let asks: Vec<Ask> = prompts
        .iter()
        .map(|prompt| Ask {
            stop_token_ids: stop_token_ids.clone(),
            ..Ask::greedy(&ids(&prompt["prompt_token_ids"]), most)
        })
        .collect();
    let codec = TextCodec::load(&model).expect("the tokenizer is in order").expect("the model has a tokenizer");
    let one_device = Layout { split: false, rounds: false, micro_batches: 1, ..Layout::default() };
    for spec in [exact(graph_file("tiny-ping-pong.json")), one_device.spec()] {
        for (prompt, answer) in prompts.iter().zip(run(&spec, &model, &asks, None)) {
            assert_eq!(answer.tokens, ids(&prompt["token_ids"]), "after {}", prompt["prompt"]);
            let text = codec.decode(&answer.tokens).expect("the tokens are text");
            assert_eq!(text, prompt["text"].as_str().expect("a text"));
        }
    }
}

#[test]
fn the_tokenizer_equals_its_python_self() {
    let (fixture, model) = (fixture(), repository("models/tiny-step3"));
    let codec = TextCodec::load(&model).expect("the tokenizer is in order").expect("the model has a tokenizer");
    for prompt in list(&fixture["prompts"]) {
        let text = prompt["prompt"].as_str().expect("a text");
        assert_eq!(codec.encode(text, true).expect("it encodes"), ids(&prompt["prompt_token_ids"]));
    }
    let samples = list(&fixture["tokenizer_parity"]);
    assert!(!samples.is_empty());
    for sample in samples {
        let text = sample["text"].as_str().expect("a text");
        let encoded = codec.encode(text, false).expect("it encodes");
        assert_eq!(encoded, ids(&sample["token_ids"]), "{text:?}");
        assert_eq!(codec.decode(&encoded).expect("it decodes"), text);
    }
}
