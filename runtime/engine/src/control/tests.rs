//! What holds while a run fails.

use super::*;
use crate::hosts::Signals;
use crate::toy::{Setup, policy, request};
use rally_transport::{Event, Peer, Polled, Registration, Stamp, Transport, TransportError};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Takes long to send, and counts what it has sent.
#[derive(Default)]
struct Slow(AtomicUsize);

impl Transport for Slow {
    fn register(&self, _: Vec<Registration>) {}

    fn post(&self, _: usize, _: Stamp) {}

    fn send(&self, _: Peer, _: Vec<u8>) {
        std::thread::sleep(Duration::from_millis(20));
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn receive(&self, _: Peer, _: Duration) -> Result<Vec<u8>, TransportError> {
        Err(TransportError::Unconnected)
    }

    fn finish(&self) {}

    fn lanes(&self) -> usize {
        0
    }

    fn poll(&self, _: usize, _: &mut dyn FnMut(Event)) -> Polled {
        Polled::Ended
    }

    fn peer_down(&self, _: Peer, _: &str) {}
}

/// Who owns the run closes the connections when it hears of a failure, and hosts are to have been told by then. What they say
/// of it is no second one.
#[test]
fn hosts_hear_of_a_failure_before_the_owner_and_of_one_only() {
    let parts = Setup { split: false, ..Setup::simple(policy(false), 1) }.parts();
    let transport = Arc::new(Slow::default());
    let followers = Followers {
        transport: Arc::clone(&transport) as Arc<dyn Transport>,
        sync: Arc::new(LaneSync::new(1, 1, false)),
        signals: Arc::new(Signals::new(&parts.plan, parts.graph.layers, 0)),
        clock: RunClock::start(),
        hosts: vec![None],
        names: vec!["a0".into(), "f0".into(), "f1".into()],
        peers: vec![1, 2],
        lanes: Vec::new(),
        lane_names: Vec::new(),
    };
    let (control, inbox) = idle_with(Some(followers));
    let failing = Arc::clone(&control);
    let fails = std::thread::spawn(move || failing.fail(EngineError::EndedEarly));
    assert!(matches!(inbox.events.recv(), Ok(RunEvent::Failed(EngineError::EndedEarly))));
    assert_eq!(transport.0.load(Ordering::SeqCst), 2);
    fails.join().expect("nothing panics in it");
    control.fail(EngineError::BrokenOff);
    assert_eq!(transport.0.load(Ordering::SeqCst), 2);
    drop(control);
    assert!(inbox.events.recv().is_err());
}

/// A lane that ends a step as the run fails may go on for a moment, and must not do a step from before once more.
#[test]
fn there_is_no_step_to_take_once_the_run_has_failed() {
    let (control, _inbox) = idle();
    control.submit([request(0, vec![1, 2, 3], 9)]).expect("there is room");
    let mut batch = DeviceBatch::default();
    for cycle in 0..3 {
        let mut samples = Vec::new();
        if cycle > 0 {
            samples.push(Sample { sequence: 0, token: 5, logprobs: None, logits: None });
        }
        control.end_step(StepEnd { micro_batch: 0, device: 0, cycle, next: cycle }, &mut samples);
        control.take_batch(0, 0, &mut batch);
        assert!(batch.rows > 0, "cycle {cycle}");
    }
    control.fail(EngineError::EndedEarly);
    control.end_step(StepEnd { micro_batch: 0, device: 0, cycle: 3, next: 3 }, &mut Vec::new());
    control.take_batch(0, 0, &mut batch);
    assert_eq!(batch.rows, 0);
}

/// Whoever streams tokens need not wait to know whether one is the last.
#[test]
fn the_last_token_says_so() {
    let (control, inbox) = idle();
    control.submit([request(0, vec![1, 2, 3], 2)]).expect("there is room");
    for cycle in 0..3 {
        let sample = Sample { sequence: 0, token: 5, logprobs: None, logits: None };
        let mut samples = if cycle > 0 { vec![sample] } else { Vec::new() };
        control.end_step(StepEnd { micro_batch: 0, device: 0, cycle, next: cycle }, &mut samples);
    }
    assert!(matches!(inbox.events.recv(), Ok(RunEvent::Admitted(..))));
    for last in [false, true] {
        assert!(matches!(inbox.events.recv(), Ok(RunEvent::Token(report)) if report.last == last), "last: {last}");
    }
    assert!(matches!(inbox.events.recv(), Ok(RunEvent::Finished(0, FinishReason::Length, _))));
}

/// Nothing that a stage does can bring a lane down while it plans; should our own code, then everyone else still gets through.
#[test]
fn a_panic_under_the_planners_lock_locks_nobody_out() {
    let (control, inbox) = idle();
    let broken = Arc::clone(&control);
    let panicked = std::thread::spawn(move || {
        let _state = lock(&broken.state);
        panic!("asked for");
    });
    assert!(panicked.join().is_err());
    control.submit([request(0, vec![1], 1)]).expect("the planner is still there");
    control.cancel(0);
    control.fail(EngineError::EndedEarly);
    assert_eq!(control.submit([request(1, vec![1], 1)]), Err(SubmitError::Closed));
    assert!(matches!(inbox.events.recv(), Ok(RunEvent::Finished(0, FinishReason::Cancelled, _))));
    assert!(matches!(inbox.events.recv(), Ok(RunEvent::Failed(EngineError::EndedEarly))));
}
