//! What the checker accepts and this version does not run is refused by name.

use super::open;
use super::support::{Layout, Places};
use rally::stages::deployment::AssembleOptions;
use rally::stages::kinds::StageRegistry;
use serde_json::{Value, json};

#[track_caller]
fn check(graph: &Value, want: &str) {
    let deployment =
        open(graph, "step3-s").unwrap_or_else(|error| panic!("the checker refuses it: {error}\n{graph:#}"));
    let refused = deployment.assemble(&StageRegistry::builtin(), AssembleOptions::default()).err();
    let text = refused.expect("it is not run").to_string();
    assert!(text.contains(want) && text.ends_with("can be checked but not run by this version"), "{text}");
}

fn graph(places: Places) -> Value {
    Layout { places: Some(places), ..Layout::default() }.json()
}

fn layers(graph: &mut Value) -> &mut Vec<Value> {
    graph["stages"][1]["layers"].as_array_mut().expect("the layers are a list")
}

fn two_and_two() -> Places {
    Places { a: vec![2], f: vec![1, 1], expert: [2, 1, 1], dense: [2, 1], ..Places::default() }
}

#[test]
fn rows_that_come_in_two_transfers() {
    let mut graph = graph(two_and_two());
    let layers = layers(&mut graph);
    let place = layers.iter().position(|stage| stage["id"] == "a2f").expect("it is there");
    let mut second = layers[place].clone();
    layers[place]["to"] = json!("f0");
    (second["id"], second["to"]) = (json!("a2f1"), json!("f1"));
    layers.insert(place + 1, second);
    check(&graph, "2 transfers to its FFN (`a2f`, `a2f1`)");
}

#[test]
fn a_part_that_stays_where_it_is() {
    let mut graph = graph(Places { a: vec![1], f: vec![1], ..two_and_two() });
    for stage in layers(&mut graph) {
        if stage["kind"] == "expert_ffn" || stage["kind"] == "dense_ffn" {
            stage["on"] = json!(["a0", "f0"]);
        }
    }
    check(&graph, "transfer `a2f` that leaves out `a0.0`");
}

#[test]
fn rails_into_a_group_that_copies_share() {
    let places = Places { f: vec![2], expert: [1, 1, 2], dense: [2, 1], rail: true, ..two_and_two() };
    check(&graph(places), "transfer `a2f` with `rail` routing to a group that several replicas share");
}

/// Every device of `graph` on a host of its group's name.
fn on_hosts(graph: &mut Value) {
    let names: Vec<String> = graph["devices"].as_object().expect("devices by name").keys().cloned().collect();
    graph["hosts"] = names.iter().enumerate().fold(json!({}), |mut hosts, (index, name)| {
        hosts[name] = json!({ "address": format!("10.0.0.1:{}", 7000 + index) });
        hosts
    });
    names.iter().for_each(|name| graph["devices"][name]["host"] = json!(name));
    for stage in layers(graph).iter_mut().filter(|stage| stage["kind"] == "transfer") {
        stage["transport"] = json!("tcp");
    }
}

#[track_caller]
fn check_on_a_host(graph: &Value, host: Option<usize>, want: &str) {
    let deployment = open(graph, "step3-s").unwrap_or_else(|error| panic!("the checker refuses it: {error}"));
    let options = AssembleOptions { host, ..AssembleOptions::default() };
    let text = deployment.assemble(&StageRegistry::builtin(), options).err().expect("it is not run").to_string();
    assert!(text.contains(want) && text.ends_with("can be checked but not run by this version"), "{text}");
}

#[test]
fn hosts_where_nobody_says_which_one_this_is() {
    let mut graph = graph(two_and_two());
    on_hosts(&mut graph);
    check_on_a_host(&graph, None, "a graph with hosts (`");
}

#[test]
fn copied_experts_on_different_hosts() {
    let mut graph = graph(two_and_two());
    on_hosts(&mut graph);
    let experts = layers(&mut graph).iter_mut().find(|stage| stage["kind"] == "expert_ffn").expect("it is there");
    let count = 8;
    let all: Vec<usize> = (0..count).collect();
    experts["placement"] = json!([all, [0]]);
    check_on_a_host(&graph, Some(0), "`expert_ffn`, whose devices work on each other's rows on different hosts");
}
