//! `rally recommend` through the real binary: the answer, its graph file, mistakes.

#[path = "support/binary.rs"]
mod binary;

use binary::{good, path_text, refused, text};
use serde_json::Value;

#[test]
fn the_winner_is_a_graph_that_checks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let graph = folder.path().join("best.json");
    let question = ["recommend", "--model", "models/step3", "--hardware", "H800:32", "--format", "json"];
    let answer: Value = serde_json::from_slice(&good(&[&question[..], &["--out", path_text(&graph)]].concat()).stdout)
        .expect("one JSON object");
    let best = &answer["best"];
    assert!(best["tpot_ms"].as_f64().is_some_and(|ms| ms <= 50.0), "{best}");
    assert!(answer["undivided"]["usd_per_mtok"].as_f64().is_some_and(|usd| usd > 0.0), "{answer}");
    let advantage = answer["advantage"].as_f64().expect("both are possible");
    assert_eq!(answer["disaggregate"], advantage > 0.0);

    let checked = good(&["check", path_text(&graph), "--format", "json"]);
    let checked: Value = serde_json::from_slice(&checked.stdout).expect("one JSON object");
    let told = &checked["diagnostics"];
    assert_eq!(checked["ok"], true, "{told}");
    let devices = checked["devices"].as_array().expect("a list").len() as u64;
    let instances = best["attention_instances"].as_u64().zip(best["ffn_instances"].as_u64()).expect("numbers");
    assert_eq!(devices, (instances.0 + instances.1) * best["devices_per_instance"].as_u64().expect("a number"));
}

#[test]
fn people_read_reason_margins_and_verdict() {
    let mixed = text(
        &good(&[
            "recommend",
            "--hardware",
            "L20:16",
            "--hardware",
            "H800:16",
            "--context",
            "4096:3",
            "--context",
            "8192:1",
        ])
        .stdout,
    );
    for words in ["Bound by", "Margins:", "Undivided on", "for L20 those of H800 are assumed", "Not measured"] {
        assert!(mixed.contains(words), "{words} in {mixed}");
    }
}

#[test]
fn mistakes_are_told_with_their_remedy() {
    for (arguments, said) in [
        (&["--hardware", "H800"][..], "expected NAME:COUNT"),
        (&["--hardware", "H800:1"], "expected NAME:COUNT"),
        (&["--hardware", "H80O:16"], "did you mean `H800`?"),
        (&["--hardware", "H800:8", "--hardware", "h800:8"], "two are called H800"),
        (&["--hardware", "H800:16", "--context", "0"], "expected TOKENS"),
        (&["--hardware", "H800:16", "--context", "4096:-1"], "expected TOKENS"),
        (&["--hardware", "H800:16", "--out", "/tmp/never.json"], "give --model"),
        (&[], "--hardware"),
    ] {
        refused(&[&["recommend"], arguments].concat(), said);
    }
}
