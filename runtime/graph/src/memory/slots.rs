//! Bytes of activations, edge buffers and scratch on a device: what a runtime preallocates for its rows.
//!
//! It counts what the engine allocates in one process, where the slot of an edge stands with the device that reads it.

use super::{Rows, layers_of};
use crate::kinds::weights::{routing_row_bytes, wire_row_bytes};
use crate::kinds::{Role, WeightPart};
use crate::model::ModelShape;
use crate::placement::ExpertPlacement;
use crate::resolve::{Resolved, StageAt};
use crate::spec::{ComputeDtype, Routing, WireDtype};
use crate::stage_graph::DeviceIndex;
use indexmap::IndexSet;

/// Per micro-batch the values that flow and the slots of edges and exchanges; once, the scratch of every stage.
pub(super) fn count(resolved: &Resolved<'_>, device: DeviceIndex, shape: &ModelShape, rows: &Rows) -> u64 {
    let on: Vec<&StageAt<'_>> = resolved.stages.iter().filter(|stage| stage.on.contains(&device)).collect();
    if on.is_empty() {
        return 0;
    }
    let value_bytes = if resolved.spec.compute == ComputeDtype::F32 { 4 } else { 2 };
    let hidden = shape.hidden as u64;
    let is_ffn = on.iter().any(|stage| stage.role() == Role::Ffn);
    let held = if is_ffn || !rows.attention.contains(&device) { rows.total } else { rows.share };
    // x, u and y, and the routing.
    let flowing = held * (3 * hidden * value_bytes + routing_row_bytes(shape));
    let edges: u64 = resolved.stages.iter().map(|stage| edge(resolved, stage, device, shape, rows)).sum();
    let exchanges: u64 = on.iter().map(|stage| exchange(stage, shape, rows) * value_bytes).sum();
    let scratch: u64 = on.iter().map(|stage| scratch(stage, held, shape, rows)).sum();
    // Of transfers: a sum, a part of it, and both as they cross.
    let sums = rows.share * (2 * hidden * value_bytes + wire_row_bytes(WireDtype::Bf16, shape.hidden));
    let micro_batches = u64::from(resolved.spec.schedule.micro_batches);
    micro_batches * (flowing + edges + exchanges) + scratch * value_bytes + sums
}

/// Slots of a transfer that a device reads: one a source, with room for the rows of one attention device; on rails one more for
/// the sum of every FFN group.
fn edge(resolved: &Resolved<'_>, stage: &StageAt<'_>, device: DeviceIndex, shape: &ModelShape, rows: &Rows) -> u64 {
    if stage.role() != Role::Transfer || !stage.to.contains(&device) {
        return 0;
    }
    let own = resolved.stages.iter().position(|other| other.pointer == stage.pointer).unwrap_or(0);
    let returns = resolved.stages[..own].iter().any(|other| other.role() == Role::Ffn);
    let groups: IndexSet<&str> = stage.from.iter().map(|from| resolved.devices[*from].group.as_str()).collect();
    let railed = stage.spec.routing == Some(Routing::Rail) && stage.from.len() > groups.len();
    let sums = if returns && railed { groups.len() } else { 0 };
    let slot = wire_row_bytes(stage.spec.dtype.unwrap_or_default(), shape.hidden) + routing_row_bytes(shape);
    (stage.from.len() + sums) as u64 * rows.share * slot
}

/// Values that a device's peers leave for it between the parts of a stage.
fn exchange(stage: &StageAt<'_>, shape: &ModelShape, rows: &Rows) -> u64 {
    let counts = stage.counts();
    match stage.role() {
        Role::Attention if counts.o_proj > 1 => {
            let slices = counts.o_proj as u64;
            let width = (shape.heads * shape.head_dim) as u64 / slices + shape.hidden as u64;
            slices * rows.share * width
        }
        Role::Ffn if stage.spec.placement.is_some() => {
            let lent =
                |layer| ExpertPlacement::of(stage.spec, layer, shape.experts, counts.experts).lent_at_once(shape.top_k);
            let most = layers_of(stage, shape).map(|(layer, _)| lent(layer)).max().unwrap_or(0);
            (counts.experts as u64 - 1) * rows.total * (most * shape.hidden) as u64
        }
        _ => 0,
    }
}

/// Values of a stage's own buffers.
fn scratch(stage: &StageAt<'_>, held: u64, shape: &ModelShape, rows: &Rows) -> u64 {
    let counts = stage.counts();
    let part = WeightPart { shape, layer: None, counts, position: Default::default(), held: None };
    let rows = match stage.role() {
        Role::Sampling => rows.sampled,
        Role::Attention => rows.share,
        _ => held,
    };
    stage.info.scratch_values_per_row(&part).saturating_mul(rows)
}
