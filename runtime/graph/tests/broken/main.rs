//! Broken graphs: each names the code, the pointer and the line that must be reported, and nothing else may be.
//!
//! The full messages are kept in `messages.txt`, so that a change of wording is read and not only counted.

mod case;
mod cases;
#[path = "../common/mod.rs"]
mod common;

use case::{Case, case, edited};
use cases::cases;
use common::{ONE_DEVICE, STEP3, TINY};
use rally_graph::model::ModelShape;

fn shape_for(base: &str) -> ModelShape {
    if base == STEP3 { common::step3() } else { common::tiny() }
}

#[test]
fn every_broken_graph_is_told_where_and_why() {
    let mut transcript = String::new();
    let mut wrong = Vec::new();
    for case in cases() {
        let found = common::check(edited(case).as_bytes(), Some(&shape_for(case.base)));
        let got: Vec<(&str, &str, usize)> = found.iter().map(|d| (d.code, d.pointer.as_str(), d.line)).collect();
        if got != case.expect {
            wrong.push(format!("{}\n  want {:?}\n  got  &{got:?}", case.name, case.expect));
        }
        transcript.push_str(&format!("# {}\n", case.name));
        found.iter().for_each(|diagnostic| transcript.push_str(&format!("{diagnostic}\n")));
        transcript.push('\n');
    }
    common::golden("runtime/graph/tests/broken/messages.txt", &transcript);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases().count(), wrong.join("\n"));
}

#[test]
fn good_graphs_are_told_nothing() {
    for base in [TINY, ONE_DEVICE, STEP3] {
        assert_eq!(common::check(base.as_bytes(), Some(&shape_for(base))), vec![]);
        assert_eq!(common::check(base.as_bytes(), None), vec![]);
    }
}

/// Deployments that look odd and are ordinary: one device twice an end, copies, several transfers in one direction, a join.
#[test]
fn unusual_graphs_are_told_nothing() {
    let dp = r#"{ "backend": "cuda", "count": 2, "hardware": "h200", "fabric": "nvlink" }"#;
    let graph = |devices: &str, layer: &str| {
        format!(
            r#"{{ "version": 1, "name": "odd", "model": "m", "devices": {{ {devices} }}, "compute": "bf16",
            "stages": [ {{ "kind": "embed", "on": "a" }}, {{ "layers": [ {layer} ] }}, {{ "kind": "sampling", "on": "a" }} ],
            "limits": {{ "sequences": 8, "rows_per_micro_batch": 8, "prefill_chunk": 4, "kv_tokens": 4096, "page_tokens": 64 }},
            "schedule": {{ "policy": "sequential", "micro_batches": 2 }} }}"#
        )
    };
    let attention = r#"{ "kind": "mfa_attention", "on": "a" }, { "kind": "router", "on": "a", "on_layers": "moe" },"#;
    let combine = r#"{ "kind": "combine", "on": "a" }"#;
    let transfer = |id: &str, from: &str, to: &str| {
        format!(r#"{{ "kind": "transfer", "id": "{id}", "from": "{from}", "to": "{to}", "dtype": "bf16" }},"#)
    };
    let ffns = |on: &str, moe: &str, dense: &str| {
        format!(
            r#"{{ "kind": "expert_ffn", "on": {on}, "on_layers": "moe", "shard": {moe} }},
            {{ "kind": "dense_ffn", "on": {on}, "on_layers": "dense", "shard": {dense} }},"#
        )
    };
    let sharded = ffns("\"a\"", r#"{ "experts": 2 }"#, r#"{ "tensor": 2 }"#);
    let copies = ffns("\"a\"", r#"{ "replicas": 2 }"#, r#"{ "replicas": 2 }"#);
    let two = ffns(r#"["f", "g"]"#, r#"{ "experts": 2 }"#, r#"{ "replicas": 2 }"#);
    let (one, single) = (format!("\"a\": {dp}"), r#"{ "backend": "cuda", "hardware": "h20" }"#);
    let three = format!("{one}, \"f\": {single}, \"g\": {single}");
    let cases = [
        (
            "no disaggregation on two devices",
            &one,
            format!("{attention} {} {sharded} {} {combine}", transfer("out", "a", "a"), transfer("back", "a", "a")),
        ),
        ("data parallel copies without a transfer", &one, format!("{attention} {copies} {combine}")),
        (
            "a transfer for each FFN device and direction",
            &three,
            format!(
                "{attention} {} {} {two} {} {} {combine}",
                transfer("o1", "a", "f"),
                transfer("o2", "a", "g"),
                transfer("b1", "f", "a"),
                transfer("b2", "g", "a")
            ),
        ),
        (
            "a router on the FFN's side",
            &three,
            format!(
                r#"{{ "kind": "mfa_attention", "on": "a" }}, {} {} {{ "kind": "router", "on": ["f", "g"], "on_layers": "moe" }}, {two} {} {} {combine}"#,
                transfer("o1", "a", "f"),
                transfer("o2", "a", "g"),
                transfer("b1", "f", "a"),
                transfer("b2", "g", "a")
            ),
        ),
        (
            "a relay",
            &three,
            format!(
                "{attention} {} {} {} {} {} {combine}",
                transfer("o1", "a", "f"),
                transfer("o2", "f", "g"),
                ffns("\"g\"", "{}", "{}"),
                transfer("b1", "g", "f"),
                transfer("b2", "f", "a")
            ),
        ),
        (
            "branches that join",
            &three,
            format!(
                r#"{attention} {{ "kind": "transfer", "id": "o1", "from": "a", "to": "f" }},
                {{ "kind": "transfer", "id": "o2", "from": "a", "to": "g" }}, {}
                {{ "kind": "transfer", "id": "b1", "from": "f", "to": "a" }},
                {{ "kind": "transfer", "id": "b2", "from": "g", "to": "a" }},
                {{ "kind": "combine", "on": "a", "after": ["b1", "b2"] }}"#,
                two
            ),
        ),
    ];
    for (name, devices, layer) in cases {
        let text = graph(devices, &layer);
        assert_eq!(common::check(text.as_bytes(), Some(&common::tiny())), vec![], "{name}");
    }
}
