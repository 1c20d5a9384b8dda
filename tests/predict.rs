//! `rally predict` through the real binary: profile, predict, bench; figures instead of a profile; the same twice; what is refused.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/results.rs"]
mod results;

use binary::{path_text, refused, text};
use serde_json::Value;

const GRAPH: &str = "graphs/tiny-ping-pong.json";
const LOAD: [&str; 6] = ["--batch", "3", "--random-input-len", "4", "--random-output-len", "12"];

#[track_caller]
fn good(arguments: &[&str]) -> String {
    text(&binary::good(arguments).stdout)
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&good(&[arguments, &["--format", "json"]].concat())).expect("one JSON object on stdout")
}

#[test]
fn profile_predict_and_bench_are_one_loop() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [costs, said, page] = ["costs.json", "said.json", "page.html"].map(|name| folder.path().join(name));
    let grid = ["--rows", "1,4", "--contexts", "16", "--experts", "3,8", "--point-ms", "1"];
    good(&[&["profile", GRAPH, "--out", path_text(&costs)], &grid[..]].concat());
    let predict = [&["predict", GRAPH, "--profile", path_text(&costs)], &LOAD[..]].concat();
    let predicted = json(&[&predict[..], &["--save-result", path_text(&said), "--trace", path_text(&page)]].concat());
    assert_eq!(predicted, json(&predict), "the same inputs give the same prediction");
    let run = &predicted["runs"][0];
    assert_eq!((&run["completed"], &run["total_output_tokens"]), (&3.into(), &36.into()));
    assert!(predicted["devices"][0]["weights_bytes"].as_u64() > Some(0));
    assert!(std::fs::read_to_string(&page).expect("written").starts_with("<!doctype html>"));

    let bench = [&["bench", GRAPH, "--against", path_text(&said)], &LOAD[..]].concat();
    let measured = json(&bench);
    results::fits(&measured);
    let differences = measured["against"]["differences"].as_array().expect("what differs");
    let has = |of: &str, figure: &str| differences.iter().any(|row| row["of"] == of && row["figure"] == figure);
    // The whole, a stage, an edge, a lane.
    assert!(has("run", "median_tpot_ms") && has("expert_ffn compute", "mean_us"));
    assert!(has("a2f send", "p50_us") && has("lane attn", "busy_share"));
    let size = |row: &Value| {
        let figure = |key: &str| row[key].as_f64().expect("a number");
        let share = row["figure"].as_str().is_some_and(|figure| figure.ends_with("share"));
        if share { (figure("predicted") - figure("measured")).abs() } else { figure("off").abs() }
    };
    assert!(differences.windows(2).all(|pair| size(&pair[0]) >= size(&pair[1])), "the largest first");
    assert!(good(&bench).contains("the largest disagreements first"));
    // A prediction is held against nothing but what it was made for.
    refused(&["bench", GRAPH, "--against", path_text(&said)], "made for another load");
    refused(&[&bench[..], &["--schedule", "sequential:1"]].concat(), "made for schedule \"ping_pong:3\"");
    refused(
        &[&["bench", "graphs/one-device.json", "--against", path_text(&said)], &LOAD[..]].concat(),
        "another graph file",
    );
    refused(&["bench", GRAPH, "--against", path_text(&costs)], "it is no prediction");
    refused(&["predict", "graphs/one-device.json", "--profile", path_text(&said)], "it is no cost table");
    let mut other: Value = serde_json::from_slice(&std::fs::read(&costs).expect("written")).expect("a table");
    other["model"]["hidden"] = 65.into();
    std::fs::write(&costs, other.to_string()).expect("a table to write");
    refused(&predict, "measured with another model: model.hidden is 65 there");
}

#[test]
fn jitter_and_experts_change_what_is_predicted() {
    let graph = ["predict", GRAPH, "--hardware", "h800"];
    let of = |more: &[&str]| json(&[&graph[..], &LOAD[..], more].concat())["runs"][0]["mean_e2el_ms"].clone();
    let plain = of(&[]);
    assert_ne!(of(&["--jitter", "0.3"]), plain);
    assert_eq!(of(&["--jitter", "0.3"]), of(&["--jitter", "0.3"]));
    assert_ne!(of(&["--jitter", "0.3", "--seed", "1"]), of(&["--jitter", "0.3"]));
    // With so little to read, launching would hide which experts are.
    assert_ne!(of(&["--launch-us", "0.1", "--experts", "balanced"]), of(&["--launch-us", "0.1"]));
    assert_ne!(of(&["--launch-us", "20"]), plain);
    // Rows that all go to three of eight experts read no other.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let counts = folder.path().join("counts.json");
    std::fs::write(&counts, "[5, 5, 5, 0, 0, 0, 0, 0]").expect("a histogram");
    let number = |value: Value| value.as_f64().expect("a time");
    let few = of(&["--launch-us", "0.1", "--experts", path_text(&counts)]);
    assert!(number(few) < number(of(&["--launch-us", "0.1"])));
}

#[test]
fn a_graph_that_no_machine_here_runs_is_predicted() {
    let load = ["--batch", "16", "--random-input-len", "8", "--random-output-len", "3"];
    let of = |more: &[&str]| json(&[&["predict", "graphs/step3-2a2f.json"], &load[..], more].concat());
    let result = of(&[]);
    assert_eq!((&result["machine"]["hardware"][0], &result["machine"]["devices"]), (&"H800".into(), &32.into()));
    let ms = |result: &Value| result["runs"][0]["median_itl_ms"].as_f64().expect("a time");
    // Slower links, slower steps; another card, another time.
    assert!(ms(&of(&["--network-efficiency", "0.01"])) > ms(&result));
    assert!(ms(&of(&["--hardware", "l20"])) > ms(&result));
}

#[test]
fn measured_stage_times_stand_for_figures() {
    let load = ["--batch", "64", "--random-input-len", "8", "--random-output-len", "3", "--hardware", "h200"];
    let of = |more: &[&str]| json(&[&["predict", "graphs/step3-2a2f.json"], &load[..], more].concat());
    let us = |result: &Value| {
        let stages = result["runs"][0]["stages"].as_array().expect("stages").clone();
        let experts = stages.iter().find(|stage| stage["stage"] == "expert_ffn").expect("experts").clone();
        experts["mean_us"].as_f64().expect("a time")
    };
    let measured = of(&["--measured"]);
    assert!(measured["predicted_from"]["measured"].as_str().is_some_and(|source| source.contains("NOTES.md")));
    // Few rows: 112 µs were measured of 24 experts × 640 columns, and the shared expert's shard is beside it on the first devices.
    assert!((112.0..122.0).contains(&us(&measured)), "{}", us(&measured));
    assert!(us(&of(&[])) < 112.0, "figures know of no time beside reading");
}

#[test]
fn a_share_of_a_card_is_a_part_of_it() {
    let load = ["--batch", "64", "--random-input-len", "64", "--random-output-len", "4"];
    let us = |graph: &str, stage: &str| {
        let result = json(&[&["predict", graph], &load[..]].concat());
        let stages = result["runs"][0]["stages"].as_array().expect("stages").clone();
        let found = stages.iter().find(|found| found["stage"] == stage).expect("the stage ran");
        found["mean_us"].as_f64().expect("a time")
    };
    // 84 and 48 of 132 multiprocessors: products take as much longer as there are fewer, weights less so.
    for (stage, sms) in [("mfa_attention", 84.0), ("expert_ffn", 48.0)] {
        let slower = us("graphs/step3-1a1f-shares.json", stage) / us("graphs/step3-1a1f-cards.json", stage);
        assert!(slower > 1.1 && slower < 132.0 / sms, "{stage}: {slower} times as long");
    }
}

/// What cards were measured to take, of the same layers in seven layouts (`kernels/cuda/NOTES.md`, "Several cards"), against what the table of
/// their stages says. What is left is the host's part of a step, rows on their way, and experts that real routing leaves out.
#[test]
fn layouts_of_cards_are_predicted_from_their_stages() {
    let load = ["--batch", "1024", "--random-input-len", "4096", "--random-output-len", "48", "--pretend-read", "4096"];
    let table = "--measured=models/step3/h200-cards.json";
    for (graph, measured_ms) in [
        ("step3-1d-card", 8.80),
        ("step3-1a1f-shares", 8.68),
        ("step3-2d-cards", 5.65),
        ("step3-2d-tensor-cards", 5.29),
        ("step3-1a1f-cards", 5.78),
        ("step3-2a2f-shares", 5.49),
        ("step3-2a2f-tensor-shares", 5.13),
    ] {
        let result = json(&[&["predict", &format!("graphs/{graph}.json"), table], &load[..]].concat());
        let ms = result["runs"][0]["mean_tpot_ms"].as_f64().expect("a time");
        assert!((ms / measured_ms - 1.0).abs() < 0.2, "{graph}: {ms} ms predicted, {measured_ms} measured");
    }
}

/// As `rally bench` takes prompts as read: what follows takes as long as if they had been.
#[test]
fn a_prompt_that_counts_as_read_is_not_read() {
    let load = ["--batch", "256", "--random-input-len", "1024", "--random-output-len", "8"];
    let of = |more: &[&str]| json(&[&["predict", "graphs/step3-1a1f-cards.json"], &load[..], more].concat());
    let (read, pretended) = (of(&[]), of(&["--pretend-read", "1024"]));
    let figure = |result: &Value, key: &str| result["runs"][0][key].as_f64().expect("a number");
    assert!(figure(&pretended, "mean_ttft_ms") < 0.1 * figure(&read, "mean_ttft_ms"));
    assert!(figure(&pretended, "steps") < 3.0 * 8.0 && figure(&read, "steps") > 100.0);
    let tpot = |result| figure(result, "mean_tpot_ms");
    assert!((tpot(&pretended) / tpot(&read) - 1.0).abs() < 0.02, "{} {}", tpot(&pretended), tpot(&read));
    assert_eq!((&pretended["load"]["pretend_read"], &read["load"]["pretend_read"]), (&1024.into(), &Value::Null));
}

#[test]
fn a_trace_gives_contexts_and_arrivals() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = |name: &str, lines: &[(u32, u32)]| {
        let path = folder.path().join(name);
        let line = |(ms, tokens): &(u32, u32)| {
            format!("{{\"timestamp\":{ms},\"input_length\":{tokens},\"output_length\":5}}\n")
        };
        std::fs::write(&path, lines.iter().map(line).collect::<String>()).expect("a trace");
        json(&["predict", GRAPH, "--hardware", "l4", "--launch-us", "0", "--trace-file", path_text(&path)])["runs"][0]
            .clone()
    };
    let number = |run: &Value, key: &str| run[key].as_f64().expect("a number");
    let apart = of("apart.jsonl", &[(0, 9), (2000, 30)]);
    assert_eq!((&apart["completed"], &apart["total_input_tokens"]), (&2.into(), &39.into()));
    assert!((2.0..2.1).contains(&number(&apart, "duration")), "{apart}");
    let together = of("together.jsonl", &[(0, 9), (0, 30)]);
    assert!(number(&together, "duration") < 1.0);
}

#[test]
fn mistakes_are_named() {
    refused(&["predict", GRAPH], "nothing says how fast device `attn` is");
    refused(&["predict", GRAPH, "--hardware", "h8000"], "h8000");
    refused(&["predict", GRAPH, "--hardware", "h800", "--jitter=-1"], "from 0 to 10");
    refused(&["predict", GRAPH, "--hardware", "h800", "--experts", "no/such.json"], "cannot be read");
    refused(&["predict", GRAPH, "--hardware", "h800", "--experts", GRAPH], "it is no histogram of experts");
    refused(&["predict", GRAPH, "--hardware", "h800", "--memory-efficiency", "2"], "at most 1");
    refused(&["predict", GRAPH, "--hardware", "h200", "--measured"], "stage times of Step-3's shapes on `H200`");
    refused(&["predict", GRAPH, "--hardware", "h800", "--random-input-len", "99999"], "raise the graph's");
}
