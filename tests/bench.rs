//! `rally bench` through the real binary: result keys, loads, comparisons, what is refused, Ctrl-C.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/results.rs"]
mod results;
mod support;

use binary::{path_text, text};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use support::{graph_file, repository};

const GRAPH: &str = "graphs/tiny-ping-pong.json";

fn bench(arguments: &[&str]) -> Command {
    binary::rally(&[&["bench"], arguments].concat())
}

#[track_caller]
fn output(arguments: &[&str]) -> Output {
    binary::good(&[&["bench"], arguments].concat())
}

#[track_caller]
fn refused(arguments: &[&str], said: &str) {
    binary::refused(&[&["bench"], arguments].concat(), said);
}

#[track_caller]
fn measured(arguments: &[&str]) -> Value {
    let output = output(&[arguments, &["--format", "json"]].concat());
    let result = serde_json::from_slice(&output.stdout).expect("one JSON object on stdout");
    results::fits(&result);
    result
}

#[track_caller]
fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` is a number, not {}", value[key]))
}

#[test]
fn a_load_that_nobody_described_has_every_key() {
    let result = measured(&[GRAPH]);
    for key in ["cpu", "cores", "simd", "memory_bytes", "os", "rally", "profile"] {
        assert!(!result["machine"][key].is_null(), "machine.{key}");
    }
    assert_eq!((&result["model"]["family"], &result["model"]["layers"]), (&"step3".into(), &6.into()));
    assert_eq!(result["graph"]["name"], "tiny-ping-pong");
    assert_eq!(result["graph"]["hash"].as_str().map(str::len), Some(16));
    assert_eq!((&result["load"]["kind"], &result["goodput"][0]), (&"random".into(), &"tpot:50".into()));
    let run = &result["runs"][0];
    assert_eq!(result["runs"].as_array().map(Vec::len), Some(1));
    assert_eq!(run["schedule"], "ping_pong:3");
    for (key, want) in
        [("num_prompts", 24.0), ("completed", 24.0), ("total_input_tokens", 768.0), ("total_output_tokens", 1536.0)]
    {
        assert_eq!(number(run, key), want, "{key}");
    }
    for name in ["ttft", "tpot", "itl", "e2el"] {
        for statistic in ["mean", "median", "std", "p99"] {
            assert!(number(run, &format!("{statistic}_{name}_ms")) >= 0.0);
        }
    }
    // Every request has 64 tokens, so the definitions are tied to each other.
    let (ttft, tpot, e2el) = (number(run, "mean_ttft_ms"), number(run, "mean_tpot_ms"), number(run, "mean_e2el_ms"));
    assert!((e2el - ttft - 63.0 * tpot).abs() < 1e-6 * e2el);
    assert!((number(run, "mean_itl_ms") - tpot).abs() < 1e-6 * tpot);
    let duration = number(run, "duration");
    assert!((number(run, "output_throughput") * duration - 1536.0).abs() < 1e-6);
    assert!((number(run, "request_throughput") * duration - 24.0).abs() < 1e-9);
    assert!(number(run, "request_goodput") <= number(run, "request_throughput"));
    lanes_and_stages(run);
    let digest: Vec<&str> = run["digest"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
    assert!(digest[0].starts_with("step") && digest.iter().any(|line| line.starts_with("try")), "{digest:?}");
}

/// A schema that takes anything would prove nothing.
#[test]
fn the_schema_refuses_what_no_result_has() {
    let result = measured(&[GRAPH, "--batch", "2", "--random-output-len", "8"]);
    type Edit = fn(&mut Value);
    let edits: [Edit; 5] = [
        |result| result["extra"] = 1.into(),
        |result| result["runs"][0]["lanes"][0]["extra"] = 1.into(),
        |result| result["runs"][0]["overlap_efficiency"] = 1.5.into(),
        |result| result["machine"]["cpu"] = Value::Null,
        |result| drop(result["runs"][0].as_object_mut().expect("a run").remove("digest")),
    ];
    for (index, edit) in edits.into_iter().enumerate() {
        let mut edited = result.clone();
        edit(&mut edited);
        assert!(std::panic::catch_unwind(|| results::fits(&edited)).is_err(), "edit {index} should be refused");
    }
}

fn lanes_and_stages(run: &Value) {
    let lanes = run["lanes"].as_array().expect("lanes");
    assert_eq!(lanes.iter().map(|lane| lane["name"].as_str()).collect::<Vec<_>>(), [Some("attn"), Some("ffn")]);
    for lane in lanes {
        let (busy, bubble) = (number(lane, "busy_share"), number(lane, "bubble_share"));
        assert!(busy > 0.0 && (busy + bubble - 1.0).abs() < 1e-9);
        let causes: f64 = lane["bubbles"].as_object().expect("causes").values().filter_map(Value::as_f64).sum();
        assert!((causes - bubble).abs() < 1e-9);
    }
    assert!(run["bound_unknown"].is_null(), "{}", run["bound_unknown"]);
    let efficiency = number(run, "overlap_efficiency");
    assert!(efficiency > 0.0 && efficiency <= 1.0, "{efficiency}");
    assert!(number(run, "bound_tpot_ms") > 0.0 && number(run, "exposed_transfer_ms") >= 0.0);
    let stages = run["stages"].as_array().expect("stages");
    for (stage, part) in [("embed", "compute"), ("expert_ffn", "compute"), ("a2f", "send"), ("f2a", "receive")] {
        let found = stages.iter().find(|found| found["stage"] == stage && found["part"] == part);
        let found = found.unwrap_or_else(|| panic!("{stage} {part} was timed"));
        assert!(number(found, "count") > 0.0 && number(found, "p50_us") <= number(found, "p99_us"));
        assert!(number(found, "mean_us") > 0.0);
    }
}

/// Two tokens each: one step that only decodes, and that is the drain of the load as well.
#[test]
fn a_load_that_hardly_decodes_has_no_bound() {
    let load = ["--batch", "4", "--random-output-len", "2", "--repeats", "2"];
    let result = measured(&[&[GRAPH, "--compare", "sequential,ping_pong:2"], &load[..]].concat());
    for run in result["runs"].as_array().expect("runs") {
        assert!(run["bound_tpot_ms"].is_null() && run["overlap_efficiency"].is_null(), "{run}");
        let why = run["bound_unknown"].as_str().expect("a reason");
        assert!(why.contains("only decoded, and it takes 4"), "{why}");
    }
    let verdict = result["verdict"][0].as_str().expect("a sentence");
    assert!(verdict.contains("not told apart") && verdict.contains("--repeats 5"), "two rounds: {verdict}");
    let table = text(&output(&[&[GRAPH, "--compare", "sequential,ping_pong:2"], &load[..]].concat()).stdout);
    assert!(table.contains("– ping_pong:2: overlap and bound are not known"), "{table}");
    let single = text(&output(&[&[GRAPH], &load[..]].concat()).stdout);
    assert!(single.contains("overlap efficiency –: "), "{single}");
}

/// A graph like the shipped one under another name and with another wire, beside the weights it names.
fn other_graph(folder: &Path) -> std::path::PathBuf {
    let mut json = serde_json::to_value(graph_file("tiny-ping-pong.json")).expect("graphs are JSON");
    json["name"] = "bf16-out".into();
    json["model"] = path_text(&repository("models/tiny-step3")).into();
    json["stages"][1]["layers"][2]["dtype"] = "bf16".into();
    let path = folder.join("other.json");
    std::fs::write(&path, json.to_string()).expect("written");
    path
}

#[test]
fn two_graph_files_come_out_in_one_table() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = other_graph(folder.path());
    let arguments = [GRAPH, "--against-graph", path_text(&other), "--batch", "6", "--repeats", "2"];
    let stdout = text(&output(&arguments).stdout);
    let rows = |name: &str| stdout.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(
        stdout.lines().filter(|line| line.contains("tokens/s") && line.contains("overlap")).count(),
        1,
        "{stdout}"
    );
    assert!(rows("tiny-ping-pong ping_pong:3") >= 1 && rows("bf16-out ping_pong:3") >= 1, "{stdout}");
}

#[test]
fn schedules_graphs_and_the_undivided_model_are_compared() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (saved, plot) = (folder.path().join("result.json"), folder.path().join("plot.svg"));
    let result = measured(&[
        GRAPH,
        "--compare",
        "sequential,ping_pong:2,greedy",
        "--against-graph",
        "graphs/one-device.json",
        "--baseline",
        "no-afd",
        "--batch",
        "6",
        "--random-output-len",
        "8",
        "--repeats",
        "2",
        "--save-result",
        path_text(&saved),
        "--plot",
        path_text(&plot),
    ]);
    let runs = result["runs"].as_array().expect("runs");
    let schedules: Vec<_> = runs.iter().map(|run| run["schedule"].as_str().expect("a label")).collect();
    assert_eq!(schedules, ["sequential", "ping_pong:2", "greedy", "sequential:1", "sequential:1"]);
    assert_eq!((&runs[3]["graph"]["name"], &runs[4]["name"]), (&"one-device".into(), &"no AFD".into()));
    for run in runs {
        // Two rounds of six requests with eight tokens.
        assert_eq!((number(run, "completed"), number(run, "total_output_tokens")), (12.0, 96.0));
        assert_eq!(run["repeats"].as_array().map(Vec::len), Some(2));
        let spread = &run["spread"]["output_throughput"];
        assert!(number(spread, "min") <= number(spread, "median") && number(spread, "median") <= number(spread, "max"));
    }
    // One lane after the other hides nothing.
    assert_eq!(number(&runs[0], "hidden_share"), 0.0);
    let verdict = result["verdict"].as_array().expect("sentences");
    let last = verdict.last().and_then(Value::as_str).expect("a sentence about the undivided model");
    assert!(last.contains("undivided model on the same devices"), "{last}");
    let file = std::fs::read_to_string(&saved).expect("the result is there");
    assert_eq!(serde_json::from_str::<Value>(&file).expect("JSON"), result);
    let svg = std::fs::read_to_string(&plot).expect("the plot is there");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for name in ["ping_pong:2", "no AFD", "one-device"] {
        assert!(svg.contains(name), "the plot names {name}");
    }
}

#[test]
fn traces_are_played() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let csv = file("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n10.0,9,5\n10.2,7,4\n10.4,5000,3\n");
    let jsonl = file("t.jsonl", "{\"timestamp\":0,\"input_length\":9,\"output_length\":5}\n");
    let play = |path: &Path, more: &[&str]| {
        let result = measured(&[&[GRAPH, "--trace-file", path_text(path)], more].concat());
        (number(&result["runs"][0], "total_input_tokens"), number(&result["runs"][0], "total_output_tokens"))
    };
    assert_eq!(play(&jsonl, &[]), (9.0, 5.0));
    assert_eq!(play(&csv, &["--num-prompts", "2", "--trace-time-scale", "0.1"]), (16.0, 9.0));
    assert_eq!(play(&csv, &["--trace-seconds", "0.1"]), (9.0, 5.0));
    // 2048 positions: 2045 of the 5000 prompt tokens are kept beside 3 generated ones.
    assert_eq!(play(&csv, &["--clip", "--request-rate", "inf"]), (2061.0, 12.0));
    refused(&[GRAPH, "--trace-file", path_text(&csv)], "request 3 of the load has 5000 prompt and 3 output tokens");
    let broken = file("b.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n10.0,9,5\n10.2,seven,4\n");
    refused(&[GRAPH, "--trace-file", path_text(&broken)], "line 3: `ContextTokens` is a number of tokens");
    refused(&[GRAPH, "--trace-file", "no/such.csv"], "no/such.csv: cannot be read");
    refused(&[GRAPH, "--trace-file", path_text(&saved_as(folder.path(), "t.txt"))], "ends in .csv");
}

fn saved_as(folder: &Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, "").expect("written");
    path
}

/// One at a time, all due at once: the later ones' latency holds the time they waited outside.
#[test]
fn latency_counts_from_when_a_request_was_due() {
    let result = measured(&[GRAPH, "--num-prompts", "8", "--max-concurrency", "1", "--random-output-len", "16"]);
    let run = &result["runs"][0];
    let duration_ms = number(run, "duration") * 1e3;
    // The last of eight equal requests begins after seven of them, and its latency is the whole run.
    assert!(number(run, "p99_e2el_ms") > 0.9 * duration_ms, "{run}");
    assert!(number(run, "mean_ttft_ms") > 0.25 * duration_ms, "{run}");
}

#[test]
fn an_open_loop_arrives_when_it_said() {
    let arguments = ["--num-prompts", "12", "--request-rate", "100", "--burstiness", "2", "--random-output-len", "4"];
    let result = measured(&[&[GRAPH, "--goodput", "tpot:60000", "e2el:60000"], &arguments[..]].concat());
    let run = &result["runs"][0];
    assert_eq!((number(run, "completed"), number(&result["load"], "request_rate")), (12.0, 100.0));
    assert_eq!(number(run, "request_goodput"), number(run, "request_throughput"));
    // The arrivals of seed 0: nothing can end before the last of them.
    let times = rally::load::arrival::ArrivalProcess { rate: 100.0, burstiness: 2.0 }.times(12, 0);
    assert!(number(run, "duration") >= times[11]);
}

/// A prompt that is taken as read costs one row, however long it is.
#[test]
fn prompts_are_taken_as_read_on_cuda_devices() {
    let rows = |pretended: &str| {
        let arguments =
            ["--batch", "4", "--random-input-len", "96", "--random-output-len", "4", "--pretend-read", pretended];
        let mut command =
            bench(&[&["graphs/1a1f-cuda.json", "--warmup", "0", "--format", "json"], &arguments[..]].concat());
        let output = command.env("RALLY_CUDA", "stand-in").output().expect("the binary starts");
        assert!(output.status.success(), "{}", text(&output.stderr));
        let result: Value = serde_json::from_slice(&output.stdout).expect("one JSON object on stdout");
        results::fits(&result);
        assert_eq!(result["load"]["pretend_read"].as_u64().unwrap_or(0).to_string(), pretended);
        let stages = result["runs"][0]["stages"].as_array().expect("stages").clone();
        let attention = stages.iter().find(|stage| stage["stage"] == "mfa_attention").expect("attention ran");
        attention["count"].as_u64().expect("a count")
    };
    // Of 6 layers: 4 tokens of each of 4 sequences in 3 micro-batches, and before them chunks of 32 rows of 96, or none.
    let (read, pretended) = (rows("0"), rows("95"));
    assert!(pretended < read && pretended >= 4 * 6, "{pretended} tasks where prompts are taken as read, else {read}");
}

#[test]
fn mistakes_are_named() {
    for (arguments, said) in [
        (&["--batch", "65"][..], "--batch 65: graphs/tiny-ping-pong.json runs 64 sequences at once"),
        (&["--batch", "4", "--num-prompts", "4"], "cannot be used with"),
        (&["--random-input-len", "5000"], "request 1 of the load has 5000 prompt"),
        (&["--random-range-ratio", "1"], "from 0 to below 1"),
        (&["--request-rate", "0"], "above 0"),
        (&["--burstiness", "2"], "--request-rate"),
        (&["--goodput", "tpt:5"], "`tpt:5` is no goal"),
        (&["--plot", "x.png"], ".svg or .html"),
        (&["--compare", "sequential,pingpong"], "`pingpong` is no schedule"),
        (&["--compare", "greedy", "--schedule", "greedy"], "cannot be used with"),
        (&["--against-graph", "no/such.json"], "no/such.json"),
        (&["--save-result", "no/such/folder/x.json"], "cannot be written"),
        (&["--repeats", "0"], "0"),
        (&["--pretend-read", "16"], "`attn` is none: let prompts be read"),
    ] {
        refused(&[&[GRAPH], arguments].concat(), said);
    }
    for undivided in ["graphs/one-device.json", "graphs/2d-no-afd.json"] {
        refused(&[undivided, "--baseline", "no-afd"], "there is nothing to compare it with");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_was_measured() {
    let arguments = [GRAPH, "--num-prompts", "4000", "--max-concurrency", "2", "--format", "json"];
    let mut child = bench(&arguments)
        .env("RALLY_LOG", "info")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
    let mut line = String::new();
    while !line.contains("measuring") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("stderr can be read") > 0, "it ended before it measured");
    }
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    binary::signal(child.id(), "-INT");
    let mut stdout = String::new();
    child.stdout.take().expect("stdout is a pipe").read_to_string(&mut stdout).expect("read");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let result: Value = serde_json::from_str(&stdout).expect("the result is whole");
    results::fits(&result);
    let run = &result["runs"][0];
    assert_eq!(run["interrupted"], true);
    assert_eq!(result["interruption"], "interrupted: of 1 round, ping_pong:3 has part of its first round");
    assert!(number(run, "completed") < 4000.0 && number(run, "num_prompts") == 4000.0);
}
