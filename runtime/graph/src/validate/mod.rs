//! Rules that span several fields: names, structure, dataflow, shards, devices, limits, schedule, memory.
//!
//! One file a family of rules. A family that cannot judge because an earlier one found the ground missing stays silent, so a
//! fault is reported once and where it was made.

mod capacity;
mod coverage;
mod cuda;
mod dataflow;
mod devices;
mod limits;
mod names;
mod placement;
mod schedule;
mod shards;
mod shares;
mod split_map;
mod structure;

use crate::diagnostic::{Diagnostic, Reporter};
use crate::hardware::Machine;
use crate::kinds::KindRegistry;
use crate::model::ModelShape;
use crate::repair::Touched;
use crate::resolve::Resolved;
use crate::source::Positions;
use crate::spec::DeploymentSpec;

/// What is validated, and against what.
#[derive(Clone, Copy)]
pub struct Validation<'a> {
    /// The deployment.
    pub spec: &'a DeploymentSpec,
    /// Where its values stand; [`Positions::default`] for a spec made in memory.
    pub positions: &'a Positions,
    /// The kinds it may use.
    pub registry: &'a KindRegistry,
    /// The model, where it could be read. Without it layers, shards and memory are not judged.
    pub shape: Option<&'a ModelShape>,
    /// The machine that checks.
    pub machine: Machine,
    /// Values of the spec that are not as the file has them; rules that read them stay silent.
    pub touched: &'a Touched,
}

/// All faults that the rules find, in the order of the file.
pub fn validate(input: &Validation<'_>) -> Vec<Diagnostic> {
    let mut out = Reporter::new(input.positions);
    if !names::count_devices(input.spec, &mut out) {
        return finish(out, input.touched);
    }
    let resolved = Resolved::new(input.spec, input.registry);
    let named = names::check(&resolved, input.registry, &mut out);
    let (touched, flow) = (input.touched, !input.touched.reaches_flow());
    let built = flow && structure::check(&resolved, &mut out);
    devices::check(&resolved, input.machine, flow, &mut out);
    shares::check(&resolved, &mut out);
    if !touched.reaches("/limits") && !touched.reaches("/schedule") {
        limits::check(&resolved, &mut out);
    }
    if flow && !touched.reaches("/schedule") {
        schedule::check(&resolved, &mut out);
    }
    if named && built && flow {
        let covered = coverage::check(&resolved, input.shape, &mut out);
        let flows = dataflow::check(&resolved, input.shape, covered, &mut out);
        let sharded = !touched.reaches_shards() && shards::check(&resolved, input.shape, &mut out);
        if let Some(shape) = input.shape
            && flows
            && sharded
            && !["/stages", "/devices", "/limits", "/schedule", "/compute"]
                .iter()
                .any(|section| touched.reaches(section))
        {
            if !out.has_errors() {
                schedule::check_plan(&resolved, input.registry, shape, &mut out);
            }
            cuda::check(&resolved, shape, &mut out);
            if !out.has_errors() {
                split_map::check(&resolved, &mut out);
            }
            capacity::check(&resolved, input.registry, shape, input.machine, &mut out);
        }
    }
    finish(out, touched)
}

/// Of values that were put right nothing more is said.
fn finish(out: Reporter<'_>, touched: &Touched) -> Vec<Diagnostic> {
    let mut found = out.finish();
    found.retain(|diagnostic| !touched.covers(&diagnostic.pointer));
    found
}
