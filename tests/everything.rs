//! Everything at once: any layout, policy and routing, requests that arrive in any order from another thread while others run, and
//! sequences preempted at random. Tokens and logits are to the bit those of each request alone on the plainest layout with the
//! same sharding and the same wires, and every page comes back.

mod support;

use proptest::prelude::*;
use rally::engine::stage::Probe;
use rally::engine::{Engine, RunEvent};
use rally::stages::checkpoint::Checkpoint;
use rally::stages::config::load_model_shape;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::{Answer, Ask, Layout, Places, Preempter, bits, config, layouts, repository, request, run, start};

/// When a request comes: once so many tokens have been told, or all before it are answered.
#[derive(Clone, Debug)]
struct Arrival {
    ask: Ask,
    tokens_told: usize,
}

/// The longest sequence keeps 35 tokens.
fn arrivals(vocab: u32) -> impl Strategy<Value = Vec<Arrival>> {
    let ask = (prop::collection::vec(0..vocab, 1..25), 1usize..12, any::<bool>(), any::<u64>(), 0usize..60);
    let arrival = ask.prop_map(|(prompt, tokens, greedy, seed, tokens_told)| {
        let mut ask = Ask::greedy(&prompt, tokens);
        ask.sampling.temperature = if greedy { 0.0 } else { 0.9 };
        ask.sampling.seed = seed;
        Arrival { ask, tokens_told }
    });
    prop::collection::vec(arrival, 1..10)
}

fn dtypes() -> impl Strategy<Value = [&'static str; 3]> {
    let dtype = || prop::sample::select(vec!["f32", "bf16", "fp8_e4m3"]);
    prop_oneof![Just(["f32"; 3]), (dtype(), dtype(), dtype()).prop_map(|(a2f, f2a, kv)| [a2f, f2a, kv])]
}

/// What the other threads of a run see of it.
#[derive(Default)]
struct Progress {
    told: AtomicUsize,
    answered: AtomicUsize,
}

/// Submits from a thread of its own.
fn submit(engine: &Engine, arrivals: &[Arrival], progress: &Progress) {
    for (id, Arrival { ask, tokens_told }) in arrivals.iter().enumerate() {
        let is_due =
            || progress.told.load(Ordering::Acquire) >= *tokens_told || progress.answered.load(Ordering::Acquire) == id;
        while !is_due() {
            std::thread::yield_now();
        }
        engine.handle().submit(request(id as u64, ask)).expect("each fits alone");
    }
}

fn listen(engine: &Engine, count: usize, progress: &Progress) -> Vec<Answer> {
    let mut answers = vec![Answer::default(); count];
    let deadline = Instant::now() + Duration::from_secs(60);
    while answers.iter().any(|answer| answer.finish.is_none()) {
        match engine.events().recv_deadline(deadline).expect("no hang") {
            RunEvent::Admitted(..) => {}
            RunEvent::Token(report) => {
                let answer = &mut answers[report.sample.sequence as usize];
                assert_eq!(report.index as usize, answer.tokens.len(), "each token is told once, in order");
                answer.tokens.push(report.sample.token);
                answer.logits.push(report.sample.logits.expect("logits were asked for"));
                progress.told.fetch_add(1, Ordering::Release);
            }
            RunEvent::Finished(id, reason, _) => {
                answers[id as usize].finish = Some(reason);
                progress.answered.fetch_add(1, Ordering::Release);
            }
            RunEvent::Failed(error) => panic!("{error}"),
        }
    }
    answers
}

/// All of it together.
fn busy(layout: &Layout, folder: &str, arrivals: &[Arrival], one_in: u64, seed: u64) -> Vec<Answer> {
    let model = repository("tests/golden").join(folder);
    let shape = load_model_shape(&model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(&model).expect("the model's weights are there");
    let preempter = Arc::new(Preempter { one_in, seed, ..Preempter::default() });
    let engine = start(&layout.spec(), &shape, &weights, Some(Arc::clone(&preempter) as Arc<dyn Probe>));
    let handle = engine.handle();
    preempter.handle.set(handle.clone()).ok().expect("set once");
    let all_pages = handle.free_pages();
    let progress = Progress::default();
    let answers = std::thread::scope(|scope| {
        scope.spawn(|| submit(&engine, arrivals, &progress));
        listen(&engine, arrivals.len(), &progress)
    });
    engine.close();
    engine.join();
    assert_eq!(handle.free_pages(), all_pages, "every page is back");
    answers
}

/// What must change no bit, at its plainest: the sharding and the wires stay, one attention device broadcasts one sequence.
fn plainest(layout: &Layout) -> Layout {
    let places = layout.places.as_ref().map(Places::plainest);
    // Room for the longest alone: memory that nothing is kept in costs time as well.
    let kv_tokens = 64 * places.as_ref().map_or(1, |places| places.a.iter().sum());
    let wires = Layout { a2f: layout.a2f, f2a: layout.f2a, kv: layout.kv, kv_tokens, ..Layout::default() };
    Layout { places, router_on_ffn: layout.router_on_ffn, policy: "sequential", micro_batches: 1, ..wires }
}

fn alone(layout: &Layout, folder: &str, arrivals: &[Arrival]) -> Vec<Answer> {
    let model = repository("tests/golden").join(folder);
    let asks = arrivals.iter().map(|arrival| &arrival.ask);
    asks.map(|ask| run(&layout.spec(), &model, std::slice::from_ref(ask), None).remove(0)).collect()
}

proptest! {
    #![proptest_config(config(60, 5))]

    #[test]
    fn everything_at_once_agrees_to_the_bit(
        layout in layouts(8, 36..80), [a2f, f2a, kv] in dtypes(), arrivals in arrivals(512), one_in in 2u64..60, seed: u64,
    ) {
        let layout = Layout { a2f, f2a, kv, ..layout };
        let got = busy(&layout, "step3-s", &arrivals, one_in, seed);
        prop_assert_eq!(bits(&got), bits(&alone(&plainest(&layout), "step3-s", &arrivals)));
    }
}
