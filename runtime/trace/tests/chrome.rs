//! Trace files: every event has the form that viewers read, tracks never nest, arrows join a send and the receive that took its
//! rows, counters follow the run, and no name breaks the file.

mod toy;

use rally_engine::schedule::virtual_lanes::VirtualTask;
use serde_json::Value;
use std::collections::BTreeMap;
use toy::{Ran, Toy};

fn costs(task: &VirtualTask<'_>) -> u64 {
    2001 + 1500 * (task.table.tasks[task.task].stage as u64 % 3) + 37 * task.load.rows as u64
}

fn trace(ran: &Ran) -> Value {
    let mut text = Vec::new();
    rally_trace::chrome::write(&mut text, &ran.recording()).expect("memory can be written");
    let value: Value = serde_json::from_slice(&text).expect("the trace is JSON");
    let schema: Value = serde_json::from_str(include_str!("chrome.schema.json")).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is a schema");
    let faults: Vec<String> = validator.iter_errors(&value).take(3).map(|error| error.to_string()).collect();
    assert_eq!(faults, Vec::<String>::new());
    value
}

fn events<'v>(trace: &'v Value, ph: &str) -> Vec<&'v Value> {
    let events = trace["traceEvents"].as_array().expect("a list of events");
    events.iter().filter(|event| event["ph"] == ph).collect()
}

/// Nanoseconds of a time in microseconds.
fn ns(value: &Value) -> u64 {
    (value.as_f64().expect("a time") * 1e3).round() as u64
}

/// The complete event of a track that holds a moment, its begin included.
fn slice_at<'v>(slices: &[&'v Value], tid: &Value, at_ns: u64) -> &'v Value {
    let holds = |slice: &&&Value| {
        let begin = ns(&slice["ts"]);
        slice["tid"] == *tid && (begin..begin + ns(&slice["dur"])).contains(&at_ns)
    };
    slices.iter().find(holds).unwrap_or_else(|| panic!("no slice of track {tid} at {at_ns} ns"))
}

fn check(ran: &Ran) {
    let trace = trace(ran);
    let slices = events(&trace, "X");
    let spans: usize = ran.lanes.iter().map(|lane| lane.spans.len()).sum();
    assert_eq!(slices.len(), spans, "an event a task");
    for (tid, lane) in ran.lanes.iter().enumerate() {
        let track: Vec<&Value> = slices.iter().copied().filter(|slice| slice["tid"] == tid).collect();
        for (slice, span) in track.iter().zip(&lane.spans) {
            assert_eq!((ns(&slice["ts"]), ns(&slice["dur"])), (span.start_ns, span.end_ns - span.start_ns));
            assert_eq!(slice["args"]["step"], span.step);
        }
        let follow = |pair: &[&Value]| ns(&pair[0]["ts"]) + ns(&pair[0]["dur"]) <= ns(&pair[1]["ts"]);
        assert!(track.windows(2).all(follow), "tasks of a lane follow each other");
    }
    let mut arrows: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    for end in events(&trace, "s").into_iter().chain(events(&trace, "f")) {
        arrows.entry(end["id"].as_u64().expect("an id")).or_default().push(end);
    }
    for ends in arrows.values() {
        let [leaves, arrives] = ends[..] else { panic!("an arrow has two ends: {ends:?}") };
        assert!(ns(&leaves["ts"]) <= ns(&arrives["ts"]), "arrows point forward");
        let [from, to] = [leaves, arrives].map(|end| &slice_at(&slices, &end["tid"], ns(&end["ts"]))["args"]);
        assert_eq!((&from["part"], &to["part"]), (&Value::from("send"), &Value::from("receive")));
        for key in ["stage", "layer", "micro_batch", "step"] {
            assert_eq!(from[key], to[key], "an arrow joins two ends of the same rows");
        }
    }
    // Every receive has an arrow for each device that sent it rows.
    let receives = slices.iter().filter(|slice| slice["args"]["part"] == "receive").count();
    assert!(arrows.len() >= receives && receives > 0);
    let rows: u64 = events(&trace, "C").iter().filter_map(|event| event["args"]["rows"].as_u64()).sum();
    let planned: u64 = ran.counters.iter().map(|sample| u64::from(sample.rows)).sum();
    assert_eq!(rows, planned);
}

#[test]
fn virtual_lanes() {
    for (attention, ffn, micro_batches) in [(1, 1, 1), (1, 1, 3), (2, 2, 2), (3, 1, 2)] {
        let toy = Toy::new(attention, ffn, 3, true, micro_batches);
        check(&toy.virtually(&costs, &[(0, 3, 9), (0, 5, 4), (90_000, 2, 7), (5_000_000, 1, 3)]));
    }
}

#[test]
fn real_lanes() {
    check(&Toy::new(2, 1, 2, true, 2).really(|_, _, _| 2000, &[6, 6, 4]));
}

#[test]
fn what_was_lost_is_told_and_names_are_quoted() {
    let mut ran = Toy::new(1, 1, 2, true, 2).virtually(&costs, &[(0, 2, 9)]);
    let name = "a \"lane\"\n\\ </script>";
    ran.lanes[0].name = name.into();
    ran.lanes[1].spans.drain(..10);
    ran.lanes[1].dropped_spans = 10;
    let trace = trace(&ran);
    assert_eq!(trace["otherData"]["dropped_spans"], 10);
    let names: Vec<&Value> = events(&trace, "M").iter().map(|event| &event["args"]["name"]).collect();
    assert!(names.contains(&&Value::from(name)));
    assert!(events(&trace, "X").iter().any(|slice| slice["args"]["waited_for"] == name));
}

#[test]
fn a_run_without_tasks_is_a_trace_too() {
    let ran = Toy::new(1, 1, 1, true, 1).virtually(&costs, &[]);
    assert!(events(&trace(&ran), "X").is_empty());
}
