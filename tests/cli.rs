//! The real binary: golden vectors through files, faults that name their place, signals, pipes and full disks.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/results.rs"]
mod results;
mod support;

use binary::{path_text, rally, refused, run, text};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{Golden, repository, worst};

fn write_lines(path: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(path, text).expect("the temporary folder can be written");
}

fn read_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the results are there");
    text.lines().map(|line| serde_json::from_str(line).expect("results are JSON lines")).collect()
}

/// All golden folders through `--requests`, `--out` and `--logits`.
fn golden(graph: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name);
    for name in ["step3-s", "step3-m", "step3-fp8", "step3-renorm"] {
        let golden = Golden::open(name);
        for case in &golden.cases {
            let requests: Vec<Value> = case
                .sequences
                .iter()
                .enumerate()
                .map(|(i, s)| json!({ "id": format!("s{i}"), "prompt_token_ids": s.prompt, "max_tokens": s.greedy.len() }))
                .collect();
            write_lines(&file("requests.jsonl"), &requests);
            let output = run(&[
                "run",
                graph,
                "--exact",
                "--model",
                path_text(&golden.folder),
                "--requests",
                path_text(&file("requests.jsonl")),
                "--out",
                path_text(&file("out.jsonl")),
                "--logits",
                path_text(&file("logits.safetensors")),
            ]);
            assert!(output.status.success(), "{name} case {}: {}", case.id, text(&output.stderr));
            let results = read_lines(&file("out.jsonl"));
            let bytes = std::fs::read(file("logits.safetensors")).expect("the logits are there");
            let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("the logits parse");
            for (seq, sequence) in case.sequences.iter().enumerate() {
                let result = &results[seq];
                assert_eq!(result["id"], json!(format!("s{seq}")));
                assert_eq!(result["token_ids"], json!(sequence.greedy));
                assert_eq!(result["completion_tokens"], json!(sequence.greedy.len()));
                assert_eq!(result["prompt_tokens"], json!(sequence.prompt.len()));
                assert_eq!(result["finish_reason"], json!("length"));
                assert_eq!(result["text"], Value::Null);
                let view = tensors.tensor(&format!("s{seq}")).expect("a tensor a request");
                let got: Vec<f32> =
                    view.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
                let want = golden.rows(case.id, seq, "step_logits");
                assert_eq!(view.shape(), [want.len(), want[0].len()]);
                let off = worst(&got, &want.concat());
                assert!(off <= 1e-3, "{name} case {} seq {seq}: logits are off by {off}", case.id);
            }
        }
    }
}

#[test]
fn golden_folders_on_one_device() {
    golden("graphs/one-device.json");
}

#[test]
fn golden_folders_with_ping_pong() {
    golden("graphs/tiny-ping-pong.json");
}

/// A copy of a golden checkpoint with one file changed.
fn broken_model(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(repository("tests/golden/step3-renorm").join(name), folder.path().join(name)).expect("copied");
    }
    change(folder.path());
    folder
}

#[test]
fn broken_graphs_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("graph.json");
    let good = std::fs::read_to_string(repository("graphs/tiny-ping-pong.json")).expect("the graph is there");
    let edits = [
        ("\"version\": 1", "\"version\": 2", "/version"),
        ("\"limits\"", "\"limit\"", "did you mean `limits`"),
        ("\"kind\": \"embed\"", "\"kind\": \"embd\"", "did you mean `embed`"),
        ("\"on\": \"ffn\",  \"on_layers\": \"moe\"", "\"on\": \"fnn\",  \"on_layers\": \"moe\"", "did you mean `ffn`"),
        ("\"micro_batches\": 3", "\"micro_batches\": 0", "/schedule/micro_batches"),
        ("\"policy\": \"ping_pong\"", "\"policy\": \"pong\"", "/schedule/policy"),
        ("\"sequences\": 64", "\"sequences\": -64", "/limits/sequences"),
        ("\"tpot_ms\": 50", "\"tpot_ms\": 1e999", "/slo/tpot_ms"),
        ("\"dtype\": \"bf16\"", "\"dtype\": \"fp16\"", "/stages/1/layers/5/dtype"),
        (",\n    { \"kind\": \"sampling\", \"on\": \"attn\" }", ",", "trailing commas"),
        (",\n    { \"kind\": \"sampling\", \"on\": \"attn\" }", "", "sampling"),
    ];
    for (from, to, said) in edits {
        assert!(good.contains(from), "the graph has {from}");
        std::fs::write(&path, good.replace(from, to)).expect("written");
        let model = repository("tests/golden/step3-s");
        let arguments = ["run", path_text(&path), "--model", path_text(&model), "--prompt", "x"];
        refused(&arguments, said);
        assert_eq!(run(&["check", path_text(&path), "--model", path_text(&model)]).status.code(), Some(2));
    }
    refused(&["check", "no/such/graph.json"], "no/such/graph.json");
    refused(&["run", "graphs", "--prompt", "x"], "folder");
}

/// It passes every check, and used to fail in its first step: rows that come over a third device do not find home.
#[test]
fn a_relay_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("graph.json");
    let model = repository("tests/golden/step3-s");
    let mut graph: Value = serde_json::from_str(
        &std::fs::read_to_string(repository("graphs/tiny-ping-pong.json")).expect("the graph is there"),
    )
    .expect("JSON");
    graph["devices"]["between"] = json!({ "backend": "cpu" });
    let layers = graph["stages"][1]["layers"].as_array_mut().expect("a list");
    layers[2]["to"] = json!("between");
    layers.insert(3, json!({ "kind": "transfer", "id": "relay", "from": "between", "to": "ffn", "dtype": "f32" }));
    std::fs::write(&path, graph.to_string()).expect("written");
    let check = run(&["check", path_text(&path), "--model", path_text(&model)]);
    assert!(check.status.success(), "{}", text(&check.stderr));
    let requests = folder.path().join("requests.jsonl");
    write_lines(&requests, &[json!({ "prompt_token_ids": [1] })]);
    let arguments = ["run", path_text(&path), "--model", path_text(&model), "--requests", path_text(&requests)];
    refused(&arguments, "`a2f`, `relay`");
}

#[test]
fn broken_checkpoints_are_refused() {
    let requests = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(requests.path(), "{\"prompt_token_ids\":[1]}\n").expect("written");
    let check = |change: &dyn Fn(&Path), said: &str| {
        let model = broken_model(change);
        let model = path_text(model.path());
        refused(
            &["run", "graphs/tiny-ping-pong.json", "--model", model, "--requests", path_text(requests.path())],
            said,
        );
    };
    let edit = |folder: &Path, name: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let path = folder.join(name);
        let bytes = std::fs::read(&path).expect("it is there");
        std::fs::write(&path, change(bytes)).expect("written");
    };
    check(
        &|folder| edit(folder, "model.safetensors", &|bytes| bytes[..bytes.len() - 100].to_vec()),
        "model.safetensors",
    );
    check(&|folder| edit(folder, "model.safetensors", &|_| Vec::new()), "model.safetensors");
    check(&|folder| std::fs::remove_file(folder.join("model.safetensors")).expect("removed"), "model.safetensors");
    check(&|folder| std::fs::remove_file(folder.join("config.json")).expect("removed"), "config.json");
    check(&|folder| edit(folder, "config.json", &|_| b"{".to_vec()), "config.json");
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").replace(from, to).into_bytes()
    };
    check(&|folder| edit(folder, "config.json", &replace("\"hidden_size\"", "\"hidden\"")), "hidden_size");
    check(&|folder| edit(folder, "config.json", &replace("\"hidden_size\": ", "\"hidden_size\": 1")), "shape");
    // Every weight's last byte becomes that of a NaN or infinity in bf16.
    let poison = |mut bytes: Vec<u8>| {
        let length = bytes.len();
        bytes[length - 2..].copy_from_slice(&[0x80, 0x7f]);
        bytes
    };
    check(&|folder| edit(folder, "model.safetensors", &poison), "finite");
}

#[test]
fn broken_requests_and_arguments_are_refused() {
    let requests = tempfile::NamedTempFile::new().expect("a temporary file");
    let model = repository("tests/golden/step3-s");
    let check = |line: &str, said: &str| {
        std::fs::write(requests.path(), line).expect("written");
        let graph = "graphs/tiny-ping-pong.json";
        refused(&["run", graph, "--model", path_text(&model), "--requests", path_text(requests.path())], said);
    };
    check("", "no requests");
    check("{\"prompt_token_ids\":[1],\"max_token\":3}", "max_tokens");
    check("{\"prompt_token_ids\":[512]}", "512");
    check("{\"prompt_token_ids\":[]}", "prompt_token_ids");
    check("{\"prompt_token_ids\":[1],\"temperature\":-1}", "temperature");
    check("{\"prompt_token_ids\":[1],\"stop\":[\"x\"]}", "tokenizer.json");
    check("{\"prompt\":\"text\"}", "tokenizer.json");
    check("{\"prompt_token_ids\":[1],\"max_tokens\":65530}\n{\"prompt_token_ids\":[1]", ":2");
    check("{\"id\":1,\"prompt_token_ids\":[1]}\n{\"id\":1,\"prompt_token_ids\":[1]}", "id");
    let base = ["run", "graphs/tiny-ping-pong.json", "--model", path_text(&model)];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    std::fs::write(requests.path(), "{\"prompt_token_ids\":[1]}").expect("written");
    let file = path_text(requests.path());
    refused(&with(&[]), "--prompt");
    refused(&[&base[..], &["--requests", file, "--out", "/no/such/folder/out.jsonl"]].concat(), "/no/such/folder");
    std::fs::write(requests.path(), "{\"prompt_token_ids\":[1],\"max_tokens\":60000}\n".repeat(3000)).expect("written");
    refused(&[&base[..], &["--requests", file, "--logits", "x.safetensors"]].concat(), "180000000 tokens");
    std::fs::write(requests.path(), "{\"prompt_token_ids\":[1]}").expect("written");
    refused(&[&base[..], &["--requests", file, "--out", "x.json", "--trace", "x.json"]].concat(), "both name x.json");
    refused(&[&base[..], &["--requests", file, "--schedule", "pingpong"]].concat(), "ping_pong");
    refused(&[&base[..], &["--requests", file, "--schedule", "ping_pong:0"]].concat(), "ping_pong:0");
    refused(&[&base[..], &["--requests", file, "--schedule", "custom"]].concat(), "order");
    refused(&[&base[..], &["--requests", "no/such/file"]].concat(), "no/such/file");
}

/// Starts a run that would take minutes, and returns once it decodes.
fn long_run(more: &[&str]) -> (std::process::Child, PathBuf, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let requests = folder.path().join("requests.jsonl");
    write_lines(&requests, &[json!({ "id": "long", "prompt_token_ids": [1, 2, 3], "max_tokens": 60000 })]);
    let out = folder.path().join("out.jsonl");
    let model = repository("tests/golden/step3-s");
    let mut child = rally(&[])
        .args(["run", "graphs/tiny-ping-pong.json", "--model", path_text(&model)])
        .args(["--requests", path_text(&requests), "--out", path_text(&out)])
        .args(more)
        .env("RALLY_LOG", "info")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let stderr = child.stderr.take().expect("stderr is a pipe");
    let mut lines = BufReader::new(stderr);
    let mut line = String::new();
    while !line.contains("decoding") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("stderr can be read") > 0, "it ended before it decoded");
    }
    // What follows is read to the end, so that the child never blocks on it.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    (child, out, folder)
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_there_is() {
    let (mut child, out, _folder) = long_run(&[]);
    binary::signal(child.id(), "-INT");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let results = read_lines(&out);
    assert_eq!(results[0]["finish_reason"], "cancelled");
    let tokens = results[0]["completion_tokens"].as_u64().expect("a count");
    assert!(tokens < 60000 && results[0]["token_ids"].as_array().expect("ids").len() as u64 == tokens);
    let mut stdout = String::new();
    child.stdout.take().expect("stdout is a pipe").read_to_string(&mut stdout).expect("read");
    assert_eq!(stdout.split_whitespace().count() as u64, tokens, "what there is was printed");
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_an_error() {
    let (mut child, out, _folder) = long_run(&[]);
    drop(child.stdout.take());
    binary::signal(child.id(), "-INT");
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
    assert!(!out.exists(), "no result file of a run that failed");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let requests = folder.path().join("requests.jsonl");
    write_lines(&requests, &[json!({ "prompt_token_ids": [1], "max_tokens": 64 })]);
    let model = repository("tests/golden/step3-s");
    let arguments =
        ["run", "graphs/tiny-ping-pong.json", "--model", path_text(&model), "--requests", path_text(&requests)];
    let output = run(&[&arguments[..], &["--out", "/dev/full"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("/dev/full"));
    // A limit on file sizes, set by the shell, fails a write half way, as a full disk does.
    let results = folder.path().join("results");
    std::fs::create_dir(&results).expect("created");
    let logits = results.join("logits.safetensors");
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_rally")])
        .args(arguments)
        .args(["--logits", path_text(&logits)])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("sh is there");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("logits.safetensors"));
    assert_eq!(std::fs::read_dir(&results).expect("listed").count(), 0, "nothing is left behind");
}

/// `/dev/stdout` of a redirected run looks like a regular file; renaming a result over it broke it for the whole machine.
#[cfg(target_os = "linux")]
#[test]
fn results_go_to_a_redirected_stdout_and_through_links() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name);
    write_lines(&file("requests.jsonl"), &[json!({ "prompt_token_ids": [1], "max_tokens": 3 })]);
    let model = repository("tests/golden/step3-s");
    let run_out = |out: &Path, stdout: Stdio| {
        let mut command = rally(&[]);
        command.args(["run", "graphs/tiny-ping-pong.json", "--model", path_text(&model), "--format", "json"]);
        command.args(["--requests", path_text(&file("requests.jsonl")), "--out", path_text(out)]);
        command.stdout(stdout).stderr(Stdio::null()).status().expect("the binary starts")
    };
    let before = std::fs::read_link("/dev/stdout").expect("a link");
    let stdout = std::fs::File::create(file("stdout.txt")).expect("created");
    assert!(run_out(Path::new("/dev/stdout"), stdout.into()).success());
    assert_eq!(std::fs::read_link("/dev/stdout").expect("still a link"), before);
    assert!(read_lines(&file("stdout.txt")).iter().any(|line| line["completion_tokens"] == 3));
    std::fs::write(file("real.jsonl"), "old").expect("written");
    std::os::unix::fs::symlink(file("real.jsonl"), file("link.jsonl")).expect("linked");
    assert!(run_out(&file("link.jsonl"), Stdio::null()).success());
    assert!(file("link.jsonl").is_symlink());
    assert_eq!(read_lines(&file("real.jsonl"))[0]["completion_tokens"], 3);
}

#[test]
fn a_trace_has_a_track_for_each_lane_and_never_nests() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (requests, trace) = (folder.path().join("requests.jsonl"), folder.path().join("trace.json"));
    write_lines(&requests, &[json!({ "prompt_token_ids": [1, 2], "max_tokens": 5 })]);
    let model = repository("tests/golden/step3-s");
    let output = run(&[
        "run",
        "graphs/tiny-ping-pong.json",
        "--model",
        path_text(&model),
        "--requests",
        path_text(&requests),
        "--trace",
        path_text(&trace),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let digest = text(&output.stderr);
    assert!(digest.contains("critical path") && digest.contains("busy"), "{digest}");
    assert!(digest.lines().count() <= 21, "twenty lines and an empty one before: {digest}");
    let json: Value = serde_json::from_slice(&std::fs::read(&trace).expect("the trace is there")).expect("JSON");
    let events = json["traceEvents"].as_array().expect("a list of events");
    for tid in 0..2 {
        let spans: Vec<(f64, f64)> = events
            .iter()
            .filter(|event| event["ph"] == "X" && event["tid"] == tid)
            .map(|event| (event["ts"].as_f64().expect("a time"), event["dur"].as_f64().expect("a duration")))
            .collect();
        assert!(spans.len() > 20);
        assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0 + 1e-3), "spans of a lane nest");
    }
    let count = |ph: &str| events.iter().filter(|event| event["ph"] == ph).count();
    assert!(count("s") > 10 && count("s") == count("f"), "arrows have two ends");
    assert!(count("C") > 10, "counters");
    let names: Vec<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    for kind in ["embed", "mfa_attention", "router", "transfer", "expert_ffn", "dense_ffn", "combine", "sampling"] {
        assert!(names.contains(&kind), "no event named {kind}");
    }
}

#[test]
fn a_trace_that_ends_in_html_is_a_page() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (requests, trace) = (folder.path().join("requests.jsonl"), folder.path().join("trace.HTML"));
    write_lines(&requests, &[json!({ "prompt_token_ids": [1, 2], "max_tokens": 5 })]);
    let model = repository("tests/golden/step3-s");
    let arguments = ["run", "graphs/tiny-ping-pong.json", "--model", path_text(&model)];
    let output = run(&[&arguments[..], &["--requests", path_text(&requests), "--trace", path_text(&trace)]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let page = std::fs::read_to_string(&trace).expect("the trace is there");
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert!(!page.contains("{{"), "every slot of the page is filled");
    for part in ["<title>tiny-ping-pong", "critical path", "\"attn\"", "\"ffn\""] {
        assert!(page.contains(part), "no {part} on the page");
    }
}

#[test]
fn json_is_one_object_on_stdout() {
    let model = repository("tests/golden/step3-s");
    let object = |arguments: &[&str]| -> Value {
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    };
    let doctor = object(&["doctor", "--format", "json"]);
    assert!(doctor["findings"].as_array().is_some_and(|list| !list.is_empty()));
    let check = object(&["check", "graphs/step3-2a2f.json", "--format", "json"]);
    assert_eq!(check["ok"], true);
    assert_eq!(check["devices"].as_array().map(Vec::len), Some(32));
    assert_eq!(check["budget"]["slot_us"].as_f64().map(f64::round), Some(273.0));
    let graph = "graphs/tiny-ping-pong.json";
    object(&["show", graph, "--model", path_text(&model), "--as", "json"]);
    let requests = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(requests.path(), "{\"id\":7,\"prompt_token_ids\":[1],\"max_tokens\":2}").expect("written");
    let arguments =
        ["run", graph, "--model", path_text(&model), "--requests", path_text(requests.path()), "--format", "json"];
    let result = object(&arguments);
    results::fits(&result);
    assert_eq!((&result["graph"]["name"], &result["model"]["family"]), (&"tiny-ping-pong".into(), &"step3".into()));
    assert!(result["digest"][0].as_str().is_some_and(|line| line.starts_with("1 request, 2 tokens")), "{result}");
    assert_eq!(result["results"][0]["id"], 7);
    assert_eq!(result["results"][0]["completion_tokens"], 2);
    assert!(["row_us", "context_us"].iter().all(|key| result["costs"][key].as_f64().is_some_and(|cost| cost >= 0.0)));
    let prompts = ["run", graph, "--prompt", "Once", "--prompt", "Long ago", "--stop", ".", "--format", "json"];
    results::fits(&object(&prompts));
    let logprobs = "{\"prompt\":\"Once\",\"max_tokens\":9,\"logprobs\":2,\"temperature\":1}";
    std::fs::write(requests.path(), logprobs).expect("written");
    results::fits(&object(&["run", graph, "--requests", path_text(requests.path()), "--format", "json"]));
    std::fs::write(requests.path(), "{\"id\":7,\"prompt_token_ids\":[1],\"max_tokens\":2}").expect("written");
    let fixed = object(&[arguments.as_slice(), &["--no-learn"]].concat());
    results::fits(&fixed);
    assert_eq!(fixed["costs"], Value::Null);
    assert_eq!(fixed["results"][0]["token_ids"], result["results"][0]["token_ids"]);
}
