//! A graph file held against this machine, its faults reported on stderr.

use crate::doctor;
use crate::report;
use rally_graph::hardware::Machine;
use rally_stages::deployment::{Checked, Choices, check_graph};
use std::path::Path;

/// Reads and judges a graph file; `model` replaces the graph's.
pub fn check(path: &Path, model: Option<&Path>) -> Checked {
    check_graph(path, &Choices { model, machine: this_machine(), ..Choices::default() })
}

/// Prints what was found.
pub fn report(checked: &Checked) {
    report::print(&checked.path, checked.positions.text(), &checked.diagnostics);
}

/// What the machine that runs this program has.
pub fn this_machine() -> Machine {
    Machine { cores: Some(online_cores()), memory_bytes: doctor::memory_bytes() }
}

/// Cores of the machine, which may be more than this process may use: a pinned lane names a core of the machine.
fn online_cores() -> usize {
    let last = std::fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|text| {
        let last = text.trim().rsplit(['-', ',']).next()?.parse::<usize>().ok()?;
        Some(last + 1)
    });
    last.unwrap_or_else(doctor::available_cores)
}
