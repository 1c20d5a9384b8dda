//! The undivided form of every graph in the repository checks clean and moves nothing between devices.

mod common;

use common::{TINY, check, repository, tiny};
use rally_graph::kinds::KindRegistry;
use rally_graph::parse::parse_graph;
use rally_graph::spec::DeploymentSpec;
use rally_graph::undivided::{UndividedError, undivided};

fn parse(text: &str) -> DeploymentSpec {
    parse_graph(text.as_bytes(), KindRegistry::shared()).spec.expect("the graph is in order")
}

#[test]
fn every_divided_graph_has_an_undivided_form() {
    let mut seen = 0;
    for entry in std::fs::read_dir(repository("graphs")).expect("the graphs are there") {
        let path = entry.expect("a file").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if !name.ends_with(".json")
            || name.starts_with("step3-")
            || ["one-device.json", "2d-no-afd.json", "1a1f-cuda.json", "1a1f-hosts.json"].contains(&&*name)
        {
            continue;
        }
        let spec = parse(&std::fs::read_to_string(&path).expect("readable"));
        let made = undivided(&spec, KindRegistry::shared()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let text = serde_json::to_string_pretty(&made).expect("a graph can be written");
        assert!(!text.contains("\"transfer\""), "{name} still moves something");
        let faults: Vec<_> =
            check(text.as_bytes(), Some(&tiny())).into_iter().filter(|found| found.is_error()).collect();
        assert!(faults.is_empty(), "{name}: {faults:?}\n{text}");
        assert_eq!(parse(&text), made, "{name} is what it was written as");
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} graphs were looked at");
}

#[test]
fn limits_are_the_same_in_total() {
    let spec = parse(TINY);
    let made = undivided(&spec, KindRegistry::shared()).expect("two devices");
    let (before, after) = (spec.limits, made.limits);
    assert_eq!((after.sequences, after.kv_tokens), (before.sequences, before.kv_tokens));
    // Three micro-batches of 64 rows, and a chunk of 32 in each on one attention device: 96 a cycle, over two devices.
    assert_eq!((after.rows_per_micro_batch, after.prefill_chunk), (192, 48));
    assert_eq!(made.schedule.micro_batches, 1);
}

#[test]
fn what_would_be_guessed_is_refused() {
    let kinds = KindRegistry::shared();
    let one = parse(common::ONE_DEVICE);
    assert_eq!(undivided(&one, kinds), Err(UndividedError::OneDevice));
    let text = std::fs::read_to_string(repository("graphs/2d-no-afd.json")).expect("readable");
    assert_eq!(undivided(&parse(&text), kinds), Err(UndividedError::SameDevices));
    let text = std::fs::read_to_string(repository("graphs/1a1f-hosts.json")).expect("readable");
    assert_eq!(undivided(&parse(&text), kinds), Err(UndividedError::Hosts));
    let text = TINY.replace("\"kind\": \"combine\",", "\"kind\": \"combine\", \"after\": [\"f2a\"],");
    assert_eq!(undivided(&parse(&text), kinds), Err(UndividedError::After("combine".into())));
}
