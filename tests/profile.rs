//! `rally profile` through the real binary: what is measured, that an interrupted run goes on, that `greedy` takes the table.

#[path = "support/binary.rs"]
mod binary;

use binary::rally;
use rally::graph::kinds::Role;
use rally::graph::plan::StageLabel;
use rally::graph::stage_graph::Section;
use rally::schedule::cost_table::{CostPart, CostTable, TaskSize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const GRAPH: &str = "graphs/tiny-ping-pong.json";
const GRID: [&str; 6] = ["--rows", "1,4", "--contexts", "16,64", "--experts", "3,8"];

fn profile(out: &Path, more: &[&str]) -> Command {
    let out = out.to_str().expect("temporary paths are text");
    rally(&[&["profile", GRAPH, "--out", out], &GRID[..], more].concat())
}

fn said(output: &Output) -> String {
    binary::text(&output.stderr)
}

#[track_caller]
fn ends_well(mut command: Command) -> Output {
    let output = command.output().expect("the binary starts");
    assert!(output.status.success(), "{}", said(&output));
    output
}

/// Stage, part, device, rows, along.
type Key = (String, String, String, u64, u64);

/// Every point, whatever its form: of a table or of a part of one.
fn points(path: &Path) -> BTreeMap<Key, Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let json: Value = serde_json::from_str(&text).expect("it is whole");
    let mut points = BTreeMap::new();
    for stage in json["stages"].as_array().expect("stages") {
        let word = |key: &str| stage[key].as_str().expect("a word").to_owned();
        for point in stage["points"].as_array().expect("points") {
            let count = |key: &str| point[key].as_u64().expect("a count");
            let part = word("part") + if stage["warm"] == true { " warm" } else { "" };
            let key = (word("stage"), part, word("device"), count("rows"), count("along"));
            assert!(points.insert(key, point.clone()).is_none(), "a point comes once");
        }
    }
    points
}

#[test]
fn the_grid_is_measured_and_read_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("costs.json");
    ends_well(profile(&out, &["--point-ms", "1"]));
    let keys: Vec<Key> = points(&out).into_keys().collect();
    let of = |stage: &str, part: &str| -> Vec<(u64, u64)> {
        keys.iter().filter(|key| key.0 == stage && key.1 == part).map(|key| (key.3, key.4)).collect()
    };
    assert_eq!(of("mfa_attention", "compute"), [(1, 16), (1, 64), (4, 16), (4, 64)]);
    // One row reaches the three experts it chooses.
    assert_eq!(of("expert_ffn", "compute"), [(1, 3), (4, 3), (4, 8)]);
    for (stage, part) in
        [("embed", "compute"), ("dense_ffn", "compute"), ("a2f", "send"), ("a2f", "receive"), ("f2a", "receive")]
    {
        assert_eq!(of(stage, part), [(1, 0), (4, 0)], "{stage} {part}");
    }
    let text = std::fs::read_to_string(&out).expect("there");
    let table = CostTable::from_json(&text).expect("a table is read by its reader");
    let size = TaskSize { rows: 3, context: 40.0, experts: None };
    for (stage, part) in
        [("mfa_attention", CostPart::Compute), ("expert_ffn", CostPart::Compute), ("a2f", CostPart::Send)]
    {
        let seconds = table.seconds(stage, part, "ffn", size).expect("it was measured");
        assert!(seconds > 0.0 && seconds < 1.0, "{stage}: {seconds}");
    }
    assert!(!folder.path().join("costs.json.partial").exists(), "nothing is left beside a finished table");
    let greedy = ["bench", GRAPH, "--schedule", "greedy", "--batch", "3", "--costs", out.to_str().expect("text")];
    ends_well(rally(&greedy));
    let other = rally(&[&greedy[..2], &greedy[4..]].concat()).output().expect("the binary starts");
    assert_eq!(other.status.code(), Some(2));
    assert!(said(&other).contains("only `greedy` orders by costs"), "{}", said(&other));
    ends_well(rally(&[
        "run",
        GRAPH,
        "--schedule",
        "greedy",
        "--prompt",
        "a",
        "--max-tokens",
        "3",
        "--costs",
        greedy[7],
    ]));
    costs_of_something_else(&text, folder.path(), &out);
}

/// A table is for what it was measured on, and says what differs.
fn costs_of_something_else(table: &str, folder: &Path, out: &Path) {
    let edited = folder.join("edited.json");
    type Edit = fn(&mut serde_json::Value);
    let edits: [(Edit, &str, &str); 5] = [
        (|table| table["machine"]["cpu"] = "abacus".into(), GRAPH, "machine.cpu is \"abacus\" there and"),
        (|table| table["model"]["layers"] = 61.into(), GRAPH, "model.layers is 61 there and 6 here"),
        (|table| table["graph"]["hash"] = "another text".into(), GRAPH, ""),
        (|table| table["graph"]["path"] = "elsewhere.json".into(), GRAPH, ""),
        (|_| (), "graphs/2a1f.json", "graph.stages_hash is"),
    ];
    for (edit, graph, said_so) in edits {
        let mut json = serde_json::from_str(table).expect("a table is JSON");
        edit(&mut json);
        std::fs::write(&edited, json.to_string()).expect("written");
        let costs = ["--schedule", "greedy", "--costs", edited.to_str().expect("text")];
        for command in [&["bench", graph, "--batch", "2"][..], &["run", graph, "--prompt", "a", "--max-tokens", "2"]] {
            let plain = rally(&[command, &costs[..]].concat()).output().expect("the binary starts");
            match said_so {
                "" => assert_eq!(plain.status.code(), Some(0), "{}", said(&plain)),
                _ => {
                    assert_eq!(plain.status.code(), Some(2), "{}", said(&plain));
                    assert!(
                        said(&plain).contains(said_so) && said(&plain).contains("--costs-anyway"),
                        "{}",
                        said(&plain)
                    );
                    ends_well(rally(&[command, &costs[..], &["--costs-anyway"]].concat()));
                }
            }
        }
    }
    let exact = ["bench", GRAPH, "--exact", "--schedule", "greedy", "--costs", out.to_str().expect("text")];
    let exact = rally(&exact).output().expect("the binary starts");
    assert!(said(&exact).contains("graph.stages_hash is"), "wires that are f32 cost something else: {}", said(&exact));
}

/// The parts of `split` in a profile of `graph`, in the table and on virtual time.
#[track_caller]
fn check_parts(graph: &str, split: &str, expected: &[CostPart]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("costs.json");
    let out_text = out.to_str().expect("temporary paths are text");
    let grid = ["--rows", "1,8", "--contexts", "16", "--experts", "3,5", "--point-ms", "1"];
    ends_well(rally(&[&["profile", graph, "--out", out_text], &grid[..]].concat()));
    let table = CostTable::from_json(&std::fs::read_to_string(&out).expect("there")).expect("it is a table");
    let parts = |stage: &str| -> Vec<CostPart> {
        table.stages.iter().filter(|cost| cost.stage == stage && !cost.warm).map(|cost| cost.part).collect()
    };
    assert_eq!(parts(split), expected, "{graph}");
    assert_eq!(parts("dense_ffn"), [CostPart::Compute], "{graph}: devices that work alone");
    let costs = table.stage_costs(16.0);
    for cost in table.stages.iter().filter(|cost| cost.stage == split && !cost.warm) {
        let asked = cost.rows();
        // A part between two exchanges works on the rows of all devices that exchange.
        let (first, last) = (asked[0], asked[asked.len() - 1]);
        assert!([(1, 8), (2, 16)].contains(&(first, last)), "{graph} {:?}: {asked:?}", cost.part);
        assert!(cost.points.iter().all(|point| point.seconds > 0.0 && point.samples >= 5), "{graph} {:?}", cost.part);
        let label =
            StageLabel { id: split.into(), kind: cost.kind.clone(), role: Role::Attention, section: Section::Layers };
        let role = cost.part.role().expect("parts of a stage are tasks");
        let known = costs.part_seconds(&label, role, cost.part.index(), last);
        let size = TaskSize { rows: last, context: 16.0, experts: None };
        assert_eq!(known, cost.seconds(size), "{graph}: what greedy orders {:?} by", cost.part);
    }
    ends_well(rally(&["bench", graph, "--schedule", "greedy", "--batch", "3", "--costs", out_text]));
}

#[test]
fn stages_done_in_parts_are_timed_by_part() {
    check_parts("graphs/2a2f-o-proj.json", "mfa_attention", &CostPart::OF_STAGE);
    check_parts("graphs/2a2f-placement.json", "expert_ffn", &CostPart::OF_STAGE[..2]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_profile_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (out, whole) = (folder.path().join("costs.json"), folder.path().join("whole.json"));
    let partial = folder.path().join("costs.json.partial");
    let slow = ["--point-ms", "100"];
    let mut child = profile(&out, &slow)
        .env("RALLY_LOG", "info")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
    let mut line = String::new();
    // One row is measured, and four are not.
    while !line.contains("rows=4") {
        line.clear();
        assert!(lines.read_line(&mut line).expect("stderr can be read") > 0, "it ended before it was interrupted");
    }
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    binary::signal(child.id(), "-INT");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(!out.exists(), "no table before it is whole");
    let kept = points(&partial);
    let resumed = ends_well(profile(&out, &slow));
    assert!(said(&resumed).contains(&format!("going on with {} points", kept.len())), "{}", said(&resumed));
    assert!(!partial.exists());
    ends_well(profile(&whole, &["--point-ms", "1"]));
    let (resumed, uninterrupted) = (points(&out), points(&whole));
    assert!(!kept.is_empty() && kept.len() < resumed.len());
    assert_eq!(resumed.keys().collect::<Vec<_>>(), uninterrupted.keys().collect::<Vec<_>>());
    for (key, point) in kept {
        assert_eq!(resumed[&key], point, "{key:?} is not measured twice");
    }
    // Another grid does not take these points for its own.
    std::fs::write(&partial, "half a fi").expect("written");
    let again = ends_well(profile(&out, &["--point-ms", "1"]));
    assert!(said(&again).contains("starting over"), "{}", said(&again));
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("costs.json");
    let out = out.to_str().expect("temporary paths are text");
    for (arguments, expected) in [
        (&["--rows", "1000"][..], "stage `embed` can have none of these points"),
        (&["--contexts", "100000"], "stage `mfa_attention` can have none of these points"),
        // A row chooses three of the eight that are all here.
        (&["--experts", "1"], "stage `expert_ffn` can have none of these points"),
        (&["--rows", "0"], "0"),
        (&["--point-ms", "0"], "0"),
    ] {
        let output = rally(&[&["profile", GRAPH, "--out", out], arguments].concat()).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(said(&output).contains(expected), "{arguments:?}: {}", said(&output));
    }
    let output = rally(&["profile", GRAPH, "--out", "no/such/folder/x.json"]).output().expect("it starts");
    assert!(said(&output).contains("cannot be written"), "{}", said(&output));
}
