//! `rally profile` of CUDA devices, before a stand-in or a card: rows that choose what they are told, devices that take turns, tables
//! that are read, and a few layers that stand for a whole model.
#![cfg(feature = "cuda")]

mod support;

use rally::engine::EngineParts;
use rally::engine::rehearsal::{Effort, rehearse};
use rally::engine::schedule::batch::{DeviceBatch, GroupInput, RowGroup, SampleSpec, SamplingParams, TokenDetail};
use rally::engine::span::{LaneReport, Span};
use rally::graph::kinds::Role;
use rally::graph::spec::DeploymentSpec;
use rally::schedule::cost_table::{CostPart, CostTable};
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::{AssembleOptions, Machines};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use support::{Ask, Layout, Notes, answers, parts_with, repository, small_shape};

/// Stands in unless a card is asked for.
fn machines() -> Machines {
    if std::env::var("RALLY_CUDA").as_deref() == Ok("card") { Machines::Cards } else { Machines::StandIn }
}

fn on_cuda(layout: &Layout) -> DeploymentSpec {
    let mut json = layout.json();
    for device in json["devices"].as_object_mut().expect("devices by name").values_mut() {
        let device = device.as_object_mut().expect("a device is an object");
        device.insert("backend".into(), json!("cuda"));
        device.remove("cores");
    }
    serde_json::from_value(json).expect("generated graphs are well formed")
}

fn assembled(layout: &Layout, options: AssembleOptions) -> EngineParts {
    let shape = small_shape();
    let weights = RandomWeights::new(5, shape.weight_format);
    parts_with(&on_cuda(layout), &shape, &weights, AssembleOptions { machines: machines(), ..options })
}

/// The choices that come to a layer, in order, without weights.
fn chosen(choices: &[Vec<u32>]) -> (Vec<Vec<Vec<u32>>>, usize) {
    let layout = Layout { micro_batches: 1, policy: "sequential", ..Layout::default() };
    let notes = Arc::new(Notes::default());
    let mut parts = assembled(&layout, AssembleOptions { probe: Some(notes.clone()), ..AssembleOptions::default() });
    let graph = Arc::clone(&parts.graph);
    let routers = parts.devices.iter_mut().flat_map(|device| device.stages.iter_mut());
    let mut told = 0;
    for (_, router) in routers.filter(|(stage, _)| graph.stages[**stage].role == Role::Router) {
        assert!(router.choose(choices).expect("it can"), "a router on a card is told");
        told += 1;
    }
    let engine = rally::engine::Engine::start(parts).expect("threads can be had");
    // Five rows and then one at a time: the graphs of two buckets, the first of them padded.
    answers(engine, &[Ask::greedy(&[1, 7, 13, 22, 9], 5)]);
    let routing = notes.routing.lock().expect("no panic");
    let mut rows: Vec<_> = routing.iter().collect();
    rows.sort_by_key(|(row, _)| **row);
    let ids = |layers: &Vec<(Vec<u32>, Vec<f32>)>| layers.iter().map(|(ids, _)| ids.clone()).collect();
    (rows.into_iter().map(|(_, layers)| ids(layers)).collect(), told)
}

#[test]
fn rows_choose_what_they_are_told_on_a_card() {
    let (free, _) = chosen(&[]);
    let of_free: BTreeSet<&Vec<u32>> = free.iter().flatten().collect();
    assert!(of_free.len() > 2, "left alone, rows choose differently: {of_free:?}");
    let (told, routers) = chosen(&[vec![2, 0]]);
    assert_eq!(routers, 1);
    assert!(told.iter().flatten().all(|ids| *ids == [2, 0]), "{told:?}");
    // Two choices: layers take turns, and within a layer rows begin again behind the last.
    let (told, _) = chosen(&[vec![3, 1, 0, 2], vec![1, 2]]);
    let layers = told[0].len();
    for (row, ids) in told[..5].iter().enumerate() {
        let of_first = if row % 2 == 0 { [3, 1] } else { [0, 2] };
        let both = [of_first.to_vec(), vec![1, 2]];
        assert!(ids.iter().all(|ids| both.contains(ids)), "row {row}: {ids:?}");
        assert!(layers < 2 || both.iter().all(|of| ids.contains(of)), "layers take turns: {ids:?}");
    }
    assert_eq!(told.len(), 9, "five rows of the prompt, and four that were fed back");
}

/// Steps of `rows` sequences that decode, the same again and again.
fn rehearsed(parts: &mut EngineParts, effort: Effort) -> Vec<LaneReport> {
    let graph = Arc::clone(&parts.graph);
    let stages = parts.devices.iter_mut().flat_map(|device| device.stages.iter_mut());
    for (_, attention) in stages.filter(|(stage, _)| graph.stages[**stage].role == Role::Attention) {
        assert!(attention.pretend().expect("it can"), "what nobody wrote is no number");
    }
    let planner = parts.planner;
    let batch = |first: usize| {
        let rows = 4;
        let mut batch = DeviceBatch { rows, token_ids: vec![1; rows], ..DeviceBatch::default() };
        for row in 0..rows {
            let slot = (first + row) % planner.sequences_per_device;
            batch.pages.push((slot % planner.pages_per_device as usize) as u32);
            let spec = SampleSpec { token_index: 0, params: SamplingParams::default(), detail: TokenDetail::default() };
            batch.groups.push(RowGroup {
                sequence: slot as u64,
                slot,
                first_row: row,
                rows: 1,
                first_position: 3,
                input: GroupInput::Given,
                pages: row..row + 1,
                sample: Some(spec),
            });
        }
        batch
    };
    let batches = (0..planner.micro_batches).map(|m| vec![batch(4 * m); planner.devices]).collect();
    rehearse(parts, batches, effort).expect("it ends well")
}

/// Pairs of spans of different lanes that were at work at once.
fn overlaps(reports: &[LaneReport]) -> usize {
    let mut spans: Vec<(usize, &Span)> = reports
        .iter()
        .enumerate()
        .flat_map(|(lane, report)| report.spans.iter().map(move |span| (lane, span)))
        .collect();
    spans.sort_by_key(|(_, span)| span.start_ns);
    // Times of devices are true to some microseconds: two clocks are held against each other.
    let slack_ns = if machines() == Machines::Cards { 20_000 } else { 3_000 };
    let at_once = |pair: &[(usize, &Span)]| pair[0].0 != pair[1].0 && pair[0].1.end_ns > pair[1].1.start_ns + slack_ns;
    spans.windows(2).filter(|pair| at_once(pair)).count()
}

#[test]
fn devices_in_turn_are_never_at_work_at_once() {
    let layout = Layout { micro_batches: 2, attention: 2, ..Layout::default() };
    let options = AssembleOptions { spans_per_lane: 100_000, ..AssembleOptions::default() };
    let mut parts = assembled(&layout, options);
    let effort = |in_turn| Effort { least: 40, time: Duration::ZERO, most: 40, cold: true, in_turn };
    let together = rehearsed(&mut parts, effort(false));
    let in_turn = rehearsed(&mut parts, effort(true));
    assert_eq!(together.len(), 3);
    let tasks = |reports: &[LaneReport]| reports.iter().map(|report| report.tasks).collect::<Vec<_>>();
    assert!(tasks(&in_turn).iter().all(|tasks| *tasks > 100), "{:?}", tasks(&in_turn));
    assert!(overlaps(&together) > 0, "three devices left alone work at once");
    assert_eq!(overlaps(&in_turn), 0);
}

fn rally(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rally"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    if machines() == Machines::StandIn {
        command.env("RALLY_CUDA", "stand-in");
    }
    command.output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn good(arguments: &[&str]) -> String {
    let output = rally(arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

const GRID: [&str; 8] = ["--rows", "1,4", "--contexts", "16,64", "--experts", "3,8", "--point-ms", "1"];
const LOAD: [&str; 6] = ["--batch", "3", "--random-input-len", "4", "--random-output-len", "6"];

fn table(path: &Path) -> CostTable {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    CostTable::from_json(&text).expect("a table is read by its reader")
}

/// Stage, part, device, rows, along: of all that was measured cold.
fn measured(table: &CostTable) -> BTreeSet<(String, &'static str, String, usize, usize)> {
    let costs = table.stages.iter().filter(|cost| !cost.warm && cost.part != CostPart::Plan);
    costs
        .flat_map(|cost| {
            let of = |at: &rally::schedule::cost_table::CostPoint| {
                (cost.stage.clone(), cost.part.name(), cost.device.clone(), at.rows, at.along)
            };
            cost.points.iter().map(of).collect::<Vec<_>>()
        })
        .collect()
}

/// The graph in `folder`, with the tiny model's shapes and so many of its layers.
fn of_layers(folder: &Path, layers: Option<&str>) -> PathBuf {
    let text = std::fs::read_to_string(repository("graphs/1a1f-cuda.json")).expect("the graph is there");
    let mut graph: Value = serde_json::from_str(&text).expect("the graph is JSON");
    let config = repository("models/tiny-step3/config.json");
    graph["model"] = json!({ "config": config, "weights": "random:7" });
    if let Some(layers) = layers {
        graph["model"]["layers"] = layers.into();
    }
    let path = folder.join(format!("layers-{}.json", layers.unwrap_or("all").replace("..", "-")));
    std::fs::write(&path, graph.to_string()).expect("written");
    path
}

#[test]
fn cuda_devices_are_profiled_and_the_table_is_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [cuda, cpu] = ["cuda.json", "cpu.json"].map(|name| folder.path().join(name));
    good(&[&["profile", "graphs/1a1f-cuda.json", "--out", path_text(&cuda)], &GRID[..]].concat());
    good(&[&["profile", "graphs/tiny-ping-pong.json", "--out", path_text(&cpu)], &GRID[..]].concat());
    let (on_cuda, on_cpu) = (table(&cuda), table(&cpu));
    assert_eq!(measured(&on_cuda), measured(&on_cpu), "the same points, whatever they were measured on");
    assert!(on_cuda.stages.iter().any(|cost| cost.part == CostPart::Plan));
    let card = on_cuda.machine["cuda"][0].as_str().expect("it says what it was measured on").to_owned();
    assert!(on_cpu.machine["cuda"].is_null());
    let predicted = good(&[&["predict", "graphs/1a1f-cuda.json", "--profile", path_text(&cuda)], &LOAD[..]].concat());
    assert!(predicted.contains(&card), "{predicted}");
    // Greedy orders by it; a table of a machine without cards is of another one.
    let greedy = |costs: &Path| {
        let bench = ["bench", "graphs/1a1f-cuda.json", "--schedule", "greedy", "--costs", path_text(costs)];
        rally(&[&bench[..], &LOAD[..]].concat())
    };
    let own = greedy(&cuda);
    assert!(own.status.success(), "{}", text(&own.stderr));
    assert!(text(&greedy(&cpu).stderr).contains("machine.cuda is null there and"));
}

/// Three layers of the tiny model's shapes, their devices in turn: the graph and its table, measured once for all tests.
fn profiled() -> &'static (tempfile::TempDir, PathBuf, PathBuf) {
    static DONE: OnceLock<(tempfile::TempDir, PathBuf, PathBuf)> = OnceLock::new();
    DONE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (graph, out) = (of_layers(folder.path(), Some("0..2")), folder.path().join("costs.json"));
        good(&[&["profile", path_text(&graph), "--in-turn", "--out", path_text(&out)], &GRID[..]].concat());
        (folder, graph, out)
    })
}

/// Dense and MoE layers are there: what they take is what those of the whole model take.
#[test]
fn a_few_layers_stand_for_the_whole_model() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ((_, part, out), whole) = (profiled(), of_layers(folder.path(), None));
    let mut costs = table(out);
    assert_eq!((&costs.model["layers"], &costs.model["part"]), (&json!(6), &json!("0..2")));
    let predict = |graph: &Path, costs: &Path| {
        let arguments = ["predict", path_text(graph), "--profile", path_text(costs), "--format", "json"];
        rally(&[&arguments, &LOAD[..]].concat())
    };
    let tpot_ms = |graph: &Path| {
        let output = predict(graph, out);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let predicted: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(predicted["runs"][0]["completed"], 3);
        predicted["runs"][0]["median_tpot_ms"].as_f64().expect("a number")
    };
    // All six layers are there: they take longer than three.
    let (of_whole, of_part) = (tpot_ms(&whole), tpot_ms(part));
    assert!(of_whole > of_part, "{of_whole} and {of_part}");
    // What the layers that were there have not is not made up.
    costs.stages.retain(|cost| cost.kind != "dense_ffn");
    let other = folder.path().join("costs.json");
    std::fs::write(&other, costs.to_json()).expect("written");
    let refused = predict(&whole, &other);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("dense_ffn"), "{}", text(&refused.stderr));
}

/// Attention, experts, routers and sums of the table stand for figures, and the rest stays; whoever asks for something else is told.
#[test]
fn a_table_of_a_card_stands_for_figures() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let ((_, _, out), whole) = (profiled(), of_layers(folder.path(), None));
    let costs = table(out);
    let of = |kind: &str| costs.stages.iter().find(|cost| cost.kind == kind && !cost.warm).expect("it was measured");
    let (attention, experts) = (of("mfa_attention"), of("expert_ffn"));
    assert!(attention.kv_dtype.is_some() && (experts.experts, experts.width, experts.shared) == (8, 128, true));
    let named = format!("--measured=l4:{}", path_text(out));
    let predict = |more: &[&str]| -> Value {
        let arguments = ["predict", path_text(&whole), "--hardware", "l4", "--format", "json"];
        serde_json::from_str(&good(&[&arguments, &LOAD[..], more].concat())).expect("JSON")
    };
    let mean_us = |of: &Value, stage: &str| {
        let stages = of["runs"][0]["stages"].as_array().expect("stages").clone();
        let stage = stages.into_iter().find(|row| row["stage"] == stage).expect("it is there");
        stage["mean_us"].as_f64().expect("a time")
    };
    let (measured, figures) = (predict(&[&named]), predict(&[]));
    let card = costs.machine["cuda"][0].as_str().expect("a card");
    assert!(measured["predicted_from"]["measured"].as_str().is_some_and(|of| of.contains(card)));
    for stage in ["mfa_attention", "expert_ffn", "router", "combine"] {
        let seconds = of(stage).points.iter().map(|point| point.seconds * 1e6);
        let (least, most) = seconds.fold((f64::INFINITY, 0.0_f64), |(least, most), us| (least.min(us), most.max(us)));
        let us = mean_us(&measured, stage);
        assert!((least * 0.99..=most * 1.01).contains(&us), "{stage}: {us} of {least} to {most}");
    }
    assert_eq!(mean_us(&measured, "dense_ffn"), mean_us(&figures, "dense_ffn"));
    let refused = |arguments: &[&str], said: &str| {
        let output = rally(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(said), "{arguments:?}: {}", text(&output.stderr));
    };
    let (own, tiny) = (format!("--measured={}", path_text(out)), path_text(&whole).to_owned());
    refused(&["predict", &tiny, "--hardware", "l4", &own], "say which it stands for, as --measured=NAME:F.json");
    refused(
        &["predict", &tiny, "--hardware", "l20", &named],
        "stage times of one model on `L4`, and nothing of this question is that",
    );
    refused(&["predict", "graphs/step3-2a2f.json", "--hardware", "l4", &named], "nothing of this question is that");
    refused(&["predict", &tiny, "--hardware", "l4", "--measured=l4:no/such.json"], "cannot be read");
    refused(&["predict", &tiny, "--hardware", "l4", "--measured=l44:no/such.json"], "cannot be read");
    refused(&["recommend", "--hardware", "L4:16", "--measured=graphs/1a1f.json"], "cannot be read");
    refused(&["recommend", "--hardware", "L4:16", &named], "nothing of this question is that");
}

#[test]
fn layers_that_are_none_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for layers in ["3..6", "4..2", "moe", ""] {
        let output = rally(&["check", path_text(&of_layers(folder.path(), Some(layers))), "--format", "json"]);
        assert_eq!(output.status.code(), Some(2), "{layers}");
        let said = text(&output.stdout);
        assert!(said.contains("no layers of this model, which has 6") && said.contains("0..5"), "{layers}: {said}");
    }
    assert_eq!(rally(&["check", path_text(&of_layers(folder.path(), Some("2..3")))]).status.code(), Some(0));
}
