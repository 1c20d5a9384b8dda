//! Deployments with CUDA devices: golden folders, mixed graphs, transfers, refusals. Without a card the processor stands in for one,
//! with the same kernels compiled as C; `RALLY_CUDA=card` runs the same tests on a card.
#![cfg(feature = "cuda")]

mod support;

use rally::engine::schedule::batch::SamplingParams;
use rally::engine::schedule::policy::Schedule;
use rally::engine::span::{LaneReport, Span};
use rally::engine::{RunEvent, RunReport};
use rally::graph::kinds::KindRegistry;
use rally::graph::model::{ModelShape, WeightFormat};
use rally::graph::spec::{ComputeDtype, DeploymentSpec};
use rally::graph::stage_graph::StageGraph;
use rally::stages::checkpoint::{Checkpoint, RandomWeights};
use rally::stages::config::load_model_shape;
use rally::stages::deployment::{AssembleOptions, Machines, assemble};
use rally::stages::kinds::StageRegistry;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use support::{
    Answer, Ask, Golden, Layout, Notes, Places, answers, bits, exact, repository, request, row_error, small_shape,
    start_with, worst,
};

/// Stands in unless a card is asked for.
fn machines() -> Machines {
    if std::env::var("RALLY_CUDA").as_deref() == Ok("card") { Machines::Cards } else { Machines::StandIn }
}

/// The layout's graph with the devices whose names begin with one of `sides` on CUDA.
fn on_cuda(layout: &Layout, sides: &[&str]) -> DeploymentSpec {
    let mut json = layout.json();
    for (name, device) in json["devices"].as_object_mut().expect("devices by name") {
        if sides.iter().any(|side| name.starts_with(side)) {
            let device = device.as_object_mut().expect("a device is an object");
            device.insert("backend".into(), json!("cuda"));
            device.remove("cores");
        }
    }
    serde_json::from_value(json).expect("generated graphs are well formed")
}

fn run(spec: &DeploymentSpec, model: &Path, asks: &[Ask], probe: Option<Arc<Notes>>) -> Vec<Answer> {
    let shape = load_model_shape(model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(model).expect("the model's weights are there");
    let probe = probe.map(|notes| notes as _);
    let options = AssembleOptions { probe, machines: machines(), ..AssembleOptions::default() };
    answers(start_with(spec, &shape, &weights, options), asks)
}

/// The same, kernel by kernel or with captured graphs, and what the lanes did.
fn run_traced(spec: &DeploymentSpec, model: &Path, asks: &[Ask], eager: bool) -> (Vec<Answer>, RunReport) {
    let shape = load_model_shape(model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(model).expect("the model's weights are there");
    let options =
        AssembleOptions { machines: machines(), eager, spans_per_lane: 100_000, ..AssembleOptions::default() };
    let engine = start_with(spec, &shape, &weights, options);
    let mut answers = vec![Answer::default(); asks.len()];
    let requests = asks.iter().enumerate().map(|(id, ask)| request(id as u64, ask));
    let report = engine.run_to_end(requests, |event| {
        if let RunEvent::Token(token) = event {
            let answer = &mut answers[token.sample.sequence as usize];
            answer.tokens.push(token.sample.token);
            answer.logits.push(token.sample.logits.expect("logits were asked for"));
        }
    });
    (answers, report.expect("the run ends well"))
}

/// Sequences that come and go, so that steps differ in rows.
fn uneven_asks() -> Vec<Ask> {
    (0..7u32).map(|i| Ask::greedy(&vec![1 + 40 * i; 1 + 3 * i as usize], 4 + 5 * i as usize)).collect()
}

#[test]
fn a_replayed_step_has_the_bits_of_an_eager_one() {
    let model = repository("tests/golden/step3-renorm");
    let layouts = [
        (one_device(), &["a"][..]),
        (Layout { kv: "fp8_e4m3", a2f: "bf16", f2a: "fp8_e4m3", ..Layout::default() }, &["a", "f"]),
        (Layout { attention: 2, router_on_ffn: true, ..Layout::default() }, &["a", "f"]),
    ];
    for (layout, sides) in layouts {
        let spec = on_cuda(&layout, sides);
        let (eager, _) = run_traced(&spec, &model, &uneven_asks(), true);
        let (replayed, _) = run_traced(&spec, &model, &uneven_asks(), false);
        assert_eq!(bits(&replayed), bits(&eager), "{sides:?}");
        assert!(eager.iter().all(|answer| !answer.tokens.is_empty()));
    }
}

/// These kernels give a row the same bits in any chunk and company, as those of CPUs do: who shares pages has the bits of who reads.
#[test]
fn sequences_on_cuda_share_pages() {
    let folder = repository("tests/golden/step3-m");
    let shape = load_model_shape(&folder).expect("the model's configuration is in order");
    let common: Vec<u32> = (0..14).map(|i| i * 31 % 1003).collect();
    let asks: Vec<Ask> = (0..4).map(|i| Ask::greedy(&[&common[..], &[i, 7, i]].concat(), 6)).collect();
    for kv in ["f32", "bf16", "fp8_e4m3"] {
        let spec = on_cuda(&Layout { kv, page_tokens: 4, sequences: 1, ..Layout::default() }, &["a", "f"]);
        let weights = Checkpoint::open(&folder).expect("the model's weights are there");
        let options = AssembleOptions { machines: machines(), ..AssembleOptions::default() };
        let engine = start_with(&spec, &shape, &weights, options);
        engine.reuse_prefixes();
        let handle = engine.handle();
        let shared = answers(engine, &asks);
        assert_eq!(handle.prefix_queries_and_hits(), (4 * 17, 3 * 12), "{kv}");
        assert_eq!(bits(&shared), bits(&run(&spec, &folder, &asks, None)), "{kv}");
    }
}

/// A span is when the device worked: spans of a lane follow each other and add up, and rows are not received before they were sent.
#[test]
fn spans_of_cuda_lanes_are_the_devices() {
    let model = repository("tests/golden/step3-m");
    let spec = on_cuda(&Layout::default(), &["a", "f"]);
    let (_, report) = run_traced(&spec, &model, &uneven_asks(), false);
    for lane in &report.lanes {
        assert_eq!(lane.dropped_spans, 0);
        let took = |span: &Span| span.end_ns - span.start_ns;
        assert_eq!(lane.spans.iter().map(took).sum::<u64>(), lane.busy_ns, "{}", lane.name);
        assert_eq!(lane.spans.len() as u64, lane.tasks);
        let mut before_ns = 0;
        for span in &lane.spans {
            assert!(
                before_ns <= span.ready_ns.saturating_sub(span.admission_ns),
                "a gap begins behind the span before"
            );
            assert!(span.ready_ns <= span.start_ns && span.start_ns <= span.end_ns);
            before_ns = span.end_ns;
        }
        let (first, last) = (lane.spans[0].start_ns, lane.spans[lane.spans.len() - 1].end_ns);
        assert_eq!(last - first, lane.active_ns);
    }
    // To tell a device what to do takes next to nothing: these are not the lanes' own times.
    let busy: f64 = report.lanes.iter().map(LaneReport::busy_share).sum();
    assert!(busy > 0.2, "the devices worked {busy} of the time");
    // Of every step the first rows that the FFN side gets: sent first, received later. A send's end is noted behind the event that
    // lets the other side go on, and a busy machine may look elsewhere between the two: its begin is what must come before.
    let [attention, ffn] = &report.lanes[..] else { panic!("two lanes") };
    let sent = |step: u64| attention.spans.iter().filter(move |span| span.step == step && span.bytes > 0);
    for received in &ffn.spans {
        let first = sent(received.step).map(|span| span.start_ns).min().expect("something was sent in this step");
        assert!(first <= received.end_ns + 20_000, "step {}: {first} {received:?}", received.step);
    }
}

/// Rows narrowed on their way into products. Where there are no tensor cores, as where the processor stands in, they stay f32.
fn narrowed(mut spec: DeploymentSpec, compute: ComputeDtype) -> DeploymentSpec {
    spec.compute = compute;
    spec
}

/// The error of a row, its likeliest token right or not, of all rows that follow the golden folder's tokens.
fn held_against(folder: &str, compute: ComputeDtype, rows: &str, steps: usize) -> (Vec<f64>, f64) {
    let golden = Golden::open(folder);
    let spec = narrowed(on_cuda(&one_device(), &["a"]), compute);
    let (mut off, mut same, mut all) = (Vec::new(), 0, 0);
    for case in &golden.cases {
        let asks: Vec<Ask> = case.sequences.iter().map(|s| Ask::greedy(&s.prompt, steps)).collect();
        let got = run(&spec, &golden.folder, &asks, None);
        for (seq, (sequence, answer)) in case.sequences.iter().zip(&got).enumerate() {
            let errors = errors(answer, &sequence.greedy, &golden.rows(case.id, seq, rows));
            all += errors.len();
            same += errors.len().min(steps) - usize::from(answer.tokens != sequence.greedy[..steps]);
            off.extend(errors);
        }
    }
    (off, same as f64 / all as f64)
}

#[test]
fn rows_narrowed_to_fp8_are_near_the_golden_ones() {
    let stays = machines() == Machines::StandIn;
    let (rows, bound) = if stays { ("step_logits", 1e-3) } else { ("w8a8_step_logits", 0.08) };
    let (off, _) = held_against("step3-fp8", ComputeDtype::Fp8, rows, 8);
    let (count, (median, high)) = (off.len(), spread(off));
    println!("{count} rows, median {median:.4}, 90th percentile {high:.4}");
    assert!(count >= 16 && median <= bound, "{count} rows, median {median}");
}

#[test]
fn rows_narrowed_to_bf16_are_near_the_golden_ones() {
    // Where nothing is narrowed, one folder shows it.
    let folders = ["step3-renorm", "step3-s", "step3-m", "step3-fp8"];
    let count = if machines() == Machines::StandIn { 1 } else { folders.len() };
    for folder in &folders[..count] {
        let (off, same) = held_against(folder, ComputeDtype::Bf16, "step_logits", 32);
        let (median, high) = spread(off);
        assert!(median <= 0.05 && high <= 0.12, "{folder}: median {median}, 90th percentile {high}");
        assert!(same >= 0.85, "{folder}: the likeliest token is right in {same} of the rows");
    }
}

/// Products give a row the same bits whatever rows are beside it, so a split gives those of the undivided with narrowed rows too.
#[test]
fn narrowed_rows_have_the_same_bits_in_any_company() {
    let golden = Golden::open("step3-fp8");
    let case = golden.cases.iter().max_by_key(|case| case.sequences.len()).expect("there are cases");
    let asks: Vec<Ask> = case.sequences.iter().map(|s| Ask::greedy(&s.prompt, 8)).collect();
    let formats = [ComputeDtype::Fp8, ComputeDtype::Bf16];
    for compute in formats.into_iter().take(if machines() == Machines::StandIn { 1 } else { 2 }) {
        let computes = |layout: &Layout, sides: &[&str]| narrowed(on_cuda(layout, sides), compute);
        let want = run(&computes(&Layout { rounds: true, ..one_device() }, &["a"]), &golden.folder, &asks, None);
        let split = Layout { prefill_chunk: 7, page_tokens: 16, ..Layout::default() };
        let two = Layout { attention: 2, router_on_ffn: true, ..split.clone() };
        for layout in [split, two] {
            let spec = computes(&layout, &["a", "f"]);
            let got = run(&spec, &golden.folder, &asks, None);
            assert_eq!(bits(&got), bits(&want), "{compute:?} {layout:?}");
        }
    }
}

/// Heads, pages and widths that all of Hopper's kernels take together, in both formats of weights.
#[test]
fn a_model_that_runs_on_tensor_cores_alone() {
    let widths = ModelShape { hidden: 256, query_rank: 128, expert_width: 128, shared_width: 128, ..small_shape() };
    let cases = [
        // From rows that are not rounded, as far as the golden folder has those of its two kinds from each other: 0.12.
        (WeightFormat::Fp8Block, ComputeDtype::Fp8, 0.16),
        (WeightFormat::Bf16, ComputeDtype::Bf16, 0.05),
        (WeightFormat::Bf16, ComputeDtype::Fp8, 0.05),
    ];
    // The processor that stands in computes the same for all of them, and slowly.
    let (cases, lengths) = match machines() {
        Machines::StandIn => (&cases[..1], [1, 3, 20]),
        Machines::Cards => (&cases[..], [1, 64, 70]),
    };
    let prompt = |length: u32| (0..length).map(|i| i * 7 % 64).collect::<Vec<_>>();
    let asks: Vec<Ask> = lengths.map(|length| Ask::greedy(&prompt(length), 4)).into();
    for (format, compute, bound) in cases.iter().copied() {
        let shape = ModelShape { heads: 64, head_dim: 256, dense_width: 256, weight_format: format, ..widths.clone() };
        let weights = RandomWeights::new(5, format);
        for kv in ["fp8_e4m3", "bf16"].into_iter().take(if machines() == Machines::StandIn { 1 } else { 2 }) {
            let layout = Layout { kv, ..one_device() };
            let start = |spec: &DeploymentSpec, eager| {
                let options = AssembleOptions { machines: machines(), eager, ..AssembleOptions::default() };
                answers(start_with(spec, &shape, &weights, options), &asks)
            };
            let spec = narrowed(on_cuda(&layout, &["a"]), compute);
            let (want, got) = (start(&layout.spec(), true), start(&spec, false));
            let off: Vec<f64> = got.iter().zip(&want).flat_map(|(a, b)| errors(a, &b.tokens, &b.logits)).collect();
            let (count, (median, _)) = (off.len(), spread(off));
            assert!(count >= 6 && median <= bound, "{format:?} {compute:?} {kv}: {count} rows, median {median}");
            assert_eq!(bits(&start(&spec, true)), bits(&got), "{format:?} {compute:?} {kv}: replayed, and not");
        }
    }
}

fn one_device() -> Layout {
    Layout { split: false, rounds: false, micro_batches: 1, policy: "sequential", ..Layout::default() }
}

/// f32 within 1e-3 of the golden folder, greedy tokens and experts equal.
fn check(folder: &str, spec: &DeploymentSpec) {
    let golden = Golden::open(folder);
    for case in &golden.cases {
        let asks: Vec<Ask> = case.sequences.iter().map(|s| Ask::greedy(&s.prompt, s.greedy.len())).collect();
        let notes = Arc::new(Notes::default());
        let got = run(spec, &golden.folder, &asks, Some(notes.clone()));
        let (hidden, routing) = (notes.hidden.lock().expect("no panic"), notes.routing.lock().expect("no panic"));
        for (seq, (sequence, answer)) in case.sequences.iter().zip(&got).enumerate() {
            let place = format!("{folder} case {} seq {seq}", case.id);
            assert_eq!(answer.tokens, sequence.greedy, "{place}: greedy tokens");
            for (i, want) in golden.rows(case.id, seq, "step_logits").iter().enumerate() {
                let off = worst(&answer.logits[i], want);
                assert!(off <= 1e-3, "{place}: logits row {i} is off by {off}");
            }
            let last = sequence.prompt.len() - 1;
            for (layer, want) in golden.rows(case.id, seq, "hidden").iter().enumerate() {
                let off = worst(&hidden[&(seq as u64, last)][layer], want);
                assert!(off <= 1e-3, "{place}: hidden row {layer} is off by {off}");
            }
            for (layer, tokens) in golden.router_ids(case.id, seq).iter().enumerate() {
                for (position, want) in tokens.iter().enumerate() {
                    assert_eq!(&routing[&(seq as u64, position)][layer].0, want, "{place}: position {position}");
                }
            }
        }
    }
}

#[test]
fn golden_folders_on_one_device() {
    let spec = on_cuda(&one_device(), &["a"]);
    for folder in ["step3-s", "step3-m", "step3-fp8", "step3-renorm"] {
        check(folder, &spec);
    }
}

/// What only rounds the same at the same places must give the same bits, wherever it runs on CUDA.
#[test]
fn a_split_equals_the_undivided_to_the_bit() {
    let golden = Golden::open("step3-m");
    let case = golden.cases.iter().max_by_key(|case| case.sequences.len()).expect("there are cases");
    let asks: Vec<Ask> = case.sequences.iter().map(|s| Ask::greedy(&s.prompt, 8)).collect();
    for (a2f, f2a, kv) in [("f32", "f32", "f32"), ("fp8_e4m3", "bf16", "bf16"), ("bf16", "fp8_e4m3", "fp8_e4m3")] {
        let undivided = Layout { a2f, f2a, kv, rounds: true, ..one_device() };
        let split = Layout { a2f, f2a, kv, prefill_chunk: 7, page_tokens: 16, ..Layout::default() };
        let on_ffn = Layout { router_on_ffn: true, attention: 2, ..split.clone() };
        let want = run(&on_cuda(&undivided, &["a"]), &golden.folder, &asks, None);
        assert_eq!(bits(&run(&on_cuda(&split, &["a", "f"]), &golden.folder, &asks, None)), bits(&want), "{a2f} {kv}");
        if a2f == "f32" {
            let got = run(&on_cuda(&on_ffn, &["a", "f"]), &golden.folder, &asks, None);
            assert_eq!(bits(&got), bits(&want), "two attention devices, the router beside the FFN");
        }
    }
}

/// Median and 90th percentile of the errors of rows that follow the same tokens.
fn spread(mut errors: Vec<f64>) -> (f64, f64) {
    errors.sort_by(f64::total_cmp);
    (errors[errors.len() / 2], errors[errors.len() * 9 / 10])
}

/// Wires and KV that round. In bf16, rows are as near the golden folder's as its README asks; in fp8, of which it says nothing, as
/// near the CPU's, which rounds at the same places.
#[test]
fn rounded_rows_are_near_enough() {
    let golden = Golden::open("step3-fp8");
    let (mut in_bf16, mut in_fp8) = (Vec::new(), Vec::new());
    let layout = |a2f, kv| Layout { a2f, f2a: "bf16", kv, ..Layout::default() };
    let (bf16, fp8) = (layout("bf16", "bf16"), layout("fp8_e4m3", "fp8_e4m3"));
    for case in &golden.cases {
        let asks: Vec<Ask> = case.sequences.iter().map(|s| Ask::greedy(&s.prompt, 8)).collect();
        let got = run(&on_cuda(&bf16, &["a", "f"]), &golden.folder, &asks, None);
        for (seq, (sequence, answer)) in case.sequences.iter().zip(&got).enumerate() {
            let rows = golden.rows(case.id, seq, "step_logits");
            in_bf16.extend(errors(answer, &sequence.greedy, &rows));
        }
        let got = run(&on_cuda(&fp8, &["a", "f"]), &golden.folder, &asks, None);
        let want = support::run(&fp8.spec(), &golden.folder, &asks, None);
        in_fp8.extend(got.iter().zip(&want).flat_map(|(got, want)| errors(got, &want.tokens, &want.logits)));
    }
    let ((median, high), (fp8_median, fp8_high)) = (spread(in_bf16), spread(in_fp8));
    assert!(median <= 0.05 && high <= 0.12, "bf16: median {median}, 90th percentile {high}");
    assert!(fp8_median <= 1e-3 && fp8_high <= 0.12, "fp8: median {fp8_median}, 90th percentile {fp8_high}");
}

/// Errors of the rows that follow `tokens`.
fn errors(answer: &Answer, tokens: &[u32], rows: &[Vec<f32>]) -> Vec<f64> {
    let same = answer.tokens.iter().zip(tokens).take_while(|(got, want)| got == want).count();
    answer.logits.iter().zip(rows).take(same + 1).map(|(got, want)| row_error(got, want)).collect()
}

#[test]
fn devices_of_both_backends_work_together() {
    for sides in [&["a"][..], &["f"]] {
        check("step3-renorm", &on_cuda(&Layout::default(), sides));
    }
    let experts = Places { a: vec![2], f: vec![1, 1], expert: [2, 1, 1], dense: [1, 2], ..Places::default() };
    let rails = Places { a: vec![2], f: vec![2, 2], expert: [2, 2, 1], dense: [2, 2], rail: true, ..Places::default() };
    for (places, sides) in [(experts.clone(), &["a", "f"][..]), (experts, &["a", "f1"]), (rails, &["a0", "f0"])] {
        check("step3-renorm", &on_cuda(&Layout { places: Some(places), ..Layout::default() }, sides));
    }
}

/// A split output projection sums its parts in order of the slices, whatever device a sequence is on and whatever rows come together.
#[test]
fn an_output_projection_is_split_over_cuda_devices() {
    let split = |slices: usize| Places {
        a: vec![slices],
        f: vec![1],
        expert: [1, 1, 1],
        dense: [1, 1],
        o_proj: slices,
        ..Places::default()
    };
    let layout = |slices| Layout { places: Some(split(slices)), ..Layout::default() };
    check("step3-renorm", &on_cuda(&layout(2), &["a", "f"]));
    check("step3-renorm", &on_cuda(&layout(2), &["a"]));
    let golden = Golden::open("step3-fp8");
    let case = golden.cases.iter().max_by_key(|case| case.sequences.len()).expect("there are cases");
    let asks: Vec<Ask> = case.sequences.iter().map(|s| Ask::greedy(&s.prompt, 8)).collect();
    for compute in [ComputeDtype::F32, ComputeDtype::Fp8] {
        let of = |layout: Layout| run(&narrowed(on_cuda(&layout, &["a", "f"]), compute), &golden.folder, &asks, None);
        let want = of(layout(4));
        let other = Layout { micro_batches: 2, prefill_chunk: 5, page_tokens: 16, ..layout(4) };
        assert_eq!(bits(&of(other)), bits(&want), "{compute:?}");
    }
}

/// The tiny trained model writes on CUDA what it writes on the CPU.
#[test]
fn the_tiny_model_writes_the_same_text() {
    let (model, layout) = (repository("models/tiny-step3"), Layout::default());
    let asks = [Ask::greedy(&[1, 300, 17, 255], 24), Ask::greedy(&[1, 40, 41, 42, 43, 44, 45], 24)];
    let tokens = |answers: Vec<Answer>| answers.into_iter().map(|answer| answer.tokens).collect::<Vec<_>>();
    let want = tokens(support::run(&layout.spec(), &model, &asks, None));
    assert_eq!(tokens(run(&on_cuda(&layout, &["a", "f"]), &model, &asks, None)), want);
    assert_eq!(tokens(run(&exact(on_cuda(&one_device(), &["a"])), &model, &asks, None)), want);
}

/// Drawn with the same numbers, whatever filters: tokens, and log probabilities where they were asked for, are the CPU's.
#[test]
fn drawn_tokens_are_the_cpus() {
    let (model, layout) = (repository("models/tiny-step3"), Layout::default());
    let drawn = |seed: u64, temperature: f32, top_k: u32, top_p: f32, logprobs: Option<u32>| Ask {
        sampling: SamplingParams { temperature, top_k, top_p, min_p: 0.001, seed },
        logprobs,
        ..Ask::greedy(&[1, 300, 17 + seed as u32, 255], 20)
    };
    let asks = [
        drawn(1, 0.7, 0, 1.0, Some(5)),
        drawn(2, 1.0, 50, 1.0, None),
        drawn(3, 1.3, 0, 0.9, Some(0)),
        drawn(4, 0.9, 200, 0.8, Some(20)),
        drawn(5, 1.0, 0, 1.0, Some(30)),
        Ask { logprobs: Some(3), ..Ask::greedy(&[1, 300, 17, 255], 20) },
    ];
    let want = support::run(&layout.spec(), &model, &asks, None);
    let got = run(&on_cuda(&layout, &["a", "f"]), &model, &asks, None);
    for (asked, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got.tokens, want.tokens, "request {asked}");
        assert_eq!(got.logprobs.len(), want.logprobs.len(), "request {asked}");
        for ((odds, likely), (want_odds, want_likely)) in got.logprobs.iter().zip(&want.logprobs) {
            assert!((odds - want_odds).abs() < 1e-3, "request {asked}: {odds} for {want_odds}");
            assert_eq!(likely.len(), want_likely.len(), "request {asked}");
            let off = likely.iter().zip(want_likely).map(|((_, got), (_, want))| (got - want).abs());
            assert!(off.fold(0.0, f32::max) < 1e-3, "request {asked}: {likely:?} for {want_likely:?}");
        }
    }
    assert_ne!(got[0].tokens, got[5].tokens, "drawn tokens are not the likeliest");
}

/// Heads and pages as the fast attention of a card takes them, KV that rounds, ragged sequences, chunks of prompts (which begin within
/// pages, cross their ends, and have one row left) and decoding side by side: the rows are those of the CPU, and of the plain kernels;
/// on a card A and F apart have the bits of both on one device, and captured kernels those of kernels one by one.
#[test]
fn ragged_sequences_with_heads_of_step3() {
    let shape = ModelShape { heads: 64, head_dim: 256, query_rank: 64, ..small_shape() };
    let weights = RandomWeights::new(5, shape.weight_format);
    let lengths = [1, 2, 64, 70];
    let prompt = |length: u32| (0..length).map(|i| (i * 7 + length) % 64).collect::<Vec<_>>();
    let asks: Vec<Ask> = lengths.iter().map(|length| Ask::greedy(&prompt(*length), 4)).collect();
    for kv in ["bf16", "fp8_e4m3"] {
        let layout = Layout { kv, prefill_chunk: 33, ..one_device() };
        let run = |spec: &DeploymentSpec, machines, eager| {
            let options = AssembleOptions { machines, eager, ..AssembleOptions::default() };
            answers(start_with(spec, &shape, &weights, options), &asks)
        };
        let want = run(&layout.spec(), machines(), false);
        let spec = on_cuda(&layout, &["a"]);
        let apart = on_cuda(&Layout { split: true, ..layout }, &["a", "f"]);
        let all = [Machines::StandIn, Machines::Cards];
        for machines in all.into_iter().filter(|kind| [Machines::StandIn, machines()].contains(kind)) {
            let got = run(&spec, machines, false);
            let errors: Vec<f64> = got.iter().zip(&want).flat_map(|(a, b)| errors(a, &b.tokens, &b.logits)).collect();
            let count = errors.len();
            let (median, high) = spread(errors);
            // q, probabilities and the result of the fast attention are in bf16; KV is rounded from sums of another order.
            assert!(count >= 10 && median <= 0.01 && high <= 0.05, "{kv} {machines:?}: {count} rows, {median}, {high}");
            if machines == Machines::Cards {
                assert_eq!(bits(&run(&spec, machines, true)), bits(&got), "{kv}: kernel by kernel");
                assert_eq!(bits(&run(&apart, machines, false)), bits(&got), "{kv}: A and F apart");
            }
        }
    }
}

/// Whoever computes a row of an expert that several devices hold, its home sums the same terms in the same order.
#[test]
fn experts_with_copies_give_the_bits_of_experts_without() {
    let places = |lists: Option<[&[u32]; 2]>| Places {
        placement: lists.map(|lists| lists.map(<[u32]>::to_vec).to_vec()),
        ..Places { a: vec![2], f: vec![2], expert: [2, 1, 1], dense: [1, 2], ..Places::default() }
    };
    let on = |places, layout: Layout| on_cuda(&Layout { places: Some(places), ..layout }, &["a", "f"]);
    let copied = || places(Some([&[0, 1, 2, 3, 5], &[3, 4, 5, 0]]));
    check("step3-renorm", &on(copied(), Layout::default()));
    let model = repository("tests/golden/step3-renorm");
    let asks = uneven_asks();
    let want = bits(&run(&on(places(None), Layout::default()), &model, &asks, None));
    let others = [
        Layout::default(),
        Layout { micro_batches: 1, policy: "sequential", prefill_chunk: 5, page_tokens: 16, ..Layout::default() },
    ];
    for layout in others {
        assert!(bits(&run(&on(copied(), layout.clone()), &model, &asks, None)) == want, "{layout:?}");
    }
    // Rows are narrowed where there are tensor cores.
    let fp8 = repository("tests/golden/step3-fp8");
    let of_fp8 = |lists| run(&narrowed(on(places(lists), Layout::default()), ComputeDtype::Fp8), &fp8, &asks, None);
    assert!(bits(&of_fp8(Some([&[0, 1, 3], &[1, 2, 3, 0]]))) == bits(&of_fp8(None)), "narrowed");
    let (want, _) = run_traced(&on(places(None), Layout::default()), &model, &asks, true);
    for eager in [true, false] {
        let (got, _) = run_traced(&on(copied(), Layout::default()), &model, &asks, eager);
        assert!(bits(&got) == bits(&want), "eager: {eager}");
    }
}

#[test]
fn what_cuda_devices_do_not_run_is_refused_with_a_remedy() {
    let copies = Places {
        placement: Some(vec![vec![0, 1, 2, 3], vec![3, 4, 5]]),
        ..Places { a: vec![1], f: vec![1, 1], expert: [2, 1, 1], dense: [1, 2], ..Places::default() }
    };
    let spec = on_cuda(&Layout { places: Some(copies), ..Layout::default() }, &["a", "f0"]);
    let model = repository("tests/golden/step3-renorm");
    let shape = load_model_shape(&model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(&model).expect("the model's weights are there");
    let schedule = Schedule::from_spec(&spec.schedule).expect("the policy runs");
    let graph = StageGraph::build(&spec, &shape, KindRegistry::shared()).expect("the graph unrolls");
    let options = AssembleOptions { machines: machines(), ..AssembleOptions::default() };
    let refused = assemble(&spec, graph, &shape, &weights, &schedule, &StageRegistry::builtin(), options).err();
    let message = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("each other's rows on CPU and CUDA devices at once"), "{message}");
}

/// A and F on parts of one card: the tokens and logits of whole cards, to the bit; and more than there is, refused by name.
#[test]
fn devices_with_shares_of_a_card_decode_as_with_all_of_it() {
    let model = repository("tests/golden/step3-renorm");
    let places = Places { a: vec![1], f: vec![1, 1], expert: [2, 1, 1], dense: [1, 2], ..Places::default() };
    let whole = on_cuda(&Layout { places: Some(places), ..Layout::default() }, &["a", "f"]);
    let asks = uneven_asks();
    let want = run(&whole, &model, &asks, None);
    let mut shared = whole;
    for (device, sms) in shared.devices.values_mut().zip([48, 40, 32]) {
        (device.card, device.sms) = (Some(0), Some(sms));
    }
    assert_eq!(bits(&run(&shared, &model, &asks, None)), bits(&want));
    shared.devices.values_mut().for_each(|device| device.sms = Some(128));
    let shape = load_model_shape(&model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(&model).expect("the model's weights are there");
    let schedule = Schedule::from_spec(&shared.schedule).expect("the policy runs");
    let graph = StageGraph::build(&shared, &shape, KindRegistry::shared()).expect("the graph unrolls");
    let options = AssembleOptions { machines: machines(), ..AssembleOptions::default() };
    let refused = assemble(&shared, graph, &shape, &weights, &schedule, &StageRegistry::builtin(), options).err();
    let message = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("128 multiprocessors") && message.contains("which has 132"), "{message}");
}

/// The whole way, through the binary: the text is the CPU's, and the digest says what it was run on.
#[test]
fn the_digest_names_the_device() {
    let rally = |graph: &str| {
        let arguments = ["run", graph, "--exact", "--prompt", "Once upon a time", "--max-tokens", "8"];
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rally"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
        if machines() == Machines::StandIn {
            command.env("RALLY_CUDA", "stand-in");
        }
        let output = command.output().expect("the binary starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (cuda, cpu) = (rally("graphs/1a1f-cuda.json"), rally("graphs/tiny-ping-pong.json"));
    assert_eq!(cuda.0, cpu.0);
    assert!(cuda.1.contains("CUDA device") && !cuda.1.contains("CPU cores,"), "{}", cuda.1);
    assert!(cpu.1.contains("CPU cores") && !cpu.1.contains("CUDA"), "{}", cpu.1);
}
