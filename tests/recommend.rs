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
    // On virtual lanes, which take longer than arithmetic; and the terms of that are told.
    assert!(best["simulated"]["tpot_ms"].as_f64().is_some_and(|ms| ms <= 50.0), "{best}");
    assert!(best["off"].as_f64().is_some_and(|off| off > 0.0), "{best}");
    let terms = answer["simulations"]["terms_ms"].as_object().expect("what virtual lanes add");
    let sum: f64 = terms.values().map(|term| term.as_f64().expect("a number")).sum();
    let ping_pong = [&best["simulated"], &answer["simulations"]["other_order"]]
        .into_iter()
        .find(|run| run["schedule"].as_str().is_some_and(|schedule| schedule.starts_with("ping_pong")));
    let ping_pong = ping_pong.and_then(|run| run["tpot_ms"].as_f64()).expect("one of the orders is ping-pong");
    assert!((sum / ping_pong - 1.0).abs() < 1e-6, "{sum} {ping_pong}");
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

/// What was measured on a card is a table in the repository: the answer from it is the one in `runtime/recommend/NOTES.md`.
#[test]
fn a_cards_table_answers_without_the_card() {
    let ask = |tables: &str| -> Value {
        let measured = format!("--measured={tables}");
        let question =
            ["recommend", "--model", "models/step3", "--hardware", "H200:32", "--kv-dtype", "fp8", &measured];
        let more = ["--network-efficiency", "0.8", "--format", "json"];
        let answer = good(&[&question[..], &more].concat()).stdout;
        let answer: Value = serde_json::from_slice(&answer).expect("one JSON object");
        answer["best"].clone()
    };
    let check = |best: &Value, layout: &str, rate: f64| {
        assert_eq!((&best["layout"], &best["micro_batches"]), (&layout.into(), &2.into()));
        let of = |key: &str| best["simulated"][key].as_f64().expect("a number");
        assert!(of("tpot_ms") <= 50.0, "{best}");
        assert!((of("tokens_per_s_per_device") / rate - 1.0).abs() < 0.01, "{best}");
    };
    let best = ask("models/step3/h200-shards.json");
    check(&best, "2A2F", 2930.0);
    // Between what the table has for 128 and for 512 sequences at 4,096 positions: 179.4 and 567.3 µs.
    let attention_us = best["layer_us"]["attention"].as_f64().expect("a number");
    assert!((attention_us - 197.5).abs() < 0.5, "{best}");
    // With shards of 48 experts, which one FFN instance has.
    let both = ask("models/step3/h200-shards.json,models/step3/h200-o-proj.json");
    check(&both, "1A1F", 3683.0);
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
    for words in
        ["Bound by", "Margins, by arithmetic:", "Undivided on", "for L20 those of H800 are assumed", "Not measured"]
    {
        assert!(mixed.contains(words), "{words} in {mixed}");
    }
}

#[test]
fn plots_show_what_was_found_in_both_lights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [svg, page] = ["plot.svg", "plot.html"].map(|name| folder.path().join(name));
    good(&["recommend", "--hardware", "H800:16", "--plot", path_text(&svg)]);
    let drawn = std::fs::read_to_string(&svg).expect("it was written");
    for words in
        ["throughput against time per token", "cost against context", "micro-batches", ">target<", ">undivided<", "1 F"]
    {
        assert!(drawn.contains(words), "{words}");
    }
    assert!(
        drawn.contains("prefers-color-scheme: dark")
            && !drawn.contains("NaN")
            && !drawn.contains("http://") | drawn.contains("xmlns")
    );
    assert!(drawn.matches("<circle").count() >= 5, "simulated points");
    // Every place is on the canvas.
    let number = |text: &str| text.split('"').next().and_then(|number| number.parse::<f64>().ok());
    for key in ["cx=\"", "cy=\"", " x1=\"", " y1=\""] {
        assert!(drawn.split(key).skip(1).filter_map(number).all(|at| (0.0..4000.0).contains(&at)), "{key}");
    }
    // A model that rally has no stages for has arithmetic alone.
    good(&["recommend", "--model", "DSv3", "--hardware", "H800:32", "--plot", path_text(&page)]);
    assert!(std::fs::read_to_string(&page).expect("it was written").starts_with("<!doctype html>"));
}

#[test]
fn a_trace_gives_contexts_and_how_many_deployments_it_takes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("trace.jsonl");
    let ask = |gap_ms: usize| {
        let line = |n: usize| {
            let (at, prompt) = (n * gap_ms, if n.is_multiple_of(4) { 9000 } else { 1000 });
            format!("{{\"timestamp\":{at},\"input_length\":{prompt},\"output_length\":400}}\n")
        };
        std::fs::write(&path, (0..4000).map(line).collect::<String>()).expect("a trace");
        let output =
            good(&["recommend", "--hardware", "H800:16", "--trace-file", path_text(&path), "--format", "json"]);
        serde_json::from_slice::<Value>(&output.stdout).expect("one JSON object")
    };
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"));
    let (busy, calm) = (ask(2), ask(50));
    let trace = &busy["trace"];
    assert!((number(&trace["mean_context"]) - 3200.0).abs() < 1.0, "{trace}");
    assert!((number(&trace["tokens_per_s"]) / 200_000.0 - 1.0).abs() < 0.01, "{trace}");
    let rate = number(&busy["best"]["simulated"]["tokens_per_s"]);
    assert_eq!(number(&trace["deployments"]), (number(&trace["busiest_tokens_per_s"]) / rate).ceil(), "{trace}");
    assert_eq!(calm["trace"]["deployments"], 1);
    // Contexts count: the same layout serves the mean of them better than the mix.
    assert!(number(&busy["best"]["simulated"]["tpot_ms"]) <= 50.0);
}

#[test]
fn measured_stage_times_stand_for_efficiencies_where_there_are_any() {
    let ask = |more: &[&str]| {
        let question = [
            "recommend",
            "--hardware",
            "H200:32",
            "--kv-dtype",
            "bf16",
            "--network-efficiency",
            "0.8",
            "--format",
            "json",
        ];
        serde_json::from_slice::<Value>(&good(&[&question[..], more].concat()).stdout).expect("one JSON object")
    };
    let (measured, figured) = (ask(&["--measured"]), ask(&[]));
    assert!(
        measured["basis"].as_str().is_some_and(|basis| basis.contains("NOTES.md") && basis.contains("Not measured"))
    );
    let tgs = |answer: &Value| answer["best"]["simulated"]["tokens_per_s_per_device"].as_f64().expect("a rate");
    println!("{} measured, {} by figures", tgs(&measured), tgs(&figured));
    assert_ne!(tgs(&measured), tgs(&figured));
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
        (&["--hardware", "H800:16", "--measured"], "there are stage times of Step-3's shapes on `H200`"),
        (&["--hardware", "H200:16", "--measured", "--model", "DSv3"], "nothing of this question is that"),
        (&["--hardware", "H800:16", "--network-efficiency", "0"], "a share"),
        (&["--hardware", "H800:16", "--trace-file", "README.md"], "a trace's name ends in"),
        (&["--hardware", "H800:16", "--trace-file", "none.csv"], "cannot be read"),
        (&["--hardware", "H800:16", "--trace-file", "x.csv", "--context", "4096"], "cannot be used with"),
        (&["--hardware", "H800:16", "--plot", "x.png"], "ends in .svg or .html"),
        (&[], "--hardware"),
    ] {
        refused(&[&["recommend"], arguments].concat(), said);
    }
}
