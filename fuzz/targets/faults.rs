//! Plans of faults, of any text: read, or refused by name. What is read is written as it was read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rally_transport::SlotKey;
use rally_transport::faults::{FaultPlan, Sent};
use std::collections::BTreeSet;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (hosts, edges) = (["a0".to_owned(), "f0".to_owned()], BTreeSet::from(["a2f".to_owned()]));
    let Ok(plan) = FaultPlan::parse(text, &hosts, &edges) else { return };
    let again = serde_json::to_string(&plan).expect("a plan is JSON");
    assert_eq!(FaultPlan::parse(&again, &hosts, &edges).as_ref(), Ok(&plan), "{again}");
    let key = SlotKey { edge: 1, micro_batch: 2, from: 0, to: 1, leg: 0 };
    for index in 0..plan.faults.len() {
        let sent = Sent { edge: Some(("a2f", key)), from: "a0", to: "f0", step: 3, layer: 4, epoch: 0 };
        assert_eq!(plan.meets(index, &sent), plan.meets(index, &sent));
        assert!(plan.faults[index].time().is_none_or(|time| time.as_secs() <= 3600));
    }
});
