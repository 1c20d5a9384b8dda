//! A graph file of any bytes: all that `rally check`, `rally show` and `rally show --plan` do with it, short of reading the model.

#![no_main]

mod shape;

use libfuzzer_sys::fuzz_target;
use rally_graph::diagnostic::{Diagnostic, MAX_DIAGNOSTICS};
use rally_graph::hardware::Machine;
use rally_graph::kinds::KindRegistry;
use rally_graph::parse::parse_graph;
use rally_graph::plan::TaskTable;
use rally_graph::spec::DeploymentSpec;
use rally_graph::stage_graph::{StageGraph, expand_devices};
use rally_graph::validate::{Validation, validate};
use rally_graph::{memory, render};
use rally_schedule::policy::Schedule;
use shape::SHAPE;

/// What is drawn and planned is kept small, so that a minute sees many files; checking is not.
const MOST_DEVICES: usize = 16;
const MOST_MICRO_BATCHES: u32 = 8;

fuzz_target!(|bytes: &[u8]| {
    let registry = KindRegistry::shared();
    let parsed = parse_graph(bytes, registry);
    assert_eq!(parsed.spec.is_some(), !parsed.diagnostics.iter().any(Diagnostic::is_error));
    let mut found = parsed.diagnostics.clone();
    if let Some((spec, touched)) = parsed.judgeable() {
        let machine = Machine { cores: Some(4), memory_bytes: Some(16_000_000_000) };
        for shape in [Some(&*SHAPE), None] {
            let positions = &parsed.positions;
            found.extend(validate(&Validation { spec, positions, registry, shape, machine, touched: &touched }));
        }
        if let Some(budget) = memory::budget(spec, &SHAPE) {
            assert!(!budget.layer_us.is_nan());
        }
    }
    assert!(found.len() <= 3 * MAX_DIAGNOSTICS);
    for diagnostic in &found {
        assert!(diagnostic.line >= 1 && diagnostic.column >= 1 && !diagnostic.message.is_empty(), "{diagnostic:?}");
    }
    if let Some(spec) = parsed.spec.filter(|_| !found.iter().any(Diagnostic::is_error)) {
        use_it(&spec, registry, found.iter().any(|diagnostic| diagnostic.code == "over-capacity"));
    }
});

/// A graph without faults can be counted, drawn, unrolled and planned.
fn use_it(spec: &DeploymentSpec, registry: &KindRegistry, too_large: bool) {
    let machine = Machine { cores: Some(4), memory_bytes: Some(16_000_000_000) };
    assert!(!memory::device_memory(spec, &SHAPE, registry, machine).is_empty());
    if too_large || expand_devices(spec).len() > MOST_DEVICES || spec.schedule.micro_batches > MOST_MICRO_BATCHES {
        return;
    }
    let picture = render::picture(spec, Some(&SHAPE), registry);
    for draw in [render::text, render::dot, render::mermaid, render::svg, render::html] {
        assert!(!draw(&picture).is_empty());
    }
    let graph = StageGraph::build(spec, &SHAPE, registry).expect("what the checker accepts unrolls");
    let schedule = Schedule::from_spec(&spec.schedule).expect("what the checker accepts has a schedule");
    schedule.plan(TaskTable::new(&graph)).expect("what the checker accepts has a plan");
}
