//! Broken graphs: each names the code, the pointer and the line that must be reported, and nothing else may be.
//!
//! The full messages are kept in `messages.txt`, so that a change of wording is read and not only counted.

mod cases;
#[path = "../common/mod.rs"]
mod common;

use cases::CASES;
use common::{ONE_DEVICE, STEP3, TINY};
use rally_graph::model::ModelShape;

/// An edit of a good graph and what must be said about it.
struct Case {
    name: &'static str,
    base: &'static str,
    edits: &'static [(&'static str, &'static str)],
    expect: &'static [(&'static str, &'static str, usize)],
}

const fn case(
    name: &'static str,
    base: &'static str,
    edits: &'static [(&'static str, &'static str)],
    expect: &'static [(&'static str, &'static str, usize)],
) -> Case {
    Case { name, base, edits, expect }
}

fn edited(case: &Case) -> String {
    let mut text = case.base.to_owned();
    for (from, to) in case.edits {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{}: `{from}` is not in the graph", case.name);
        text = changed;
    }
    text
}

fn shape_for(base: &str) -> ModelShape {
    if base == STEP3 { common::step3() } else { common::tiny() }
}

#[test]
fn every_broken_graph_is_told_where_and_why() {
    let mut transcript = String::new();
    let mut wrong = Vec::new();
    for case in CASES {
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
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

#[test]
fn good_graphs_are_told_nothing() {
    for base in [TINY, ONE_DEVICE, STEP3] {
        assert_eq!(common::check(base.as_bytes(), Some(&shape_for(base))), vec![]);
        assert_eq!(common::check(base.as_bytes(), None), vec![]);
    }
}
