//! Every interleaving of the hand-written waiting: lanes that wait, park and are woken; slots that go from hand to hand; the lane that
//! waits for work. The code is the engine's own, on loom's atomics and locks; nothing here ever times out, so a wake that gets
//! lost is a deadlock, and loom reports it.
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test --release -p rally-engine --lib interleavings
//! ```

use crate::control::{Control, RunEvent, idle};
use crate::engine::EngineError;
use crate::primitives::{AtomicU64, Mutex, Ordering};
use crate::slot::{self, Header, Slot};
use crate::steps::{StepEnd, Steps};
use crate::sync::{LaneSync, Stopped};
use crate::toy::request;
use loom::thread;
use rally_graph::spec::WireDtype;
use rally_schedule::batch::DeviceBatch;
use rally_schedule::planner::SubmitError;
use std::sync::Arc;

/// Runs `model` through its interleavings; `switches`: at most so many where a thread is taken off that could go on. Without it, all.
fn check(switches: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = switches;
    builder.check(model);
}

fn lanes(count: usize) -> Arc<LaneSync> {
    Arc::new(LaneSync::new(count, count, false))
}

/// A lane on a thread of its own.
fn spawn<T: 'static>(
    sync: &Arc<LaneSync>,
    lane: usize,
    work: impl FnOnce(&LaneSync) -> T + 'static,
) -> thread::JoinHandle<T> {
    let sync = Arc::clone(sync);
    thread::spawn(move || {
        sync.register(lane);
        work(&sync)
    })
}

#[test]
fn a_completion_is_never_missed() {
    check(None, || {
        let sync = lanes(2);
        let waiter = spawn(&sync, 1, |sync| sync.wait(1, 0, 0, 1));
        sync.register(0);
        sync.complete(0, 1, 0, &[1]);
        assert!(waiter.join().expect("no panic").is_ok());
    });
}

/// Whoever sees that a task is over sees when it was, or when a later one was.
#[test]
fn an_end_is_told_with_the_completion() {
    check(None, || {
        let sync = lanes(2);
        let reader = spawn(&sync, 1, |sync| sync.reached(0, 1).then(|| sync.over_ns(0)));
        sync.register(0);
        sync.complete(0, 1, 7, &[1]);
        sync.complete(0, 2, 9, &[1]);
        assert!(reader.join().expect("no panic").is_none_or(|over_ns| over_ns >= 7));
    });
}

/// The second wait begins with whatever wake the first one left behind.
#[test]
fn nor_is_the_one_after_it() {
    check(Some(4), || {
        let sync = lanes(2);
        let waiter = spawn(&sync, 1, |sync| sync.wait(1, 0, 0, 1).and_then(|_| sync.wait(1, 0, 0, 2)));
        sync.register(0);
        sync.complete(0, 1, 0, &[1]);
        sync.complete(0, 2, 0, &[1]);
        assert!(waiter.join().expect("no panic").is_ok());
    });
}

#[test]
fn all_who_wait_are_woken() {
    check(Some(3), || {
        let sync = lanes(3);
        let waiters = [1, 2].map(|own| spawn(&sync, own, move |sync| sync.wait(own, 0, 0, 1)));
        sync.register(0);
        sync.complete(0, 1, 0, &[1, 2]);
        for waiter in waiters {
            assert!(waiter.join().expect("no panic").is_ok());
        }
    });
}

#[test]
fn what_was_written_before_a_completion_is_seen_behind_the_wait() {
    check(None, || {
        let (sync, value) = (lanes(2), Arc::new(AtomicU64::new(0)));
        let seen = Arc::clone(&value);
        let waiter = spawn(&sync, 1, move |sync| {
            sync.wait(1, 0, 0, 1).expect("nobody stops the run");
            seen.load(Ordering::Relaxed)
        });
        sync.register(0);
        value.store(7, Ordering::Relaxed);
        sync.complete(0, 1, 0, &[1]);
        assert_eq!(waiter.join().expect("no panic"), 7);
    });
}

#[test]
fn an_abort_reaches_every_lane() {
    check(Some(3), || {
        let sync = lanes(3);
        let waiters = [1, 2].map(|own| spawn(&sync, own, move |sync| sync.wait(own, 0, 0, 1)));
        sync.abort();
        for waiter in waiters {
            assert_eq!(waiter.join().expect("no panic"), Err(Stopped));
        }
        assert_eq!(sync.check(0), Err(Stopped));
    });
}

#[test]
fn who_waits_for_a_lane_that_has_left_leaves() {
    check(None, || {
        let sync = lanes(2);
        let waiter = spawn(&sync, 1, |sync| sync.wait(1, 0, 0, 2));
        sync.register(0);
        sync.complete(0, 1, 0, &[1]);
        sync.end(0);
        assert_eq!(waiter.join().expect("no panic"), Err(Stopped));
    });
}

/// The last task of a lane counts, however soon it leaves behind it.
#[test]
fn a_lane_that_leaves_has_done_what_it_did() {
    check(None, || {
        let sync = lanes(2);
        let waiter = spawn(&sync, 1, |sync| sync.wait(1, 0, 0, 1));
        sync.register(0);
        sync.complete(0, 1, 0, &[1]);
        sync.end(0);
        assert!(waiter.join().expect("no panic").is_ok());
    });
}

#[test]
fn a_run_that_is_over_reaches_those_a_cycle_ahead() {
    check(None, || {
        let sync = lanes(2);
        let waiter = spawn(&sync, 1, |sync| sync.wait(1, 3, 0, 1));
        sync.register(0);
        sync.finish_after(2);
        assert_eq!(waiter.join().expect("no panic"), Err(Stopped));
        assert_eq!(sync.check(2), Ok(()));
    });
}

/// Two lanes hand one slot back and forth as a plan has it: never taken while the other has it, always with what was sent last.
#[test]
fn a_slot_is_never_held_twice() {
    const STEPS: u64 = 2;
    check(Some(4), || {
        let (sync, shared) = (lanes(2), Arc::new(Mutex::new(Slot::new(1, 1, 0, WireDtype::F32))));
        let received = Arc::clone(&shared);
        let receiver = spawn(&sync, 1, move |sync| {
            for step in 0..STEPS {
                sync.wait(1, step, 0, step + 1).expect("nobody stops the run");
                let slot = slot::take(&received).expect("the sender has let go");
                let mut value = [0.0];
                slot.receive_output(&mut value, 1, WireDtype::F32);
                assert_eq!((slot.header().step, value), (step, [step as f32]));
                drop(slot);
                sync.complete(1, step + 1, 0, &[0]);
            }
        });
        sync.register(0);
        for step in 0..STEPS {
            sync.wait(0, step, 1, step).expect("nobody stops the run");
            let mut slot = slot::take(&shared).expect("the receiver has let go");
            slot.send_rows(&[step as f32], 1, WireDtype::F32, Header { step, layer: 0, rows: 1 });
            drop(slot);
            sync.complete(0, step + 1, 0, &[1]);
        }
        receiver.join().expect("no panic");
    });
}

/// The end of an empty step, as a lane has it: returns the rows of the next one.
fn next_step(control: &Arc<Control>) -> thread::JoinHandle<usize> {
    let control = Arc::clone(control);
    thread::spawn(move || {
        control.end_step(StepEnd { micro_batch: 0, device: 0, cycle: 0, next: 1 }, &mut Vec::new());
        let mut batch = DeviceBatch::default();
        control.take_batch(0, 0, &mut batch);
        batch.rows
    })
}

#[test]
fn a_lane_without_work_hears_of_it() {
    check(None, || {
        let (control, inbox) = idle();
        let lane = next_step(&control);
        control.submit([request(0, vec![1, 2, 3], 1)]).expect("the request fits");
        assert_eq!(lane.join().expect("no panic"), 3);
        assert!(matches!(inbox.events.recv(), Ok(RunEvent::Admitted(0, ..))));
    });
}

#[test]
fn a_lane_without_work_hears_of_the_end() {
    check(None, || {
        let (control, _inbox) = idle();
        let lane = next_step(&control);
        control.close();
        assert_eq!(lane.join().expect("no panic"), 0);
    });
}

#[test]
fn a_lane_without_work_hears_of_a_failure() {
    check(None, || {
        let (control, inbox) = idle();
        let lane = next_step(&control);
        control.fail(EngineError::EndedEarly);
        assert_eq!(lane.join().expect("no panic"), 0);
        assert!(matches!(inbox.events.recv(), Ok(RunEvent::Failed(EngineError::EndedEarly))));
        assert_eq!(control.submit([request(0, vec![1], 1)]), Err(SubmitError::Closed));
    });
}

/// Taken in and then answered, or refused: never taken in behind the lane's back.
#[test]
fn a_request_beside_the_close_is_answered_or_refused() {
    check(Some(3), || {
        let (control, _inbox) = idle();
        let lane = next_step(&control);
        let closer = {
            let control = Arc::clone(&control);
            thread::spawn(move || control.close())
        };
        let submitted = control.submit([request(0, vec![1, 2], 1)]);
        closer.join().expect("no panic");
        let rows = lane.join().expect("no panic");
        match submitted {
            // With a lane that already went on, it waits for the step after.
            Ok(()) => assert!(rows == 2 || control.running_and_waiting() == (0, 1)),
            Err(error) => assert_eq!((error, rows), (SubmitError::Closed, 0)),
        }
    });
}
