//! Prefix reuse on a real model: requests that begin alike share KV pages, on any layout, under every policy, with any format of KV,
//! whoever is preempted or cancelled; and tokens and logits are to the bit those of each request alone, which reads all of its prompt.
//! Every page comes back, and what is cached is in nobody's way.

mod support;

use proptest::prelude::*;
use rally::engine::stage::Probe;
use rally::engine::{Engine, RunEvent};
use rally::stages::checkpoint::Checkpoint;
use rally::stages::config::load_model_shape;
use rally::stages::deployment::AssembleOptions;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Answer, Ask, Layout, Places, Preempter, bits, config, layouts, repository, request, run, start_with};

/// A request, and after how many of its tokens it is cancelled.
#[derive(Clone, Debug)]
struct Visit {
    ask: Ask,
    cancel_after: Option<usize>,
}

impl Visit {
    fn whole(ask: Ask) -> Self {
        Self { ask, cancel_after: None }
    }
}

fn engine(layout: &Layout, folder: &str, probe: Option<Arc<dyn Probe>>, learn: bool) -> Engine {
    let model = repository("tests/golden").join(folder);
    let shape = load_model_shape(&model).expect("the model's configuration is in order");
    let weights = Checkpoint::open(&model).expect("the model's weights are there");
    let options = AssembleOptions { learn, probe, ..AssembleOptions::default() };
    start_with(&layout.spec(), &shape, &weights, options)
}

/// Answers, and how many tokens of each prompt were cached. `ahead`: how many are under way at least.
fn visit(engine: &Engine, visits: &[Visit], ahead: usize) -> (Vec<Answer>, Vec<usize>) {
    let (mut answers, mut cached) = (vec![Answer::default(); visits.len()], vec![0; visits.len()]);
    let deadline = Instant::now() + Duration::from_secs(60);
    let (mut submitted, mut done) = (0, 0);
    while done < visits.len() {
        while submitted < visits.len() && submitted < ahead + 2 * done {
            engine.submit([request(submitted as u64, &visits[submitted].ask)]).expect("each fits alone");
            submitted += 1;
        }
        match engine.events().recv_deadline(deadline).expect("no hang") {
            RunEvent::Admitted(id, _, cached_tokens) => cached[id as usize] = cached_tokens,
            RunEvent::Token(report) => {
                let id = report.sample.sequence as usize;
                answers[id].tokens.push(report.sample.token);
                answers[id].logits.push(report.sample.logits.expect("logits were asked for"));
                if visits[id].cancel_after == Some(answers[id].tokens.len()) {
                    engine.handle().cancel(id as u64);
                }
            }
            RunEvent::Finished(id, reason, _) => {
                answers[id as usize].finish = Some(reason);
                done += 1;
            }
            RunEvent::Failed(error) => panic!("{error}"),
        }
    }
    (answers, cached)
}

/// Closes a run that everything has been answered in, and counts its pages.
fn end(engine: Engine, all_pages: usize) {
    let handle = engine.handle();
    engine.close();
    engine.join();
    assert_eq!(handle.free_pages(), all_pages, "every page is back");
    assert!(handle.cached_pages() <= all_pages);
}

/// What must change no bit, at its plainest: the sharding and the wires stay, and one sequence reads its whole prompt.
fn alone(layout: &Layout, folder: &str, ask: &Ask) -> Answer {
    let places = layout.places.as_ref().map(Places::plainest);
    let wires = Layout { a2f: layout.a2f, f2a: layout.f2a, kv: layout.kv, ..Layout::default() };
    let plain = Layout { places, router_on_ffn: layout.router_on_ffn, policy: "sequential", micro_batches: 1, ..wires };
    run(&plain.spec(), &repository("tests/golden").join(folder), std::slice::from_ref(ask), None).remove(0)
}

/// Of two families, as long as each has in common, and up to five tokens of their own. The longest keeps 35 tokens.
fn visits(vocab: u32) -> impl Strategy<Value = Vec<Visit>> {
    let family = move || prop::collection::vec(0..vocab, 20);
    (family(), family()).prop_flat_map(move |families| {
        let own = prop::collection::vec(0..vocab, 0..5);
        let visit = (any::<bool>(), 1usize..21, own, 1usize..12, any::<u64>(), prop::option::weighted(0.2, 1usize..8));
        let visit = visit.prop_map(move |(first, common, own, tokens, seed, cancel_after)| {
            let family = if first { &families.0 } else { &families.1 };
            let mut ask = Ask::greedy(&[&family[..common], &own].concat(), tokens);
            ask.sampling.temperature = if seed.is_multiple_of(2) { 0.0 } else { 0.9 };
            ask.sampling.seed = seed;
            Visit { ask, cancel_after }
        });
        prop::collection::vec(visit, 2..12)
    })
}

fn dtypes() -> impl Strategy<Value = [&'static str; 3]> {
    let dtype = || prop::sample::select(vec!["f32", "bf16", "fp8_e4m3"]);
    prop_oneof![Just(["f32"; 3]), (dtype(), dtype(), dtype()).prop_map(|(a2f, f2a, kv)| [a2f, f2a, kv])]
}

proptest! {
    #![proptest_config(config(60, 11))]

    #[test]
    fn what_is_shared_changes_no_bit(
        layout in layouts(8, 36..90), [a2f, f2a, kv] in dtypes(), visits in visits(512), one_in in 2u64..60, seed: u64,
        ahead in 1usize..6, learn: bool,
    ) {
        let layout = Layout { a2f, f2a, kv, ..layout };
        let preempter = Arc::new(Preempter { one_in, seed, ..Preempter::default() });
        let engine = engine(&layout, "step3-s", Some(Arc::clone(&preempter) as Arc<dyn Probe>), learn);
        engine.reuse_prefixes();
        preempter.handle.set(engine.handle()).ok().expect("set once");
        let all_pages = engine.handle().free_pages();
        let (got, _) = visit(&engine, &visits, ahead);
        end(engine, all_pages);
        for (visit, got) in visits.iter().zip(got) {
            let want = alone(&layout, "step3-s", &visit.ask);
            let (want, got) = (bits(&[want]).remove(0), bits(&[got]).remove(0));
            if visit.cancel_after.is_some_and(|after| after < want.0.len()) {
                // It may get further before it is cancelled, but no other way.
                prop_assert_eq!(&got.0[..], &want.0[..got.0.len()]);
                prop_assert_eq!(&got.1[..], &want.1[..got.1.len()]);
            } else {
                prop_assert_eq!((got.0, got.1), (want.0, want.1));
            }
        }
    }
}

/// Each turn begins with all that was said before it, and reads only what is new: prompts and answers alike.
#[test]
fn a_conversation_reads_only_what_is_new() {
    for kv in ["f32", "bf16", "fp8_e4m3"] {
        let layout = Layout { kv, page_tokens: 4, ..Layout::default() };
        let engine = engine(&layout, "step3-s", None, false);
        engine.reuse_prefixes();
        let handle = engine.handle();
        let all_pages = handle.free_pages();
        let mut said: Vec<u32> = (0..18).map(|n| n * 7 % 512).collect();
        let (mut queries, mut hits) = (0, 0);
        for turn in 0..4 {
            let ask = Ask::greedy(&said, 9);
            engine.submit([request(turn, &ask)]).expect("it fits");
            let (mut answer, mut cached) = (Answer::default(), None);
            while answer.finish.is_none() {
                match engine.events().recv_timeout(Duration::from_secs(60)).expect("no hang") {
                    RunEvent::Admitted(_, _, cached_tokens) => cached = Some(cached_tokens),
                    RunEvent::Token(report) => {
                        answer.tokens.push(report.sample.token);
                        answer.logits.push(report.sample.logits.expect("logits were asked for"));
                    }
                    RunEvent::Finished(_, reason, _) => answer.finish = Some(reason),
                    RunEvent::Failed(error) => panic!("{error}"),
                }
            }
            // All that the turn before had stored, in whole pages: its last token was never fed back, and three are new.
            let stored = if turn == 0 { 0 } else { said.len() - 3 - 1 };
            assert_eq!(cached, Some(stored / 4 * 4), "{kv}, turn {turn}");
            assert_eq!(bits(&[answer.clone()]), bits(&[alone(&layout, "step3-s", &ask)]), "{kv}, turn {turn}");
            (queries, hits) = (queries + said.len() as u64, hits + (stored / 4 * 4) as u64);
            assert_eq!(handle.prefix_queries_and_hits(), (queries, hits));
            said.extend(&answer.tokens);
            said.extend([1, 2, 3]);
        }
        end(engine, all_pages);
    }
}

/// Eight that ask the same, one after the other and together: the last token of the prompt is read by each.
#[test]
fn the_same_prompt_again_reads_its_last_page() {
    let prompt: Vec<u32> = (0..16).collect();
    let layout = Layout { page_tokens: 4, kv: "fp8_e4m3", ..Layout::default() };
    let want = alone(&layout, "step3-s", &Ask::greedy(&prompt, 12));
    let engine = engine(&layout, "step3-s", None, false);
    engine.reuse_prefixes();
    let all_pages = engine.handle().free_pages();
    let first = Visit::whole(Ask::greedy(&prompt, 12));
    let (answers, cached) = visit(&engine, &vec![first; 8], 1);
    assert_eq!(cached[0], 0);
    assert_eq!(cached[1..], [12; 7], "four pages are there, and the last token is read with its page");
    assert_eq!(bits(&answers), bits(&vec![want; 8]));
    end(engine, all_pages);
}

/// Room for one long sequence: what is cached makes way for whoever brings another prompt, and is found as far as it is left.
#[test]
fn cached_pages_make_way() {
    let layout = Layout { page_tokens: 4, kv_tokens: 40, sequences: 2, ..Layout::default() };
    let engine = engine(&layout, "step3-s", None, false);
    engine.reuse_prefixes();
    let all_pages = engine.handle().free_pages();
    let prompts = [0u32, 1, 0, 1, 0].map(|of| (0..30).map(|n| (of * 100 + n * 3) % 512).collect::<Vec<u32>>());
    let visits: Vec<Visit> = prompts.iter().map(|prompt| Visit::whole(Ask::greedy(prompt, 10))).collect();
    let (answers, _) = visit(&engine, &visits, 1);
    for (visit, answer) in visits.iter().zip(&answers) {
        assert_eq!(bits(std::slice::from_ref(answer)), bits(&[alone(&layout, "step3-s", &visit.ask)]));
    }
    assert_eq!(engine.handle().cached_pages(), 9, "39 tokens were stored last, and all pages were needed");
    end(engine, all_pages);
}
