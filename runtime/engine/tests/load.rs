//! Ten thousand requests on real lanes with too few pages: random lengths, stop tokens, cancellations, preemptions for want of pages
//! and on demand. All are answered, with the tokens they would have alone, and every page comes back.

mod toy;

use rally_engine::schedule::batch::{DeviceBatch, SequenceRequest};
use rally_engine::schedule::planner::FinishReason;
use rally_engine::stage::Probe;
use rally_engine::values::Values;
use rally_engine::{Engine, EngineParts, RunEvent, SubmitHandle};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use toy::{Setup, policy, reference, request};

/// Numbers that look random and are the same every time (a linear congruential generator's upper bits).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A request, and its answer if nobody cancels it.
struct Case {
    request: SequenceRequest,
    want: (Vec<u32>, FinishReason),
}

impl Case {
    fn random(id: u64, numbers: &mut Numbers) -> Self {
        let prompt: Vec<u32> = (0..1 + numbers.below(30)).map(|_| numbers.below(900) as u32).collect();
        let most = 1 + if numbers.below(4) == 0 { numbers.below(200) } else { numbers.below(30) } as usize;
        let mut asked = request(id, prompt.clone(), most);
        let mut want = (reference(&prompt, most), FinishReason::Length);
        if numbers.below(3) == 0 {
            let stop = want.0[numbers.below(most as u64) as usize];
            asked.stop_token_ids = Arc::from([stop]);
            let first = want.0.iter().position(|token| *token == stop).expect("it is one of them");
            want = (want.0[..=first].to_vec(), FinishReason::Stop);
        }
        Self { request: asked, want }
    }
}

/// Requests in the queue or running, as the one who asks knows it.
const OPEN: usize = 60;

/// Cancels and preempts sequences whose rows are in flight, from a lane in the middle of their step.
#[derive(Default)]
struct Meddler {
    seed: u64,
    handle: OnceLock<SubmitHandle>,
    steps: AtomicU64,
    cancelled: Mutex<BTreeSet<u64>>,
}

impl Meddler {
    fn cancel(&self, id: u64) {
        self.cancelled.lock().expect("no panic").insert(id);
        self.handle.get().expect("it is set before anything is submitted").cancel(id);
    }

    fn has_cancelled(&self, id: u64) -> bool {
        self.cancelled.lock().expect("no panic").contains(&id)
    }
}

impl Probe for Meddler {
    fn after(&self, stage: &str, layer: Option<usize>, batch: &DeviceBatch, _values: &Values) {
        if (stage, layer) != ("combine", Some(1)) || batch.groups.is_empty() {
            return;
        }
        let step = self.steps.fetch_add(1, Ordering::Relaxed);
        let mut numbers = Numbers(self.seed + step);
        numbers.below(1);
        let (chance, group) = (numbers.below(64), numbers.below(batch.groups.len() as u64));
        let id = batch.groups[group as usize].sequence;
        match chance {
            0 => self.cancel(id),
            1..4 => _ = self.handle.get().expect("it is set before anything is submitted").preempt(id),
            _ => {}
        }
    }
}

/// One run, seen from outside.
struct Service<'a> {
    cases: &'a [Case],
    tokens: BTreeMap<u64, Vec<u32>>,
    meddler: &'a Meddler,
    /// By reason: stop, length, cancelled before and after the first token.
    ends: [usize; 4],
}

impl Service<'_> {
    fn take(&mut self, event: RunEvent) {
        match event {
            RunEvent::Admitted(..) => {}
            RunEvent::Token(report) => {
                let list = self.tokens.entry(report.sample.sequence).or_default();
                assert_eq!(report.index as usize, list.len(), "each token is told once, in order");
                list.push(report.sample.token);
            }
            RunEvent::Finished(id, reason, _) => {
                let (tokens, want) = (self.tokens.remove(&id).unwrap_or_default(), &self.cases[id as usize].want);
                if reason == FinishReason::Cancelled {
                    assert!(self.meddler.has_cancelled(id), "nobody cancelled {id}");
                    assert!(want.0.starts_with(&tokens), "{id}");
                    self.ends[2 + usize::from(!tokens.is_empty())] += 1;
                } else {
                    assert_eq!((&tokens, reason), (&want.0, want.1), "{id}");
                    self.ends[usize::from(reason == FinishReason::Length)] += 1;
                }
            }
            RunEvent::Failed(error) => panic!("{error}"),
        }
    }

    fn answered(&self) -> usize {
        self.ends.iter().sum()
    }
}

/// Feeds `cases`, cancels and preempts at random, and checks every answer. Returns preemptions and ends.
fn serve(setup: &Setup, cases: &[Case], numbers: &mut Numbers) -> (u64, [usize; 4]) {
    let meddler = Arc::new(Meddler { seed: numbers.below(1 << 30), ..Meddler::default() });
    let parts = EngineParts { probe: Some(Arc::clone(&meddler) as Arc<dyn Probe>), ..setup.parts() };
    let engine = Engine::start(parts).expect("threads can be had");
    let handle = engine.handle();
    meddler.handle.set(handle.clone()).ok().expect("set once");
    let all_pages = handle.free_pages();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut service = Service { cases, tokens: BTreeMap::new(), meddler: &meddler, ends: [0; 4] };
    let mut submitted = 0;
    while service.answered() < cases.len() {
        while submitted < cases.len() && submitted - service.answered() < OPEN {
            handle.submit(cases[submitted].request.clone()).expect("every request fits alone");
            submitted += 1;
        }
        let anybody = (submitted as u64).saturating_sub(1 + numbers.below(OPEN as u64));
        if numbers.below(100) == 0 {
            meddler.cancel(anybody);
        }
        service.take(engine.events().recv_deadline(deadline).expect("no hang"));
    }
    assert!(service.tokens.is_empty(), "a token after the end of its sequence");
    let preemptions = handle.preemptions();
    engine.close();
    engine.join();
    assert_eq!(handle.free_pages(), all_pages);
    assert_eq!(handle.running_and_waiting(), (0, 0));
    (preemptions, service.ends)
}

#[test]
fn ten_thousand_requests_are_answered_as_alone() {
    // The longest sequence needs 29 pages of 8.
    let layouts = [(1, false, false, 1, 29), (1, true, true, 3, 34), (2, true, true, 3, 29), (3, true, true, 2, 29)];
    for (layout, (attention, split, ping_pong, micro_batches, pages)) in layouts.into_iter().enumerate() {
        let mut numbers = Numbers(layout as u64 + 1);
        let cases: Vec<Case> = (0..2500).map(|id| Case::random(id, &mut numbers)).collect();
        let setup =
            Setup { attention, split, pages, prefill_chunk: 8, ..Setup::simple(policy(ping_pong), micro_batches) };
        let began = Instant::now();
        let (preemptions, [stopped, length, early, late]) = serve(&setup, &cases, &mut numbers);
        println!(
            "{attention} attention devices, {micro_batches} micro-batches: {stopped} stopped, {length} at their length, \
             {early} + {late} cancelled before + after the first token, {preemptions} preemptions, {:.2?}",
            began.elapsed()
        );
        assert!(stopped > 250 && length > 250 && early > 50 && late > 50 && preemptions > 100);
    }
}
