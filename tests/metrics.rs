//! Metrics of real runs: a scrape is well formed and within its bounds, figures agree with the trace, wrong addresses are refused.

#[path = "support/scrape.rs"]
mod scrape;
mod support;

use rally::engine::Engine;
use rally::engine::figures::{LaneSample, RunSample};
use rally::engine::schedule::batch::SequenceRequest;
use rally::engine::schedule::span::Span;
use rally::graph::plan::TaskRole;
use rally::metrics::names::FAMILIES;
use rally::metrics::{Bound, BubbleCause, Exposition, Identity, Label, Source};
use rally::stages::checkpoint::RandomWeights;
use rally::stages::deployment::AssembleOptions;
use rally::trace::analysis::LaneTimes;
use rally::trace::{Analysis, Cause, Recording, Window};
use scrape::{GRAPH, Page, Running, parse};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use support::{Ask, Layout, Places, graph_file, parts_with, request, small_shape};

#[test]
fn a_live_scrape_has_every_family_and_nothing_else() {
    let mut run = Running::start();
    // Past the first requests' ends, so that every histogram has been fed.
    let text = run.page_after(4_000.0);
    let page = parse(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
    let known: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name()).collect();
    assert_eq!(page.types.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
    for family in FAMILIES {
        assert_eq!(page.helps[family.name()], family.help());
        assert_eq!(page.types[family.name()] == "histogram", !family.edges().is_empty(), "{}", family.name());
        assert_eq!(page.types[family.name()] == "counter", family.name().ends_with("_total"), "{}", family.name());
    }
    bounded(&page);
    let later = run.page_after(4_500.0);
    let later = parse(&later).unwrap_or_else(|fault| panic!("{fault}\n{later}"));
    rose(&page, &later);
    assert_eq!(run.get("/health"), ("HTTP/1.1 200 OK".into(), "ok\n".into()));
}

/// Contenders take turns in one process: each has series of its own.
#[test]
fn contenders_of_a_bench_are_told_apart() {
    let mut run = Running::bench(&["--compare", "sequential:2,ping_pong:3"]);
    let page = parse(&run.page_after(500.0)).expect("the page is well formed");
    assert!(page.samples.len() > 100, "lanes and requests are on the page");
    for sample in &page.samples {
        let names: Vec<&str> =
            sample.labels.iter().filter(|(key, _)| key == "schedule").map(|(_, value)| value.as_str()).collect();
        assert_eq!(names, ["sequential:2"], "the first of them, and said once: {sample:?}");
    }
}

/// Labels are those of the table, their values those of the graph and the model.
fn bounded(page: &Page) {
    let spec = graph_file("tiny-ping-pong.json");
    let devices: BTreeSet<&str> = spec.devices.keys().map(String::as_str).collect();
    let stages = ["embed", "mfa_attention", "router", "a2f", "expert_ffn", "dense_ffn", "f2a", "combine", "sampling"];
    for sample in &page.samples {
        let family = FAMILIES.iter().find(|family| family.name() == page.family(&sample.name)).expect("a known family");
        let labels: Vec<_> = sample.labels.iter().filter(|(key, _)| key != "le").collect();
        let keys: Vec<&str> = labels.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, family.labels().iter().map(|label| label.key()).collect::<Vec<_>>(), "{sample:?}");
        for (label, (_, value)) in family.labels().iter().zip(labels) {
            let within = match (label, label.bound()) {
                (Label::ModelName, _) => value == "tiny-step3",
                (Label::Engine, _) => value == "0",
                (Label::Schedule, _) => false,
                (Label::Device | Label::Lane, _) => devices.contains(value.as_str()),
                (Label::Stage, _) if family.name() == "rally_straggler" && value == "all" => true,
                (Label::Stage | Label::Edge, _) => stages.contains(&value.as_str()),
                (Label::Layer | Label::Expert, _) => value.parse::<usize>().is_ok_and(|index| index < 64),
                (_, Bound::Enumerated(values)) => values.contains(&value.as_str()),
                (_, bound) => panic!("nothing says what {label:?} of {bound:?} may be"),
            };
            assert!(within, "{label:?} is `{value}` in {sample:?}");
        }
    }
}

fn rose(before: &Page, after: &Page) {
    for sample in before.samples.iter().filter(|sample| before.types[before.family(&sample.name)] != "gauge") {
        let same = |other: &&scrape::Sample| other.name == sample.name && other.labels == sample.labels;
        let later = after.samples.iter().find(same).unwrap_or_else(|| panic!("{sample:?} has gone"));
        assert!(later.value >= sample.value, "{sample:?} fell to {}", later.value);
    }
    for name in ["rally_generation_tokens_total", "rally_lane_busy_seconds_total", "rally_stage_seconds_count"] {
        assert!(after.total(name) > before.total(name), "{name}");
    }
}

/// The reader of pages finds faults; else it would prove nothing.
#[test]
fn the_checker_refuses_what_is_wrong() {
    let head = "# HELP m Help.\n# TYPE m counter\n";
    let histogram = "# HELP m Help.\n# TYPE m histogram\n";
    assert!(parse(&format!("{head}{} 1\n", r#"m{a="x\"},y"}"#)).is_ok());
    assert!(
        parse(&format!("{histogram}m_bucket{{le=\"1\"}} 1\nm_bucket{{le=\"+Inf\"}} 2\nm_sum 3\nm_count 2\n")).is_ok()
    );
    for page in [
        "m 1\n".to_owned(),
        "# TYPE m counter\nm 1\n".into(),
        format!("{head}m 1\nm 2\n"),
        format!("{head}m -1\n"),
        format!("{head}m NaN\n"),
        format!("{head}m{{a=\"x\",a=\"y\"}} 1\n"),
        format!("{head}n 1\n"),
        format!("{head}m 1\n{}", head.replace(" m ", " n ") + "n 1\nm{a=\"b\"} 1\n"),
        format!("{histogram}m_bucket{{le=\"1\"}} 1\nm_sum 3\nm_count 1\n"),
        format!("{histogram}m_bucket{{le=\"1\"}} 3\nm_bucket{{le=\"+Inf\"}} 2\nm_sum 3\nm_count 2\n"),
        format!("{histogram}m_bucket{{le=\"1\"}} 1\nm_bucket{{le=\"+Inf\"}} 2\nm_sum 3\nm_count 3\n"),
        format!("{histogram}m_bucket{{le=\"1\"}} 1\nm_bucket{{le=\"+Inf\"}} 2\nm_count 2\n"),
    ] {
        assert!(parse(&page).is_err(), "{page}");
    }
}

fn refused(address: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rally"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", GRAPH, "--prompt", "x", "--metrics", address])
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(2), "{address}");
    assert!(output.stdout.is_empty(), "nothing was run");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_address_that_cannot_be_had_is_a_mistake() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port can be had");
    let taken = listener.local_addr().expect("it has an address").to_string();
    let message = refused(&taken);
    drop(listener);
    assert!(message.contains(&taken) && message.contains("in use") && message.contains("port 0"), "{message}");
    for wrong in ["9090", "127.0.0.1:http", "127.0.0.1:70000"] {
        let message = refused(wrong);
        assert!(message.contains("HOST:PORT"), "{wrong}: {message}");
    }
}

/// What a run of greedy sequences showed.
struct Observed {
    page: Page,
    sample: RunSample,
    analysis: Analysis,
    /// By lane, from the begin of the run to the end of its own last task: what its figures account for.
    lanes: Vec<LaneTimes>,
    /// What experts did, over all devices.
    expert_effort: f64,
}

fn observed(layout: &Layout) -> Observed {
    let (spec, shape) = (layout.spec(), small_shape());
    let weights = RandomWeights::new(3, shape.weight_format);
    let options = AssembleOptions { learn: false, spans_per_lane: 1 << 16, ..AssembleOptions::default() };
    let parts = parts_with(&spec, &shape, &weights, options);
    let plan = parts.plan.clone();
    let expert_stage = plan.table.stages.iter().position(|stage| stage.kind == "expert_ffn").expect("there is one");
    let engine = Engine::start(parts).expect("threads can be had");
    let figures = engine.figures();
    let asks = (0..6u32).map(|id| Ask::greedy(&[id + 1; 9], 24));
    let requests: Vec<SequenceRequest> = asks.enumerate().map(|(id, ask)| request(id as u64, &ask)).collect();
    let report = engine.run_to_end(requests, |_| ()).expect("the run ends well");
    let recording = Recording::new(&plan, &report.lanes, &report.counters);
    let analysis = Analysis::of(&recording, Window::all(&recording));
    let identity = Identity::new("small");
    let mut page = Exposition::new(&identity);
    figures.write(&mut page);
    let text = page.into_text();
    let page = parse(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
    let sample = figures.sample();
    let own = |(lane, times): (usize, &LaneSample)| {
        let mut window = Window::all(&recording);
        (window.from_ns, window.to_ns) = (0, times.accounted_ns);
        Analysis::of(&recording, window).lanes.swap_remove(lane)
    };
    let lanes = sample.lanes.iter().enumerate().map(own).collect();
    let experts = |lane: usize, span: &Span| recording.template(lane, span).stage == expert_stage;
    let effort = |lane: usize| {
        recording.spans(lane).iter().filter(move |span| experts(lane, span)).map(|span| f64::from(span.effort))
    };
    let expert_effort = (0..sample.lanes.len()).flat_map(effort).sum();
    Observed { page, sample, analysis, lanes, expert_effort }
}

#[test]
fn causes_have_one_name_in_traces_and_metrics() {
    assert_eq!(Cause::ALL.map(Cause::name), BubbleCause::ALL.map(BubbleCause::name));
}

/// Figures are made while the run goes on, with what is known then; the analysis sees all spans afterwards. Both go by one rule.
#[test]
fn figures_agree_with_the_analysis_of_the_trace() {
    let places = |a, f, expert, dense| Some(Places { a, f, expert, dense, ..Places::default() });
    for (policy, micro_batches, places) in [
        ("sequential", 2, None),
        ("ping_pong", 3, None),
        ("ping_pong", 2, places(vec![2], vec![2], [2, 1, 1], [1, 2])),
        ("sequential", 1, places(vec![1], vec![2], [2, 1, 1], [1, 2])),
    ] {
        let Observed { sample, lanes, .. } = observed(&Layout { policy, micro_batches, places, ..Layout::default() });
        for (lane, traced) in sample.lanes.iter().zip(&lanes) {
            assert_eq!((lane.busy_ns, lane.transfer_ns), (traced.busy_ns, traced.transfer_ns), "{policy} {lane:?}");
            for (ours, theirs) in lane.bubble_ns.into_iter().zip(traced.bubble_ns) {
                let apart = ours.abs_diff(theirs) as f64 / lane.accounted_ns as f64;
                assert!(apart <= 0.02, "{policy}, {apart:.3} of the time apart: {lane:?} {traced:?}");
            }
        }
    }
}

/// What a stage does on rows of its peers is its own work: no transfer takes longer for it.
#[test]
fn all_parts_of_a_stage_are_computing() {
    let places = Places { a: vec![2], f: vec![2], expert: [2, 1, 1], dense: [1, 2], ..Places::default() };
    let placement = Some(vec![vec![0, 1, 2], vec![2, 3, 0]]);
    for (id, places) in [
        ("mfa_attention", Places { o_proj: 2, ..places.clone() }),
        ("expert_ffn", Places { placement, ..places.clone() }),
    ] {
        let Observed { page, sample, analysis, .. } = observed(&Layout { places: Some(places), ..Layout::default() });
        let parts: Vec<_> = analysis.stages.iter().filter(|stats| stats.id == id).collect();
        assert_eq!(parts.len(), 2, "a first and a later part: {parts:#?}");
        assert!(parts.iter().all(|stats| !stats.work.is_transfer()), "{parts:#?}");
        let later = parts.iter().find(|stats| stats.part == TaskRole::Exchange).expect("a later part");
        assert_eq!(later.label(), format!("{id} later part"));
        let of = |name: &str, key: &str, wanted: &str| -> f64 {
            let has = |(k, v): &(String, String)| k == key && v == wanted;
            page.samples.iter().filter(|s| s.name == name && s.labels.iter().any(has)).map(|s| s.value).sum()
        };
        let tasks: usize = parts.iter().map(|stats| stats.count).sum();
        assert_eq!(of("rally_stage_seconds_count", "stage", id), tasks as f64, "{id}");
        let seconds = parts.iter().map(|stats| stats.total_ns).sum::<u64>() as f64 / 1e9;
        assert!((of("rally_stage_seconds_sum", "stage", id) - seconds).abs() < 1e-6, "{id}");
        assert_eq!(of("rally_transfer_seconds_count", "edge", id), 0.0);
        let moved: u64 = analysis.stages.iter().filter(|s| s.work.is_transfer()).map(|s| s.total_ns).sum();
        assert_eq!(analysis.transfers.a_to_f_ns + analysis.transfers.f_to_a_ns, moved);
        assert_eq!(sample.lanes.iter().map(|lane| lane.transfer_ns).sum::<u64>(), moved, "{id}");
    }
}

#[test]
fn every_routed_row_is_counted_once_wherever_the_router_stands() {
    let places = |f: Vec<usize>, expert, dense| Places { a: vec![2], f, expert, dense, ..Places::default() };
    let experts = |layout: &Layout| {
        let Observed { page, sample, expert_effort, .. } = observed(layout);
        let rows = page.total("rally_micro_batch_tokens_sum");
        let routed: f64 = page.total("rally_expert_tokens_total");
        // One layer of experts, of which each row gets two.
        assert_eq!(routed, rows * 2.0, "{layout:?} {sample:?}");
        // The shared one is as large as a routed one. Every tensor shard does its part of all.
        let tensor = layout.places.as_ref().map_or(1, |places| places.expert[1]) as f64;
        assert_eq!(expert_effort, rows * 3.0 * tensor, "{layout:?}");
        let imbalance = page.total("rally_expert_imbalance_ratio");
        assert!((1.0..=4.0).contains(&imbalance), "{imbalance}");
        page.samples.into_iter().filter(|s| s.name == "rally_expert_tokens_total").collect::<Vec<_>>()
    };
    let expected = experts(&Layout::default());
    for router_on_ffn in [false, true] {
        for places in [
            None,
            Some(places(vec![2], [2, 1, 1], [1, 2])),
            Some(places(vec![2], [1, 2, 1], [2, 1])),
            Some(places(vec![4], [2, 1, 2], [1, 4])),
        ] {
            assert_eq!(experts(&Layout { router_on_ffn, places, ..Layout::default() }), expected);
        }
    }
}
