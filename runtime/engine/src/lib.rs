//! Real lanes, slots, transfers and the run loop of rally.
