//! Runs that are killed with `kill -9` and go on from their journal: what was printed before and after is what the undisturbed run
//! prints, and so are the results.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/hosts.rs"]
mod hosts;

use binary::{path_text, rally, refused, text};
use hosts::{Deployment, Divided, SOON};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const GRAPH: &str = "graphs/tiny-ping-pong.json";

/// Places of a run at which it is killed; `scripts/test-more` asks for more.
fn kills() -> u64 {
    std::env::var("RALLY_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6)
}

/// Looks random, and is a function of the seed.
fn drawn(seed: u64, below: u64) -> u64 {
    let mixed = (seed ^ 0x5851_f42d_4c95_7f2d).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) % below
}

/// Texts and log probabilities, sampled and not, ended by a stop string, by the model, by length.
fn write_requests(path: &Path) {
    let line = |index: usize| {
        let opening = ["Once upon a time", "Long ago, a", "Nora", "One evening,", "The king said"][index % 5];
        let mut request = json!({
            "id": format!("r{index}"), "prompt": opening, "max_tokens": 40 + index * 23 % 160,
            "temperature": if index.is_multiple_of(3) { 0.0 } else { 0.9 }, "seed": index,
        });
        match index % 4 {
            1 => request["stop"] = json!([" the "]),
            2 => request["logprobs"] = json!(2),
            3 => request["ignore_eos"] = json!(true),
            _ => {}
        }
        request.to_string()
    };
    fs::write(path, (0..14).map(line).collect::<Vec<_>>().join("\n")).expect("the folder takes files");
}

/// What of a result must be the same however often the run was killed: all but times.
fn results(path: &Path) -> Vec<Value> {
    let file = fs::read_to_string(path).expect("results were written");
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).expect("a result is JSON");
        let result = value.as_object_mut().expect("a result is an object");
        result.remove("ttft_ms");
        result.remove("tpot_ms");
        value
    };
    file.lines().map(line).collect()
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// A command whose stdout goes behind what is in `printed`.
fn start(mut command: Command, printed: &Path) -> Child {
    let out = File::options().create(true).append(true).open(printed).expect("the folder takes files");
    command.stdout(out).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

/// Lets a run go on until its journal has `bytes`, and kills it. Returns whether it was killed before its end.
fn kill_at(mut child: Child, journal: &Path, bytes: u64) -> bool {
    let until = Instant::now() + SOON;
    while length(journal) < bytes {
        if child.try_wait().expect("it is ours").is_some() {
            good(child);
            return false;
        }
        assert!(Instant::now() < until, "the journal does not grow");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().expect("it is ours");
    !child.wait().expect("it is ours").success()
}

#[track_caller]
fn good(child: Child) {
    let output = child.wait_with_output().expect("it is ours");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// One way to run the requests, in one process or on hosts.
struct Case<'a> {
    folder: &'a Path,
    requests: &'a Path,
    /// `rally run GRAPH …` with these further arguments.
    run: &'a dyn Fn(&[&str]) -> Command,
}

impl Case<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The run that nothing happens to; the length of its journal, at first and at the end.
    fn undisturbed(&self) -> (u64, u64) {
        let (journal, out) = (self.file("calm.journal"), self.file("calm.jsonl"));
        let more = ["--requests", path_text(self.requests), "--journal", path_text(&journal), "--out", path_text(&out)];
        let child = start((self.run)(&more), &self.file("calm.txt"));
        let until = Instant::now() + SOON;
        while length(&journal) == 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
        }
        let first = length(&journal);
        good(child);
        assert!(length(&self.file("calm.txt")) > 0 && first > 0);
        (first, length(&journal))
    }

    /// Kills the run, and those that go on with it, at places drawn from `seed`, until one gets to the end. Returns how many were killed.
    fn killed(&self, seed: u64, (first, last): (u64, u64), policy: &str) -> usize {
        let name = |ending: &str| self.file(&format!("killed-{seed}.{ending}"));
        let (journal, out, printed) = (name("journal"), name("jsonl"), name("txt"));
        let begin = ["--requests", path_text(self.requests), "--journal", path_text(&journal)];
        let go_on = ["--resume", path_text(&journal)];
        let both = ["--out", path_text(&out), "--journal-sync", policy];
        // Up to three deaths, each behind the one before it.
        let mut places: Vec<u64> =
            (0..1 + seed % 3).map(|death| first + drawn(seed * 7 + death, last - first)).collect();
        places.sort_unstable();
        let mut deaths = 0;
        for place in places {
            let how: &[&str] = if deaths == 0 { &begin } else { &go_on };
            if !kill_at(start((self.run)(&[how, &both].concat()), &printed), &journal, place) {
                break;
            }
            deaths += 1;
        }
        if deaths > 0 {
            good(start((self.run)(&[&go_on[..], &both].concat()), &printed));
        }
        let (calm, all) = (self.file("calm.txt"), fs::read_to_string(&printed).expect("it is text"));
        assert_eq!(fs::read_to_string(calm).expect("it is text"), all, "seed {seed}: what was printed");
        assert_eq!(results(&self.file("calm.jsonl")), results(&out), "seed {seed}: results");
        deaths
    }
}

#[test]
fn a_run_that_is_killed_anywhere_goes_on_as_if_nothing_had_happened() {
    let folder = tempfile::tempdir().expect("a folder can be had");
    let requests = folder.path().join("requests.jsonl");
    write_requests(&requests);
    let run = |more: &[&str]| rally(&[&["run", GRAPH], more].concat());
    let case = Case { folder: folder.path(), requests: &requests, run: &run };
    let sizes = case.undisturbed();
    let policies = ["step", "20ms", "never"];
    let deaths: usize = (0..kills()).map(|seed| case.killed(seed, sizes, policies[seed as usize % 3])).sum();
    assert!(deaths as u64 >= kills(), "{deaths} deaths in {} runs", kills());
}

/// Workers keep their devices and wait for the next coordinator.
#[test]
fn a_coordinator_that_is_killed_has_a_successor() {
    let deployment = Deployment::new(2, 2, Divided::Experts);
    let requests = deployment.file("requests.jsonl");
    write_requests(&requests);
    let workers = deployment.workers();
    let run = |more: &[&str]| deployment.command("run", more);
    let case = Case { folder: deployment.folder.path(), requests: &requests, run: &run };
    let sizes = case.undisturbed();
    let deaths: usize = (0..kills().div_ceil(3)).map(|seed| case.killed(seed, sizes, "step")).sum();
    assert!(deaths as u64 >= kills().div_ceil(3), "{deaths} deaths");
    drop(workers);
}

#[test]
fn a_worker_whose_coordinator_does_not_come_ends() {
    let deployment = Deployment::new(1, 1, Divided::Replicas);
    let worker = deployment.worker_with("f0", &["--wait-coordinator", "0.3"]);
    let (code, said) = worker.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no coordinator has come for 0.3 s"), "{said}");
}

/// A run that was killed in the middle.
fn half_a_run(folder: &Path, more: &[&str]) -> PathBuf {
    let (requests, journal) = (folder.join("requests.jsonl"), folder.join("a.journal"));
    write_requests(&requests);
    let run = ["run", GRAPH, "--requests", path_text(&requests), "--journal", path_text(&journal)];
    let child = start(rally(&[&run, more].concat()), &folder.join("printed.txt"));
    while length(&journal) == 0 {
        std::thread::sleep(Duration::from_micros(200));
    }
    let first = length(&journal);
    assert!(kill_at(child, &journal, first + 200));
    journal
}

#[test]
fn a_journal_of_something_else_is_refused_with_both_values() {
    let folder = tempfile::tempdir().expect("a folder can be had");
    let journal = half_a_run(folder.path(), &[]);
    let path = path_text(&journal);
    refused(&["run", "graphs/one-device.json", "--resume", path], "of another graph: `tiny-ping-pong` (");
    refused(&["run", GRAPH, "--exact", "--resume", path], "of another graph: `tiny-ping-pong` (");
    refused(&["run", GRAPH, "--resume", path, "--prompt", "x"], "cannot be used with");
    refused(&["run", GRAPH, "--resume", path, "--logits", "x.safetensors"], "kept no logits");
    refused(&["run", GRAPH, "--prompt", "x", "--journal", path], "there is a journal already");
    refused(&["run", GRAPH, "--resume", GRAPH], "it is no journal of a run");
    refused(&["run", GRAPH, "--resume", "nowhere.journal"], "cannot be opened");
    let whole = fs::read(&journal).expect("it is there");
    // Its version is the first text in it.
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    let place = whole.windows(version.len()).position(|bytes| bytes == version).expect("it is in it");
    let mut damaged = whole.clone();
    damaged[place] ^= 1;
    fs::write(&journal, &damaged).expect("it can be written");
    refused(&["run", GRAPH, "--resume", path], "the record at byte 8 is damaged, and others follow it");
    // The schedule changes no token, and so may change.
    fs::write(&journal, &whole).expect("it can be written");
    let resumed = ["run", GRAPH, "--schedule", "sequential:1", "--resume", path];
    assert!(rally(&resumed).output().expect("the binary starts").status.success());
}

#[test]
fn a_journal_is_one_processes() {
    let folder = tempfile::tempdir().expect("a folder can be had");
    let journal = half_a_run(folder.path(), &[]);
    let held = File::open(&journal).expect("it is there");
    held.lock().expect("nobody else has it");
    refused(&["run", GRAPH, "--resume", path_text(&journal)], "another run is writing this journal");
}

/// A limit on a file's size is told as a full disk is: by an error of the write.
#[test]
fn a_full_disk_is_a_clear_error_and_the_run_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder can be had");
    let (requests, journal) = (folder.path().join("requests.jsonl"), folder.path().join("a.journal"));
    write_requests(&requests);
    let limited = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
    let more = ["--requests", path_text(&requests), "--journal", path_text(&journal)];
    let printed = folder.path().join("printed.txt");
    let mut command = Command::new("sh");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("NO_COLOR", "1").stdin(Stdio::null());
    command.args(["-c", limited, env!("CARGO_BIN_EXE_rally"), "run", GRAPH]).args(more);
    let output = start(command, &printed).wait_with_output().expect("it is ours");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("could not be written") && said.contains("`--resume` goes on"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let out = folder.path().join("out.jsonl");
    good(start(rally(&["run", GRAPH, "--resume", path_text(&journal), "--out", path_text(&out)]), &printed));
    let alone = folder.path().join("alone.jsonl");
    let run = ["run", GRAPH, "--requests", path_text(&requests), "--out", path_text(&alone)];
    let whole = binary::good(&run);
    assert_eq!(fs::read_to_string(&printed).expect("it is text"), text(&whole.stdout));
    assert_eq!(results(&alone), results(&out));
}

/// An interrupt stops a run that has a journal; nothing is over.
#[test]
fn an_interrupted_run_goes_on() {
    let folder = tempfile::tempdir().expect("a folder can be had");
    let (requests, journal) = (folder.path().join("requests.jsonl"), folder.path().join("a.journal"));
    write_requests(&requests);
    let printed = folder.path().join("printed.txt");
    let more = ["--requests", path_text(&requests), "--journal", path_text(&journal)];
    let child = start(rally(&[&["run", GRAPH], &more[..]].concat()), &printed);
    while length(&journal) == 0 {
        std::thread::sleep(Duration::from_micros(200));
    }
    let first = length(&journal);
    while length(&journal) < first + 500 {
        std::thread::sleep(Duration::from_micros(200));
    }
    binary::signal(child.id(), "-TERM");
    let output = child.wait_with_output().expect("it is ours");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("--resume"), "{said}");
    good(start(rally(&["run", GRAPH, "--resume", path_text(&journal)]), &printed));
    let whole = binary::good(&["run", GRAPH, "--requests", path_text(&requests)]);
    assert_eq!(fs::read_to_string(&printed).expect("it is text"), text(&whole.stdout));
}
