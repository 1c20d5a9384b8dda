//! Layouts picked by hand: the committed graph files, what copies of the FFN must not change, and devices that do everything.

use super::support::{Answer, Ask, Layout, Places, exact, graph_file, repository, row_error, run};
use super::{bits, check_accepts, one_device, open};
use serde_json::json;

fn asks() -> Vec<Ask> {
    let prompt = |id: u32, length: u32| (0..length).map(|i| (i * 37 + id * 11) % 500).collect::<Vec<u32>>();
    (0..9).map(|id| Ask::greedy(&prompt(id, 1 + 4 * id), 6)).collect()
}

fn on_small(layout: &Layout) -> Vec<Answer> {
    check_accepts(layout, "step3-s");
    run(&layout.spec(), &repository("tests/golden/step3-s"), &asks(), None)
}

#[test]
fn the_committed_graphs_run() {
    let model = repository("tests/golden/step3-s");
    let one = run(&one_device().spec(), &model, &asks(), None);
    // Whether the FFN is whole on every device, so that no sum has another order.
    let graphs = [
        ("2a1f", true),
        ("3a2f", true),
        ("1a2f-tensor", false),
        ("2a2f-experts", false),
        ("2a2f-placement", false),
        ("2a2f-o-proj", false),
        ("2a2f-rail", false),
        ("2d-no-afd", false),
    ];
    for (name, whole) in graphs {
        let spec = graph_file(&format!("{name}.json"));
        let warnings = open(&serde_json::to_value(&spec).expect("specs are JSON"), "step3-s").expect(name).warnings;
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
        run(&spec, &model, &asks(), None);
        let got = run(&exact(spec), &model, &asks(), None);
        if whole {
            assert_eq!(bits(&got), bits(&one), "{name}");
        }
        for (got, one) in got.iter().zip(&one) {
            assert_eq!(got.tokens, one.tokens, "{name}");
            for (got, one) in got.logits.iter().zip(&one.logits) {
                let error = row_error(got, one);
                assert!(error <= 1e-5, "{name}: a row is off by {error}");
            }
        }
    }
}

/// Parts of y belong to the home shard: who computes them changes no sum, wherever that rounds.
#[test]
fn copies_of_the_ffn_change_no_bit() {
    let one = Places { a: vec![4], f: vec![4], expert: [2, 2, 1], dense: [4, 1], ..Places::default() };
    let two = Places { f: vec![4, 4], expert: [2, 2, 2], dense: [4, 2], ..one.clone() };
    for (a2f, f2a) in [("f32", "f32"), ("fp8_e4m3", "bf16"), ("bf16", "fp8_e4m3")] {
        let layout = |places: &Places, rail: bool| Layout {
            places: Some(Places { rail, ..places.clone() }),
            a2f,
            f2a,
            ..Layout::default()
        };
        let want = bits(&on_small(&layout(&one, false)));
        assert_eq!(bits(&on_small(&layout(&one, true))), want, "rail");
        assert_eq!(bits(&on_small(&layout(&two, false))), want, "two copies");
        assert_eq!(bits(&on_small(&layout(&two, true))), want, "two copies, rail");
    }
}

/// Two devices, each with a whole FFN of its own: nothing crosses, and no edge is there to say so.
#[test]
fn whole_copies_beside_attention_need_no_transfer() {
    let places = Places { a: vec![2], expert: [1, 1, 2], dense: [1, 2], ..Places::default() };
    let mut graph = Layout { places: Some(places), ..Layout::default() }.json();
    let layers = graph["stages"][1]["layers"].as_array_mut().expect("the layers are a list");
    layers.retain(|stage| stage["kind"] != "transfer");
    open(&graph, "step3-s").unwrap_or_else(|error| panic!("{error}"));
    let spec = serde_json::from_value(graph).expect("the graph is well formed");
    let model = repository("tests/golden/step3-s");
    assert_eq!(bits(&run(&spec, &model, &asks(), None)), bits(&run(&one_device().spec(), &model, &asks(), None)));
}

/// Every slice of the output projection, groups that hold several splits, and all of it beside rails and copied experts.
#[test]
fn a_split_output_projection_agrees_with_itself_and_nearly_with_one_device() {
    let one = run(&one_device().spec(), &repository("tests/golden/step3-s"), &asks(), None);
    for slices in [2, 4] {
        let places =
            Places { a: vec![4], f: vec![2], expert: [2, 1, 1], dense: [2, 1], o_proj: slices, ..Places::default() };
        let layout = |places: Places| Layout { places: Some(places), ..Layout::default() };
        let got = on_small(&layout(places.clone()));
        assert_eq!(bits(&on_small(&layout(Places { a: vec![4, 4], ..places.clone() }))), bits(&got), "two groups");
        let placement = Some(vec![vec![0, 1, 2, 3, 7], vec![4, 5, 6, 7, 0, 1, 2]]);
        let railed = Places { f: vec![4], expert: [2, 2, 1], dense: [4, 1], rail: true, placement, ..places.clone() };
        let plain = Places { rail: false, placement: None, ..railed.clone() };
        assert_eq!(bits(&on_small(&layout(railed))), bits(&on_small(&layout(plain))), "rails and copied experts");
        for (got, one) in got.iter().zip(&one) {
            assert_eq!(got.tokens, one.tokens);
            let errors = got.logits.iter().zip(&one.logits).map(|(got, one)| row_error(got, one));
            assert!(errors.into_iter().all(|error| error <= 1e-5), "{slices} slices");
        }
    }
}

/// Lists that differ by layer, in a model whose first layer is dense.
#[test]
fn placements_by_layer_change_no_bit() {
    let places = Places { a: vec![1], f: vec![3], expert: [3, 1, 1], dense: [3, 1], ..Places::default() };
    let layout = Layout { places: Some(places), a2f: "fp8_e4m3", f2a: "bf16", ..Layout::default() };
    let want = bits(&on_small(&layout));
    let mut graph = layout.json();
    let layers = graph["stages"][1]["layers"].as_array_mut().expect("the layers are a list");
    let experts = layers.iter_mut().find(|stage| stage["kind"] == "expert_ffn").expect("there are experts");
    let all = [0, 1, 2, 3, 4, 5, 6, 7];
    experts["placement"] = json!({ "1": [[0, 1, 2], [3, 4, 5, 0], [6, 7, 1, 0]], "2..9": [all, all, [6, 7]], "0": [[0, 1, 2], all, [6, 7]] });
    open(&graph, "step3-s").unwrap_or_else(|error| panic!("{error}"));
    let spec = serde_json::from_value(graph).expect("the graph is well formed");
    assert_eq!(bits(&run(&spec, &repository("tests/golden/step3-s"), &asks(), None)), want);
}
