//! `rally cost` through the real binary: the tables of the Step-3 report as JSON and CSV, figures, the user's own specs, mistakes.

#[path = "support/binary.rs"]
mod binary;

use binary::{path_text, text};
use serde_json::{Value, json};

#[track_caller]
fn good(arguments: &[&str]) -> String {
    text(&binary::good(&[&["cost"], arguments].concat()).stdout)
}

#[track_caller]
fn refused(arguments: &[&str], said: &str) {
    binary::refused(&[&["cost"], arguments].concat(), said);
}

#[track_caller]
fn answer(arguments: &[&str]) -> Value {
    serde_json::from_str(&good(&[arguments, &["--format", "json"]].concat())).expect("one JSON object")
}

fn rounded(value: &Value) -> String {
    format!("{:.3}", value.as_f64().unwrap_or_else(|| panic!("a number, not {value}")))
}

#[test]
fn json_has_the_reports_tables() {
    let report: Value =
        serde_json::from_str(include_str!("../runtime/cost/tests/report.json")).expect("the data file is JSON");
    for (context, key) in [("8192", "attention_8k"), ("32768", "attention_32k")] {
        let answer = answer(&["--context", context]);
        assert_eq!(answer["context"].to_string(), context);
        let models = answer["models"].as_array().expect("a list");
        assert_eq!(models.len(), 9);
        for model in models {
            let row = &report["usd_per_mtok"][model["name"].as_str().expect("a name")];
            for (column, hardware) in ["H800", "H20", "A800", "910B"].iter().enumerate() {
                let usd = &model["usd_per_mtok"][hardware];
                assert_eq!(rounded(&usd["attention"]), rounded(&row[key][column]), "{model}");
                assert_eq!(rounded(&usd["ffn"]), rounded(&row["ffn"][column]), "{model}");
            }
            for key in ["kv_bytes", "attention_flops", "linear_flops", "ffn_flops"] {
                assert!(model[key].as_f64().is_some_and(|value| value > 1e6), "{key} of {model}");
            }
        }
        for (hardware, sparsity) in report["min_sparsity"].as_object().expect("an object") {
            assert_eq!(rounded(&answer["min_sparsity"][hardware]), rounded(sparsity), "{hardware}");
        }
    }
    let step3 = &answer(&["--model", "Step-3"])["models"][0];
    assert_eq!((&step3["afd"]["attention_on"], &step3["afd"]["ffn_on"]), (&json!("H20"), &json!("H800")));
    assert_eq!(rounded(&step3["afd"]["usd_per_mtok"]), "0.055");
}

#[test]
fn context_price_dtype_and_network_count() {
    let one = |more: &[&str]| answer(&[&["--model", "Step-3", "--hardware", "H800"], more].concat());
    let ffn = |answer: &Value| answer["models"][0]["usd_per_mtok"]["H800"]["ffn"].as_f64().expect("a number");
    let kv = |answer: &Value| answer["models"][0]["kv_bytes"].as_f64().expect("a number");
    let (plain, dear) = (one(&[]), one(&["--price", "h800=4"]));
    assert!((ffn(&dear) / ffn(&plain) - 2.0).abs() < 1e-12, "twice the price");
    let (bf16, long) = (one(&["--dtype", "bf16", "--kv-dtype", "bf16"]), one(&["--context", "16384"]));
    assert!((ffn(&bf16) / ffn(&plain) - 1.98e15 / 9.89e14).abs() < 1e-9, "half the peak");
    assert_eq!((kv(&bf16) / kv(&plain), kv(&long) / kv(&plain)), (2.0, 2.0));
    assert_eq!(rounded(&one(&["--network-share", "0.8"])["min_sparsity"]["H800"]), "0.073");
}

#[test]
fn tables_and_csv_for_people_and_sheets() {
    let table = good(&["--model", "Step-3", "--hardware", "L20"]);
    for words in ["235 MB", "66.6 MB", "48 devices", "a floor, not a forecast"] {
        assert!(table.contains(words), "{words} in {table}");
    }
    let csv = good(&["--format", "csv"]);
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 1 + 9 * 4);
    assert!(lines.iter().all(|line| line.split(',').count() == 12), "{csv}");
    assert!(lines[1].starts_with("DSv3,8192,"), "{}", lines[1]);
}

#[test]
fn figures_name_every_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (figure, ending) in [("1", "svg"), ("2", "svg"), ("5", "svg"), ("context", "html")] {
        let path = folder.path().join(format!("figure.{ending}"));
        assert_eq!(good(&["--figure", figure, "--out", path_text(&path)]), "", "stdout is for results");
        let drawn = std::fs::read_to_string(&path).expect("it was written");
        for name in ["DSv3", "Kimi K2", "Qwen3 MoE", "Llama 4 M", "Step-3", "H800"] {
            assert!(drawn.contains(name), "figure {figure} lacks {name}");
        }
        assert!(!drawn.contains("NaN") && !drawn.contains("inf\""), "figure {figure} has a place that is none");
    }
}

#[test]
fn a_users_own_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let card = folder.path().join("mine.json");
    let spec = json!({
        "name": "mine, cheap", "price_usd_per_hour": 0.01, "peak_flops": {"bf16": 1e14}, "memory_bytes_per_s": 1e12, "memory_bytes": 24e9,
        "links": {"devices_per_server": 4, "fabric_bytes_per_s": 3e10, "network_bytes_per_s": 1e11},
    });
    std::fs::write(&card, spec.to_string()).expect("written");
    let arguments = ["--hardware", path_text(&card), "--hardware", "H800", "--model", "models/step3"];
    let found = answer(&arguments);
    assert_eq!(found["models"][0]["name"], "step3");
    assert_eq!(found["models"][0]["afd"]["attention_on"], "mine, cheap");
    assert!(good(&[&arguments[..], &["--format", "csv"]].concat()).contains("\"mine, cheap\""), "quoted");

    std::fs::write(&card, spec.to_string().replace("0.01", "-1")).expect("written");
    refused(&["--hardware", path_text(&card)], "mine.json: `price_usd_per_hour` is -1");
}

#[test]
fn mistakes_are_told_with_their_remedy() {
    for (arguments, said) in [
        (&["--hardware", "H80O"][..], "did you mean `H800`?"),
        (&["--model", "Step3"], "did you mean `Step-3`?"),
        (&["--hardware", "A800", "--dtype", "fp8"], "hardware/a800.json: `peak_flops.fp8` is missing"),
        (&["--dtype", "fp88"], "did you mean `fp8`?"),
        (&["--price", "H800"], "expected NAME=USD"),
        (&["--price", "H800=-1"], "`price_usd_per_hour` is -1"),
        (&["--price", "H8000=1"], "did you mean `H800`?"),
        (&["--hardware", "H800", "--hardware", "h800"], "two are called H800"),
        (&["--context", "0"], "--context"),
        (&["--tpot-ms", "nan"], "a time in ms"),
        (&["--figure", "1"], "--out"),
        (&["--figure", "1", "--out", "x.png"], "ends in .svg or .html"),
    ] {
        refused(arguments, said);
    }
}
