//! Shards: that the parts add up to the devices, that none is empty, and that fp8 tiles are not cut.

use super::placement;
use crate::diagnostic::Reporter;
use crate::kinds::Role;
use crate::model::{FP8_TILE, ModelShape, WeightFormat};
use crate::resolve::{Resolved, StageAt};
use crate::shard::part;
use crate::spec::Backend;
use crate::words;

/// Whether all shards fit, so that their bytes can be counted.
pub(super) fn check(resolved: &Resolved<'_>, shape: Option<&ModelShape>, out: &mut Reporter<'_>) -> bool {
    let before = out.len();
    for stage in &resolved.stages {
        match stage.role() {
            Role::Ffn => {
                ffn(resolved, stage, shape, out);
                placement::check(stage, shape, out);
            }
            Role::Attention => output_projection(resolved, stage, shape, out),
            _ => {}
        }
    }
    out.len() == before
}

/// Where a fault about the shards of a stage stands: at the key, at `shard`, or at the devices.
fn place(stage: &StageAt<'_>, key: &str) -> String {
    let written = stage.spec.shard.is_some_and(|shard| match key {
        "experts" => shard.experts.is_some(),
        "tensor" => shard.tensor.is_some(),
        "o_proj" => shard.o_proj.is_some(),
        _ => false,
    });
    match (written, stage.spec.shard.is_some()) {
        (true, _) => format!("{}/{key}", stage.at("shard")),
        (false, true) => stage.at("shard"),
        (false, false) => stage.at("on"),
    }
}

fn ffn(resolved: &Resolved<'_>, stage: &StageAt<'_>, shape: Option<&ModelShape>, out: &mut Reporter<'_>) {
    let (counts, devices) = (stage.counts(), stage.on.len());
    if counts.product() != devices {
        let (is, on) = (words::list(&resolved.device_names(&stage.on)), words::plural(devices as u64, "device"));
        let message = format!(
            "`{}` runs on {on} ({is}), but its shards make {}: experts {} × tensor {} × replicas {}",
            stage.id,
            counts.product(),
            counts.experts,
            counts.tensor,
            counts.replicas
        );
        let takes_experts = stage.info.keys().iter().any(|key| key.inner.contains(&"experts"));
        out.error("shard-product", place(stage, ""), message).with_help(ffn_help(resolved, stage, takes_experts));
        return;
    }
    across_groups(resolved, stage, out);
    let Some(shape) = shape else { return };
    let widths: &[(&str, usize)] = match stage.info.name() {
        "expert_ffn" => &[("expert", shape.expert_width), ("shared expert", shape.shared_width)],
        "dense_ffn" => &[("dense FFN", shape.dense_width)],
        _ => return,
    };
    if stage.info.name() == "expert_ffn" && counts.experts > shape.experts {
        let message = format!("{} shards of {} experts: some would be empty", counts.experts, shape.experts);
        out.error("empty-shard", place(stage, "experts"), message)
            .with_help(format!("at most {} shards of experts; use `tensor` or `replicas` for the rest", shape.experts));
    }
    let before = out.len();
    for (what, width) in widths {
        // The shared expert is cut like the routed ones; one report is enough.
        if out.len() == before {
            tensor_cuts(stage, what, *width, counts.tensor, shape.weight_format, out);
        }
    }
}

fn ffn_help(resolved: &Resolved<'_>, stage: &StageAt<'_>, takes_experts: bool) -> String {
    let groups = resolved.device_names(&stage.on).len();
    let (devices, inner) = (stage.on.len(), stage.on.len() / groups.max(1));
    let (outer, word) = if takes_experts { (groups, "experts") } else { (groups, "replicas") };
    match (inner * groups == devices && inner > 1, outer) {
        (true, 1) => {
            format!("experts × tensor × replicas must be {devices}, such as `\"shard\": {{ \"tensor\": {inner} }}`")
        }
        (true, _) => {
            format!(
                "the product must be {devices}, such as `\"shard\": {{ \"{word}\": {outer}, \"tensor\": {inner} }}`"
            )
        }
        (false, 1) => "leave `shard` out: a single device holds everything".into(),
        (false, _) => format!("the product must be {devices}, such as `\"shard\": {{ \"{word}\": {devices} }}`"),
    }
}

/// Tensor shards exchange activations in every layer; between groups there is no fabric for that.
fn across_groups(resolved: &Resolved<'_>, stage: &StageAt<'_>, out: &mut Reporter<'_>) {
    let counts = stage.counts();
    for shard in stage.on.chunks(counts.tensor) {
        let groups: Vec<&str> = shard.iter().map(|device| resolved.devices[*device].group.as_str()).collect();
        let cuda = shard.iter().any(|device| resolved.devices[*device].backend == Backend::Cuda);
        if let Some(other) = groups.iter().find(|group| **group != groups[0])
            && cuda
        {
            let message = format!(
                "the {} tensor shards of `{}` reach over the groups `{}` and `{other}`, which no fabric connects",
                counts.tensor, stage.id, groups[0]
            );
            out.error("shard-across-groups", place(stage, "tensor"), message)
                .with_help("keep `tensor` inside a group and spread `experts` or `replicas` over groups");
            return;
        }
    }
}

fn tensor_cuts(
    stage: &StageAt<'_>,
    what: &str,
    width: usize,
    parts: usize,
    format: WeightFormat,
    out: &mut Reporter<'_>,
) {
    if parts > width {
        let message = format!("{parts} tensor shards of the {what}'s width {width}: some would be empty");
        out.error("empty-shard", place(stage, "tensor"), message).with_help(format!("at most {width} tensor shards"));
        return;
    }
    let cut = (1..parts).map(|index| part(width, parts, index).start).find(|start| start % FP8_TILE != 0);
    if let (WeightFormat::Fp8Block, Some(cut)) = (format, cut) {
        let tiles = width / FP8_TILE;
        let message = format!(
            "{parts} tensor shards cut the {what}'s width {width} at column {cut}, inside an fp8 tile: tiles have {FP8_TILE} columns"
        );
        let help = match width.is_multiple_of(FP8_TILE) {
            true => format!("the width has {tiles} tiles: use one of {} tensor shards", divisors(tiles)),
            false => "use one tensor shard, or a checkpoint in bf16".to_owned(),
        };
        out.error("fp8-cut", place(stage, "tensor"), message).with_help(help);
    }
}

/// Divisors of a count that one may want to have shards of.
fn divisors(count: usize) -> String {
    let all: Vec<String> = (1..=count.min(64)).filter(|d| count.is_multiple_of(*d)).map(|d| d.to_string()).collect();
    all.join(", ")
}

fn output_projection(resolved: &Resolved<'_>, stage: &StageAt<'_>, shape: Option<&ModelShape>, out: &mut Reporter<'_>) {
    let parts = stage.counts().o_proj;
    if parts == 1 {
        return;
    }
    let groups = groups_of(resolved, stage);
    if let Some((group, size)) = groups.iter().find(|(_, size)| !size.is_multiple_of(parts)) {
        let message = format!(
            "`{}` splits o_proj in {parts} inside a group, but `{group}` brings {}",
            stage.id,
            words::plural(*size as u64, "device")
        );
        out.error("shard-product", place(stage, "o_proj"), message)
            .with_help("`o_proj` divides the number of devices of every group, or is left out");
        return;
    }
    let bare = |(group, _): &&(&str, usize)| resolved.spec.devices[*group].fabric.is_none();
    if let Some((group, _)) = groups.iter().find(bare) {
        let message =
            format!("`{}` splits o_proj inside `{group}`, which names no fabric to sum the parts over", stage.id);
        out.error("o-proj-without-fabric", place(stage, "o_proj"), message)
            .with_help(format!("add `\"fabric\": \"nvlink\"` to `{group}`, or leave `o_proj` out"));
        return;
    }
    let Some(shape) = shape else { return };
    if !shape.heads.is_multiple_of(parts) {
        let message = format!("{parts} shards of o_proj do not divide the {} query heads", shape.heads);
        out.error("o-proj-cut", place(stage, "o_proj"), message)
            .with_help(format!("use one of {} shards", divisors(shape.heads)));
    } else if shape.weight_format == WeightFormat::Fp8Block
        && !(shape.heads / parts * shape.head_dim).is_multiple_of(FP8_TILE)
    {
        let columns = shape.heads / parts * shape.head_dim;
        let message =
            format!("{parts} shards of o_proj have {columns} columns each, which cuts fp8 tiles of {FP8_TILE}");
        out.error("fp8-cut", place(stage, "o_proj"), message).with_help("use fewer shards");
    }
}

/// Groups of a stage and how many of its devices each brings.
fn groups_of<'a>(resolved: &'a Resolved<'_>, stage: &StageAt<'_>) -> Vec<(&'a str, usize)> {
    let mut groups: Vec<(&str, usize)> = Vec::new();
    for device in &stage.on {
        let name = resolved.devices[*device].group.as_str();
        match groups.iter_mut().find(|(group, _)| *group == name) {
            Some((_, size)) => *size += 1,
            None => groups.push((name, 1)),
        }
    }
    groups
}
