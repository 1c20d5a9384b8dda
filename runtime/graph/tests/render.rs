//! Every form of picture of the committed graphs, compared with what was last looked at.

mod common;

use rally_graph::kinds::KindRegistry;
use rally_graph::model::ModelShape;
use rally_graph::parse::parse_graph;
use rally_graph::render::{Picture, dot, html, mermaid, picture, svg, text};

fn draw(graph: &str, shape: Option<&ModelShape>) -> Picture {
    let registry = KindRegistry::shared();
    let spec = parse_graph(graph.as_bytes(), registry).spec.expect("a committed graph has no faults");
    picture(&spec, shape, registry)
}

#[test]
fn every_form_is_as_it_was_looked_at() {
    let folder = "runtime/graph/tests/pictures";
    let tiny = draw(common::TINY, Some(&common::tiny()));
    common::golden(&format!("{folder}/tiny-ping-pong.txt"), &text(&tiny));
    common::golden(&format!("{folder}/tiny-ping-pong.dot"), &dot(&tiny));
    common::golden(&format!("{folder}/tiny-ping-pong.mmd"), &mermaid(&tiny));
    common::golden(&format!("{folder}/tiny-ping-pong.svg"), &svg(&tiny));
    let step3 = draw(common::STEP3, Some(&common::step3()));
    common::golden(&format!("{folder}/step3-2a2f.txt"), &text(&step3));
    common::golden(&format!("{folder}/step3-2a2f.svg"), &svg(&step3));
}

#[test]
fn a_picture_needs_no_model() {
    let titles: Vec<String> = draw(common::TINY, None).layers.into_iter().map(|layer| layer.title).collect();
    assert_eq!(titles, ["dense layers", "MoE layers"]);
}

#[test]
fn names_cannot_break_out_of_the_markup() {
    let graph = common::TINY.replace("\"name\": \"tiny-ping-pong\"", "\"name\": \"</svg><script>\\\"&\"");
    let picture = draw(&graph, Some(&common::tiny()));
    for markup in [svg(&picture), html(&picture)] {
        assert!(!markup.contains("<script>"), "a name became markup");
    }
    assert!(dot(&picture).contains("\\\""));
}
