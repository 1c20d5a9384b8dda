//! A slot is never waited for: whoever finds it taken, or left half written, is told which.

use rally_engine::slot::{Slot, SlotError, take};
use rally_graph::spec::WireDtype;
use std::sync::Mutex;

fn slot() -> Mutex<Slot> {
    Mutex::new(Slot::new(2, 4, 1, WireDtype::F32))
}

#[test]
fn a_slot_in_other_hands_is_busy() {
    let slot = slot();
    let held = take(&slot).expect("nobody has it");
    assert_eq!(take(&slot).err(), Some(SlotError::Busy));
    drop(held);
    assert!(take(&slot).is_ok());
}

/// It used to be called busy, which sent whoever read it looking for a fault in the plan.
#[test]
fn a_slot_that_was_left_half_written_says_so() {
    let slot = slot();
    let panicked = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _held = take(&slot).expect("nobody has it");
            panic!("told to panic");
        });
        writer.join()
    });
    assert!(panicked.is_err());
    assert_eq!(take(&slot).err(), Some(SlotError::Poisoned));
}
