//! Bytes of activations, crossings and scratch on a CUDA device: what its stages and its values take of the card beside weights and KV.

use super::{Rows, layers_of, pages_per_device};
use crate::kinds::Role;
use crate::kinds::weights::{routing_row_bytes, wire_row_bytes};
use crate::model::ModelShape;
use crate::placement::ExpertPlacement;
use crate::resolve::{Resolved, StageAt};
use crate::shard::part;
use crate::spec::{Routing, WireDtype};
use crate::stage_graph::DeviceIndex;

/// Bytes of a row in a batch descriptor: token, position, first page, sampled row, and how a token is chosen.
const DESCRIBED: u64 = 48;
/// Words that choosing a token leaves beside one for each 1,024 logits, three of them: token, fault, 41 log probabilities and ids.
const CHOSEN: u64 = 43;
/// Rows of a tile of experts' work.
const TILE_ROWS: u64 = 8;

pub(super) fn count(resolved: &Resolved<'_>, device: DeviceIndex, shape: &ModelShape, rows: &Rows) -> u64 {
    let on: Vec<&StageAt<'_>> = resolved.stages.iter().filter(|stage| stage.on.contains(&device)).collect();
    if on.is_empty() {
        return 0;
    }
    let limits = &resolved.spec.limits;
    let pages = pages_per_device(limits, rows.attention.len());
    let crossings = Crossings::of(resolved, device, shape);
    let wide = rows.total * 4 * shape.hidden as u64;
    let summed = if crossings.sums { wide } else { 0 };
    // x, u and y, the routing, the descriptor with its pages.
    let flowing = 3 * wide + rows.total * (routing_row_bytes(shape) + DESCRIBED) + 4 * (pages + 1);
    let offered: u64 = crossings.offered.iter().map(|record| record * rows.total).sum();
    let wire = rows.total * wire_row_bytes(WireDtype::F32, shape.hidden);
    let scratch: u64 = on.iter().map(|stage| scratch(resolved, stage, device, shape, rows)).sum();
    u64::from(resolved.spec.schedule.micro_batches) * (flowing + summed + offered) + wire + summed + scratch
}

/// What a device does with rows that cross.
#[derive(Default)]
struct Crossings {
    /// Bytes of a row of u, of y, and of a sum, as offered; 0: not encoded.
    offered: [u64; 3],
    sums: bool,
}

impl Crossings {
    fn of(resolved: &Resolved<'_>, device: DeviceIndex, shape: &ModelShape) -> Self {
        let mut crossings = Self::default();
        for (index, stage) in resolved.stages.iter().enumerate().filter(|(_, stage)| stage.role() == Role::Transfer) {
            let output = resolved.stages[..index].iter().any(|other| other.role() == Role::Ffn);
            let railed = output && stage.spec.routing == Some(Routing::Rail);
            let dtype = stage.spec.dtype.unwrap_or_default();
            crossings.sums |= output && stage.from.len() > 1 && (railed || stage.to.contains(&device));
            if dtype != WireDtype::F32 && stage.from.contains(&device) {
                let record = wire_row_bytes(dtype, shape.hidden);
                let places = if railed { &[1, 2][..] } else { &[usize::from(output)] };
                places.iter().for_each(|place| crossings.offered[*place] = record.max(crossings.offered[*place]));
            }
        }
        crossings
    }
}

fn scratch(resolved: &Resolved<'_>, stage: &StageAt<'_>, device: DeviceIndex, shape: &ModelShape, rows: &Rows) -> u64 {
    let position = stage.on.iter().position(|on| *on == device).unwrap_or(0);
    let (counts, at) = (stage.counts(), stage.counts().position(position));
    let inner = |width: usize| part(width, counts.tensor, at.tensor).len() as u64;
    let (hidden, top_k, total) = (shape.hidden as u64, shape.top_k as u64, rows.total);
    match stage.spec.kind.as_str() {
        "mfa_attention" => attention(resolved, stage, shape, rows),
        "router" => 4 * total * shape.experts as u64,
        "dense_ffn" => 4 * total * inner(shape.dense_width),
        "expert_ffn" => {
            let shared = if at.expert == 0 { total } else { 0 };
            let answers = total * top_k * (inner(shape.expert_width) + hidden);
            let sorted = layers_of(stage, shape).next().map_or(0, |(layer, _)| {
                let placed = ExpertPlacement::of(stage.spec, layer, shape.experts, counts.experts);
                let held = placed.held_by(at.expert).len() as u64;
                let tiles = (total * top_k / TILE_ROWS + held).min(total * top_k);
                shape.experts as u64 + held + 3 * tiles + total * top_k
            });
            4 * (answers + shared * (inner(shape.shared_width) + hidden) + sorted)
        }
        "sampling" => 4 * rows.sampled * (hidden + shape.vocab as u64 + CHOSEN + 3 * shape.vocab.div_ceil(1024) as u64),
        _ => 0,
    }
}

/// Buffers, the table of angles, and in every layer the page of rows that pad.
fn attention(resolved: &Resolved<'_>, stage: &StageAt<'_>, shape: &ModelShape, rows: &Rows) -> u64 {
    let limits = &resolved.spec.limits;
    let width = shape.heads * shape.head_dim;
    let values = 2 * shape.hidden + shape.query_rank + 2 * width + 2 * shape.head_dim;
    let tokens = pages_per_device(limits, rows.attention.len()) * u64::from(limits.page_tokens);
    let angles = tokens.min(shape.max_positions as u64) * shape.head_dim as u64;
    let layers = layers_of(stage, shape).count() as u64;
    let token = stage.info.kv_bytes_per_token(shape, stage.spec.kv_dtype.unwrap_or_default());
    4 * (rows.share * values as u64 + angles) + layers * u64::from(limits.page_tokens) * token
}
