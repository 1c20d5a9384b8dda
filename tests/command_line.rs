//! What the command line refuses and how it names things, through the real binary: files used twice, flags, contenders.

#[path = "support/binary.rs"]
mod binary;

use binary::{path_text, refused, text};
use serde_json::Value;
use std::path::{Path, PathBuf};

const GRAPH: &str = "graphs/tiny-ping-pong.json";
const MODEL: &str = "models/tiny-step3";

/// What is printed where all is well: stdout and stderr.
#[track_caller]
fn good(arguments: &[&str]) -> (String, String) {
    let output = binary::good(arguments);
    (text(&output.stdout), text(&output.stderr))
}

/// A copy of the shipped graph, for `--model`.
fn graph_copy(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join(GRAPH);
    std::fs::copy(shipped, &path).expect("copied");
    path
}

#[test]
fn no_output_replaces_an_input() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let graph = graph_copy(folder.path(), "graph.json");
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let requests = file("requests.jsonl", "{\"prompt_token_ids\":[1],\"max_tokens\":2}\n");
    let trace = file("load.jsonl", "{\"timestamp\":0,\"input_length\":9,\"output_length\":5}\n");
    let (other, around) = (graph_copy(folder.path(), "other.json"), folder.path().join("./graph.json"));
    let before = |path: &Path| std::fs::read(path).expect("it is there");
    let kept: Vec<(&Path, Vec<u8>)> =
        [&graph, &requests, &trace, &other].map(|path| (path.as_path(), before(path))).into();
    let [g, r, t, o, a] = [&graph, &requests, &trace, &other, &around].map(|path| path_text(path));
    for (arguments, said) in [
        (&["profile", g, "--out", g][..], "this is the graph"),
        (&["profile", g, "--out", a], "this is the graph"),
        (&["run", g, "--requests", r, "--out", r], "this is the --requests file"),
        (&["run", g, "--requests", r, "--trace", g], "this is the graph"),
        (&["run", g, "--requests", r, "--logits", "models/tiny-step3/config.json"], "a file of the model"),
        (&["bench", g, "--save-result", g], "this is the graph"),
        (&["bench", g, "--against-graph", o, "--save-result", o], "this is the graph"),
        (&["bench", g, "--trace-file", t, "--save-result", t], "this is the --trace-file"),
    ] {
        refused(&[arguments, &["--model", MODEL]].concat(), said);
    }
    #[cfg(unix)]
    {
        let link = folder.path().join("link.json");
        std::os::unix::fs::symlink(&graph, &link).expect("linked");
        refused(&["profile", g, "--model", MODEL, "--out", path_text(&link)], "this is the graph");
    }
    for (path, content) in kept {
        assert!(before(path) == content, "{} is as it was", path.display());
    }
}

#[test]
fn a_trace_has_one_of_two_endings() {
    refused(
        &["run", GRAPH, "--prompt", "x", "--trace", "x.txt"],
        "--trace x.txt: give it a name that ends in .json or .html",
    );
}

#[test]
fn faults_of_flags_name_the_flag() {
    let run = |more: &[&'static str], said| refused(&[&["run", GRAPH], more].concat(), said);
    run(&["--prompt", "Once", "--top-p", "0"], "error: --top-p is 0.0; expected a number above 0");
    run(&["--prompt", ""], "error: --prompt is \"\"; expected text");
    run(&["--prompt", "a", "--prompt", "b", "--max-tokens", "0", "--min-p", "2"], "error: --max-tokens is 0;");
    let output = binary::run(&["run", GRAPH, "--prompt", "a", "--prompt", "b", "--max-tokens", "0"]);
    assert_eq!(text(&output.stderr).lines().count(), 1, "once, however many prompts: {}", text(&output.stderr));
}

#[test]
fn a_plan_is_shown_under_any_schedule() {
    let show = ["show", GRAPH, "--model", MODEL, "--plan", "--schedule"];
    let (stdout, _) = good(&[&show[..], &["sequential:2"]].concat());
    assert!(stdout.starts_with("sequential:2"), "{stdout}");
    refused(&[&show[..], &["pingpong"]].concat(), "`pingpong` is no schedule");
    refused(&["show", GRAPH, "--schedule", "greedy"], "--plan");
}

/// A bench of a few milliseconds.
fn bench<'a>(graph: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let small = ["--model", MODEL, "--batch", "3", "--random-input-len", "4", "--random-output-len", "4"];
    [&["bench", graph], &small[..], more].concat()
}

#[test]
fn a_warm_up_is_as_long_as_it_says() {
    let (stdout, stderr) = good(&bench(GRAPH, &["--warmup", "7", "--live", "--format", "json"]));
    let result: Value = serde_json::from_str(&stdout).expect("one object");
    assert_eq!(result["load"]["warmup"], 7);
    assert!(stderr.contains("3 of 3 requests done"), "the warm-up is not watched: {stderr}");
    refused(&bench(GRAPH, &["--warmup", "99999999999"]), "from 0 to");
}

#[test]
fn a_single_bench_names_its_schedule() {
    let (stdout, _) = good(&bench(GRAPH, &["--schedule", "ping_pong:2"]));
    assert!(stdout.lines().next().is_some_and(|line| line.ends_with("schedule ping_pong:2")), "{stdout}");
}

#[test]
fn lengths_are_told_as_they_are_after_clipping() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("load.jsonl");
    std::fs::write(&trace, "{\"timestamp\":0,\"input_length\":5000,\"output_length\":3}\n").expect("written");
    let (stdout, _) = good(&["bench", GRAPH, "--trace-file", path_text(&trace), "--clip"]);
    // 2048 positions, and the last token needs none.
    assert!(stdout.contains("1 requests of 2045 prompt and 3 output tokens on average"), "{stdout}");
}

#[test]
fn contenders_are_told_apart() {
    refused(&bench(GRAPH, &["--compare", "greedy,sequential,greedy"]), "--compare names `greedy` twice");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (one, two) = (graph_copy(folder.path(), "one.json"), graph_copy(folder.path(), "two.json"));
    let arguments = ["--against-graph", path_text(&two), "--against-graph", path_text(&two), "--repeats", "2"];
    let (stdout, _) = good(&bench(path_text(&one), &[&arguments[..], &["--format", "json"]].concat()));
    let result: Value = serde_json::from_str(&stdout).expect("one object");
    let names: Vec<&str> =
        result["runs"].as_array().expect("runs").iter().filter_map(|run| run["name"].as_str()).collect();
    let name = "tiny-ping-pong ping_pong:3";
    assert_eq!(names, [format!("{name} (one.json)"), format!("{name} #2"), format!("{name} #3")]);
}

#[test]
fn a_bench_leaves_a_trace_of_its_best() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (json, html) = (folder.path().join("t.json"), folder.path().join("t.html"));
    good(&bench(GRAPH, &["--trace", path_text(&json)]));
    let trace: Value = serde_json::from_slice(&std::fs::read(&json).expect("it is there")).expect("JSON");
    assert!(trace["traceEvents"].as_array().is_some_and(|events| events.len() > 20));
    good(&bench(GRAPH, &["--compare", "sequential:1,ping_pong:2", "--repeats", "2", "--trace", path_text(&html)]));
    let page = std::fs::read_to_string(&html).expect("it is there");
    assert!(page.starts_with("<!doctype html>") && page.contains("round 2 of a bench"));
    refused(&bench(GRAPH, &["--trace", GRAPH]), "this is the graph");
    refused(&bench(GRAPH, &["--trace", "x.svg"]), "ends in .json or .html");
}

#[test]
fn the_digest_of_a_comparison_says_whose_it_is() {
    let (_, stderr) = good(&bench(GRAPH, &["--compare", "sequential:1,ping_pong:2", "--repeats", "2"]));
    let told = |name: &str| stderr.contains(&format!("\n{name}, round 2 of 2:\n"));
    assert!(told("sequential:1") != told("ping_pong:2"), "one of them: {stderr}");
}

/// What `deploy/` asks of rally, rally has.
#[test]
fn deployment_files_use_flags_that_there_are() {
    let help = ["run", "worker"].map(|command| good(&[command, "--help"]).0).concat();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut flags = 0;
    for file in ["systemd/rally-run.service", "systemd/rally-worker@.service", "kubernetes/rally.yaml"] {
        let text = std::fs::read_to_string(root.join("deploy").join(file)).expect("it is there");
        let commands = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let words = commands.flat_map(|line| line.split(|c: char| c.is_whitespace() || "'\",[]".contains(c)));
        for flag in
            words.filter(|word| word.strip_prefix("--").is_some_and(|name| name.starts_with(char::is_alphabetic)))
        {
            assert!(help.contains(&format!("{flag} ")), "{file} uses {flag}");
            flags += 1;
        }
    }
    assert!(flags > 10, "{flags}");
}
