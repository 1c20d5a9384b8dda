//! `rally check` and `rally show` through the real binary: what goes where, and which exit code follows.

#[path = "support/binary.rs"]
mod binary;

use binary::run as rally;
use serde_json::Value;
use std::process::Output;

const STEP3: &str = "graphs/step3-2a2f.json";
const TINY: &str = "graphs/tiny-ping-pong.json";
/// A small model that is always there; the graphs' own is made by training.
const MODEL: &str = "tests/golden/step3-s";

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is text")
}

/// The tiny graph with edits, in a temporary folder.
fn edited(edits: &[(&str, &str)]) -> (tempfile::TempDir, String) {
    let mut text =
        std::fs::read_to_string(format!("{}/{TINY}", env!("CARGO_MANIFEST_DIR"))).expect("the graph is there");
    for (from, to) in edits {
        assert!(text.contains(from), "`{from}` is not in the graph");
        text = text.replacen(from, to, 1);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("graph.json");
    std::fs::write(&path, text).expect("the temporary folder can be written");
    let path = path.to_str().expect("temporary paths are text").to_owned();
    (folder, path)
}

#[test]
fn check_prints_bytes_against_capacity_and_the_stage_budget() {
    let output = rally(&["check", STEP3]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["a0.0 … a0.7", "f1.0 … f1.7", "80.0 GB (h800)", "49.9 GB", "273 µs", "820 µs"] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    assert_eq!(stderr(&output), "");
}

#[test]
fn check_as_json_is_one_object_with_the_documented_keys() {
    let output = rally(&["check", STEP3, "--format", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&report), ["ok", "diagnostics", "devices", "budget"]);
    assert_eq!(keys(&report["devices"][0]), ["name", "weights_bytes", "kv_bytes", "slots_bytes", "capacity_bytes"]);
    assert_eq!(keys(&report["budget"]), ["tpot_ms", "layer_us", "slot_us"]);
    assert_eq!(report["ok"], true);
    assert_eq!(report["devices"].as_array().map(Vec::len), Some(32));
    let slot = report["budget"]["slot_us"].as_f64().expect("a number");
    assert!((slot - 273.22).abs() < 0.01, "{slot}");
}

#[test]
fn check_reports_all_faults_with_source_and_exit_code_2() {
    let (_folder, path) = edited(&[
        ("\"kv_dtype\"", "\"kv_type\""),
        ("\"to\": \"ffn\"", "\"to\": \"fnn\""),
        ("\"micro_batches\": 3", "\"micro_batches\": 0"),
    ]);
    let output = rally(&["check", &path, "--model", MODEL]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "", "results only on stdout");
    let text = stderr(&output);
    for part in [
        "unknown-key",
        "did you mean `kv_dtype`?",
        "graph.json:14:",
        "unknown-device",
        "did you mean `ffn`?",
        "from 1 to 64",
        "3 errors",
    ] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    let output = rally(&["check", &path, "--model", MODEL, "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    assert_eq!(report["ok"], false);
    let first = &report["diagnostics"][0];
    assert_eq!(first["pointer"], "/stages/1/layers/0/kv_type");
    assert_eq!(
        (&first["severity"], &first["code"], &first["line"]),
        (&"error".into(), &"unknown-key".into(), &14.into())
    );
    assert_eq!(report["diagnostics"].as_array().map(Vec::len), Some(3));
}

#[test]
fn warnings_are_told_and_do_not_fail() {
    let (_folder, path) = edited(&[("\"cores\": [1]", "\"cores\": [0]")]);
    let output = rally(&["check", &path, "--model", MODEL]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("core-shared"));
    assert!(stdout(&output).contains("stage budget"));
}

#[test]
fn what_cannot_be_read_is_the_users_mistake() {
    for path in ["/nonexistent/graph.json", "graphs", "Cargo.lock", "src/main.rs"] {
        let output = rally(&["check", path]);
        assert_eq!(output.status.code(), Some(2), "{path}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{path}: {}", stderr(&output));
    }
    let output = rally(&["check", TINY, "--model", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/nonexistent"), "{}", stderr(&output));
}

#[test]
fn show_draws_every_form() {
    let starts =
        [("dot", "digraph"), ("mermaid", "flowchart"), ("svg", "<svg"), ("html", "<!doctype html>"), ("json", "{")];
    for (form, start) in starts {
        let output = rally(&["show", STEP3, "--as", form]);
        assert_eq!(output.status.code(), Some(0), "{form}: {}", stderr(&output));
        assert!(stdout(&output).starts_with(start), "{form}");
    }
    let text = stdout(&rally(&["show", STEP3]));
    assert!(text.contains("layers 4..59 (MoE)") && text.contains("a0, a1 → f0, f1"), "{text}");
}

#[test]
fn show_lists_the_plan_as_text_and_json() {
    let arguments = ["show", TINY, "--model", MODEL, "--plan"];
    let text = stdout(&rally(&arguments));
    for part in ["ping_pong:3", "\nattn: ", "a2f send", "waits for", "ffn: f2a send", "busy", "assumed, not measured"] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
    let output = rally(&[&arguments[..], &["--format", "json"]].concat());
    let plan: Value = serde_json::from_slice(&output.stdout).expect("stdout is one JSON object");
    assert_eq!(plan["lanes"].as_array().map(Vec::len), Some(2));
    for (form, start) in [("svg", "<svg"), ("html", "<!doctype html>")] {
        assert!(stdout(&rally(&[&arguments[..], &["--as", form]].concat())).starts_with(start), "{form}");
    }
    let output = rally(&[&arguments[..], &["--as", "dot"]].concat());
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn plans_of_every_policy_are_shown() {
    let text = stdout(&rally(&["show", "graphs/custom-order.json", "--model", MODEL, "--plan"]));
    let by_hand = text.split_once(':').map(|(_, rest)| rest.to_owned());
    let rotated = stdout(&rally(&["show", TINY, "--model", MODEL, "--plan"]));
    assert_eq!(by_hand, rotated.split_once(':').map(|(_, rest)| rest.to_owned()), "the same plan under another name");
    let (_folder, path) = edited(&[("\"ping_pong\"", "\"greedy\"")]);
    let output = rally(&["show", &path, "--model", MODEL, "--plan"]);
    assert!(stdout(&output).starts_with("greedy:3"), "{}", stderr(&output));
    let text = stdout(&rally(&["show", STEP3, "--plan"]));
    assert!(text.contains("a0.0 … a0.7") && text.contains("the same for layers"), "{text}");
    // Four groups; in the first layers of a kind, each turn of the three micro-batches is told, the exchanges of `o_proj` too.
    assert!(text.lines().count() < 200, "32 lanes and 61 layers are told briefly");
}

#[test]
fn a_graph_without_its_model_is_still_drawn() {
    let (_folder, path) = edited(&[]);
    let output = rally(&["show", &path]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("MoE layers"));
}
