//! Bytes of activations, crossings and scratch on a CUDA device: what its stages and its values take of the card beside weights and KV.
//! The card is taken to be one of Hopper's where shapes and the graph let its own kernels run.

use super::hopper::{self, Numbers};
use super::{Rows, layers_of, pages_per_device};
use crate::kinds::Role;
use crate::kinds::weights::{routing_row_bytes, wire_row_bytes};
use crate::model::ModelShape;
use crate::placement::ExpertPlacement;
use crate::resolve::{Resolved, StageAt};
use crate::shard::part;
use crate::spec::{ComputeDtype, Routing, WireDtype};
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
    let tensor = if resolved.spec.compute == ComputeDtype::F32 {
        0
    } else {
        hopper::products(multiprocessors(resolved, device))
    };
    u64::from(resolved.spec.schedule.micro_batches) * (flowing + summed + offered) + wire + summed + scratch + tensor
}

/// Of a device: those of its share, or of a whole card.
fn multiprocessors(resolved: &Resolved<'_>, device: DeviceIndex) -> u64 {
    let group = &resolved.devices[device].group;
    resolved.spec.devices.get(group).and_then(|entry| entry.sms).map_or(hopper::MULTIPROCESSORS, u64::from)
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
    let numbers = Numbers::of_projections(resolved.spec.compute, shape);
    match stage.spec.kind.as_str() {
        "mfa_attention" => attention(resolved, stage, device, shape, rows),
        "router" => 4 * total * shape.experts as u64,
        "dense_ffn" => hopper::grouped_ffn(resolved.spec.compute, shape, total, inner(shape.dense_width))
            .unwrap_or_else(|| match numbers.filter(|_| hopper::takes_ffn(hidden, inner(shape.dense_width))) {
                Some(numbers) => {
                    let slots = hopper::Slots { rows: total, top_k: 1, experts: 1, held: 0, shares: true };
                    slots.bytes(numbers, (hidden, inner(shape.dense_width)), 1) + 8 * total
                }
                None => 4 * total * inner(shape.dense_width),
            }),
        "expert_ffn" => {
            let shares = at.expert == 0;
            let shared = if shares { total } else { 0 };
            let copied = copies_experts(stage, shape);
            // Each micro-batch's answers are there for other holders to read, and who takes which rows.
            let kept = if copied { u64::from(resolved.spec.schedule.micro_batches) } else { 1 };
            let takers = if copied { 2 * kept * total * top_k } else { 0 };
            let answers = total * top_k * (inner(shape.expert_width) + kept * hidden) + takers;
            let held = layers_of(stage, shape).next().map(|(layer, _)| {
                let placed = ExpertPlacement::of(stage.spec, layer, shape.experts, counts.experts);
                placed.held_by(at.expert).len() as u64
            });
            // Holders of copies are of one mind.
            let alike = !(shares || copied) || shape.shared_width == shape.expert_width;
            let fits = alike && hopper::takes_ffn(hidden, inner(shape.expert_width));
            if let (Some(numbers), Some(held)) = (numbers.filter(|_| fits), held.filter(|held| *held > 0)) {
                let slots = hopper::Slots { rows: total, top_k, experts: shape.experts as u64, held, shares };
                return slots.bytes(numbers, (hidden, inner(shape.expert_width)), kept) + 4 * takers;
            }
            let sorted = held.map_or(0, |held| {
                let tiles = (total * top_k / TILE_ROWS + held).min(total * top_k);
                shape.experts as u64 + held + 3 * tiles + total * top_k
            });
            4 * (answers + shared * (inner(shape.shared_width) + hidden) + sorted)
        }
        "sampling" => {
            let narrowed = Numbers::of_head(resolved.spec.compute, shape).filter(|_| hopper::takes(hidden));
            4 * rows.sampled * (hidden + shape.vocab as u64 + CHOSEN + 3 * shape.vocab.div_ceil(1024) as u64)
                + narrowed.map_or(0, |numbers| numbers.rows(rows.sampled, hidden))
        }
        _ => 0,
    }
}

/// Whether some expert is held by several devices.
fn copies_experts(stage: &StageAt<'_>, shape: &ModelShape) -> bool {
    let counts = stage.counts();
    let copies = |layer| ExpertPlacement::of(stage.spec, layer, shape.experts, counts.experts).copies() > 0;
    stage.spec.placement.is_some() && layers_of(stage, shape).any(|(layer, _)| copies(layer))
}

/// Buffers, the table of angles, and in every layer the page of rows that pad.
fn attention(
    resolved: &Resolved<'_>,
    stage: &StageAt<'_>,
    device: DeviceIndex,
    shape: &ModelShape,
    rows: &Rows,
) -> u64 {
    let limits = &resolved.spec.limits;
    let (width, hidden, rank) = ((shape.heads * shape.head_dim) as u64, shape.hidden as u64, shape.query_rank as u64);
    let numbers = Numbers::of_projections(resolved.spec.compute, shape);
    let narrow = |width: u64| numbers.filter(|_| hopper::takes(width));
    // Towards a product: narrowed, or as many f32 as `plain`.
    let towards = |width: u64, plain: u64| match narrow(width) {
        Some(numbers) => numbers.rows(rows.share, width),
        None => 4 * rows.share * plain,
    };
    let kv_dtype = stage.spec.kv_dtype.unwrap_or_default();
    let fast = hopper::takes_attention(shape, limits.page_tokens, kv_dtype);
    let micro_batches = u64::from(resolved.spec.schedule.micro_batches);
    let slices = stage.counts().o_proj.max(1) as u64;
    let (attended, projected) = match narrow(width) {
        _ if slices > 1 => (width, 0),
        Some(_) => (if fast { 0 } else { width }, 0),
        None => (0, hidden),
    };
    // Rows of all peers in the columns of a slice, and their parts of o; what peers fetch is there for every micro-batch.
    let split = match slices {
        1 => towards(width, width),
        _ => {
            let (all, slice) = (slices * rows.share, width.div_ceil(slices));
            let inputs = narrow(slice).map_or(0, |numbers| numbers.rows(all, slice));
            4 * (micro_batches * (rows.share * width + all * hidden) + all * (slice + hidden)) + inputs
        }
    };
    // Heads that leave their product rotated are in no buffer before.
    let rotates = rank <= hopper::ROTATED_RANK && !hopper::groups(resolved.spec.compute, shape);
    let heads = if fast && rotates && narrow(rank).is_some() { 0 } else { width };
    let values = rank + heads + 2 * shape.head_dim as u64 + attended + projected;
    let buffers = 4 * rows.share * values + towards(hidden, hidden) + towards(rank, 0) + split;
    let ctas = multiprocessors(resolved, device);
    let of_fast = if fast { hopper::attention(rows.share, micro_batches, width, ctas) } else { 0 };
    let tokens = pages_per_device(limits, rows.attention.len()) * u64::from(limits.page_tokens);
    let angles = tokens.min(shape.max_positions as u64) * shape.head_dim as u64;
    let layers = layers_of(stage, shape).count() as u64;
    let token = stage.info.kv_bytes_per_token(shape, kv_dtype);
    buffers + of_fast + 4 * angles + layers * u64::from(limits.page_tokens) * token
}
