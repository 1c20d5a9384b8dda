//! A graph file held against this machine, its faults reported on stderr.

use crate::doctor;
use crate::report;
use rally_graph::hardware::Machine;
use rally_stages::deployment::{Checked, Choices, check_graph};
use std::path::Path;

/// Reads and judges a graph file; `model` replaces the graph's.
pub fn check(path: &Path, model: Option<&Path>) -> Checked {
<<<<<<< HEAD
    let registry = KindRegistry::shared();
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(error) => return unreadable(path, &error),
    };
    let parsed = parse_graph(&bytes, registry);
    let mut diagnostics = parsed.diagnostics.clone();
    let Some((spec, touched)) = parsed.judgeable() else {
        return Checked { spec: None, shape: None, model_folder: None, diagnostics, positions: parsed.positions };
    };
    let (positions, whole) = (&parsed.positions, parsed.spec.is_some());
    let (config, model_folder) = locate_model(path, spec, model);
    let shape = match rally_stages::config::load_model_shape(&config) {
        Ok(shape) => Some(shape),
        Err(error) => {
            let told = model_fault(positions, spec, model, &error.to_string());
            diagnostics.extend(told.into_iter().filter(|fault| model.is_some() || !touched.covers(&fault.pointer)));
            None
        }
    };
    let validation =
        Validation { spec, positions, registry, shape: shape.as_ref(), machine: this_machine(), touched: &touched };
    diagnostics.extend(validate(&validation));
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    let spec = whole.then(|| spec.clone());
    Checked { spec, shape, model_folder, diagnostics, positions: parsed.positions }
=======
    check_graph(path, &Choices { model, machine: this_machine(), ..Choices::default() })
}

/// Prints what was found.
pub fn report(checked: &Checked) {
    report::print(&checked.path, checked.positions.text(), &checked.diagnostics);
>>>>>>> main
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
