//! Lanes, slots and planner with toy stages: small integers instead of a model, so that every fault shows as a wrong token.

mod toy;

use proptest::prelude::*;
use rally_engine::schedule::batch::SequenceRequest;
use rally_engine::schedule::planner::{FinishReason, SubmitError};
use rally_engine::schedule::policy::{PingPong, Policy, Sequential};
use rally_engine::stage::StageError;
use rally_engine::{Engine, EngineError, RunEvent};
use rally_graph::plan::{TaskTable, Turn};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use toy::{Misdeed, Setup, Toy, policy, reference, request};

/// Tokens and finish reasons by sequence, or the failure. Nothing here may take long: a hang is a failed test.
fn run(setup: &Setup, requests: Vec<SequenceRequest>) -> Result<BTreeMap<u64, (Vec<u32>, FinishReason)>, EngineError> {
    let engine = Engine::start(setup.parts()).expect("threads can be had");
    let mut open = requests.len();
    engine.submit(requests).expect("the requests fit");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut tokens: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let mut done = BTreeMap::new();
    while open > 0 {
        match engine.events().recv_deadline(deadline).expect("no hang") {
            RunEvent::Admitted(..) => {}
            RunEvent::Token(report) => {
                let list = tokens.entry(report.sample.sequence).or_default();
                assert_eq!(report.index as usize, list.len(), "tokens come in order");
                list.push(report.sample.token);
            }
            RunEvent::Finished(id, reason, _) => {
                assert!(done.insert(id, (tokens.remove(&id).unwrap_or_default(), reason)).is_none(), "finished twice");
                open -= 1;
            }
            RunEvent::Failed(error) => return Err(error),
        }
    }
    engine.close();
    let report = engine.join();
    assert!(report.lanes.iter().all(|lane| lane.busy_ns <= lane.active_ns));
    Ok(done)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the layout, the policy, the number of micro-batches, the chunk, and who else is there: the same tokens.
    #[test]
    fn tokens_do_not_depend_on_the_schedule(
        attention in 1usize..4, split: bool, ping_pong: bool, micro_batches in 1usize..7, prefill_chunk in 1usize..9,
        rows in 1usize..9, prompts in prop::collection::vec((prop::collection::vec(0u32..900, 1..20), 1usize..12), 1..16),
    ) {
        let setup = Setup {
            attention, split, prefill_chunk, rows, ..Setup::simple(policy(ping_pong), micro_batches)
        };
        let requests = prompts.iter().enumerate().map(|(i, (prompt, tokens))| request(i as u64, prompt.clone(), *tokens));
        let done = run(&setup, requests.collect()).expect("nothing fails here");
        for (i, (prompt, tokens)) in prompts.iter().enumerate() {
            let (got, reason) = &done[&(i as u64)];
            prop_assert_eq!(got, &reference(prompt, *tokens));
            prop_assert_eq!(*reason, FinishReason::Length);
        }
    }

    /// A stage that fails or panics ends the run with its name, whichever stage and call it is; no lane is left.
    #[test]
    fn a_failing_stage_ends_the_run(
        which in 0usize..5, call in 1usize..30, panics: bool, ping_pong: bool, micro_batches in 1usize..4,
    ) {
        let toy = [Toy::Embed, Toy::Attention, Toy::Ffn, Toy::Combine, Toy::Sampling][which];
        let misdeed = if panics { Misdeed::Panic } else { Misdeed::Fail };
        let mut setup = Setup::simple(policy(ping_pong), micro_batches);
        setup.misdeed = Some((toy, call, misdeed));
        let requests = (0..6).map(|i| request(i, vec![1, 2, 3], 40)).collect();
        match run(&setup, requests).expect_err("the misdeed comes before the end") {
            EngineError::Stage { source, .. } => prop_assert_eq!(source, StageError::Other("told to fail".into())),
            EngineError::LanePanicked { message, .. } => prop_assert_eq!(message, "told to panic"),
            other => prop_assert!(false, "unexpected failure {}", other),
        }
    }
}

#[test]
fn a_stop_token_ends_a_sequence_and_counts() {
    let want = reference(&[5], 10);
    let mut asked = request(0, vec![5], 10);
    asked.stop_token_ids = Arc::from([want[3]]);
    let first = want.iter().position(|token| *token == want[3]).expect("it is there");
    let done = run(&Setup::simple(Box::new(PingPong), 2), vec![asked]).expect("nothing fails here");
    assert_eq!(done[&0], (want[..=first].to_vec(), FinishReason::Stop));
}

#[test]
fn a_cancelled_sequence_ends_and_others_go_on() {
    let setup = Setup::simple(Box::new(PingPong), 3);
    let engine = Engine::start(setup.parts()).expect("threads can be had");
    engine.submit([request(0, vec![1], 100_000), request(1, vec![2], 30)]).expect("the requests fit");
    let mut tokens = Vec::new();
    let mut finished = Vec::new();
    while finished.len() < 2 {
        match engine.events().recv_timeout(Duration::from_secs(20)).expect("no hang") {
            RunEvent::Token(report) if report.sample.sequence == 0 => {
                assert!(finished.iter().all(|(id, _)| *id != 0), "a surplus token was reported");
                if report.index == 4 {
                    engine.handle().cancel(0);
                }
            }
            RunEvent::Token(report) => tokens.push(report.sample.token),
            RunEvent::Finished(id, reason, _) => finished.push((id, reason)),
            RunEvent::Admitted(..) => {}
            RunEvent::Failed(error) => panic!("{error}"),
        }
    }
    finished.sort_by_key(|(id, _)| *id);
    assert_eq!(finished, [(0, FinishReason::Cancelled), (1, FinishReason::Length)]);
    assert_eq!(tokens, reference(&[2], 30));
    engine.close();
    engine.join();
}

#[test]
fn an_idle_engine_wakes_for_late_work_and_drops_cleanly() {
    let engine = Engine::start(Setup::simple(Box::new(PingPong), 3).parts()).expect("threads can be had");
    for round in 0..3 {
        // Longer than the spin, so that the lanes have parked.
        std::thread::sleep(Duration::from_millis(5));
        engine.submit([request(round, vec![7, 8], 3)]).expect("the request fits");
        loop {
            match engine.events().recv_timeout(Duration::from_secs(20)).expect("no hang") {
                RunEvent::Finished(id, ..) if id == round => break,
                RunEvent::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
    drop(engine);
}

/// The first lane runs all but its first segment a cycle late; the other lanes do not, and so wait for its next cycle.
struct FirstLaneLags;

impl Policy for FirstLaneLags {
    fn name(&self) -> String {
        "first_lane_lags".into()
    }

    fn orders(&self, table: &TaskTable, micro_batches: usize) -> Vec<Vec<Turn>> {
        let mut orders = Sequential.orders(table, micro_batches);
        let first = table.segments(0)[0].len();
        let (head, tail) = table.lanes[0].tasks.split_at(first);
        let turn = |task: &usize, micro_batch, behind| Turn { task: *task, micro_batch, behind };
        orders[0] = (0..micro_batches)
            .flat_map(|m| {
                let late = tail.iter().map(move |task| turn(task, m, true));
                late.chain(head.iter().map(move |task| turn(task, m, false)))
            })
            .collect();
        orders
    }
}

/// A run used to hang at its end: the FFN lane waited for a cycle that the attention lane no longer began.
#[test]
fn lanes_a_cycle_apart_end_together() {
    for (attention, micro_batches) in [(1, 1), (1, 3), (2, 1), (2, 2)] {
        let setup = Setup { attention, ..Setup::simple(Box::new(FirstLaneLags), micro_batches) };
        let done =
            run(&setup, (0..5).map(|id| request(id, vec![id as u32; 6], 20)).collect()).expect("nothing fails here");
        for id in 0..5 {
            assert_eq!(done[&id].0, reference(&[id as u32; 6], 20));
        }
    }
}

/// Accepted, it would never have been answered.
#[test]
fn what_comes_after_the_close_is_refused() {
    let engine = Engine::start(Setup::simple(Box::new(PingPong), 2).parts()).expect("threads can be had");
    let handle = engine.handle();
    engine.close();
    assert_eq!(handle.submit(request(0, vec![1], 1)), Err(SubmitError::Closed));
    engine.join();
    assert_eq!(handle.submit(request(0, vec![1], 1)), Err(SubmitError::Closed));
}
