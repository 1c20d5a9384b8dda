//! Whatever the bytes, parsing and checking end soon and never panic; faults of encoding and size are named.

mod common;

use common::{ONE_DEVICE, STEP3, TINY};
use proptest::prelude::*;
use rally_graph::diagnostic::{Diagnostic, MAX_DIAGNOSTICS};
use rally_graph::kinds::KindRegistry;
use rally_graph::parse::{MAX_BYTES, MAX_DEPTH, parse_graph};
use std::time::{Duration, Instant};

/// Far above what any graph takes, far below what a person notices as a hang.
const SOON: Duration = Duration::from_secs(20);

fn check_soon(bytes: &[u8]) -> Vec<Diagnostic> {
    let start = Instant::now();
    let found = common::check(bytes, Some(&common::tiny()));
    assert!(start.elapsed() < SOON, "checking took {:?}", start.elapsed());
    for diagnostic in &found {
        assert!(diagnostic.line >= 1 && diagnostic.column >= 1, "{diagnostic:?}");
        assert!(!diagnostic.message.is_empty() && !diagnostic.code.is_empty(), "{diagnostic:?}");
    }
    assert!(found.len() <= 2 * MAX_DIAGNOSTICS);
    found
}

fn only(bytes: &[u8]) -> (&'static str, usize, usize) {
    match check_soon(bytes).as_slice() {
        [one] => (one.code, one.line, one.column),
        other => panic!("expected one diagnostic, got {other:?}"),
    }
}

#[test]
fn bytes_that_are_no_text_are_named_with_their_place() {
    assert_eq!(only(b""), ("empty-file", 1, 1));
    assert_eq!(only(b" \n\t"), ("empty-file", 1, 1));
    let mut bytes = TINY.as_bytes().to_vec();
    let at = TINY.find("tiny-ping-pong").expect("the name is there");
    bytes[at + 2] = 0xff;
    assert_eq!(only(&bytes), ("invalid-utf8", 4, 14));
    bytes.truncate(at + 3);
    assert_eq!(only(&bytes), ("invalid-utf8", 4, 14));
}

#[test]
fn columns_count_characters() {
    let graph = TINY.replace("\"version\": 1,", "\"naïveté\": 0, \"version\": 3,");
    let found = check_soon(graph.as_bytes());
    let places: Vec<_> = found.iter().map(|d| (d.code, d.pointer.as_str(), d.line, d.column)).collect();
    assert_eq!(places, [("unknown-key", "/naïveté", 3, 3), ("wrong-version", "/version", 3, 28)]);
}

#[test]
fn a_byte_order_mark_and_windows_lines_are_fine() {
    let graph = format!("\u{feff}{}", TINY.replace('\n', "\r\n"));
    assert_eq!(check_soon(graph.as_bytes()), vec![]);
    let graph = graph.replace("\"version\": 1", "\"version\": 9");
    assert_eq!(only(graph.as_bytes()), ("wrong-version", 3, 14));
}

#[test]
fn pointers_escape_what_keys_may_hold() {
    let graph = TINY.replace("\"version\": 1,", "\"a/b~c\": 0, \"version\": 1,");
    let found = check_soon(graph.as_bytes());
    assert_eq!(found[0].pointer, "/a~1b~0c");
    assert_eq!((found[0].line, found[0].column), (3, 3));
}

#[test]
fn depth_and_size_are_limited_before_anything_recurses() {
    for open in ["[", "{\"a\":"] {
        let deep = open.repeat(400_000);
        assert_eq!(only(deep.as_bytes()).0, "too-deep");
    }
    let quoted = format!("{{\"a\": \"{}\"}}", "[".repeat(MAX_DEPTH + 10));
    assert!(check_soon(quoted.as_bytes()).iter().all(|diagnostic| diagnostic.code != "too-deep"));
    let large = vec![b' '; MAX_BYTES + 1];
    assert_eq!(only(&large).0, "too-large");
}

#[test]
fn large_nonsense_is_cut_short() {
    let keys: String = (0..100_000).map(|index| format!("\"key{index}\": {index}, ")).collect();
    let graph = TINY.replace("\"version\": 1,", &format!("{keys}\"version\": 1,"));
    assert!(graph.len() < MAX_BYTES);
    assert_eq!(check_soon(graph.as_bytes()).len(), MAX_DIAGNOSTICS);
    let stages: String = (0..20_000).map(|index| format!("{{\"kind\": \"k{index}\"}}, ")).collect();
    let graph = TINY.replace("{ \"kind\": \"embed\"", &format!("{stages}{{ \"kind\": \"embed\""));
    assert_eq!(check_soon(graph.as_bytes()).len(), MAX_DIAGNOSTICS);
}

#[test]
fn the_largest_groups_are_checked_soon() {
    let graph = STEP3.replace("\"count\": 8", "\"count\": 1024");
    assert!(!check_soon(graph.as_bytes()).is_empty());
}

/// What mutations put in: pieces of graphs that are likely to be read, and then to be wrong.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "0",
    "-1",
    "1e999",
    "null",
    "true",
    "\\",
    "\u{feff}",
    "é",
    "18446744073709551616",
    "\"attn\"",
    "\"ffn\"",
    "\"moe\"",
    "\"0..9\"",
    "\"transfer\"",
    "\"layers\"",
    "\"kind\"",
    "\"on\"",
    "\"after\"",
    "\"count\": 3,",
    "\"shard\": { \"tensor\": 3 },",
    "{ \"kind\": \"combine\", \"on\": \"ffn\" },",
    "\"\"",
];

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let base = prop_oneof![Just(TINY), Just(ONE_DEVICE), Just(STEP3)];
    let edit = (any::<prop::sample::Index>(), 0usize..40, prop::sample::select(PIECES));
    (base, prop::collection::vec(edit, 1..6)).prop_map(|(base, edits)| {
        let mut bytes = base.as_bytes().to_vec();
        for (at, removed, piece) in edits {
            let at = at.index(bytes.len() + 1).min(bytes.len());
            let end = (at + removed).min(bytes.len());
            // A third of the edits only remove, a third only insert.
            let (end, piece) = match removed % 3 {
                0 => (end, ""),
                1 => (at, piece),
                _ => (end, piece),
            };
            bytes.splice(at..end, piece.bytes());
        }
        bytes
    })
}

/// Swaps one JSON value of a graph for another, so that most results still parse.
fn regrafted() -> impl Strategy<Value = Vec<u8>> {
    let base = prop_oneof![Just(TINY), Just(ONE_DEVICE), Just(STEP3)];
    (base, any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(base, from, to)| {
        let mut graph: serde_json::Value = serde_json::from_str(base).expect("a committed graph is JSON");
        let mut pointers = Vec::new();
        collect(&graph, String::new(), &mut pointers);
        let value = graph.pointer(&pointers[from.index(pointers.len())]).cloned().expect("the pointer was collected");
        let place = pointers[to.index(pointers.len())].clone();
        *graph.pointer_mut(&place).expect("the pointer was collected") = value;
        serde_json::to_vec_pretty(&graph).expect("a value is JSON")
    })
}

fn collect(value: &serde_json::Value, pointer: String, pointers: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(key, value)| collect(value, format!("{pointer}/{key}"), pointers))
        }
        serde_json::Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| collect(value, format!("{pointer}/{index}"), pointers));
        }
        _ => {}
    }
    pointers.push(pointer);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_graphs_never_panic(bytes in mutated()) {
        check_soon(&bytes);
    }

    #[test]
    fn regrafted_graphs_never_panic_and_agree_with_serde(bytes in regrafted()) {
        check_soon(&bytes);
        // What parsing lets through is a deployment, and what it refuses has an error.
        let parsed = parse_graph(&bytes, KindRegistry::shared());
        prop_assert_eq!(parsed.spec.is_some(), !parsed.diagnostics.iter().any(Diagnostic::is_error));
    }

    #[test]
    fn truncated_graphs_never_panic(base in prop_oneof![Just(TINY), Just(STEP3)], at in any::<prop::sample::Index>()) {
        let at = at.index(base.len());
        let found = check_soon(&base.as_bytes()[..at]);
        // Without its last brace no graph is whole.
        prop_assert!(at + 2 > base.len() || !found.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_soon(&bytes);
    }
}
